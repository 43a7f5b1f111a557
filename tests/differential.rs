//! 20,000 queries to the agent and straight to its upstreams: every difference has a rule that explains it.
//!
//! NSD has the cluster's zone and a zone of odd things under two names, one asked for by TCP and one by
//! UDP; Unbound has the names outside. The queries come from a seed (`NODENS_SEED` names another). Debian
//! packages: nsd, unbound.

#[path = "differential/ask.rs"]
mod ask;
#[path = "differential/compare.rs"]
mod compare;
#[path = "differential/generate.rs"]
mod generate;
#[path = "differential/message.rs"]
mod message;
#[path = "differential/rules.rs"]
mod rules;
#[expect(dead_code, unused_imports, reason = "shared with other tests, which use other parts of it")]
#[path = "support/mod.rs"]
mod support;
#[path = "differential/zone.rs"]
mod zone;

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use ask::{Answered, Server};
use compare::{Aspect, Pair, differences};
use message::{Opt, Query, Reply, flag};
use rules::{OUR_SIZE, RULES};
use support::{Agent, Nsd, Unbound};

const QUERIES: usize = 20_000;
/// Queries that are outstanding at each server.
const BATCH: usize = 64;
const SEED: u64 = 0x6e6f_6465_6e73;
/// Pairs that a failure prints.
const SHOWN: usize = 10;

/// What stands behind the agent.
struct Upstreams {
    nsd: Server,
    unbound: Server,
}

/// Who answers a name behind the agent, and how the agent asks there.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Zone {
    /// NSD by TCP.
    Cluster,
    /// NSD by UDP.
    Udp,
    /// Unbound by TCP.
    Outside,
}

impl Zone {
    fn of(query: &Query) -> Self {
        let lower = query.name.to_ascii_lowercase();
        let under = |suffix: &[u8]| {
            let mut at = 0;
            while lower[at] != 0 && &lower[at..] != suffix {
                at += usize::from(lower[at]) + 1;
            }
            &lower[at..] == suffix
        };
        match () {
            () if under(b"\x03udp\x04test\0") => Self::Udp,
            () if under(b"\x03tcp\x04test\0") || under(b"\x07cluster\x05local\0") => Self::Cluster,
            () if under(b"\x0210\x07in-addr\x04arpa\0") => Self::Cluster,
            () => Self::Outside,
        }
    }
}

/// A question as caches know it.
type Key = (Vec<u8>, u16, u16, bool, bool);

fn key(query: &Query) -> Key {
    let Query { qtype, qclass, .. } = *query;
    (query.name.to_ascii_lowercase(), qtype, qclass, query.dnssec_ok(), query.has(flag::CD))
}

/// The query that the agent sends for this one (dns-rules, To upstreams), but for its letters, which the agent
/// sends in lower case and gives back as they came.
fn as_the_agent_asks(query: &Query, tcp: bool) -> Query {
    let flags = flag::RD | flag::AD | query.flags & flag::CD;
    let opt = Opt { size: OUR_SIZE, version: 0, flags: u16::from(query.dnssec_ok()) << 15, options: vec![] };
    Query { name: query.name.clone(), flags, opt: Some(opt), tcp, ..*query }
}

impl Upstreams {
    fn behind(&self, zone: Zone) -> &Server {
        if zone == Zone::Outside { &self.unbound } else { &self.nsd }
    }

    /// The same batch, each query to the server behind its zone.
    fn ask(&self, first: u16, batch: &[&Query]) -> Vec<Option<Answered>> {
        let mut answered = vec![None; batch.len()];
        for server in [&self.nsd, &self.unbound] {
            let places: Vec<usize> = (0..batch.len())
                .filter(|&at| std::ptr::eq(self.behind(Zone::of(batch[at])), server))
                .collect();
            let queries: Vec<&Query> = places.iter().map(|&at| batch[at]).collect();
            for (at, reply) in places.into_iter().zip(server.ask(first, &queries)) {
                answered[at] = reply;
            }
        }
        answered
    }

    /// The message that the agent got for this query.
    fn source(&self, query: &Query) -> Reply {
        let zone = Zone::of(query);
        let by = |tcp: bool| {
            let asked = as_the_agent_asks(query, tcp);
            came(self.behind(zone).ask(0x5000, &[&asked]).remove(0), "the upstream", &asked).reply
        };
        match zone {
            Zone::Udp => Some(by(false)).filter(|reply| !reply.has(flag::TC)).unwrap_or_else(|| by(true)),
            Zone::Cluster | Zone::Outside => by(true),
        }
    }
}

/// The reply, which must have come.
fn came(answered: Option<Answered>, from: &str, query: &Query) -> Answered {
    answered.unwrap_or_else(|| panic!("no reply, or none that can be read, from {from}: {query}"))
}

/// What is known of a question from the replies so far.
#[derive(Default)]
struct Known {
    first_asked: Option<Instant>,
    /// The first reply that went into the cache and is still there: when it came, and its smallest TTL.
    cached: Option<(Instant, u32)>,
}

impl Known {
    fn learn(&mut self, query: &Query, answered: &Answered) {
        let reply = &answered.reply;
        self.first_asked.get_or_insert(answered.asked);
        let ttls = reply.sections.iter().flatten().map(|record| record.ttl);
        let has_soa = reply.sections[1].iter().any(|record| record.rtype == 6);
        let is_answer =
            reply.rcode == 0 && reply.sections[0].iter().any(|record| record.rtype == query.qtype);
        let may_be_cached = matches!(reply.rcode, 0 | 3) && !reply.has(flag::TC) && (is_answer || has_soa);
        if may_be_cached && self.cached_for(answered.asked).is_none() {
            self.cached = ttls.min().map(|ttl| (answered.came, ttl));
        }
    }

    fn since_first_asked(&self, now: Instant) -> u64 {
        self.first_asked.map_or(0, |first| (now - first).as_secs())
    }

    /// How long an answer has been in the cache at least, when it is there for certain: with more than the
    /// last tenth of its life left, in which it is refreshed ahead.
    fn cached_for(&self, asked: Instant) -> Option<u32> {
        let (came, ttl) = self.cached?;
        let ttl = u64::from(ttl);
        let age = asked.checked_duration_since(came)?.as_secs();
        let longest_life = ttl + self.since_first_asked(asked) + 1;
        (age + longest_life / 10 + 2 < ttl).then_some(age as u32)
    }
}

/// In these the agent speaks for itself: all else is what the upstream said.
const HEADER: [Aspect; 6] = [Aspect::Ra, Aspect::Rd, Aspect::Cd, Aspect::Z, Aspect::Opt, Aspect::Question];

/// The sum of the comparison.
#[derive(Default)]
struct Summary {
    /// Nothing differs.
    equal: usize,
    /// Nothing differs, or the [`HEADER`] alone.
    alike: usize,
    rules: BTreeMap<&'static str, usize>,
    unexplained: Vec<String>,
}

impl Summary {
    fn compare(&mut self, pair: &Pair<'_>) {
        let found = differences(pair);
        self.equal += usize::from(found.is_empty());
        self.alike += usize::from(found.iter().all(|aspect| HEADER.contains(aspect)));
        match rules::explain(pair, &found) {
            Ok(used) => used.into_iter().for_each(|name| *self.rules.entry(name).or_default() += 1),
            Err(left) => self.unexplained.push(format!(
                "{left:?} differ, {} s after it was first asked\nquery  {}\ntheirs {}source {}ours   {}",
                pair.age,
                pair.query,
                pair.theirs,
                pair.source(),
                pair.ours
            )),
        }
    }
}

impl Summary {
    /// Prints the sum, and fails with the pairs that no rule explains and the rules that explain nothing.
    fn report(self, seed: u64, seconds: f64) {
        let Self { equal, alike, rules, unexplained } = self;
        eprintln!(
            "{QUERIES} queries (seed {seed}) in {seconds:.1} s: {equal} equal, {alike} but for header and OPT, \
             {rules:?}, {} unexplained",
            unexplained.len()
        );
        let shown = unexplained[..unexplained.len().min(SHOWN)].join("\n");
        assert!(unexplained.is_empty(), "{} without a rule (seed {seed}):\n{shown}", unexplained.len());
        let idle: Vec<&str> =
            RULES.iter().map(|rule| rule.name).filter(|name| !rules.contains_key(name)).collect();
        assert!(seed != SEED || idle.is_empty(), "rules that explain nothing: {idle:?}");
    }
}

fn config(nsd: &Nsd, unbound: &Unbound) -> String {
    let (nsd, unbound) = (nsd.address, unbound.address);
    // A loaded machine may take more than half a second for an answer, and stale ones are another test's.
    let cache = "cache: { stale: { client_response: 4s } }";
    format!(
        "edns_size: {OUR_SIZE}\nzones:\n\
         - {{ match: [cluster.local, 10.in-addr.arpa, tcp.test], upstream: {{ servers: [\"tcp://{nsd}\"] }}, {cache} }}\n\
         - {{ match: [udp.test], upstream: {{ servers: [\"udp://{nsd}\"] }}, {cache} }}\n\
         - {{ match: [\".\"], upstream: {{ servers: [\"tcp://{unbound}\"] }}, {cache} }}\n"
    )
}

fn seed() -> u64 {
    std::env::var("NODENS_SEED").map_or(SEED, |seed| seed.parse().expect("NODENS_SEED is a number"))
}

#[test]
fn every_difference_from_the_upstream_has_its_rule() {
    let odd = zone::ODD.map(zone::text);
    let [by_tcp, by_udp] = [0, 1].map(|at| (zone::ODD[at], odd[at].as_str()));
    let nsd = Nsd::cluster_and(&[by_tcp, by_udp]);
    let unbound = Unbound::start(&zone::outside());
    let agent = Agent::start(&config(&nsd, &unbound));
    let ours = Server::new(agent.address);
    let upstreams = Upstreams { nsd: Server::new(nsd.address), unbound: Server::new(unbound.address) };

    let (seed, started) = (seed(), Instant::now());
    let queries = generate::queries(seed, QUERIES);
    let mut known: HashMap<Key, Known> = HashMap::new();
    let mut summary = Summary::default();
    for (number, batch) in queries.chunks(BATCH).enumerate() {
        let batch: Vec<&Query> = batch.iter().collect();
        let first = (number * BATCH % 0x4000) as u16;
        let from_us = ours.ask(first, &batch);
        let from_them = upstreams.ask(first, &batch);
        let mut learned = Vec::new();
        for ((query, ours), theirs) in batch.into_iter().zip(from_us).zip(from_them) {
            let ours = came(ours, "the agent", query);
            let theirs = came(theirs, "the upstream", query);
            let known = known.entry(key(query)).or_default();
            let pair = Pair {
                query,
                theirs: &theirs.reply,
                source: OnceCell::new(),
                ask_source: &|| upstreams.source(query),
                ours: &ours.reply,
                age: known.since_first_asked(ours.came) as u32 + 1,
                cached: known.cached_for(ours.asked),
            };
            summary.compare(&pair);
            learned.push((key(query), query, ours));
        }
        for (key, query, ours) in learned {
            known.entry(key).or_default().learn(query, &ours);
        }
    }
    summary.report(seed, started.elapsed().as_secs_f64());
}
