//! One server: its connections, and UDP where that comes first.

mod both;
mod sending;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use both::is_about_tcp;
use sending::Listening;
use tokio::time::Instant;

use super::auto::Choice;
use super::connection::{Broken, Connection};
use super::connections::Connections;
use super::health::Health;
use super::pace::Pace;
use super::tls::{self, Tls};
use super::transport::Network;
use super::{Cause, Counts, Late};
use crate::config;
use crate::metrics::Histogram;
use crate::wire::key::Key;
use crate::wire::response::{Answer, Kind};
use crate::wire::{HEADER, flag, name, rcode, u16_at};

/// Seconds for which a server that does not know OPT is asked without. It may have been one bad moment, or
/// the server may have learned it since.
const PLAIN: u64 = 3600;
/// Datagrams that did not match, after which the query goes by TCP: each is a guess at ID and port.
const STRANGERS: usize = 64;

pub use sending::{Errand, Sending};

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

/// How a server is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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

/// What came by UDP.
enum Datagram {
    Answer(Answer),
    Truncated,
    /// Somebody guesses, and only a stream can be trusted.
    Guessed,
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
    /// How long it usually takes.
    pub pace: Arc<Pace>,
    /// Times from asking to the answer.
    pub durations: Histogram,
    settings: Arc<Settings>,
    /// Seconds since `started` until which it is asked without OPT, since it answered FORMERR or NOTIMP to ours.
    plain_until: AtomicU64,
    started: Instant,
    connections: Arc<Connections>,
    /// What `auto://` has found out.
    choice: Choice,
    /// Queries being asked by UDP.
    udp_in_flight: AtomicUsize,
    /// Nanoseconds since `started` to its last answer; 0 before the first.
    answered_ns: AtomicU64,
    /// What is counted of it.
    pub counts: Arc<Counts>,
    /// What makes its connections private, if it is a `tls://` server.
    pub tls: Option<Arc<tls::Client>>,
}

impl Server {
    /// A server without connections; they are opened when there is demand.
    pub fn new(addr: SocketAddr, how: How, settings: Arc<Settings>) -> Arc<Self> {
        let label: Arc<str> = format!("{}://{addr}", how.scheme()).into();
        let tls = match &how {
            How::Tls(name) => {
                Some(Arc::new(tls::Client::new(settings.tls.as_ref(), name, Arc::clone(&label))))
            }
            _ => None,
        };
        let (counts, pace): (Arc<Counts>, Arc<Pace>) = Default::default();
        let (shared, seen, known) = (Arc::clone(&settings), Arc::clone(&counts), Arc::clone(&pace));
        let connections = Connections::new(addr, shared, seen, known, tls.clone(), how == How::Auto);
        Arc::new(Self {
            addr,
            label,
            how,
            health: Health::default(),
            pace,
            durations: Histogram::default(),
            settings,
            plain_until: AtomicU64::new(0),
            started: Instant::now(),
            connections,
            choice: Choice::default(),
            udp_in_flight: AtomicUsize::new(0),
            answered_ns: AtomicU64::new(0),
            counts,
            tls,
        })
    }

    /// Whether it is asked by UDP first.
    pub fn is_udp_first(&self) -> bool {
        self.how == How::Udp || (self.is_auto() && self.choice.is_udp())
    }

    /// Whether it is found out how it is asked.
    pub fn is_auto(&self) -> bool {
        self.how == How::Auto
    }

    /// By what it is asked first at the moment.
    pub fn transport(&self) -> &'static str {
        match self.how {
            How::Tls(_) => "tls",
            _ if self.is_udp_first() => "udp",
            _ => "tcp",
        }
    }

    /// Queries in flight to it.
    pub fn in_flight(&self) -> usize {
        self.connections.in_flight() + self.udp_in_flight.load(Ordering::Relaxed)
    }

    /// Queries that it has not answered, whether or not somebody waits for them.
    pub fn load(&self) -> usize {
        self.connections.load() + self.udp_in_flight.load(Ordering::Relaxed)
    }

    /// It answered after so long, whatever it said.
    pub fn answered(&self, took: Duration) {
        self.pace.observe(took);
        self.durations.observe(took, 1);
        self.was_heard();
    }

    fn was_heard(&self) {
        self.answered_ns.store((self.started.elapsed().as_nanos() as u64).max(1), Ordering::Relaxed);
    }

    /// Whether an answer of it came at `since` or later.
    pub fn has_answered_since(&self, since: Instant) -> bool {
        let answered_ns = self.answered_ns.load(Ordering::Relaxed);
        (answered_ns > 0 && self.started + Duration::from_nanos(answered_ns) >= since)
            || self.connections.have_answered_since(since)
    }

    /// The same for answers by its connections alone.
    pub fn has_answered_by_tcp_since(&self, since: Instant) -> bool {
        self.connections.have_answered_since(since)
    }

    /// Whether there are connections that bring answers.
    pub fn works_by_tcp(&self) -> bool {
        self.connections.work()
    }

    /// Whether none of its connections has ever answered.
    pub fn is_mute_by_tcp(&self) -> bool {
        !self.connections.have_answered()
    }

    /// Whether one of its connections owes an answer, and has brought none for so long.
    pub fn is_silent_by_tcp(&self, patience: Duration) -> bool {
        self.connections.is_one_silent(patience)
    }

    /// Open connections.
    pub fn open(&self) -> usize {
        self.connections.open()
    }

    /// Queries that wait for room on its connections.
    pub fn waiting(&self) -> usize {
        self.connections.waiting()
    }

    /// Asks it once, by the transport that comes first, and by TCP when UDP truncated the answer.
    ///
    /// # Errors
    /// Why there is no usable answer.
    pub async fn ask(&self, key: &Key, errand: &Errand, sending: &Sending) -> Result<Answer, Cause> {
        let now = self.started.elapsed().as_secs();
        let edns_size = (self.plain_until.load(Ordering::Relaxed) <= now).then_some(self.settings.edns_size);
        let answer = self.ask_with(key, edns_size, errand, sending).await?;
        let refused = matches!(answer.kind, Kind::Failure(rcode::FORMERR | rcode::NOTIMP));
        if edns_size.is_none() || !refused {
            return Ok(answer);
        }
        // RFC 6891 §7: it may not know OPT.
        let plain = self.ask_with(key, None, errand, sending).await?;
        if !matches!(plain.kind, Kind::Failure(_)) {
            self.plain_until.store(now + PLAIN, Ordering::Relaxed);
        }
        Ok(plain)
    }

    async fn ask_with(
        &self,
        key: &Key,
        edns_size: Option<u16>,
        errand: &Errand,
        sending: &Sending,
    ) -> Result<Answer, Cause> {
        if !sending.udp_first {
            let (cause, connection) = match self.ask_tcp(key, edns_size, errand, sending).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let goes_on = self.is_auto() && is_about_tcp(cause, connection.as_deref(), errand);
            let Some(_listening) = goes_on.then(|| Listening::begin(sending)).flatten() else {
                return Err(cause);
            };
            let datagram = self.ask_udp(key, edns_size, sending).await?;
            if !matches!(datagram, Datagram::Guessed) {
                self.tcp_failed(connection.as_deref());
            }
            return match datagram {
                Datagram::Answer(answer) => Ok(answer),
                Datagram::Truncated => Err(Cause::Truncated),
                Datagram::Guessed => Err(cause),
            };
        }
        let datagram = {
            let _listening = Listening::begin(sending).ok_or(Cause::GivenUp)?;
            self.ask_udp(key, edns_size, sending).await?
        };
        let truncated = matches!(datagram, Datagram::Truncated);
        if let Datagram::Answer(answer) = datagram {
            return Ok(answer);
        }
        self.ask_tcp(key, edns_size, errand, sending).await.map_err(|(cause, _)| match cause {
            Cause::Connect | Cause::Closed if truncated => Cause::Truncated,
            cause => cause,
        })
    }

    /// Asks by a connection. With the cause of a failure comes the connection, where there was one.
    async fn ask_tcp(
        &self,
        key: &Key,
        edns_size: Option<u16>,
        errand: &Errand,
        sending: &Sending,
    ) -> Result<Answer, (Cause, Option<Arc<Connection>>)> {
        let now = Instant::now();
        let left = errand.deadline.saturating_duration_since(now);
        let place = self.connections.place(errand.source, errand.proof, left).await;
        let place = place.map_err(|cause| (cause, None))?;
        let connection = Arc::clone(place.connection());
        let reused = place.is_reused();
        let _ = sending.by.set((Arc::clone(&connection), Instant::now(), reused));
        sending.tcp.fetch_add(1, Ordering::Relaxed);
        let answer = match place.ask(key, edns_size).await {
            // Over TCP nothing has a reason to be truncated.
            Ok(message) => read(message, key).and_then(|answer| answer.ok_or(Cause::Malformed)),
            Err(Broken) => Err(Cause::Closed),
        };
        if !reused && answer.is_ok() {
            self.connections.answers();
        }
        answer.map_err(|cause| (cause, Some(connection)))
    }

    /// Asks by UDP, and says that a datagram that came is a sign of life.
    async fn ask_udp(&self, key: &Key, edns_size: Option<u16>, sending: &Sending) -> Result<Datagram, Cause> {
        let message = {
            let _counted = InFlight::count(&self.udp_in_flight);
            self.send_datagram(key, edns_size, sending).await?
        };
        let Some(message) = message else { return Ok(Datagram::Guessed) };
        self.was_heard();
        Ok(read(message, key)?.map_or(Datagram::Truncated, Datagram::Answer))
    }

    /// Asks by UDP from a port of its own, and once more from the same port under the same ID whenever it is
    /// told to. It listens until whoever is tired of waiting drops it. `None` when somebody guesses, and only
    /// a stream can be trusted.
    async fn send_datagram(
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

    /// Lets go of connections that nothing has used for a while, before the server does, and of those
    /// on which nothing has been answered for `patience`. True if it owes answers and none has come for long.
    pub fn tidy(&self, patience: Duration) -> bool {
        let silence = self.pace.silent_after();
        let now = Instant::now();
        let silent = self.connections.tidy(patience, silence);
        silent && now.checked_sub(silence).is_some_and(|since| !self.has_answered_since(since))
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
