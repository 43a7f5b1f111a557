//! An upstream that does what a test tells it, and counts what it sees.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::free_port;

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    Udp,
    Tcp,
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
    /// Never answer.
    Drop,
    /// Close the connection (over UDP: never answer).
    Close,
}

/// One query as it was seen.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) transport: Transport,
    pub(crate) query: Message,
}

type Script = dyn Fn(&Message, Transport) -> Reaction + Send + Sync;

struct Shared {
    script: Box<Script>,
    seen: Mutex<Vec<Seen>>,
    held: Mutex<Vec<(Message, Way)>>,
    released: AtomicBool,
    connections: AtomicUsize,
    open: Mutex<HashMap<usize, TcpStream>>,
    /// Answers after which a connection is closed; 0 is never.
    close_after: AtomicUsize,
    stopping: AtomicBool,
}

/// A running upstream, UDP and TCP on one port.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

/// The way back to the agent.
#[derive(Clone)]
enum Way {
    Udp(Arc<UdpSocket>, SocketAddr),
    Tcp(Arc<Mutex<TcpStream>>),
}

impl Way {
    fn send(&self, bytes: &[u8]) {
        // An agent that has gone away is no fault of the upstream's.
        match self {
            Self::Udp(socket, peer) => {
                let _ = socket.send_to(bytes, peer);
            }
            Self::Tcp(stream) => {
                let length = u16::try_from(bytes.len()).expect("at most 64 KiB");
                let _ = lock(stream).write_all(&[&length.to_be_bytes(), bytes].concat());
            }
        }
    }
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

    pub(crate) fn start_on(
        address: SocketAddr,
        script: impl Fn(&Message, Transport) -> Reaction + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = bound(address);
        // Long enough to be cheap, short enough for a prompt end.
        udp.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
        let shared = Arc::new(Shared {
            script: Box::new(script),
            seen: Mutex::default(),
            held: Mutex::default(),
            released: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            open: Mutex::default(),
            close_after: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
        });
        let for_udp = Arc::clone(&shared);
        thread::spawn(move || serve_udp(&for_udp, udp));
        let for_tcp = Arc::clone(&shared);
        thread::spawn(move || serve_tcp(&for_tcp, &tcp));
        Self { address, shared }
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
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.break_connections();
        // Wakes the thread that waits in `accept`.
        let _ = TcpStream::connect(self.address);
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
    while !shared.stopping.load(Ordering::Relaxed) {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let way = Way::Udp(Arc::clone(&socket), peer);
        if let Ok(query) = Message::from_vec(&buffer[..length]) {
            react(shared, query, Transport::Udp, way);
        }
    }
}

fn serve_tcp(shared: &Arc<Shared>, listener: &TcpListener) {
    for stream in listener.incoming() {
        if shared.stopping.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let number = shared.connections.fetch_add(1, Ordering::Relaxed);
        let _ = stream.set_nodelay(true);
        if let Ok(copy) = stream.try_clone() {
            lock(&shared.open).insert(number, copy);
        }
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            serve_connection(&shared, stream);
            lock(&shared.open).remove(&number);
        });
    }
}

fn serve_connection(shared: &Arc<Shared>, mut stream: TcpStream) {
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
        let goes_on = react(shared, query, Transport::Tcp, Way::Tcp(Arc::clone(&writer)));
        answered += 1;
        let limit = shared.close_after.load(Ordering::Relaxed);
        if !goes_on || (limit > 0 && answered >= limit) {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// Does what the script says; false closes the connection.
fn react(shared: &Arc<Shared>, query: Message, transport: Transport, way: Way) -> bool {
    let reaction = (shared.script)(&query, transport);
    lock(&shared.seen).push(Seen { transport, query });
    match reaction {
        Reaction::Answer(answer) => way.send(&answer.to_vec().expect("answer")),
        Reaction::Bytes(messages) => messages.iter().for_each(|bytes| way.send(bytes)),
        Reaction::After(delay, answer) => {
            thread::spawn(move || {
                thread::sleep(delay);
                way.send(&answer.to_vec().expect("answer"));
            });
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

/// A reply to this query with nothing but an RCODE.
pub(crate) fn reply_code(query: &Message, code: ResponseCode) -> Message {
    let mut reply = query.clone();
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.response_code = code;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = false;
    reply.metadata.authentic_data = false;
    if let Some(edns) = &mut reply.edns {
        edns.options_mut().options.clear();
    }
    reply
}

/// A reply with one address record under the question's own name; NODATA for other types.
pub(crate) fn address_reply(query: &Message, ttl: u32, address: &str) -> Message {
    let mut reply = reply_code(query, ResponseCode::NoError);
    let question = query.queries.first().expect("question");
    let data = RData::from(address.parse::<IpAddr>().expect("address"));
    if data.record_type() == question.query_type {
        reply.add_answer(Record::from_rdata(question.name.clone(), ttl, data));
    }
    reply
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere already fails the test; its counts are still good.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
