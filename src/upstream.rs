//! Asking servers: a pool takes a question and gives back an answer inside a deadline.
//!
//! A pool belongs to an upstream definition, not to a zone. Below it stand servers, each with its
//! connections. [`Pool::exchange`] is the whole life of one question.

pub mod auto;
pub mod connection;
pub mod connections;
mod exchange;
pub mod health;
#[cfg(test)]
mod hostile;
mod names;
pub mod pace;
mod probe;
pub mod queue;
pub mod server;
pub mod system;
pub mod tls;
pub mod transport;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use exchange::Asking;
use hickory_proto::rr::Name;
use metrics::counter;
use names::Names;
use pace::{Budget, MOVES};
use queue::Source;
use server::{How, Server, Settings};
use tls::Tls;
use tokio::sync::mpsc;
use tokio::time::Instant;
use transport::{Kernel, Network};

use crate::clock;
use crate::config;
use crate::metrics::{Counter, HEDGES, Transport};
use crate::wire::key::{Key, KeyBuf};
use crate::wire::query::Query;
use crate::wire::response::Answer;
use crate::wire::{class, rcode, rtype};

/// Why a try gave no usable answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// No connection, or the network says that nobody is there.
    Connect,
    /// The connection ended before the answer.
    Closed,
    /// No answer in time.
    Timeout,
    /// The answer breaks the format.
    Malformed,
    /// The answer is a failure RCODE.
    Rcode(u16),
    /// There is nobody to ask.
    NoServer,
    /// It had time left, but another try has decided.
    GivenUp,
    /// More queries wait for the server than it can answer in time.
    Busy,
    /// Its certificate does not prove that it is the server that was meant.
    Certificate,
    /// Any other reason why TLS failed.
    Tls,
    /// The answer by UDP is truncated, and there is none by TCP.
    Truncated,
}

impl Cause {
    /// The labels of all causes in metrics and traces.
    pub const LABELS: [&'static str; 13] = [
        "connect",
        "closed",
        "timeout",
        "malformed",
        "servfail",
        "refused",
        "rcode",
        "no_server",
        "given_up",
        "busy",
        "certificate",
        "tls",
        "truncated",
    ];

    /// Its place among the labels.
    pub fn index(self) -> usize {
        match self {
            Self::Connect => 0,
            Self::Closed => 1,
            Self::Timeout => 2,
            Self::Malformed => 3,
            Self::Rcode(rcode::SERVFAIL) => 4,
            Self::Rcode(rcode::REFUSED) => 5,
            Self::Rcode(_) => 6,
            Self::NoServer => 7,
            Self::GivenUp => 8,
            Self::Busy => 9,
            Self::Certificate => 10,
            Self::Tls => 11,
            Self::Truncated => 12,
        }
    }

    /// Its label.
    pub fn label(self) -> &'static str {
        Self::LABELS[self.index()]
    }
}

/// What is counted of a server.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections tried.
    pub connects: Connects,
    /// Write calls on its connections.
    pub writes: Counter,
    /// Tries that failed, by [`Cause::index`].
    pub failures: [Counter; Cause::LABELS.len()],
    /// Tries begun, by [`Why::label`].
    pub tries: [Counter; Why::LABELS.len()],
    /// Times that it was passed over for its failures.
    pub ejections: Counter,
    /// Probes that ended while it was passed over.
    pub probes: Probes,
}

/// Probes, by result.
#[derive(Debug, Default)]
pub struct Probes {
    /// Answered.
    pub ok: Counter,
    /// Not answered in time, or no connection.
    pub failed: Counter,
}

/// Hedges. They are counted for all pools together, those that are gone included: a reload must not make the sums
/// smaller.
struct Hedges {
    /// Sent.
    sent: metrics::Counter,
    /// Answered before the query that was late.
    won: metrics::Counter,
    /// Not sent for want of budget.
    denied: metrics::Counter,
}

impl Hedges {
    fn new() -> Self {
        let of = |result: &'static str| counter!(HEDGES, "result" => result);
        Self { sent: of("sent"), won: of("won"), denied: of("denied") }
    }
}

/// Connections tried, by result.
#[derive(Debug, Default)]
pub struct Connects {
    /// Connected.
    pub ok: Counter,
    /// Refused, or unreachable.
    pub failed: Counter,
    /// No answer to the SYN.
    pub timeout: Counter,
    /// Connected, and then no TLS.
    pub tls: Counter,
}

/// What went out in one try.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    /// Queries by UDP.
    pub udp: u32,
    /// Queries by TCP.
    pub tcp: u32,
    /// The connection had carried queries before.
    pub reused: bool,
    /// The number of the connection, where there was one.
    pub connection: Option<u64>,
}

/// Why a try was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is the first.
    First,
    /// The one before failed.
    Failed,
    /// The one before is late.
    Hedge,
    /// The one before has gone silent.
    Silent,
}

impl Why {
    /// The labels of all reasons in metrics and traces.
    pub const LABELS: [&'static str; 4] = ["first", "failed", "hedge", "silent"];

    /// Its label.
    pub fn label(self) -> &'static str {
        Self::LABELS[self as usize]
    }
}

/// One try, for metrics and traces.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The server's label.
    pub server: Arc<str>,
    /// Why it was made.
    pub why: Why,
    /// What was sent.
    pub sent: Sent,
    /// When it began.
    pub started: Instant,
    /// How long it waited for a place on a connection, if it got one.
    pub waited: Option<Duration>,
    /// From asking to the end of the try.
    pub took: Duration,
    /// `None` for an answer.
    pub failed: Option<Cause>,
}

impl Attempt {
    /// Queries sent, by transport.
    pub fn queries(&self) -> [(Transport, u32); 2] {
        [(Transport::Udp, self.sent.udp), (Transport::Tcp, self.sent.tcp)]
    }
}

/// The end of one question's way.
#[derive(Debug)]
pub struct Exchange {
    /// The answer, or why there is none.
    pub result: Result<Answer, Cause>,
    /// Every try that ended, in order.
    pub attempts: Vec<Attempt>,
}

/// An answer that came when nobody waited for it any more.
#[derive(Debug)]
pub struct LateAnswer {
    /// What is counted of the server that sent it.
    pub counts: Arc<Counts>,
    /// When it was asked.
    pub asked: Instant,
    /// What was asked.
    pub key: Key,
    /// The response, whose ID and question match.
    pub message: Vec<u8>,
}

/// Takes late answers.
pub type Late = mpsc::Sender<LateAnswer>;

/// Servers that are asked alike.
pub struct Pool {
    definition: config::Upstream,
    servers: ArcSwap<Vec<Arc<Server>>>,
    settings: Arc<Settings>,
    /// The servers given by name.
    names: Names,
    turn: AtomicUsize,
    /// Counts recoveries: answers after failures. A failure remembered under an older number is void.
    generation: AtomicU64,
    failing: AtomicBool,
    /// Good answers so far.
    answers: AtomicU64,
    /// Of second queries.
    budget: Budget,
    /// Of queries that are asked again because a connection is silent.
    moves: Budget,
    /// Those that were sent.
    hedges: Hedges,
    /// What probes ask for.
    probe: ArcSwap<Key>,
    me: Weak<Self>,
    /// Why its `tls://` servers cannot be asked.
    unusable: Option<tls::LoadError>,
}

impl Pool {
    /// A pool without connections, whose late answers are lost. `ours` are the addresses that `system`
    /// must not lead to.
    pub fn new(definition: config::Upstream, edns_size: u16, ours: &[SocketAddr]) -> Arc<Self> {
        Self::with(definition, edns_size, ours, Arc::new(Kernel::default()), mpsc::channel(1).0)
    }

    /// A pool on this network. `late` takes the answers that nobody waits for any more.
    pub fn with(
        definition: config::Upstream,
        edns_size: u16,
        ours: &[SocketAddr],
        network: Arc<dyn Network>,
        late: Late,
    ) -> Arc<Self> {
        let (tls, unusable) =
            Tls::load(&definition).map_or_else(|error| (None, Some(error)), |tls| (tls, None));
        let settings = Settings {
            tls,
            connections: definition.connections.clone(),
            mixed_case: definition.mixed_case,
            edns_size,
            network,
            late,
        };
        let pool = Arc::new_cyclic(|me| Self {
            budget: Budget::new(definition.hedge.as_ref()),
            moves: Budget::new(Some(&MOVES)),
            names: Names::new(&definition, ours, &settings),
            definition,
            servers: ArcSwap::default(),
            settings: Arc::new(settings),
            turn: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            answers: AtomicU64::new(0),
            hedges: Hedges::new(),
            probe: ArcSwap::from_pointee(apex(&[0])),
            me: Weak::clone(me),
            unusable,
        });
        pool.refresh(ours);
        names::follow(&pool);
        pool
    }

    /// What it was made from.
    pub fn definition(&self) -> &config::Upstream {
        &self.definition
    }

    /// Whether it is still what this definition means: files that it names may have changed.
    pub fn is_made_from(&self, definition: &config::Upstream) -> bool {
        self.definition == *definition
            && self.settings.tls.as_ref().is_none_or(|tls| tls.is_current(definition))
    }

    /// That its servers can be asked.
    ///
    /// # Errors
    /// There are `tls://` servers, and nobody to vouch for them.
    pub fn usable(&self) -> Result<(), tls::LoadError> {
        self.unusable.clone().map_or(Ok(()), Err)
    }

    /// The servers as they are now.
    pub fn servers(&self) -> Arc<Vec<Arc<Server>>> {
        self.servers.load_full()
    }

    /// Whether it follows the system's configuration.
    pub fn is_system(&self) -> bool {
        self.definition.servers.contains(&config::Server::System)
    }

    /// Makes the list of servers anew; those that stay keep their connections.
    pub fn refresh(&self, ours: &[SocketAddr]) {
        let _alone = self.names.renewing();
        let mut wanted: Vec<(SocketAddr, How)> = Vec::new();
        for server in &self.definition.servers {
            match server {
                config::Server::Tcp(addr) => wanted.push((*addr, How::Tcp)),
                config::Server::Udp(addr) => wanted.push((*addr, How::Udp)),
                config::Server::Tls(addr, name) => wanted.push((*addr, How::Tls(name.as_str().into()))),
                config::Server::Auto(addr) => wanted.push((*addr, How::Auto)),
                config::Server::Named(scheme, name, port) => {
                    wanted.extend(self.names.servers(*scheme, name, *port));
                }
                config::Server::System => {
                    wanted.extend(system::servers(ours).into_iter().map(|addr| (addr, How::Udp)));
                }
            }
        }
        // Two names may lead to the same server.
        let mut seen = HashSet::new();
        wanted.retain(|server| seen.insert(server.clone()));
        if wanted.is_empty() && !self.servers.load().is_empty() {
            return; // a resolv.conf that is just being written, or that names only us
        }
        self.follow(&wanted);
    }

    /// Makes these the servers; those that stay keep their connections.
    pub fn follow(&self, wanted: &[(SocketAddr, How)]) {
        let old = self.servers.load();
        let make = |(addr, how): &(SocketAddr, How)| {
            let known = old.iter().find(|server| (server.addr, &server.how) == (*addr, how));
            known.cloned().unwrap_or_else(|| Server::new(*addr, how.clone(), Arc::clone(&self.settings)))
        };
        self.servers.store(Arc::new(wanted.iter().map(make).collect()));
        if old.is_empty() && !wanted.is_empty() {
            self.generation.fetch_add(1, Ordering::Relaxed); // that there was nobody to ask is no failure any more
        }
        self.names.changed();
    }

    /// Whether all servers' names have been looked up at least once.
    pub fn is_looked_up(&self) -> bool {
        self.names.are_looked_up()
    }

    /// Servers' names that could not be looked up the last time, and why.
    pub fn unresolved(&self) -> Vec<(Name, String)> {
        self.names.troubles()
    }

    /// Lets go of connections that are idle or stuck, and counts failures of servers that answer nobody, though
    /// nobody may notice who is answered by another. Called once a second.
    pub fn tidy(&self) {
        for server in self.servers.load().iter() {
            if server.tidy(self.definition.timeout) {
                self.is_silent(server, Instant::now());
            }
            if server.is_tcp_due() {
                tokio::spawn(probe::by_tcp(Weak::clone(&self.me), Arc::downgrade(server)));
            }
        }
        self.names.tidy();
    }

    /// Counts recoveries; see [`crate::cache::failure`].
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Whether every server is passed over for its failures.
    pub fn is_down(&self) -> bool {
        self.servers.load().iter().all(|server| server.health.is_passed_over())
    }

    /// Servers are probed by asking for the SOA of this zone.
    pub fn probe_with(&self, zone: &[u8]) {
        self.probe.store(Arc::new(apex(zone)));
    }

    fn probe_key(&self) -> Arc<Key> {
        self.probe.load_full()
    }

    /// Whether a late answer comes from one of its servers.
    pub fn has_asked(&self, answer: &LateAnswer) -> bool {
        self.servers.load().iter().any(|server| Arc::ptr_eq(&server.counts, &answer.counts))
    }

    fn has(&self, server: &Arc<Server>) -> bool {
        self.servers.load().iter().any(|known| Arc::ptr_eq(known, server))
    }

    /// A try at a server failed below DNS: it was told that nobody is there. After a few in a row the server is passed
    /// over, and probed until it answers.
    fn has_failed(&self, server: &Arc<Server>) {
        let now = clock::now();
        if server.health.failed(now, Duration::ZERO, now) {
            self.pass_over(server);
        }
    }

    /// A try that began at `since` has brought nothing, nor has any other meanwhile. After a few in a row the server is
    /// asked for what it must know: on a quiet node slow names alone look the same.
    fn is_silent(&self, server: &Arc<Server>, since: Instant) {
        let is_enough = server.health.failed(since.into_std(), server.pace.silent_after(), clock::now());
        if is_enough && server.health.check() {
            tokio::spawn(probe::once(Weak::clone(&self.me), Arc::downgrade(server)));
        }
    }

    fn pass_over(&self, server: &Arc<Server>) {
        if server.health.pass_over(clock::now()) {
            server.counts.ejections.add(1);
            tracing::warn!(server = %server.label, "does not answer: others are asked, and it is probed");
            tokio::spawn(probe::until_back(Weak::clone(&self.me), Arc::downgrade(server)));
        }
    }

    /// A server that was passed over has answered a probe.
    fn is_back(&self, server: &Arc<Server>) {
        if server.health.answered(clock::now()) {
            tracing::info!(server = %server.label, "answers again");
        }
        self.answered();
    }

    /// Asks until there is an answer, inside one deadline: each server up to three times, beginning where
    /// the policy says. A failure RCODE is taken from one other server at most. Where servers are still being
    /// looked up for the first time, that is waited for inside the same deadline. Where queries have to wait for each
    /// other, `source` says whose it is.
    pub async fn exchange(&self, key: &Key, source: Source) -> Exchange {
        let deadline = Instant::now() + self.definition.timeout;
        self.names.first(self, deadline).await;
        let done = Asking::new(self, key, source, deadline).run().await;
        if done.result.as_ref().is_err_and(|cause| !matches!(cause, Cause::Rcode(_))) {
            self.names.look_again();
        }
        done
    }

    /// A good answer came. After failures of transport that is a recovery, and voids what is remembered
    /// of them.
    pub fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        if self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed) {
            self.generation.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The question for a zone's SOA.
pub fn apex(zone: &[u8]) -> Key {
    let soa = Query { id: 0, flags: 0, name: zone, qtype: rtype::SOA, qclass: class::IN, edns: None };
    KeyBuf::new(&soa).to_key()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UdpSocket};

    fn key() -> Key {
        let name = b"\x01n\x00";
        KeyBuf::new(&Query { id: 1, flags: 0, name, qtype: 1, qclass: 1, edns: None }).to_key()
    }

    fn pool(servers: Vec<config::Server>, timeout: Duration) -> Arc<Pool> {
        Pool::new(config::Upstream { timeout, ..config::Upstream::new(servers) }, 1232, &[])
    }

    /// A server that answers each query of its connections from the `deaf`-th on with this RCODE.
    async fn server(deaf: usize, code: u16) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            for connection in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut message = vec![0; usize::from(length)];
                        stream.read_exact(&mut message).await.unwrap();
                        count.fetch_add(1, Ordering::Relaxed);
                        if connection < deaf {
                            continue;
                        }
                        message[2] |= 0x80;
                        message[3] = code as u8;
                        stream.write_u16(length).await.unwrap();
                        stream.write_all(&message).await.unwrap();
                    }
                });
            }
        });
        (addr, asked)
    }

    #[tokio::test]
    async fn a_second_query_goes_by_another_connection() {
        let (addr, _) = server(1, 0).await;
        let pool = pool(vec![config::Server::Tcp(addr)], Duration::from_secs(3));
        let done = pool.exchange(&key(), None).await;
        assert!(done.result.is_ok(), "{:?}", done.attempts);
    }

    #[tokio::test]
    async fn a_failure_is_taken_from_one_other_server_at_most() {
        let (mut servers, mut counts) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            let (addr, asked) = server(0, rcode::SERVFAIL).await;
            servers.push(config::Server::Tcp(addr));
            counts.push(asked);
        }
        let done = pool(servers, Duration::from_secs(3)).exchange(&key(), None).await;
        assert_eq!(done.result.unwrap_err(), Cause::Rcode(rcode::SERVFAIL));
        let asked: usize = counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        assert_eq!(asked, 2);
    }

    #[tokio::test]
    async fn queries_by_udp_come_from_ports_in_no_order() {
        const QUERIES: usize = 64;
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = server.local_addr().unwrap();
        let seen = tokio::spawn(async move {
            let (mut ports, mut buffer) = (Vec::new(), [0; 512]);
            while ports.len() < QUERIES {
                let (length, from) = server.recv_from(&mut buffer).await.unwrap();
                ports.push(from.port());
                buffer[2] |= 0x80;
                server.send_to(&buffer[..length], from).await.unwrap();
            }
            ports
        });
        let pool = pool(vec![config::Server::Udp(addr)], Duration::from_secs(3));
        for _ in 0..QUERIES {
            assert!(pool.exchange(&key(), None).await.result.is_ok());
        }
        let ports = seen.await.unwrap();
        let different: std::collections::HashSet<_> = ports.iter().collect();
        assert!(different.len() > QUERIES * 9 / 10, "{ports:?}");
        let next = ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 8).count();
        assert!(next < QUERIES / 10, "{ports:?}");
    }

    #[tokio::test]
    async fn a_lost_datagram_is_not_in_flight_for_ever() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let servers = vec![config::Server::Udp(silent.local_addr().unwrap())];
        let pool = pool(servers, Duration::from_millis(1500));
        assert_eq!(pool.exchange(&key(), None).await.result.unwrap_err(), Cause::Timeout);
        assert_eq!(pool.servers()[0].in_flight(), 0);
    }
}
