//! Every metric: its name, its help and where it is counted.
//!
//! What is counted on the way of each query are plain atomics, one set for each thread, merged when
//! scraped: a facade call costs a hash of its labels, and the exporter's histograms keep every
//! sample until they are rendered. What is labelled with a server or a zone is written from those
//! that exist, so that its series leave with it, which the exporter cannot do. Everything else goes
//! through the `metrics` facade.

mod count;

use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use count::{Counter, Family, Histogram, write_histograms};
use metrics::{describe_counter, describe_gauge, gauge};

use crate::wire::rtype;

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Transport {
    Udp,
    Tcp,
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A fresh entry.
    Hit,
    /// An upstream.
    Miss,
    /// An expired entry.
    Stale,
    /// Nobody: SERVFAIL, or a remembered failure.
    Failure,
    /// Static records.
    Hosts,
    /// The agent itself, refusals included.
    Local,
}

impl Source {
    /// Its label.
    pub fn label(self) -> &'static str {
        SOURCES[self as usize].1
    }
}

const SOURCES: [(Source, &str); 6] = [
    (Source::Hit, "hit"),
    (Source::Miss, "miss"),
    (Source::Stale, "stale"),
    (Source::Failure, "failure"),
    (Source::Hosts, "hosts"),
    (Source::Local, "local"),
];

/// Why a packet got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// Shorter than a header.
    Short,
    /// A response.
    Response,
    /// From port 0 or from ourselves.
    Source,
    /// The reply could not be sent.
    Send,
    /// A TCP client over its limits.
    TcpLimit,
}

const DROPPED: [(Dropped, &str); 5] = [
    (Dropped::Short, "short"),
    (Dropped::Response, "response"),
    (Dropped::Source, "source"),
    (Dropped::Send, "send"),
    (Dropped::TcpLimit, "tcp_limit"),
];

/// Types that have a label of their own, most asked first; all others are `other`.
const TYPES: [(u16, &str); 11] = [
    (rtype::A, "A"),
    (rtype::AAAA, "AAAA"),
    (rtype::PTR, "PTR"),
    (33, "SRV"),
    (rtype::TXT, "TXT"),
    (65, "HTTPS"),
    (15, "MX"),
    (2, "NS"),
    (rtype::CNAME, "CNAME"),
    (rtype::SOA, "SOA"),
    (rtype::ANY, "ANY"),
];

const RCODES: [&str; 7] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "other"];

/// What one thread counts. Aligned so that two threads never write to one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Slot {
    /// By transport, family and type.
    queries: [[[Counter; TYPES.len() + 1]; 2]; 2],
    durations: [Histogram; SOURCES.len()],
    dropped: [Counter; DROPPED.len()],
    /// Failing receive calls.
    pub receive_errors: Counter,
}

impl Slot {
    /// Counts a query.
    pub fn query(&self, transport: Transport, ipv6: bool, qtype: u16) {
        let qtype = TYPES.iter().position(|&(known, _)| known == qtype).unwrap_or(TYPES.len());
        self.queries[transport as usize][usize::from(ipv6)][qtype].add(1);
    }

    /// Counts `n` answers that took this long from receiving to sending.
    pub fn took(&self, source: Source, duration: Duration, n: u64) {
        self.durations[source as usize].observe(duration, n);
    }

    /// Counts a packet without answer.
    pub fn dropped(&self, why: Dropped) {
        self.dropped[why as usize].add(1);
    }
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct ZoneSlot {
    responses: [[Counter; RCODES.len()]; SOURCES.len()],
}

/// What is counted for one zone; it outlives reloads.
#[derive(Debug)]
pub struct ZoneMetrics {
    name: String,
    /// Look-ups that found nothing to answer with.
    pub misses: Counter,
    /// Entries refreshed ahead of their expiry.
    pub prefetches: Counter,
    /// Queries sent, by server.
    pub requests: Mutex<Vec<Requests>>,
    slots: Box<[ZoneSlot]>,
}

/// Queries sent to one server for a zone.
#[derive(Debug, Clone)]
pub struct Requests {
    /// The server's label.
    pub server: Arc<str>,
    /// By UDP.
    pub udp: u64,
    /// By TCP, in a TLS stream or not.
    pub tcp: u64,
}

impl ZoneMetrics {
    /// The zone's name, as in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts an answer from the thread that owns `slot`.
    pub fn response(&self, slot: usize, source: Source, rcode: u16) {
        let rcode = usize::from(rcode).min(RCODES.len() - 1);
        self.slots[slot].responses[source as usize][rcode].add(1);
    }

    fn sum(&self, source: usize, rcode: usize) -> u64 {
        self.slots.iter().map(|slot| slot.responses[source][rcode].value()).sum()
    }

    /// Answers from this source.
    pub fn answered(&self, source: Source) -> u64 {
        (0..RCODES.len()).map(|rcode| self.sum(source as usize, rcode)).sum()
    }
}

/// All hot counters of the process.
#[derive(Debug)]
pub struct Metrics {
    slots: Box<[Slot]>,
    /// Answers under no configured zone.
    pub no_zone: Arc<ZoneMetrics>,
}

impl Metrics {
    /// One slot for each UDP worker, and one more that all other threads share.
    pub fn new(workers: usize) -> Self {
        let slots = (0..=workers).map(|_| Slot::default()).collect();
        let zone = |name: &str| Self::zone_with(name, workers + 1);
        Self { slots, no_zone: zone("none") }
    }

    /// The slot of worker `index`.
    pub fn slot(&self, index: usize) -> &Slot {
        &self.slots[index]
    }

    /// The index of the slot that is shared.
    pub fn shared(&self) -> usize {
        self.slots.len() - 1
    }

    /// Counters for a zone of this name.
    pub fn zone(&self, name: &str) -> Arc<ZoneMetrics> {
        Self::zone_with(name, self.slots.len())
    }

    fn zone_with(name: &str, slots: usize) -> Arc<ZoneMetrics> {
        let slots = (0..slots).map(|_| ZoneSlot::default()).collect();
        Arc::new(ZoneMetrics {
            name: name.to_owned(),
            misses: Counter::default(),
            prefetches: Counter::default(),
            requests: Mutex::default(),
            slots,
        })
    }

    /// Queries so far.
    pub fn queries(&self) -> u64 {
        let of = |slot: &Slot| -> u64 { slot.queries.iter().flatten().flatten().map(Counter::value).sum() };
        self.slots.iter().map(of).sum()
    }

    /// Appends the counters of all threads, and the answers of these zones.
    pub fn write<'a>(&'a self, out: &mut String, zones: impl Iterator<Item = &'a Arc<ZoneMetrics>>) {
        let mut queries = Vec::new();
        for (transport, transport_name) in ["udp", "tcp"].into_iter().enumerate() {
            for (family, family_name) in ["1", "2"].into_iter().enumerate() {
                for (index, qtype) in TYPES.iter().map(|t| t.1).chain(["other"]).enumerate() {
                    let value = |slot: &Slot| slot.queries[transport][family][index].value();
                    let sum: u64 = self.slots.iter().map(value).sum();
                    if sum > 0 {
                        let labels = format!(
                            "transport=\"{transport_name}\",family=\"{family_name}\",type=\"{qtype}\""
                        );
                        queries.push((labels, sum));
                    }
                }
            }
        }
        QUERIES.write(out, queries.into_iter());
        DROPPED_TOTAL.write(
            out,
            DROPPED.iter().enumerate().map(|(index, (_, cause))| {
                let sum: u64 = self.slots.iter().map(|slot| slot.dropped[index].value()).sum();
                (format!("cause=\"{cause}\""), sum)
            }),
        );
        let errors: u64 = self.slots.iter().map(|slot| slot.receive_errors.value()).sum();
        UDP_RECEIVE_ERRORS.write(out, [(String::new(), errors)].into_iter());
        let mut responses = Vec::new();
        for zone in zones.chain([&self.no_zone]) {
            for (source, (_, source_name)) in SOURCES.iter().enumerate() {
                for (rcode, rcode_name) in RCODES.iter().enumerate() {
                    let sum = zone.sum(source, rcode);
                    if sum > 0 {
                        let zone = &zone.name;
                        let labels =
                            format!("zone=\"{zone}\",rcode=\"{rcode_name}\",source=\"{source_name}\"");
                        responses.push((labels, sum));
                    }
                }
            }
        }
        RESPONSES.write(out, responses.into_iter());
    }

    /// Appends the histograms of answer times.
    pub fn write_durations(&self, out: &mut String) {
        let series = SOURCES.iter().enumerate().map(|(index, (_, name))| {
            (format!("source=\"{name}\""), self.slots.iter().map(|slot| &slot.durations[index]).collect())
        });
        write_histograms(
            out,
            QUERY_DURATION,
            "Seconds from receiving a query to sending its answer.",
            series,
        );
    }
}

/// Declares the facade's metrics, and the families written here, each with its help.
macro_rules! names {
    ($(facade $kind:ident $facade:ident = $facade_name:literal: $facade_help:literal;)*
     $(own $own_kind:ident $own:ident = $own_name:literal: $own_help:literal;)*) => {
        $(#[doc = $facade_help] pub const $facade: &str = $facade_name;)*
        /// Tells the recorder what each of its metrics means. Once, at start.
        pub fn describe() {
            $(names!(@$kind $facade, $facade_help);)*
        }
        #[cfg(test)]
        const NAMES: &[&str] = &[$($facade_name,)* $($own_name,)*];
        $(#[doc = $own_help]
        pub const $own: Family = Family { name: $own_name, help: $own_help, kind: stringify!($own_kind) };)*
    };
    (@counter $const:ident, $help:literal) => { describe_counter!($const, $help) };
    (@gauge $const:ident, $help:literal) => { describe_gauge!($const, $help) };
}

/// Seconds from receiving a query to sending its answer.
pub const QUERY_DURATION: &str = "nodens_query_duration_seconds";
/// Seconds from sending a query to a server to its answer.
pub const UPSTREAM_DURATION: &str = "nodens_upstream_duration_seconds";

names! {
    facade gauge CACHE_ENTRIES = "nodens_cache_entries": "Entries in the cache, by kind.";
    facade gauge CACHE_BYTES = "nodens_cache_bytes": "Bytes in use by the cache.";
    facade counter CACHE_EVICTIONS = "nodens_cache_evictions_total": "Entries that had to make room for others.";
    facade gauge FLIGHTS = "nodens_flights": "Distinct questions being asked upstream.";
    facade gauge WAITERS = "nodens_waiters": "Clients waiting for a flight.";
    facade counter FLIGHT_JOINS = "nodens_flight_joins_total": "Queries that joined a flight already under way.";
    facade counter HEDGES = "nodens_hedges_total": "Second queries for answers that were later than usual: sent, won because theirs was the answer that counted, denied for want of budget.";
    facade counter FLIGHTS_REFUSED = "nodens_flights_refused_total": "Queries refused at the bound of flights or waiters, or at their source's share of them, by reason.";
    facade gauge TCP_CONNECTIONS = "nodens_tcp_connections": "TCP clients connected.";
    facade gauge BUILD_INFO = "nodens_build_info": "1, labelled with the version.";
    facade gauge CONFIG_INFO = "nodens_config_info": "1, labelled with the hash of the configuration in use.";
    facade counter CONFIG_RELOADS = "nodens_config_reloads_total": "Times the configuration was read again, by result.";
    facade gauge CONFIG_LAST_RELOAD = "nodens_config_last_reload_success": "1 if the newest configuration is in use.";
    facade counter SETUP_ERRORS = "nodens_setup_errors_total": "Failed tries to set up the node or a socket, by step.";
    facade counter SETUP_REPAIRS = "nodens_setup_repairs_total": "Times that something of ours was gone from the node and was put back, by step.";
    facade gauge INTERCEPTING = "nodens_intercepting": "1 while queries to the ClusterIPs of network.intercept are led to this agent.";
    own counter QUERIES = "nodens_queries_total": "Queries received; family 1 is IPv4, 2 is IPv6 (IANA address families).";
    own counter RESPONSES = "nodens_responses_total": "Answers sent, by zone, RCODE and where they came from.";
    own counter DROPPED_TOTAL = "nodens_dropped_total": "Packets and answers that were dropped, by cause.";
    own counter UDP_RECEIVE_ERRORS = "nodens_udp_receive_errors_total": "Failing receive calls on UDP sockets.";
    own counter CACHE_LOOKUPS = "nodens_cache_lookups_total": "Cache look-ups, by zone and result.";
    own counter PREFETCHES = "nodens_prefetches_total": "Entries refreshed ahead of their expiry, by zone.";
    own gauge STALE_SINCE = "nodens_stale_since_seconds": "Unix time at which a zone's upstreams began to fail; 0 while they answer.";
    own counter UPSTREAM_REQUESTS = "nodens_upstream_requests_total": "Queries sent upstream, by zone, server and transport.";
    own counter UPSTREAM_TRIES = "nodens_upstream_tries_total": "Tries at a server, by why: the first of a question, after one that failed, a hedge for a late one, or instead of one gone silent.";
    own counter UPSTREAM_FAILURES = "nodens_upstream_failures_total": "Tries without a good answer, by server and cause; given_up and timeout include those that another try overtook.";
    own gauge UPSTREAM_UP = "nodens_upstream_up": "1 while a server is in use, 0 while it is passed over for its failures and probed.";
    own counter UPSTREAM_EJECTIONS = "nodens_upstream_ejections_total": "Times that a server came to be passed over for its failures.";
    own counter UPSTREAM_PROBES = "nodens_upstream_probes_total": "The agent's own questions to a server, after failures and while it is passed over, by result.";
    own gauge UPSTREAM_LATE = "nodens_upstream_late_seconds": "Age at which a server's answer is late and a hedge may go out; 1 until enough answers have come.";
    own gauge UPSTREAM_IN_FLIGHT = "nodens_upstream_in_flight": "Queries whose answer is awaited from a server, those in its queue included.";
    own gauge UPSTREAM_QUEUE = "nodens_upstream_queue": "Queries that wait for room on a server's connections, or for a connection to open.";
    own gauge UPSTREAM_CONNECTIONS = "nodens_upstream_connections": "Open connections to a server.";
    own gauge UPSTREAM_TRANSPORT = "nodens_upstream_transport": "1 for the transport by which an auto:// server is asked first, 0 for the other.";
    own counter UPSTREAM_CONNECTS = "nodens_upstream_connects_total": "Connections tried, by server and result.";
    own counter UPSTREAM_TLS_HANDSHAKES = "nodens_upstream_tls_handshakes_total": "TLS handshakes, by server and result; a resumed one costs less.";
    own counter UPSTREAM_WRITES = "nodens_upstream_writes_total": "Write calls on a server's connections; several queries share one.";
}

/// Sets the build's own series.
pub fn publish_build() {
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_metric_stands_in_the_documentation_and_no_other() {
        let documented: BTreeSet<&str> = include_str!("../docs/metrics.md")
            .split(|letter: char| letter != '_' && !letter.is_ascii_alphanumeric())
            .filter(|word| word.starts_with("nodens_"))
            .collect();
        let known: BTreeSet<&str> =
            NAMES.iter().copied().chain([QUERY_DURATION, UPSTREAM_DURATION]).collect();
        assert_eq!(documented, known);
    }
}
