//! The thread of a scripted server.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use socket2::SockRef;

use super::{Counts, Manner, Turn};
use crate::names::Kind;
use crate::packet;
use crate::wait;

/// Longest sleep: how exactly idle connections are closed.
const LONGEST_SLEEP: Duration = Duration::from_millis(250);
/// The answer to a slow name comes after this.
const SLOW: Duration = Duration::from_secs(2);
/// How long the port of a server that comes back may still be held.
const BIND_LIMIT: Duration = Duration::from_secs(1);

type Orders = Receiver<(Turn, Sender<Result<()>>)>;

pub(super) struct Serving {
    address: SocketAddr,
    manner: Manner,
    counts: Arc<Counts>,
    endpoints: Arc<Mutex<Vec<Ipv4Addr>>>,
    orders: Orders,
    woken: UnixStream,
    /// None while it has left.
    sockets: Option<(TcpListener, UdpSocket)>,
    silent: bool,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    /// Answers by the time at which they are due.
    due: BinaryHeap<Reverse<Answer>>,
    room: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    /// When the answer before the next one has gone.
    free_at: Instant,
    last_query: Instant,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Answer {
    at: Instant,
    to: Client,
    message: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Client {
    Tcp(u64),
    Udp(SocketAddr),
}

impl Serving {
    pub(super) fn new(
        address: SocketAddr,
        manner: Manner,
        (counts, endpoints): (Arc<Counts>, Arc<Mutex<Vec<Ipv4Addr>>>),
        orders: Orders,
        woken: UnixStream,
    ) -> Result<Self> {
        Ok(Self {
            address,
            manner,
            counts,
            endpoints,
            orders,
            woken,
            sockets: Some(bind(address)?),
            silent: false,
            connections: BTreeMap::new(),
            next_connection: 0,
            due: BinaryHeap::new(),
            room: vec![0; 1 << 16],
        })
    }

    /// Until it is told to end.
    pub(super) fn run(&mut self) {
        loop {
            let mut polled = vec![self.woken.as_raw_fd()];
            if !self.silent {
                let sockets = self.sockets.iter();
                polled.extend(sockets.flat_map(|(tcp, udp)| [tcp.as_raw_fd(), udp.as_raw_fd()]));
                polled.extend(self.connections.values().map(|connection| connection.stream.as_raw_fd()));
            }
            let next = self.due.peek().filter(|_| !self.silent);
            let sleep =
                next.map_or(LONGEST_SLEEP, |next| next.0.at.saturating_duration_since(Instant::now()));
            let ready = wait::readable(&polled, sleep.min(LONGEST_SLEEP));
            if ready[0] && !self.obey() {
                return;
            }
            if !self.silent {
                let is_ready = |fd: RawFd| polled.iter().zip(&ready).any(|(&of, &ready)| ready && of == fd);
                self.receive(is_ready);
                self.send_due();
                self.close_idle();
            }
        }
    }

    /// Does what it was told. False at the end.
    fn obey(&mut self) -> bool {
        let _ = self.woken.read(&mut self.room);
        while let Ok((turn, done)) = self.orders.try_recv() {
            let result = match turn {
                Turn::Silent | Turn::Answer => {
                    self.silent = turn == Turn::Silent;
                    Ok(())
                }
                Turn::Reset => {
                    self.reset();
                    Ok(())
                }
                Turn::Leave | Turn::End => {
                    self.sockets = None;
                    self.reset();
                    Ok(())
                }
                Turn::Return => bind(self.address).map(|sockets| self.sockets = Some(sockets)),
            };
            // Who does not wait for it does not mind.
            let _ = done.send(result);
            if turn == Turn::End {
                return false;
            }
        }
        true
    }

    /// Closes all connections by RST. Those that nobody has accepted yet go with the listener.
    fn reset(&mut self) {
        self.accept();
        for connection in std::mem::take(&mut self.connections).into_values() {
            let _ = SockRef::from(&connection.stream).set_linger(Some(Duration::ZERO));
        }
        self.due.clear();
    }

    fn accept(&mut self) {
        let Some((listener, _)) = &self.sockets else { return };
        while let Ok((stream, _)) = listener.accept() {
            if stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).is_ok() {
                let now = Instant::now();
                let connection = Connection { stream, input: Vec::new(), free_at: now, last_query: now };
                self.connections.insert(self.next_connection, connection);
                self.next_connection += 1;
                self.counts.connections.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn receive(&mut self, is_ready: impl Fn(RawFd) -> bool) {
        let mut queries = Vec::new();
        if let Some((_, udp)) = &self.sockets
            && is_ready(udp.as_raw_fd())
        {
            while let Ok((length, from)) = udp.recv_from(&mut self.room) {
                queries.push((Client::Udp(from), self.room[..length].to_vec()));
            }
        }
        let room = &mut self.room;
        self.connections.retain(|&number, connection| {
            if !is_ready(connection.stream.as_raw_fd()) {
                return true;
            }
            let lives = connection.read(room);
            queries.extend(connection.queries().into_iter().map(|query| (Client::Tcp(number), query)));
            lives
        });
        for (client, query) in queries {
            self.take(client, &query);
        }
        if let Some((listener, _)) = &self.sockets
            && is_ready(listener.as_raw_fd())
        {
            self.accept();
        }
    }

    /// Makes the answer to a query, and says when it is due.
    fn take(&mut self, client: Client, query: &[u8]) {
        let number = self.counts.queries.fetch_add(1, Ordering::Relaxed);
        let kind = Kind::of(query).unwrap_or(Kind::Lasting);
        let Some(mut message) = self.reply(query, kind) else { return };
        let is_late = self.manner.late_of > 0 && mixed(number).is_multiple_of(self.manner.late_of);
        let delay = match kind {
            Kind::Slow => SLOW,
            _ if is_late => self.manner.late,
            _ => self.manner.delay,
        };
        let now = Instant::now();
        let mut at = now + delay;
        if let Client::Tcp(number) = client {
            message = packet::framed(&message);
            let Some(connection) = self.connections.get_mut(&number) else { return };
            connection.last_query = now;
            if self.manner.serial {
                at = now.max(connection.free_at) + delay;
                connection.free_at = at;
            }
        }
        self.due.push(Reverse(Answer { at, to: client, message }));
    }

    fn reply(&self, query: &[u8], kind: Kind) -> Option<Vec<u8>> {
        if kind != Kind::Endpoints {
            return packet::reply(query, kind.ttl(), 1);
        }
        let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let mut message = packet::reply(query, kind.ttl(), endpoints.len() as u16)?;
        // The records stand last, 16 octets each, and the address last in each; other types have none.
        let records = message.len() - 12 - question_length(query);
        let start = message.len() - records;
        for (record, address) in message[start..].chunks_exact_mut(16).zip(&*endpoints) {
            record[12..].copy_from_slice(&address.octets());
        }
        Some(message)
    }

    fn send_due(&mut self) {
        let now = Instant::now();
        while self.due.peek().is_some_and(|next| next.0.at <= now) {
            let Some(Reverse(answer)) = self.due.pop() else { return };
            match answer.to {
                Client::Udp(to) => {
                    if let Some((_, udp)) = &self.sockets {
                        let _ = udp.send_to(&answer.message, to);
                    }
                }
                Client::Tcp(number) => {
                    let connection = self.connections.get_mut(&number);
                    if connection
                        .is_some_and(|connection| connection.stream.write_all(&answer.message).is_err())
                    {
                        self.connections.remove(&number);
                    }
                }
            }
        }
    }

    fn close_idle(&mut self) {
        let idle = self.manner.idle;
        let is_used = |of: &Connection| of.free_at.max(of.last_query).elapsed() < idle;
        self.connections.retain(|_, connection| is_used(connection));
    }
}

impl Connection {
    /// Takes what has come. False when the other end has closed.
    fn read(&mut self, room: &mut [u8]) -> bool {
        loop {
            match self.stream.read(room) {
                Ok(0) => return false,
                Ok(length) => self.input.extend_from_slice(&room[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }

    /// The complete queries of what has come.
    fn queries(&mut self) -> Vec<Vec<u8>> {
        let mut queries = Vec::new();
        let mut at = 0;
        while let Some((length, rest)) = self.input[at..].split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let Some(query) = rest.get(..length) else { break };
            queries.push(query.to_vec());
            at += 2 + length;
        }
        self.input.drain(..at);
        queries
    }
}

/// By TCP and UDP.
fn bind(address: SocketAddr) -> Result<(TcpListener, UdpSocket)> {
    let start = Instant::now();
    let sockets = loop {
        match TcpListener::bind(address).and_then(|tcp| Ok((tcp, UdpSocket::bind(address)?))) {
            Ok(sockets) => break sockets,
            Err(error) if start.elapsed() > BIND_LIMIT => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    sockets.0.set_nonblocking(true)?;
    sockets.1.set_nonblocking(true)?;
    Ok(sockets)
}

/// Of a query that has been answered.
fn question_length(query: &[u8]) -> usize {
    let name = query[12..].iter().scan(0_usize, |left, &octet| {
        let is_end = *left == 0 && octet == 0;
        *left = if *left == 0 { octet as usize } else { *left - 1 };
        (!is_end).then_some(())
    });
    name.count() + 5
}

/// SplitMix64's finish: which answers are late has no rhythm, and is the same at each run.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
