//! An upstream that does what a test tells it, and counts what it sees.

pub(crate) mod edit;
pub(crate) mod reply;
pub(crate) mod steps;

use std::collections::HashMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RecordType};
use reply::address_reply;
use socket2::SockRef;
use steps::{Step, Way};

use super::free_port;

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// One query, as a script sees it.
pub(crate) struct Call<'a> {
    pub(crate) query: &'a Message,
    pub(crate) transport: Transport,
    /// Which TCP connection it came by, counted from 0; `None` over UDP.
    pub(crate) connection: Option<usize>,
    /// How often the same name and type were asked before, by any transport.
    pub(crate) before: usize,
}

/// What happens to a connection that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accept {
    /// Its queries are read.
    Serve,
    /// It stays open, and nothing is ever read from it.
    Ignore,
    /// It is reset at once.
    Reset,
}

/// What to do with a query.
pub(crate) enum Reaction {
    /// Answer at once.
    Answer(Message),
    /// Answer with these bytes, one message each.
    Bytes(Vec<Vec<u8>>),
    /// Answer after a while; later queries are not delayed by it.
    After(Duration, Message),
    /// Answer when the test calls [`Upstream::release`].
    Hold(Message),
    /// Do this, in order.
    Steps(Vec<Step>),
    /// Never answer.
    Drop,
    /// Close the connection (over UDP: never answer).
    Close,
}

/// One query as it was seen.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) transport: Transport,
    /// Which TCP connection it came by, counted from 0.
    pub(crate) connection: Option<usize>,
    pub(crate) query: Message,
}

type Script = dyn Fn(&Call<'_>) -> Reaction + Send + Sync;
type Door = dyn Fn(usize) -> Accept + Send + Sync;

struct Shared {
    script: Box<Script>,
    door: Mutex<Box<Door>>,
    seen: Mutex<Vec<Seen>>,
    asked: Mutex<HashMap<(Name, RecordType), usize>>,
    held: Mutex<Vec<(Message, Way)>>,
    released: AtomicBool,
    connections: AtomicUsize,
    open: Mutex<HashMap<usize, TcpStream>>,
    /// Answers after which a connection is closed; 0 is never.
    close_after: AtomicUsize,
    serving: AtomicBool,
}

/// A running upstream, UDP and TCP on one port.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Upstream {
    /// Starts on 127.0.0.1 with a script that says what to do with each query.
    pub(crate) fn start(script: impl Fn(&Message, Transport) -> Reaction + Send + Sync + 'static) -> Self {
        Self::start_on(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), free_port()), script)
    }

    /// Every name has the address 192.0.2.1 with this TTL.
    pub(crate) fn plain(ttl: u32) -> Self {
        Self::start(move |query, _| Reaction::Answer(address_reply(query, ttl, "192.0.2.1")))
    }

    /// As [`Upstream::start`], at an address of its own.
    pub(crate) fn start_on(
        address: SocketAddr,
        script: impl Fn(&Message, Transport) -> Reaction + Send + Sync + 'static,
    ) -> Self {
        Self::begin(address, Box::new(move |call| script(call.query, call.transport)))
    }

    /// As [`Upstream::start`], with a script that also sees which connection and how many times.
    pub(crate) fn scripted(script: impl Fn(&Call<'_>) -> Reaction + Send + Sync + 'static) -> Self {
        Self::begin(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), free_port()), Box::new(script))
    }

    fn begin(address: SocketAddr, script: Box<Script>) -> Self {
        let shared = Arc::new(Shared {
            script,
            door: Mutex::new(Box::new(|_| Accept::Serve)),
            seen: Mutex::default(),
            asked: Mutex::default(),
            held: Mutex::default(),
            released: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            open: Mutex::default(),
            close_after: AtomicUsize::new(0),
            serving: AtomicBool::new(false),
        });
        let upstream = Self { address, shared, threads: Mutex::default() };
        upstream.come_back();
        upstream
    }

    /// Opens both sockets (again).
    pub(crate) fn come_back(&self) {
        let (udp, tcp) = bound(self.address);
        self.shared.serving.store(true, Ordering::Relaxed);
        let (for_udp, for_tcp) = (Arc::clone(&self.shared), Arc::clone(&self.shared));
        let threads = [
            thread::spawn(move || serve_udp(&for_udp, udp)),
            thread::spawn(move || serve_tcp(&for_tcp, &tcp)),
        ];
        lock(&self.threads).extend(threads);
    }

    /// Closes both sockets and every connection: from now on the port refuses.
    pub(crate) fn go_away(&self) {
        self.stop();
        for thread in lock(&self.threads).drain(..) {
            thread.join().expect("a thread of the upstream");
        }
        self.break_connections();
    }

    /// Wakes the threads that wait at the sockets, and lets them end.
    fn stop(&self) {
        self.shared.serving.store(false, Ordering::Relaxed);
        self.break_connections();
        let _ = TcpStream::connect(self.address);
        let _ = UdpSocket::bind((self.address.ip(), 0)).and_then(|socket| socket.send_to(&[], self.address));
    }

    /// From now on decides by its number, from 0, what happens to a connection that comes.
    pub(crate) fn accept(&self, door: impl Fn(usize) -> Accept + Send + Sync + 'static) {
        *lock(&self.shared.door) = Box::new(door);
    }

    /// As the config writes it.
    pub(crate) fn tcp(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// As the config writes it.
    pub(crate) fn udp(&self) -> String {
        format!("udp://{}", self.address)
    }

    /// From now on each connection is closed after this many answers.
    pub(crate) fn close_after(&self, answers: usize) {
        self.shared.close_after.store(answers, Ordering::Relaxed);
    }

    /// Sends what is held; from now on nothing is held any more.
    pub(crate) fn release(&self) {
        let mut held = lock(&self.shared.held);
        self.shared.released.store(true, Ordering::Relaxed);
        for (answer, way) in held.drain(..) {
            way.send(&answer.to_vec().expect("answer"));
        }
    }

    /// TCP connections that came so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// TCP connections that are open now.
    pub(crate) fn open_connections(&self) -> usize {
        lock(&self.shared.open).len()
    }

    /// Numbers of the TCP connections that are open now.
    pub(crate) fn open_numbers(&self) -> Vec<usize> {
        lock(&self.shared.open).keys().copied().collect()
    }

    /// Breaks every open connection.
    pub(crate) fn break_connections(&self) {
        for stream in lock(&self.shared.open).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Everything that came by one transport.
    pub(crate) fn count(&self, transport: Transport) -> usize {
        let seen = lock(&self.shared.seen);
        seen.iter().filter(|seen| seen.transport == transport).count()
    }

    /// Queries for one name, by any transport.
    pub(crate) fn count_of(&self, owner: &str) -> usize {
        self.seen(owner).len()
    }

    /// The queries for one name, without the agent's own: before it is ready it asks for an SOA.
    pub(crate) fn seen(&self, owner: &str) -> Vec<Seen> {
        let owner = Name::from_ascii(owner).expect("name");
        let seen = lock(&self.shared.seen);
        seen.iter()
            .filter(|seen| {
                seen.query.queries.first().is_some_and(|q| q.name == owner && q.query_type != RecordType::SOA)
            })
            .cloned()
            .collect()
    }

    /// The agent's own questions for an SOA: to get ready, and to find out whether this upstream is back.
    pub(crate) fn count_of_own(&self) -> usize {
        let seen = lock(&self.shared.seen);
        let types = seen.iter().filter_map(|seen| seen.query.queries.first()).map(|q| q.query_type);
        types.filter(|&rtype| rtype == RecordType::SOA).count()
    }

    /// How many queries lie below this suffix.
    pub(crate) fn count_below(&self, suffix: &str) -> usize {
        let suffix = Name::from_ascii(suffix).expect("name");
        let seen = lock(&self.shared.seen);
        seen.iter()
            .filter_map(|seen| seen.query.queries.first())
            .filter(|question| suffix.zone_of(&question.name))
            .count()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Both sockets of an address. A program that another test starts at this moment may hold a copy
/// of the socket that looked for the port, until its `exec` closes it: hence more than one try.
fn bound(address: SocketAddr) -> (UdpSocket, TcpListener) {
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        match UdpSocket::bind(address).and_then(|udp| Ok((udp, TcpListener::bind(address)?))) {
            Ok(sockets) => return sockets,
            Err(error) => assert!(Instant::now() < end, "upstream's sockets, {address}: {error}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn serve_udp(shared: &Arc<Shared>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; 65_535];
    while shared.serving.load(Ordering::Relaxed) {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let way = Way::Udp(Arc::clone(&socket), peer);
        if let Ok(query) = Message::from_vec(&buffer[..length]) {
            react(shared, query, None, way);
        }
    }
}

fn serve_tcp(shared: &Arc<Shared>, listener: &TcpListener) {
    for stream in listener.incoming() {
        if !shared.serving.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let number = shared.connections.fetch_add(1, Ordering::Relaxed);
        let _ = stream.set_nodelay(true);
        let accept = lock(&shared.door)(number);
        if accept == Accept::Reset {
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            continue;
        }
        if let Ok(copy) = stream.try_clone() {
            lock(&shared.open).insert(number, copy);
        }
        if accept == Accept::Serve {
            let shared = Arc::clone(shared);
            thread::spawn(move || {
                serve_connection(&shared, stream, number);
                lock(&shared.open).remove(&number);
            });
        }
    }
}

fn serve_connection(shared: &Arc<Shared>, mut stream: TcpStream, number: usize) {
    let Ok(writer) = stream.try_clone() else {
        return;
    };
    let writer = Arc::new(Mutex::new(writer));
    let mut answered = 0;
    loop {
        let mut length = [0; 2];
        if stream.read_exact(&mut length).is_err() {
            return;
        }
        let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut bytes).is_err() {
            return;
        }
        let Ok(query) = Message::from_vec(&bytes) else {
            return;
        };
        let goes_on = react(shared, query, Some(number), Way::Tcp(Arc::clone(&writer)));
        answered += 1;
        let limit = shared.close_after.load(Ordering::Relaxed);
        if !goes_on || (limit > 0 && answered >= limit) {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// Does what the script says; false closes the connection.
fn react(shared: &Arc<Shared>, query: Message, connection: Option<usize>, way: Way) -> bool {
    let transport = if connection.is_some() { Transport::Tcp } else { Transport::Udp };
    let before = query.queries.first().map_or(0, |question| {
        let mut asked = lock(&shared.asked);
        let count = asked.entry((question.name.clone(), question.query_type)).or_default();
        *count += 1;
        *count - 1
    });
    let reaction = (shared.script)(&Call { query: &query, transport, connection, before });
    lock(&shared.seen).push(Seen { transport, connection, query });
    match reaction {
        Reaction::Answer(answer) => way.send(&answer.to_vec().expect("answer")),
        Reaction::Bytes(messages) => messages.iter().for_each(|bytes| way.send(bytes)),
        Reaction::Steps(steps) => way.run(steps),
        Reaction::After(delay, answer) => {
            way.run(vec![Step::Pause(delay), Step::Message(answer.to_vec().expect("answer"))]);
        }
        Reaction::Hold(answer) => {
            let mut held = lock(&shared.held);
            if shared.released.load(Ordering::Relaxed) {
                way.send(&answer.to_vec().expect("answer"));
            } else {
                held.push((answer, way));
            }
        }
        Reaction::Drop => {}
        Reaction::Close => return false,
    }
    true
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere already fails the test; its counts are still good.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
