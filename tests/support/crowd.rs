//! Many clients with addresses of their own, and somebody who asks beside them.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Tcp, message, millis, query, seconds};

/// Open files that the tests with most clients need, in this process alone.
const FILES: u64 = 12_000;

/// The `n`-th of the loopback addresses that only crowds use.
pub(crate) fn source(n: usize) -> Ipv4Addr {
    let [high, low] = u16::try_from(n).expect("at most 65,535 addresses").to_be_bytes();
    Ipv4Addr::new(127, 16, high, low)
}

/// A UDP socket at `source`, connected to the agent.
pub(crate) fn datagrams_from(source: Ipv4Addr, agent: SocketAddr) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).expect("UDP socket");
    // Answers may come in bursts.
    let _ = socket.set_recv_buffer_size(4 << 20);
    socket.bind(&SocketAddr::from((source, 0)).into()).expect("a loopback address");
    socket.connect(&agent.into()).expect("connect");
    socket.into()
}

/// A TCP connection from `source`, `None` if it was refused.
pub(crate) fn stream_from(source: Ipv4Addr, agent: SocketAddr) -> Option<std::net::TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("TCP socket");
    socket.bind(&SocketAddr::from((source, 0)).into()).expect("a loopback address");
    socket.connect_timeout(&agent.into(), seconds(10)).ok()?;
    Some(socket.into())
}

/// TCP connections that nobody reads from.
pub(crate) struct Crowd {
    streams: Vec<std::net::TcpStream>,
}

impl Crowd {
    /// Connects `each` times from each of `addresses`.
    pub(crate) fn connect(agent: SocketAddr, addresses: std::ops::Range<usize>, each: usize) -> Self {
        let files = nodens::sys::raise_open_files().expect("limit of open files");
        assert!(files >= FILES, "the hard limit of open files is {files}, below {FILES}");
        let places = addresses.flat_map(|address| std::iter::repeat_n(source(address), each));
        let streams: Vec<_> = places.filter_map(|source| stream_from(source, agent)).collect();
        for stream in &streams {
            stream.set_nonblocking(true).expect("not blocking");
        }
        Self { streams }
    }

    pub(crate) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Sends to each what its socket takes at once.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        for stream in &mut self.streams {
            // Closed, or full: both are what a hostile client gets.
            let _ = stream.write(bytes);
        }
    }

    /// Those that the agent has not closed. What it has sent is read for that.
    pub(crate) fn open(&mut self) -> usize {
        let mut buffer = vec![0; 1 << 16];
        let mut is_open = |stream: &mut std::net::TcpStream| loop {
            match stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        };
        self.streams.iter_mut().filter_map(|stream| is_open(stream).then_some(())).count()
    }
}

/// Somebody who goes on asking for a cached name, by UDP and on one TCP connection.
pub(crate) struct Bystander {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What a bystander got.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) asked: usize,
    /// Answered within a second.
    pub(crate) in_time: usize,
    pub(crate) by_tcp: usize,
    pub(crate) slowest: Duration,
}

impl Bystander {
    /// Begins; `owner` is cached already.
    pub(crate) fn start(agent: SocketAddr, owner: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let owner = owner.to_owned();
        let socket = UdpSocket::bind((IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).expect("client socket");
        socket.connect(agent).expect("connect");
        socket.set_read_timeout(Some(seconds(2))).expect("timeout");
        let mut tcp = Tcp::connect(agent);
        let thread = thread::spawn(move || {
            let mut seen = Seen::default();
            while !stopped.load(Ordering::Relaxed) {
                seen.ask(&socket, &owner);
                if seen.asked % 8 == 1 {
                    tcp.send(&query(&owner, "A"));
                    let reply = tcp.receive().expect("the bystander's own connection is not closed");
                    assert_eq!(reply.answers.len(), 1);
                    seen.by_tcp += 1;
                }
                thread::sleep(millis(2));
            }
            seen
        });
        Self { stop, thread }
    }

    /// Ends, and says what it got.
    #[track_caller]
    pub(crate) fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the bystander got what it asked for")
    }
}

impl Seen {
    fn ask(&mut self, socket: &UdpSocket, owner: &str) {
        let asked = message(&query(owner, "A"));
        let started = Instant::now();
        self.asked += 1;
        socket.send(&asked).expect("send");
        let mut buffer = [0; 1_500];
        // Answers to earlier queries that were late may come first.
        while started.elapsed() < seconds(2) {
            let Ok(length) = socket.recv(&mut buffer) else { return };
            if buffer[..2] == asked[..2] {
                let is_good = buffer[3] & 0x0f == 0 && buffer[7] == 1;
                assert!(is_good && length > asked.len(), "a cached answer");
                let took = started.elapsed();
                self.in_time += usize::from(took < seconds(1));
                self.slowest = self.slowest.max(took);
                return;
            }
        }
    }

    /// It got nearly all: one in a hundred may be lost where sockets overflow, or late where this process had to wait
    /// for a core.
    #[track_caller]
    pub(crate) fn must_be_served(&self) {
        assert!(self.asked >= 20 && self.by_tcp >= 2, "too little was asked: {self:?}");
        assert!(self.asked - self.in_time <= 1.max(self.asked / 100), "{self:?}");
    }
}
