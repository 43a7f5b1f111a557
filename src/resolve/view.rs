//! What a reload replaces at once: zones with their policies, hosts, and how answers look.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hickory_proto::rr::Name;

use super::local::{Hosts, Local, plain};
use crate::cache::entry::{Entry, Style, Ttls};
use crate::cache::failure::{self, Times};
use crate::cache::lifetime::Bounds;
use crate::cache::snapshot::Rule;
use crate::config::{self, Prefetch, Stale, StaleMode};
use crate::metrics::{Requests, Transport, ZoneMetrics};
use crate::upstream::{Attempt, Pool};
use crate::wire::class;
use crate::wire::edns::ExtendedError;
use crate::wire::key::Key;
use crate::wire::query::{OurEdns, Query};
use crate::wire::response::Kind;
use crate::zone::Suffixes;

/// Zones and rules in force.
pub struct View {
    suffixes: Suffixes<Owner>,
    /// Static records.
    pub hosts: Hosts,
    /// All zones, as configured.
    pub zones: Vec<Arc<Zone>>,
    /// Whether address RRsets are rotated.
    pub rotate: bool,
    /// Our UDP payload size.
    pub edns_size: u16,
    /// Whose queries are answered.
    pub allow_from: config::AllowFrom,
}

enum Owner {
    Zone(Arc<Zone>),
    Local(Local),
}

/// Who answers a question.
pub enum Target<'a> {
    /// A zone, by a suffix of this many labels.
    Zone(u8, &'a Arc<Zone>),
    /// A rule.
    Local(Local),
    /// The static records.
    Hosts,
    /// Nobody.
    None,
}

impl View {
    /// The view of a configuration, with a pool and counters for each of its zones.
    pub fn new(
        config: &config::Config,
        mut parts: impl FnMut(&config::Zone) -> (Arc<Pool>, Arc<ZoneMetrics>),
    ) -> Self {
        let mut suffixes = Suffixes::default();
        for (suffix, local) in Local::SUFFIXES {
            suffixes.insert(suffix, Owner::Local(local));
        }
        let mut zones = Vec::with_capacity(config.zones.len());
        for written in &config.zones {
            let (pool, metrics) = parts(written);
            let zone = Arc::new(Zone::new(written, pool, metrics));
            for suffix in &written.matches {
                suffixes.insert(&plain(suffix), Owner::Zone(Arc::clone(&zone)));
            }
            zones.push(zone);
        }
        Self {
            suffixes,
            hosts: Hosts::new(&config.hosts),
            zones,
            rotate: config.cache.rotate,
            edns_size: config.edns_size,
            allow_from: config.allow_from.clone(),
        }
    }

    /// Who answers `query`, whose lower-cased name is `lower`.
    pub fn find(&self, query: &Query<'_>, lower: &[u8]) -> Target<'_> {
        if !self.hosts.is_empty() && self.hosts.has(query, lower) {
            return Target::Hosts;
        }
        match self.suffixes.find(lower) {
            Some((labels, Owner::Zone(zone))) => Target::Zone(labels, zone),
            Some((_, Owner::Local(local))) if query.qclass == class::IN => Target::Local(*local),
            _ => Target::None,
        }
    }

    /// The zone that a key is bound to, if its name still belongs to that one.
    pub fn zone_for(&self, key: &Key) -> Option<&Arc<Zone>> {
        match self.suffixes.find(key.name()) {
            Some((labels, Owner::Zone(zone))) if labels == key.suffix_labels() => Some(zone),
            _ => None,
        }
    }

    /// What the zone of a key says of an entry that another process has kept.
    pub fn rule_for(&self, key: &Key) -> Option<Rule> {
        let zone = self.zone_for(key)?;
        let stale = zone.stale.as_ref().map_or(Duration::ZERO, |stale| stale.max_age);
        Some(Rule { bounds: zone.bounds, stale })
    }

    /// The suffix that a name's zone was chosen by, for display.
    pub fn zone_of(&self, name: &Name) -> Option<&Arc<Zone>> {
        match self.suffixes.find(&plain(name)) {
            Some((_, Owner::Zone(zone))) => Some(zone),
            _ => None,
        }
    }
}

/// A zone with its policy, its upstream and what it counts.
pub struct Zone {
    /// Its name in metrics: the first suffix.
    pub name: String,
    /// That suffix, plain.
    pub apex: Box<[u8]>,
    /// Lifetime rules.
    pub bounds: Bounds,
    /// Stale answers.
    pub stale: Option<Stale>,
    /// Refresh ahead of expiry.
    pub prefetch: Option<Prefetch>,
    /// Who is asked.
    pub pool: Arc<Pool>,
    /// Answers.
    pub metrics: Arc<ZoneMetrics>,
    /// How long failures count.
    pub times: Times,
    /// Unix seconds since which nothing has answered; 0 while something does.
    failing_since: AtomicU64,
}

/// An expired entry that may go out.
pub struct StaleEntry<'a> {
    /// The entry.
    pub entry: &'a Entry,
    /// Whether it may go out before a refresh was tried.
    pub immediate: bool,
}

impl Zone {
    fn new(written: &config::Zone, pool: Arc<Pool>, metrics: Arc<ZoneMetrics>) -> Self {
        let name = metrics.name().to_owned();
        let seconds = |duration: Duration| duration.as_secs() as u32;
        let policy = &written.policy;
        Self {
            apex: plain(&written.matches[0]),
            bounds: Bounds {
                min_ttl: seconds(policy.min_ttl),
                max_ttl: seconds(policy.max_ttl),
                negative_max_ttl: seconds(policy.negative_max_ttl),
                negative_no_soa_ttl: seconds(policy.negative_no_soa_ttl),
            },
            stale: policy.stale.clone(),
            prefetch: policy.prefetch,
            pool,
            metrics,
            times: Times {
                transport: policy.failure.transport,
                servfail: policy.failure.servfail,
                servfail_max: policy.failure.servfail_max,
                recheck: policy.stale.as_ref().map_or(Duration::ZERO, |stale| stale.failure_recheck),
            },
            failing_since: AtomicU64::new(0),
            name,
        }
    }

    /// The entry, if it has expired and not too long ago.
    pub fn may_serve_stale<'a>(&self, entry: &'a Entry, now: Instant) -> Option<StaleEntry<'a>> {
        let rule = self.stale.as_ref()?;
        let within = entry.expired_for(now).is_some_and(|since| since < rule.max_age);
        within.then_some(StaleEntry { entry, immediate: rule.mode == StaleMode::Immediate })
    }

    /// Writes a stale answer and returns its RCODE.
    pub fn write_stale(
        &self,
        entry: &Entry,
        query: &Query<'_>,
        ours: OurEdns,
        rotate: bool,
        out: &mut Vec<u8>,
    ) -> u16 {
        let ttl = self.stale.as_ref().map_or(0, |rule| rule.answer_ttl.as_secs() as u32);
        let error = match entry.kind() {
            Kind::NxDomain => ExtendedError::StaleNxdomain,
            _ => ExtendedError::StaleAnswer,
        };
        entry.write(query, Ttls::Fixed(ttl), &Style { edns: ours, rotate, error: Some(error) }, out);
        entry.rcode()
    }

    /// Counts what was sent upstream. Servers that have left make room for one that is new, so that no more are
    /// kept than there are at a time.
    pub fn count(&self, attempts: &[Attempt]) {
        let mut known = self.counted();
        for attempt in attempts {
            let index = known.iter().position(|known| known.server == attempt.server).unwrap_or_else(|| {
                self.forget_gone(&mut known);
                known.push(Requests { server: Arc::clone(&attempt.server), udp: 0, tcp: 0 });
                known.len() - 1
            });
            for (transport, queries) in attempt.queries() {
                match transport {
                    Transport::Udp => known[index].udp += u64::from(queries),
                    Transport::Tcp => known[index].tcp += u64::from(queries),
                }
            }
        }
    }

    /// Queries sent so far, to the servers that the zone has now.
    pub fn requests(&self) -> Vec<Requests> {
        let mut known = self.counted();
        self.forget_gone(&mut known);
        known.clone()
    }

    fn counted(&self) -> MutexGuard<'_, Vec<Requests>> {
        self.metrics.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_gone(&self, known: &mut Vec<Requests>) {
        let servers = self.pool.servers();
        known.retain(|known| servers.iter().any(|server| server.label == known.server));
    }

    /// A server answered.
    pub fn answered(&self) {
        if self.failing_since.load(Ordering::Relaxed) != 0 {
            self.failing_since.store(0, Ordering::Relaxed);
        }
    }

    /// No server answered.
    pub fn failed(&self, cause: failure::Cause) {
        if cause == failure::Cause::Transport && self.failing_since.load(Ordering::Relaxed) == 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            self.failing_since.store(now, Ordering::Relaxed);
        }
    }

    /// Unix time since which no server answers; 0 while one does.
    pub fn failing_since(&self) -> u64 {
        self.failing_since.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Server;
    use crate::metrics::Metrics;
    use crate::upstream::{Sent, Why};

    fn attempt(server: &str) -> Attempt {
        let sent = Sent { tcp: 1, ..Sent::default() };
        Attempt {
            server: server.into(),
            why: Why::First,
            sent,
            started: tokio::time::Instant::now(),
            waited: None,
            took: Duration::ZERO,
            failed: None,
        }
    }

    #[test]
    fn what_is_counted_of_servers_that_left_does_not_pile_up() {
        let there = ["192.0.2.1:53", "192.0.2.2:53"].map(|text| Server::Tcp(text.parse().unwrap()));
        let config = config::Config {
            zones: vec![config::Zone::new(vec![Name::root()], there.to_vec())],
            ..config::Config::default()
        };
        let metrics = Metrics::new(1);
        let view =
            View::new(&config, |zone| (Pool::new(zone.upstream.clone(), 1232, &[]), metrics.zone(".")));
        let zone = &view.zones[0];
        zone.count(&there.map(|server| attempt(&server.to_string())));
        for n in 0..1000 {
            zone.count(&[
                attempt(&format!("tcp://198.51.100.{}:{}", n % 250, n)),
                attempt("tcp://192.0.2.1:53"),
            ]);
            assert!(zone.counted().len() <= 3);
        }
        let counted: Vec<_> =
            zone.requests().into_iter().map(|sent| (sent.server.to_string(), sent.tcp)).collect();
        assert_eq!(counted, [("tcp://192.0.2.1:53".to_owned(), 1001), ("tcp://192.0.2.2:53".to_owned(), 1)]);
    }
}
