//! Asking servers: a pool takes a question and gives back an answer inside a deadline.
//!
//! A pool belongs to an upstream definition, not to a zone. Below it stand servers, each with its
//! connections. [`Pool::exchange`] is the whole life of one question.

pub mod connection;
mod exchange;
pub mod health;
pub mod server;
pub mod system;
pub mod transport;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use exchange::Asking;
use server::{How, Server, Settings};
use tokio::sync::mpsc;
use transport::{Kernel, Network};

use crate::config;
use crate::metrics::{Counter, Transport};
use crate::wire::key::Key;
use crate::wire::rcode;
use crate::wire::response::Answer;

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
}

impl Cause {
    /// The labels of all causes in metrics and traces.
    pub const LABELS: [&'static str; 9] = [
        "connect",
        "closed",
        "timeout",
        "malformed",
        "servfail",
        "refused",
        "rcode",
        "no_server",
        "given_up",
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
}

/// One try, for metrics and traces.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The server's label.
    pub server: Arc<str>,
    /// What was sent.
    pub sent: Sent,
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
    turn: AtomicUsize,
    /// Counts recoveries: answers after failures. A failure remembered under an older number is void.
    generation: AtomicU64,
    failing: AtomicBool,
    /// Good answers so far.
    answers: AtomicU64,
}

impl Pool {
    /// A pool without connections, whose late answers are lost. `ours` are the addresses that `system`
    /// must not lead to.
    pub fn new(definition: config::Upstream, edns_size: u16, ours: &[IpAddr]) -> Arc<Self> {
        Self::with(definition, edns_size, ours, Arc::new(Kernel), mpsc::channel(1).0)
    }

    /// A pool on this network. `late` takes the answers that nobody waits for any more.
    pub fn with(
        definition: config::Upstream,
        edns_size: u16,
        ours: &[IpAddr],
        network: Arc<dyn Network>,
        late: Late,
    ) -> Arc<Self> {
        let settings = Settings {
            connections: definition.connections.clone(),
            mixed_case: definition.mixed_case,
            edns_size,
            network,
            late,
        };
        let pool = Self {
            definition,
            servers: ArcSwap::default(),
            settings: Arc::new(settings),
            turn: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            answers: AtomicU64::new(0),
        };
        pool.refresh(ours);
        Arc::new(pool)
    }

    /// What it was made from.
    pub fn definition(&self) -> &config::Upstream {
        &self.definition
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
    pub fn refresh(&self, ours: &[IpAddr]) {
        let mut wanted: Vec<(SocketAddr, How)> = Vec::new();
        for server in &self.definition.servers {
            match server {
                config::Server::Tcp(addr) => wanted.push((*addr, How::Tcp)),
                config::Server::Udp(addr) => wanted.push((*addr, How::Udp)),
                config::Server::Tls(addr, name) => wanted.push((*addr, How::Tls(name.as_str().into()))),
                config::Server::Auto(addr) => wanted.push((*addr, How::Auto)),
                config::Server::Named(..) => {}
                config::Server::System => {
                    wanted.extend(system::servers(ours).into_iter().map(|addr| (addr, How::Udp)));
                }
            }
        }
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
    }

    /// Lets go of connections that are idle or stuck. Called once a second.
    pub fn tidy(&self) {
        for server in self.servers.load().iter() {
            server.tidy(self.definition.timeout);
        }
    }

    /// Counts recoveries; see [`crate::cache::failure`].
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Whether every server is passed over for its failures.
    pub fn is_down(&self, now: std::time::Instant) -> bool {
        self.servers.load().iter().all(|server| server.health.is_ejected(now))
    }

    /// Asks until there is an answer, inside one deadline: each server up to three times, beginning where
    /// the policy says. A failure RCODE is taken from one other server at most.
    pub async fn exchange(&self, key: &Key) -> Exchange {
        Asking::new(self, key).run().await
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::key::KeyBuf;
    use crate::wire::query::Query;
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
        let done = pool.exchange(&key()).await;
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
        let done = pool(servers, Duration::from_secs(3)).exchange(&key()).await;
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
            assert!(pool.exchange(&key()).await.result.is_ok());
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
        assert_eq!(pool.exchange(&key()).await.result.unwrap_err(), Cause::Timeout);
        assert_eq!(pool.servers()[0].in_flight(), 0);
    }
}
