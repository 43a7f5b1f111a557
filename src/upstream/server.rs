//! One server: its connections, and UDP where that comes first.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::connection::{Broken, Connection};
use super::health::Health;
use super::tls::{self, Tls};
use super::transport::{Link, Network};
use super::{Cause, Counts, Late, Sent};
use crate::config;
use crate::metrics::Histogram;
use crate::wire::key::Key;
use crate::wire::response::{Answer, Kind};
use crate::wire::{HEADER, flag, name, rcode, u16_at};

/// Seconds for which a server that does not know OPT is asked without. It may have been one bad moment, or
/// the server may have learned it since.
const PLAIN: u64 = 3600;
/// A SYN is repeated after 1 s (RFC 6298 §2): what takes longer was lost twice.
const CONNECT: Duration = Duration::from_millis(1500);
/// A connection that has answered none of its queries for so long is the last choice for another: it may be dead,
/// or its server be waiting for one answer before it looks for the next.
const STALLED: Duration = Duration::from_millis(500);
/// Datagrams that did not match, after which the query goes by TCP: each is a guess at ID and port.
const STRANGERS: usize = 64;

/// What the servers of a pool have in common.
pub struct Settings {
    /// Bounds of connections.
    pub connections: config::Connections,
    /// Whether names go out in mixed case by UDP.
    pub mixed_case: bool,
    /// The size in our OPT, bytes.
    pub edns_size: u16,
    /// Where servers are.
    pub network: Arc<dyn Network>,
    /// Whom `tls://` servers have to convince.
    pub tls: Option<Tls>,
    /// Takes the answers that nobody waits for any more.
    pub late: Late,
}

/// What a try has sent so far, visible while it is under way.
#[derive(Debug)]
pub struct Sending {
    udp_first: bool,
    udp: AtomicU32,
    tcp: AtomicU32,
    reused: AtomicBool,
    repeat: Notify,
}

impl Sending {
    /// Nothing yet.
    pub fn new(udp_first: bool) -> Self {
        let (udp, tcp) = Default::default();
        Self { udp_first, udp, tcp, reused: AtomicBool::new(false), repeat: Notify::new() }
    }

    /// Has the datagram sent again: the one before may be lost.
    pub fn repeat(&self) {
        self.repeat.notify_one();
    }

    /// Whether it waits for a datagram: not after UDP has truncated the answer.
    pub fn is_udp(&self) -> bool {
        self.udp_first && self.tcp.load(Ordering::Relaxed) == 0
    }

    /// So far.
    pub fn sent(&self) -> Sent {
        Sent {
            udp: self.udp.load(Ordering::Relaxed),
            tcp: self.tcp.load(Ordering::Relaxed),
            reused: self.reused.load(Ordering::Relaxed),
        }
    }
}

/// How a server is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// By TCP.
    Tcp,
    /// By UDP first.
    Udp,
    /// By TLS; the name in its certificate.
    Tls(Arc<str>),
    /// By TCP, and by UDP as long as it refuses or limits TCP.
    Auto,
}

impl How {
    /// The scheme of its label.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Tls(_) => "tls",
            Self::Auto => "auto",
        }
    }
}

/// A server of a pool.
pub struct Server {
    /// Where it is.
    pub addr: SocketAddr,
    /// Its label in metrics, with the transport that is tried first.
    pub label: Arc<str>,
    /// How it is asked.
    pub how: How,
    /// Whether it has been failing.
    pub health: Health,
    /// Times from asking to the answer.
    pub durations: Histogram,
    settings: Arc<Settings>,
    /// Seconds since `started` until which it is asked without OPT, since it answered FORMERR or NOTIMP to ours.
    plain_until: AtomicU64,
    started: Instant,
    pool: Mutex<Vec<Arc<Connection>>>,
    opening: AtomicUsize,
    /// Queries being asked by UDP.
    udp_in_flight: AtomicUsize,
    room: Arc<Notify>,
    /// What is counted of it.
    pub counts: Arc<Counts>,
    /// What makes its connections private, if it is a `tls://` server.
    pub tls: Option<tls::Client>,
}

impl Server {
    /// A server without connections; they are opened when there is demand.
    pub fn new(addr: SocketAddr, how: How, settings: Arc<Settings>) -> Arc<Self> {
        let label: Arc<str> = format!("{}://{addr}", how.scheme()).into();
        let tls = match &how {
            How::Tls(name) => Some(tls::Client::new(settings.tls.as_ref(), name, Arc::clone(&label))),
            _ => None,
        };
        Arc::new(Self {
            addr,
            label,
            how,
            health: Health::default(),
            durations: Histogram::default(),
            settings,
            plain_until: AtomicU64::new(0),
            started: Instant::now(),
            pool: Mutex::default(),
            opening: AtomicUsize::new(0),
            udp_in_flight: AtomicUsize::new(0),
            room: Arc::new(Notify::new()),
            counts: Arc::default(),
            tls,
        })
    }

    /// Whether it is asked by UDP first.
    pub fn is_udp_first(&self) -> bool {
        self.how == How::Udp
    }

    /// Queries in flight to it.
    pub fn in_flight(&self) -> usize {
        let connections: usize = self.connections().iter().map(|connection| connection.in_flight()).sum();
        connections + self.udp_in_flight.load(Ordering::Relaxed)
    }

    /// Open connections.
    pub fn open(&self) -> usize {
        self.connections().len()
    }

    /// Asks it once, by the transport that comes first, and by TCP when UDP truncated the answer.
    /// With `again`, a connection gave no answer before, and others may be as dead or busy: a new one is used.
    ///
    /// # Errors
    /// Why there is no usable answer.
    pub async fn ask(self: &Arc<Self>, key: &Key, again: bool, sending: &Sending) -> Result<Answer, Cause> {
        let now = self.started.elapsed().as_secs();
        let edns_size = (self.plain_until.load(Ordering::Relaxed) <= now).then_some(self.settings.edns_size);
        let answer = self.ask_with(key, edns_size, again, sending).await?;
        let refused = matches!(answer.kind, Kind::Failure(rcode::FORMERR | rcode::NOTIMP));
        if edns_size.is_none() || !refused {
            return Ok(answer);
        }
        // RFC 6891 §7: it may not know OPT.
        let plain = self.ask_with(key, None, false, sending).await?;
        if !matches!(plain.kind, Kind::Failure(_)) {
            self.plain_until.store(now + PLAIN, Ordering::Relaxed);
        }
        Ok(plain)
    }

    async fn ask_with(
        self: &Arc<Self>,
        key: &Key,
        edns_size: Option<u16>,
        again: bool,
        sending: &Sending,
    ) -> Result<Answer, Cause> {
        if self.is_udp_first() {
            let message = {
                let _counted = InFlight::count(&self.udp_in_flight);
                self.ask_udp(key, edns_size, sending).await?
            };
            if let Some(message) = message
                && let Some(answer) = read(message, key)?
            {
                return Ok(answer);
            }
        }
        let connection = self.connection(again).await?;
        sending.reused.store(connection.is_used(), Ordering::Relaxed);
        sending.tcp.fetch_add(1, Ordering::Relaxed);
        let message = connection.ask(key.clone(), edns_size).answer().await;
        // Over TCP nothing has a reason to be truncated.
        read(message.map_err(|Broken| Cause::Closed)?, key)?.ok_or(Cause::Malformed)
    }

    /// Asks by UDP from a port of its own, and once more from the same port under the same ID whenever it is
    /// told to. It listens until whoever is tired of waiting drops it. `None` when somebody guesses, and only
    /// a stream can be trusted.
    async fn ask_udp(
        &self,
        key: &Key,
        edns_size: Option<u16>,
        sending: &Sending,
    ) -> Result<Option<Vec<u8>>, Cause> {
        let datagrams = self.settings.network.datagrams(self.addr).await.map_err(|_| Cause::Connect)?;
        let id: u16 = rand::random();
        let mut query = Vec::with_capacity(300);
        key.write_query(id, edns_size, &mut query);
        let name = HEADER..HEADER + key.name().len();
        if self.settings.mixed_case {
            name::mix_case(&mut query[name.clone()], rand::random);
        }
        let is_answer = |response: &[u8]| {
            response.starts_with(&id.to_be_bytes())
                && key.is_answered_by(response)
                && (!self.settings.mixed_case
                    || u16_at(response, 4) == Ok(0)
                    || response[name.clone()] == query[name.clone()])
        };
        let send = async || {
            sending.udp.fetch_add(1, Ordering::Relaxed);
            datagrams.send(&query).await.map_err(|_| Cause::Connect)
        };
        send().await?;
        let mut strangers = 0;
        loop {
            let message = tokio::select! {
                received = datagrams.receive() => received.map_err(|_| Cause::Connect)?,
                () = sending.repeat.notified() => {
                    send().await?;
                    strangers = 0;
                    continue;
                }
            };
            if is_answer(&message) {
                return Ok(Some(message));
            }
            strangers += 1;
            if strangers > STRANGERS {
                return Ok(None);
            }
        }
    }

    /// The connection with the fewest unanswered queries, those last that bring nothing at all. While all are
    /// busy another one is opened beside them, up to the bound: CoreDNS answers the queries of one connection
    /// one by one. With `fresh` it is that other one, as long as the bound allows it.
    async fn connection(self: &Arc<Self>, fresh: bool) -> Result<Arc<Connection>, Cause> {
        loop {
            let room = self.room.notified();
            let mut opened = None;
            {
                let pool = self.connections();
                let has_room = |of: &&Arc<Connection>| of.in_flight() < self.settings.connections.in_flight;
                let now = Instant::now();
                let cost = |of: &&Arc<Connection>| (of.is_stuck(now, STALLED), of.unanswered());
                let best = pool.iter().filter(has_room).min_by_key(cost);
                let load = best.map_or(usize::MAX, |best| best.unanswered());
                let may_open =
                    pool.len() + self.opening.load(Ordering::Relaxed) < self.settings.connections.max;
                if may_open && (fresh || load > 0 || pool.len() < self.settings.connections.min) {
                    self.opening.fetch_add(1, Ordering::Relaxed);
                    opened = Some(tokio::spawn(Arc::clone(self).open_one()));
                }
                let waits = fresh && may_open;
                if let Some(best) = best.filter(|_| !waits) {
                    return Ok(Arc::clone(best));
                }
            }
            match opened {
                Some(opened) => {
                    let connection = opened.await.map_err(|_| Cause::Connect)??;
                    if fresh {
                        return Ok(connection);
                    }
                }
                None if self.open() == 0 && self.opening.load(Ordering::Relaxed) == 0 => {}
                None => room.await,
            }
        }
    }

    /// Opens a connection and puts it into the pool.
    async fn open_one(self: Arc<Self>) -> Result<Arc<Connection>, Cause> {
        let opened = self.open_stream().await.map(|stream| {
            // 10 % more or less, so that connections opened together do not end together.
            let age = self.settings.connections.max_age.mul_f64(rand::random_range(0.9..1.1));
            let room = Arc::clone(&self.room);
            let (counts, late) = (Arc::clone(&self.counts), self.settings.late.clone());
            let connection = Arc::new(Connection::start(stream, Instant::now() + age, room, counts, late));
            self.connections().push(Arc::clone(&connection));
            connection
        });
        self.opening.fetch_sub(1, Ordering::Relaxed);
        self.room.notify_waiters();
        opened
    }

    /// A stream that takes queries.
    async fn open_stream(&self) -> Result<Link, Cause> {
        let connects = &self.counts.connects;
        let (counter, stream) = match timeout(CONNECT, self.settings.network.connect(self.addr)).await {
            Ok(Ok(stream)) => match &self.tls {
                Some(tls) => match tls.handshake(stream).await {
                    Ok(stream) => (&connects.ok, Ok(stream)),
                    Err(cause) => (&connects.tls, Err(cause)),
                },
                None => (&connects.ok, Ok(stream)),
            },
            Ok(Err(_)) => (&connects.failed, Err(Cause::Connect)),
            Err(_) => (&connects.timeout, Err(Cause::Connect)),
        };
        counter.add(1);
        stream
    }

    /// The usable connections. Those that ended or are too old leave the pool here; an old one
    /// goes on until its queries are answered.
    fn connections(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        pool.retain(|connection| connection.is_open() && connection.retire_at > now);
        pool
    }

    /// Lets go of connections that nothing has used for a while, before the server does, and of those
    /// on which nothing has been answered for `patience`.
    pub fn tidy(&self, patience: Duration) {
        let now = Instant::now();
        self.connections().retain(|connection| {
            connection.idle_for(now) < self.settings.connections.idle && !connection.is_stuck(now, patience)
        });
        self.room.notify_waiters();
    }
}

/// One query in flight, counted until it is answered or nobody waits for it any more.
struct InFlight<'a>(&'a AtomicUsize);

impl<'a> InFlight<'a> {
    fn count(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads a response; `None` if it is truncated.
fn read(message: Vec<u8>, key: &Key) -> Result<Option<Answer>, Cause> {
    if u16_at(&message, 2).is_ok_and(|flags| flags & flag::TC != 0) {
        return Ok(None);
    }
    Answer::read(message, key).map(Some).map_err(|_| Cause::Malformed)
}
