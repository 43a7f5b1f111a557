//! Passing queries on to a server while there is no agent: no cache, no rules, but DNS.
//!
//! Threads of their own, so that whoever starts the agent again is not kept from it. The first query of each relay is one of
//! its own, for a name that nobody else knows: if it comes back as a client's, the server asks us, and nothing is passed on.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Plan;
use crate::config::AllowFrom;
use crate::serve::is_allowed;
use crate::serve::socket::Place;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Queries by UDP that wait for their answer.
const PENDING: usize = 4096;
/// Queries by UDP whose answer may still come soon. The rest waits in our sockets: a server's own socket holds some hundred
/// datagrams (net.core.rmem_default), and there is a backlog of seconds when the relay starts.
const WINDOW: usize = 128;
/// Tries at an ID that none of them has: at most one in sixteen is taken.
const TRIES: u32 = 16;
/// How long one waits (resolv.conf(5): a stub resolver gives up after 5 s).
const PATIENCE: Duration = Duration::from_secs(5);
/// A server without an answer for this long is passed over, if there is another.
const SILENCE: Duration = Duration::from_secs(1);
/// Clients by TCP at a time, a thread each.
const CLIENTS: usize = 32;
/// So often a thread looks whether it is to end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// A client by TCP that is quiet for this long is let go at the end.
const GOODBYE: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
/// Datagrams of one socket before the next one has its turn.
const BURST: usize = 64;
/// Letters of the name that tells whether queries come back: more than anybody guesses.
const MARK: usize = 20;
/// The longest datagram of DNS (RFC 1035 §4.2.1 leaves it to the transport).
const DATAGRAM: usize = 65_535;

/// Sockets whose queries are passed on.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) udp: Vec<(UdpSocket, Place)>,
    pub(super) tcp: Vec<(TcpListener, Place)>,
}

/// Passes queries on while it lives.
#[derive(Debug)]
pub(super) struct Relay {
    stop: Arc<AtomicBool>,
    passed: Arc<AtomicU64>,
}

impl Relay {
    /// From these sockets to the servers of the plan, of which there is at least one, for those whom the plan allows.
    pub(super) fn start(sockets: Sockets, plan: &Plan) -> io::Result<Self> {
        let relay = Self { stop: Arc::default(), passed: Arc::default() };
        let (stop, passed) = (Arc::clone(&relay.stop), Arc::clone(&relay.passed));
        let Sockets { udp, tcp } = sockets;
        let (first, allow_from) = (plan.relay[0], plan.allow_from.clone());
        let mut datagrams = Datagrams::new(udp, plan, Arc::clone(&passed))?;
        thread::Builder::new().name("relay-udp".into()).spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                datagrams.turn(true);
            }
            // What was taken is answered, and nothing more is.
            while !datagrams.pending.is_empty() {
                datagrams.turn(false);
            }
        })?;
        let (stop, passed) = (Arc::clone(&relay.stop), Arc::clone(&relay.passed));
        thread::Builder::new().name("relay-tcp".into()).spawn(move || {
            accept(&tcp, (first, &allow_from), &stop, &passed);
        })?;
        Ok(relay)
    }

    /// Queries that were passed on.
    pub(super) fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

/// No more queries are taken; those that were are answered yet.
impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A query that waits for its answer.
#[derive(Debug)]
struct Pending {
    client: SocketAddr,
    socket: usize,
    id: [u8; 2],
    asked: Instant,
}

#[derive(Debug)]
struct Datagrams {
    sockets: Vec<(UdpSocket, Place)>,
    allow_from: AllowFrom,
    servers: Vec<SocketAddr>,
    upstream: UdpSocket,
    pending: HashMap<[u8; 2], Pending>,
    /// Since when the server is asked that is asked now, and when it last answered.
    since: Instant,
    heard: Instant,
    passed: Arc<AtomicU64>,
    /// Part of a name that we alone have asked for.
    mark: [u8; MARK],
    goes_round: bool,
    space: Vec<u8>,
}

impl Datagrams {
    fn new(sockets: Vec<(UdpSocket, Place)>, plan: &Plan, passed: Arc<AtomicU64>) -> io::Result<Self> {
        let (servers, allow_from) = (plan.relay.clone(), plan.allow_from.clone());
        let upstream = towards(servers[0])?;
        let mark = rand::random::<[u8; MARK]>().map(|byte| b'a' + byte % 26);
        let _ = upstream.send(&marked(mark));
        Ok(Self {
            sockets,
            allow_from,
            servers,
            upstream,
            pending: HashMap::new(),
            since: Instant::now(),
            heard: Instant::now(),
            passed,
            mark,
            goes_round: false,
            space: vec![0; DATAGRAM],
        })
    }

    /// Waits for datagrams, and passes on those that have come; answers alone, if `take` is false.
    fn turn(&mut self, take: bool) {
        let began = Instant::now();
        let soon = |pending: &&Pending| began.saturating_duration_since(pending.asked) < SILENCE;
        let mut room = WINDOW.saturating_sub(self.pending.values().filter(soon).count());
        let sockets = if take && room > 0 { self.sockets.len() } else { 0 };
        let all = self.sockets[..sockets].iter().map(|(socket, _)| socket).chain([&self.upstream]);
        let mut events: Vec<_> = all.map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
        if poll(&mut events, Some(&LOOK)).is_err() {
            return;
        }
        let now = Instant::now();
        self.pending.retain(|_, pending| now.saturating_duration_since(pending.asked) < PATIENCE);
        for socket in 0..sockets {
            let share = BURST.min(room);
            room -= (0..share).take_while(|_| self.pass_on(socket, now)).count();
        }
        while self.pass_back(now) {}
        let long_ago = |at: Instant| now.saturating_duration_since(at) > SILENCE;
        let waits =
            self.pending.values().any(|pending| pending.asked >= self.since && long_ago(pending.asked));
        if waits && self.servers.len() > 1 && long_ago(self.heard) {
            self.servers.rotate_left(1);
            (self.since, self.heard) = (now, now);
            if let Ok(upstream) = towards(self.servers[0]) {
                let _ = upstream.send(&marked(self.mark));
                self.upstream = upstream;
            }
        }
    }

    fn pass_on(&mut self, socket: usize, now: Instant) -> bool {
        let flags = rustix::net::RecvFlags::DONTWAIT;
        let (held, place) = &self.sockets[socket];
        let received = rustix::net::recvfrom(held, &mut self.space[..], flags);
        let Ok((_, length, Some(client))) = received else { return false };
        let Ok(client) = SocketAddr::try_from(client) else { return true };
        if !is_allowed(&self.allow_from, *place, client.ip()) {
            return true;
        }
        let query = &mut self.space[..length];
        self.goes_round |= query.windows(MARK).any(|part| part.eq_ignore_ascii_case(&self.mark));
        // A reply to a reply would go round for ever.
        if self.goes_round || length < 12 || query[2] & 0x80 != 0 || self.pending.len() >= PENDING {
            return true;
        }
        let id = [query[0], query[1]];
        let mut free =
            (0..TRIES).map(|_| rand::random::<[u8; 2]>()).filter(|id| !self.pending.contains_key(id));
        let Some(ours) = free.next() else { return true };
        query[..2].copy_from_slice(&ours);
        if self.upstream.send(query).is_ok() {
            self.pending.insert(ours, Pending { client, socket, id, asked: now });
            self.passed.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn pass_back(&mut self, now: Instant) -> bool {
        // An error, such as a refusal of the server's host, is taken off the socket by being read.
        let Ok(length) = self.upstream.recv(&mut self.space) else { return false };
        let answer = &mut self.space[..length];
        let Some(pending) = answer.first_chunk().and_then(|id: &[u8; 2]| self.pending.remove(id)) else {
            return true;
        };
        self.heard = now;
        answer[..2].copy_from_slice(&pending.id);
        // A client that has gone is nobody's trouble.
        let _ = rustix::net::sendto(
            &self.sockets[pending.socket].0,
            answer,
            rustix::net::SendFlags::DONTWAIT,
            &pending.client,
        );
        true
    }
}

/// A query for a name with this in it, below one that does not exist (RFC 6761 §6.4).
fn marked(mark: [u8; MARK]) -> Vec<u8> {
    let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, MARK as u8];
    query.extend(mark);
    query.extend(b"\x06nodens\x07invalid\0\0\x01\0\x01");
    query
}

fn towards(server: SocketAddr) -> io::Result<UdpSocket> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(server)?;
    Ok(socket)
}

fn accept(
    listeners: &[(TcpListener, Place)],
    (server, allow_from): (SocketAddr, &AllowFrom),
    stop: &Arc<AtomicBool>,
    passed: &Arc<AtomicU64>,
) {
    let clients = Arc::new(AtomicUsize::new(0));
    while !stop.load(Ordering::Relaxed) {
        let mut events: Vec<_> =
            listeners.iter().map(|(socket, _)| PollFd::new(socket, PollFlags::IN)).collect();
        if poll(&mut events, Some(&LOOK)).is_err() {
            continue;
        }
        for (listener, place) in listeners {
            let Ok((client, peer)) = listener.accept() else { continue };
            if !is_allowed(allow_from, *place, peer.ip()) {
                continue;
            }
            if clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS {
                clients.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (stop, passed, here) = (Arc::clone(stop), Arc::clone(passed), Arc::clone(&clients));
            let serve = move || {
                // Whatever ends it, the client sees it end.
                let _ = converse(client, server, &stop, &passed);
                here.fetch_sub(1, Ordering::Relaxed);
            };
            if thread::Builder::new().name("relay-client".into()).spawn(serve).is_err() {
                clients.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// One query after the other, each message behind its length (RFC 1035 §4.2.2).
fn converse(
    mut client: TcpStream,
    server: SocketAddr,
    stop: &AtomicBool,
    passed: &AtomicU64,
) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let mut upstream = TcpStream::connect_timeout(&server, PATIENCE)?;
    for stream in [&client, &upstream] {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    loop {
        if !has_more(&client, stop)? {
            return Ok(());
        }
        pass(&mut client, &mut upstream)?;
        passed.fetch_add(1, Ordering::Relaxed);
        pass(&mut upstream, &mut client)?;
    }
}

/// Waits for the client's next query. False if there is none, or none is to be taken any more.
fn has_more(client: &TcpStream, stop: &AtomicBool) -> io::Result<bool> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        // Looked at before the socket, so that a query that is there by then is still answered, and one that comes later
        // is not waited for.
        let stops = stop.load(Ordering::Relaxed);
        let patience = if stops { GOODBYE } else { LOOK };
        if poll(&mut [PollFd::new(client, PollFlags::IN)], Some(&patience))? > 0 {
            return Ok(true);
        }
        if stops {
            break;
        }
    }
    Ok(false)
}

fn pass(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    let mut length = [0; 2];
    from.read_exact(&mut length)?;
    let mut message = length.to_vec();
    message.resize(2 + usize::from(u16::from_be_bytes(length)), 0);
    from.read_exact(&mut message[2..])?;
    to.write_all(&message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";

    fn udp() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let at = socket.local_addr().unwrap();
        (socket, at)
    }

    fn start(held: UdpSocket, addr: SocketAddr, relay: Vec<SocketAddr>) -> io::Result<Relay> {
        let udp = vec![(held, Place { addr, intercepted: false })];
        Relay::start(Sockets { udp, tcp: Vec::new() }, &Plan { relay, ..Plan::default() })
    }

    #[test]
    fn who_may_not_ask_is_not_passed_on() {
        let (held, addr) = udp();
        let (server, there) = udp();
        let prefixes = AllowFrom::Prefixes(vec!["10.0.0.0/8".parse().unwrap()]);
        let plan = Plan { relay: vec![there], allow_from: prefixes, ..Plan::default() };
        let udp_sockets = vec![(held, Place { addr, intercepted: false })];
        let relay = Relay::start(Sockets { udp: udp_sockets, tcp: Vec::new() }, &plan).unwrap();
        answer(&server);
        udp().0.send_to(QUERY, addr).unwrap();
        assert!(server_is_silent(&server));
        assert_eq!(relay.passed(), 0);
    }

    /// Answers one query, with its own bytes and QR.
    fn answer(server: &UdpSocket) -> Vec<u8> {
        let mut space = [0; 512];
        let (length, peer) = server.recv_from(&mut space).unwrap();
        space[2] |= 0x80;
        server.send_to(&space[..length], peer).unwrap();
        space[..length].to_vec()
    }

    #[test]
    fn a_query_by_udp_is_answered_with_its_own_id_by_the_server_that_answers() {
        let (held, at) = udp();
        let (_silent, nowhere) = udp();
        let (server, there) = udp();
        let relay = start(held, at, vec![nowhere, there]).unwrap();
        let (client, _) = udp();
        client.connect(at).unwrap();
        let began = Instant::now();
        let mut space = [0; 512];
        client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let length = loop {
            assert!(began.elapsed() < Duration::from_secs(10), "{} were passed on", relay.passed());
            client.send(QUERY).unwrap();
            if !server_is_silent(&server) {
                // The first is the relay's own question, whether queries go round.
                answer(&server);
            }
            if let Ok(length) = client.recv(&mut space) {
                break length;
            }
        };
        assert_eq!((&space[..2], length), (&QUERY[..2], QUERY.len()));
        assert!(began.elapsed() > SILENCE, "the first server was asked first");
    }

    fn server_is_silent(server: &UdpSocket) -> bool {
        server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let silent = server.peek(&mut [0; 1]).is_err();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        silent
    }

    #[test]
    fn a_server_that_asks_us_is_not_asked_any_more() {
        let (held, at) = udp();
        let (server, there) = udp();
        let relay = start(held, at, vec![there]).unwrap();
        let (mut space, forwards) = ([0; 512], udp().0);
        let (length, _) = server.recv_from(&mut space).unwrap();
        forwards.send_to(&space[..length], at).unwrap();
        // In the same socket behind it.
        forwards.send_to(QUERY, at).unwrap();
        assert!(server_is_silent(&server));
        assert_eq!(relay.passed(), 0);
    }

    #[test]
    fn queries_by_tcp_are_passed_on_and_back_whole() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_udp, at) = udp();
        let held = TcpListener::bind(at).unwrap();
        held.set_nonblocking(true).unwrap();
        let sockets = Sockets { udp: Vec::new(), tcp: vec![(held, Place { addr: at, intercepted: false })] };
        let plan = Plan { relay: vec![server.local_addr().unwrap()], ..Plan::default() };
        let relay = Relay::start(sockets, &plan).unwrap();
        let mut client = TcpStream::connect(at).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (mut upstream, _) = server.accept().unwrap();
        for round in 0..2 {
            let message = vec![round; 300];
            let framed = [&300u16.to_be_bytes()[..], &message].concat();
            client.write_all(&framed[..7]).unwrap();
            client.write_all(&framed[7..]).unwrap();
            let mut space = vec![0; framed.len()];
            upstream.read_exact(&mut space).unwrap();
            assert_eq!(space, framed);
            upstream.write_all(&framed).unwrap();
            client.read_exact(&mut space).unwrap();
            assert_eq!(space, framed);
        }
        assert_eq!(relay.passed(), 2);
    }
}
