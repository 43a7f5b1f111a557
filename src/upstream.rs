//! Asking servers: a pool takes a question and gives back an answer inside a deadline.
//!
//! A pool belongs to an upstream definition, not to a zone. Below it stand servers, each with its
//! connections. [`Pool::exchange`] is the whole life of one question: which server, how often, when
//! a second time elsewhere.

pub mod connection;
pub mod health;
pub mod server;
pub mod system;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::stream::{FuturesUnordered, StreamExt};
use health::{Candidate, choose};
use server::Server;
use tokio::time::Instant;

use crate::config;
use crate::metrics::Transport;
use crate::wire::key::Key;
use crate::wire::rcode;
use crate::wire::response::{Answer, Kind};

/// dns-rules: tries of one flight at one server.
const TRIES: u32 = 3;
/// An answer that is later than this is asked for a second time elsewhere, while the first is awaited.
const PATIENCE: Duration = Duration::from_millis(1000);

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
}

impl Cause {
    /// The labels of all causes in metrics and traces.
    pub const LABELS: [&'static str; 8] =
        ["connect", "closed", "timeout", "malformed", "servfail", "refused", "rcode", "no_server"];

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
        }
    }

    /// Its label.
    pub fn label(self) -> &'static str {
        Self::LABELS[self.index()]
    }
}

/// What went out in one try.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    /// A query by UDP.
    pub udp: bool,
    /// A query by TCP.
    pub tcp: bool,
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
    /// The transports used.
    pub fn transports(&self) -> impl Iterator<Item = Transport> {
        [(self.sent.udp, Transport::Udp), (self.sent.tcp, Transport::Tcp)]
            .into_iter()
            .filter_map(|(used, transport)| used.then_some(transport))
    }

    /// Whether the server answered, with a failure.
    fn answered_failure(&self) -> bool {
        matches!(self.failed, Some(Cause::Rcode(_)))
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

/// Servers that are asked alike.
pub struct Pool {
    definition: config::Upstream,
    servers: ArcSwap<Vec<Arc<Server>>>,
    edns_size: u16,
    turn: AtomicUsize,
    /// Counts recoveries: answers after failures. A failure remembered under an older number is void.
    generation: AtomicU64,
    failing: std::sync::atomic::AtomicBool,
}

impl Pool {
    /// A pool without connections. `ours` are the addresses that `system` must not lead to.
    pub fn new(definition: config::Upstream, edns_size: u16, ours: &[IpAddr]) -> Arc<Self> {
        let pool = Self {
            definition,
            servers: ArcSwap::default(),
            edns_size,
            turn: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            failing: std::sync::atomic::AtomicBool::new(false),
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
        let mut wanted: Vec<(SocketAddr, bool)> = Vec::new();
        for server in &self.definition.servers {
            match *server {
                config::Server::Tcp(addr) => wanted.push((addr, false)),
                config::Server::Udp(addr) => wanted.push((addr, true)),
                config::Server::System => {
                    wanted.extend(system::servers(ours).into_iter().map(|addr| (addr, true)));
                }
            }
        }
        let old = self.servers.load();
        if wanted.is_empty() && !old.is_empty() {
            return; // a resolv.conf that is just being written, or that names only us
        }
        let make = |&(addr, udp): &(SocketAddr, bool)| {
            let known = old.iter().find(|server| (server.addr, server.udp) == (addr, udp));
            known.cloned().unwrap_or_else(|| {
                Server::new(addr, udp, self.definition.connections.clone(), self.edns_size)
            })
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

    /// Asks until there is an answer, inside one deadline: each server up to three times,
    /// beginning where the policy says. A try that fails is followed by the next at once; one by TCP that is
    /// merely slow is joined by a second one. A failure RCODE is taken from one other server at most.
    pub async fn exchange(&self, key: &Key) -> Exchange {
        let started = Instant::now();
        let deadline = started + self.definition.timeout;
        let servers = self.servers();
        let mut tries = vec![0; servers.len()];
        let mut attempts: Vec<Attempt> = Vec::new();
        let mut running = FuturesUnordered::new();
        let mut last = Cause::NoServer;
        let timer = tokio::time::sleep_until(deadline.min(started + PATIENCE));
        tokio::pin!(timer);
        loop {
            if running.is_empty() {
                let failures = attempts.iter().filter(|attempt| attempt.answered_failure()).count();
                let next = if failures > 1 { None } else { self.next(&servers, &mut tries, last) };
                let Some(index) = next else {
                    return Exchange { result: Err(last), attempts };
                };
                running.push(attempt(&servers[index], key, tries[index] > 1));
            }
            tokio::select! {
                Some((attempt, result)) = running.next() => {
                    attempts.push(attempt);
                    match self.judge(result) {
                        Ok(answer) => return Exchange { result: Ok(answer), attempts },
                        Err(cause) => last = cause,
                    }
                }
                () = &mut timer => {
                    if Instant::now() >= deadline {
                        self.timed_out(&servers, &tries, started, &mut attempts);
                        return Exchange { result: Err(Cause::Timeout), attempts };
                    }
                    if running.len() < 2 && let Some(index) = self.next(&servers, &mut tries, last) {
                        running.push(attempt(&servers[index], key, tries[index] > 1));
                    }
                    timer.as_mut().reset(deadline.min(Instant::now() + PATIENCE));
                }
            }
        }
    }

    /// The server of the next try; `None` when there is no point in another.
    fn next(&self, servers: &[Arc<Server>], tries: &mut [u32], last: Cause) -> Option<usize> {
        let now = std::time::Instant::now();
        let candidate = |(server, &tries): (&Arc<Server>, &u32)| Candidate {
            ejected: server.health.is_ejected(now),
            tries,
            in_flight: server.in_flight(),
        };
        // A server that answered with a failure would do so again; one other may know better.
        let max_tries = if matches!(last, Cause::Rcode(_)) { 1 } else { TRIES };
        let index = match servers {
            [_] => (tries[0] < max_tries).then_some(0)?,
            _ => {
                let candidates: Vec<Candidate> = servers.iter().zip(tries.iter()).map(candidate).collect();
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                choose(self.definition.policy, &candidates, max_tries, turn, rand::random::<u32>() as usize)?
            }
        };
        tries[index] += 1;
        servers[index].health.tried(now);
        Some(index)
    }

    /// Sorts an answer from a failure.
    fn judge(&self, result: Result<Answer, Cause>) -> Result<Answer, Cause> {
        let answer = result.inspect_err(|_| self.failing.store(true, Ordering::Relaxed))?;
        if let Kind::Failure(code) = answer.kind {
            return Err(Cause::Rcode(code));
        }
        if self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed) {
            self.generation.fetch_add(1, Ordering::Relaxed);
        }
        Ok(answer)
    }

    /// Writes down the tries that the deadline cut off.
    fn timed_out(&self, servers: &[Arc<Server>], tries: &[u32], started: Instant, log: &mut Vec<Attempt>) {
        self.failing.store(true, Ordering::Relaxed);
        for (server, &tries) in servers.iter().zip(tries) {
            let ended = log.iter().filter(|attempt| attempt.server == server.label).count();
            if tries as usize > ended {
                server.health.failed(std::time::Instant::now());
                let failed = Some(Cause::Timeout);
                server.counts.failures[Cause::Timeout.index()].add(1);
                let sent = Sent { udp: server.udp, tcp: !server.udp, reused: false };
                log.push(Attempt {
                    server: Arc::clone(&server.label),
                    sent,
                    took: started.elapsed(),
                    failed,
                });
            }
        }
    }
}

/// One try at one server, with its marks in health and metrics. `again`: it was asked before.
async fn attempt(server: &Arc<Server>, key: &Key, again: bool) -> (Attempt, Result<Answer, Cause>) {
    let started = Instant::now();
    let mut sent = Sent::default();
    let result = if server.udp {
        // A lost datagram is only noticed by its silence.
        let asked = tokio::time::timeout(PATIENCE, server.ask(key, again, &mut sent)).await;
        asked.unwrap_or(Err(Cause::Timeout))
    } else {
        server.ask(key, again, &mut sent).await
    };
    let took = started.elapsed();
    let failed = match &result {
        Ok(answer) => {
            server.health.answered();
            server.durations.observe(took, 1);
            match answer.kind {
                Kind::Failure(code) => Some(Cause::Rcode(code)),
                _ => None,
            }
        }
        Err(cause) => {
            server.health.failed(std::time::Instant::now());
            Some(*cause)
        }
    };
    if let Some(cause) = failed {
        server.counts.failures[cause.index()].add(1);
    }
    (Attempt { server: Arc::clone(&server.label), sent, took, failed }, result)
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
    async fn a_lost_datagram_is_not_in_flight_for_ever() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let servers = vec![config::Server::Udp(silent.local_addr().unwrap())];
        let pool = pool(servers, Duration::from_millis(1500));
        assert_eq!(pool.exchange(&key()).await.result.unwrap_err(), Cause::Timeout);
        assert_eq!(pool.servers()[0].in_flight(), 0);
    }
}
