//! The way of one query: rules → hosts → cache → flight → upstream → cache → everybody who waits.
//!
//! [`Resolver::handle`] decides without I/O what happens to a packet: it is answered at once, dropped,
//! or becomes a [`Miss`]. [`Resolver::wait`] lets the client of a miss wait for its flight.

pub mod echo;
pub mod flight;
mod fly;
pub mod local;
pub mod share;
pub mod view;

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use echo::Echoes;
use flight::{Asked, Flights, Joined, ReplyTo, Waiter};
use metrics::counter;
use share::Bound;
use tokio::sync::oneshot;
use view::{Target, View, Zone};

use crate::cache::Cache;
use crate::cache::entry::{Entry, Style, Ttls};
use crate::cache::failure::Failures;
use crate::cache::front::Front;
use crate::clock;
use crate::config::Limits;
use crate::metrics::{Dropped, FLIGHT_JOINS, FLIGHTS_REFUSED, Metrics, Source, Transport};
use crate::upstream::{Attempt, queue};
use crate::wire::edns::ExtendedError;
use crate::wire::key::{Key, KeyBuf};
use crate::wire::query::{OurEdns, Query, Reject, write_header_only};
use crate::wire::rcode;

/// What is known of a client before its query is read.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// The slot of the thread's counters.
    pub slot: usize,
    /// How the query came.
    pub transport: Transport,
    /// Whether it came by IPv6.
    pub ipv6: bool,
    /// Whether its address may ask.
    pub allowed: bool,
    /// Our side of EDNS on this transport.
    pub ours: OurEdns,
}

/// What happens to a packet.
pub enum Step {
    /// The answer is written; its source says how it counts.
    Reply(Source),
    /// No answer.
    Drop(Dropped),
    /// It has to be asked upstream.
    Wait(Box<Miss>),
}

/// A query that the cache could not answer.
pub struct Miss {
    key: Key,
    zone: Arc<Zone>,
    asked: Asked,
    expired: Option<Arc<Entry>>,
}

impl Miss {
    /// What its flight is known by.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

/// How the client of a miss gets its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// From the flight that it started.
    First,
    /// From a flight that was under way.
    Joined,
    /// Not at all: the flight is late, and it has been given a stale answer.
    Late,
    /// Not at all: a bound was reached.
    Refused(Bound),
}

/// A flight that has been opened and not started.
pub struct Takeoff {
    key: Key,
    zone: Arc<Zone>,
    source: queue::Source,
    expired: Option<Arc<Entry>>,
}

/// Everything that answers queries.
pub struct Resolver {
    view: ArcSwap<View>,
    /// Positive and negative answers.
    pub cache: Cache,
    /// Resolution failures.
    pub failures: Failures,
    /// Questions being asked.
    pub flights: Flights,
    /// Probes for loops.
    pub echoes: Echoes,
    /// Counters of all threads.
    pub metrics: Arc<Metrics>,
    runtime: tokio::runtime::Handle,
    joins: metrics::Counter,
}

impl Resolver {
    /// A resolver whose flights run on `runtime`.
    pub fn new(
        view: View,
        cache_bytes: u64,
        limits: &Limits,
        metrics: Arc<Metrics>,
        runtime: tokio::runtime::Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            view: ArcSwap::from_pointee(view),
            cache: Cache::new(cache_bytes),
            failures: Failures::new(),
            flights: Flights::new(limits.flights, limits.waiters),
            echoes: Echoes::new(),
            metrics,
            runtime,
            joins: counter!(FLIGHT_JOINS),
        })
    }

    /// The zones and rules in force. Load it once for a batch of packets.
    pub fn view(&self) -> arc_swap::Guard<Arc<View>> {
        self.view.load()
    }

    /// Puts other zones and rules in force; what is cached stays.
    pub fn replace_view(&self, view: View) {
        self.view.store(Arc::new(view));
    }

    /// Decides about one packet, and writes its answer into `out` if there is one already.
    pub fn handle(
        self: &Arc<Self>,
        view: &View,
        client: &Client,
        packet: &[u8],
        now: Instant,
        front: &mut Front,
        out: &mut Vec<u8>,
    ) -> Step {
        let slot = self.metrics.slot(client.slot);
        let query = match Query::parse(packet) {
            Ok(query) => query,
            Err(Reject::Short) => return Step::Drop(Dropped::Short),
            Err(Reject::Response) => return Step::Drop(Dropped::Response),
            Err(Reject::Header(code)) => {
                slot.query(client.transport, client.ipv6, 0);
                self.metrics.no_zone.response(client.slot, Source::Local, code);
                write_header_only(packet, code, out);
                return Step::Reply(Source::Local);
            }
        };
        slot.query(client.transport, client.ipv6, query.qtype);
        if let Some((code, error)) = refusal(client, &query) {
            self.metrics.no_zone.response(client.slot, Source::Local, code);
            // To tell a stranger our idle timeout takes more than asking for it did.
            let keepalive = client.ours.keepalive.filter(|_| client.allowed);
            query.write_empty(code, &OurEdns { keepalive, ..client.ours }, error, out);
            return Step::Reply(Source::Local);
        }
        let mut key = KeyBuf::new(&query);
        let zone = match view.find(&query, key.name()) {
            Target::Zone(labels, zone) => {
                key.bind(labels);
                zone
            }
            other => return self.answer_here(view, &other, client, &query, &key, now, out),
        };
        match front.lookup(&self.cache, &key, now) {
            Some(entry) if entry.remaining(now).is_some() => {
                let style = Style { edns: client.ours, rotate: view.rotate, error: None };
                entry.write(&query, Ttls::Aged(entry.age(now).as_secs() as u32), &style, out);
                zone.metrics.response(client.slot, Source::Hit, entry.rcode());
                if let Some(prefetch) = zone.prefetch
                    && query.recursion_desired()
                    && entry.wants_refresh(prefetch.hits, prefetch.at, now)
                {
                    if self.refresh(key.to_key(), zone, Some(Arc::clone(entry))) {
                        zone.metrics.prefetches.add(1);
                    } else {
                        entry.refresh_later();
                    }
                }
                Step::Reply(Source::Hit)
            }
            expired => {
                let expired = expired.cloned();
                self.handle_miss(view, zone, client, &query, &key, expired, now, out)
            }
        }
    }

    /// Static hosts, names answered by rule, and names of no zone.
    #[expect(clippy::too_many_arguments, reason = "the tail of `handle`, off the hot path")]
    fn answer_here(
        &self,
        view: &View,
        target: &Target<'_>,
        client: &Client,
        query: &Query<'_>,
        key: &KeyBuf,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Step {
        let key = key.to_key();
        let (source, entry) = match target {
            Target::Hosts => (Source::Hosts, view.hosts.entry(query, &key, now)),
            Target::Local(local) => (Source::Local, local.entry(query, &key, now)),
            Target::Zone(..) | Target::None => (Source::Local, None),
        };
        let code = match entry {
            Some(entry) => {
                let style = Style { edns: client.ours, rotate: view.rotate, error: None };
                entry.write(query, Ttls::Aged(0), &style, out);
                entry.rcode()
            }
            None => {
                query.write_empty(rcode::REFUSED, &client.ours, Some(ExtendedError::Prohibited), out);
                rcode::REFUSED
            }
        };
        self.metrics.no_zone.response(client.slot, source, code);
        Step::Reply(source)
    }

    /// What is not fresh in the cache: a query that may not be forwarded, a failure that is still
    /// remembered, a stale answer that may go out at once, or a miss.
    #[expect(clippy::too_many_arguments, reason = "the tail of `handle`, off the hot path")]
    fn handle_miss(
        self: &Arc<Self>,
        view: &View,
        zone: &Arc<Zone>,
        client: &Client,
        query: &Query<'_>,
        key: &KeyBuf,
        expired: Option<Arc<Entry>>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Step {
        if !query.recursion_desired() || self.echoes.is_one(key.name()) {
            query.write_empty(rcode::REFUSED, &client.ours, Some(ExtendedError::Prohibited), out);
            zone.metrics.response(client.slot, Source::Local, rcode::REFUSED);
            return Step::Reply(Source::Local);
        }
        let stale = expired.as_ref().and_then(|entry| zone.may_serve_stale(entry, now));
        let failed = self.failures.lookup(key, stale.is_some(), zone.pool.generation(), now);
        if let Some(entry) = stale {
            let stale_now = failed.is_some() || entry.immediate || zone.pool.is_down();
            if stale_now {
                let code = zone.write_stale(entry.entry, query, client.ours, view.rotate, out);
                zone.metrics.response(client.slot, Source::Stale, code);
                if failed.is_none() {
                    self.refresh(key.to_key(), zone, expired.clone());
                }
                return Step::Reply(Source::Stale);
            }
        } else if let Some(cause) = failed {
            let code = cause.rcode();
            query.write_empty(code, &client.ours, Some(ExtendedError::CachedError), out);
            zone.metrics.response(client.slot, Source::Failure, code);
            return Step::Reply(Source::Failure);
        }
        zone.metrics.misses.add(1);
        let asked = Asked::new(query, client.ours, now);
        Step::Wait(Box::new(Miss { key: key.to_key(), zone: Arc::clone(zone), asked, expired }))
    }

    /// Lets the client of a miss wait: for the flight of its key, which starts if there is none.
    pub fn wait(self: &Arc<Self>, miss: Box<Miss>, to: ReplyTo) -> Waits {
        let (waits, opened) = self.join(miss, to);
        self.start(opened.into_iter().collect());
        waits
    }

    /// Lets the client of a miss wait. The flight that it opens, if there is none of its key, is to be started.
    #[expect(clippy::boxed_local, reason = "as it stands in `Step`")]
    #[must_use = "somebody waits for it"]
    pub fn join(&self, miss: Box<Miss>, to: ReplyTo) -> (Waits, Option<Takeoff>) {
        let Miss { key, zone, asked, expired } = *miss;
        let stale =
            expired.as_ref().is_some_and(|entry| zone.may_serve_stale(entry, asked.received).is_some());
        match self.flights.join(&key, Waiter { asked, to }, stale) {
            Joined::First(source) => (Waits::First, Some(Takeoff { key, zone, source, expired })),
            Joined::Waiting => {
                self.joins.increment(1);
                (Waits::Joined, None)
            }
            Joined::Late(waiter) => {
                self.answer_without(&zone, expired.as_deref(), [waiter], None, &[]);
                (Waits::Late, None)
            }
            Joined::Full(waiter, bound) => {
                counter!(FLIGHTS_REFUSED, "reason" => bound.label()).increment(1);
                self.answer_without(&zone, expired.as_deref(), [waiter], None, &[]);
                (Waits::Refused(bound), None)
            }
        }
    }

    /// Starts the flights that a batch of packets has opened. The runtime is woken once for all of them.
    pub fn start(self: &Arc<Self>, flights: Vec<Takeoff>) {
        if flights.is_empty() {
            return;
        }
        let resolver = Arc::clone(self);
        self.runtime.spawn(async move {
            for Takeoff { key, zone, source, expired } in flights {
                tokio::spawn(Arc::clone(&resolver).fly(key, zone, source, expired));
            }
        });
    }

    /// Lets somebody wait for the end of a flight, for the tries that it made. False if it has ended.
    pub fn attend(&self, key: &Key, packet: &[u8], ours: OurEdns, to: oneshot::Sender<Vec<Attempt>>) -> bool {
        Query::parse(packet).is_ok_and(|query| {
            let asked = Asked::new(&query, ours, clock::now());
            self.flights.attend(key, Waiter { asked, to: ReplyTo::Witness(to) })
        })
    }

    /// Asks for a key behind the answer that was just given.
    /// False if there is no room for a flight, or one under way.
    fn refresh(self: &Arc<Self>, key: Key, zone: &Arc<Zone>, expired: Option<Arc<Entry>>) -> bool {
        let opened = self.flights.open(&key);
        if opened {
            self.runtime.spawn(Arc::clone(self).fly(key, Arc::clone(zone), None, expired));
        }
        opened
    }
}

/// The RCODE that is all a client gets for a query that is not looked up, and its explanation.
fn refusal(client: &Client, query: &Query<'_>) -> Option<(u16, Option<ExtendedError>)> {
    if !client.allowed {
        return Some((rcode::REFUSED, None)); // an explanation would make it larger than the query
    }
    if query.is_transfer() || query.is_chaos() {
        return Some((rcode::REFUSED, Some(ExtendedError::Prohibited)));
    }
    let other_version = query.edns.is_some_and(|edns| edns.version > 0);
    other_version.then_some((rcode::BADVERS, None))
}
