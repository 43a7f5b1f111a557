//! What is told of upstreams: their series in /metrics, their state in /ready, `nodens stats` and traces.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clock;
use crate::metrics::{self as names, Counter, Family};
use crate::resolve::view::Zone;
use crate::upstream::server::Server;
use crate::upstream::tls::Handshakes;
use crate::upstream::{Cause, Connects, Probes, Why};

/// The servers behind each label. Pools of different definitions may have the same server, and each counts by itself:
/// a series is the sum of them.
pub(super) struct Upstreams(Vec<(Arc<str>, Vec<Arc<Server>>)>);

impl Upstreams {
    /// Those that the zones have now.
    pub(super) fn of(zones: &[Arc<Zone>]) -> Self {
        let mut labels: Vec<(Arc<str>, Vec<Arc<Server>>)> = Vec::new();
        let mut known: HashMap<Arc<str>, usize> = HashMap::new();
        for server in zones.iter().flat_map(|zone| zone.pool.servers().to_vec()) {
            let index = *known.entry(Arc::clone(&server.label)).or_insert(labels.len());
            match labels.get_mut(index) {
                // Zones share a pool, and with it its servers.
                Some((_, same)) if same.iter().any(|known| Arc::ptr_eq(known, &server)) => {}
                Some((_, same)) => same.push(server),
                None => labels.push((Arc::clone(&server.label), vec![server])),
            }
        }
        Self(labels)
    }

    /// Writes all their series.
    pub(super) fn write(&self, page: &mut String) {
        self.by(page, &names::UPSTREAM_TRIES, "why", |server| pairs(&Why::LABELS, &server.counts.tries));
        self.by(page, &names::UPSTREAM_FAILURES, "cause", |server| {
            let mut failures = pairs(&Cause::LABELS, &server.counts.failures);
            failures.retain(|(cause, _)| *cause != Cause::NoServer.label()); // never a server's
            failures
        });
        self.durations(page);
        let up = |servers: &[Arc<Server>]| servers.iter().all(|server| !server.health.is_passed_over());
        let ups = self.0.iter().map(|(label, servers)| (of(label), u64::from(up(servers))));
        names::UPSTREAM_UP.write(page, ups);
        self.sum(page, &names::UPSTREAM_EJECTIONS, |server| server.counts.ejections.value());
        self.by(page, &names::UPSTREAM_PROBES, "result", |server| {
            let Probes { ok, failed } = &server.counts.probes;
            vec![("ok", ok.value()), ("failed", failed.value())]
        });
        let late = |servers: &[Arc<Server>]| servers.iter().map(|server| server.pace.late_after()).max();
        let lates = self.0.iter().filter_map(|(label, of_it)| Some((of(label), late(of_it)?.as_secs_f64())));
        names::UPSTREAM_LATE.write(page, lates);
        self.sum(page, &names::UPSTREAM_IN_FLIGHT, |server| server.in_flight() as u64);
        self.sum(page, &names::UPSTREAM_QUEUE, |server| server.waiting() as u64);
        self.sum(page, &names::UPSTREAM_CONNECTIONS, |server| server.open() as u64);
        self.by(page, &names::UPSTREAM_CONNECTS, "result", |server| {
            let Connects { ok, failed, timeout, tls } = &server.counts.connects;
            let counts = [("ok", ok), ("failed", failed), ("timeout", timeout), ("tls", tls)];
            counts.map(|(result, count)| (result, count.value())).to_vec()
        });
        self.by(page, &names::UPSTREAM_TLS_HANDSHAKES, "result", |server| {
            let Some(tls) = &server.tls else { return Vec::new() };
            let Handshakes { full, resumed, failed } = &tls.handshakes;
            let counts = [("full", full), ("resumed", resumed), ("failed", failed)];
            counts.map(|(result, count)| (result, count.value())).to_vec()
        });
        self.sum(page, &names::UPSTREAM_WRITES, |server| server.counts.writes.value());
    }

    /// A family of one series for each label.
    fn sum(&self, page: &mut String, family: &Family, value: impl Fn(&Server) -> u64) {
        let sum = |servers: &[Arc<Server>]| servers.iter().map(|server| value(server)).sum::<u64>();
        family.write(page, self.0.iter().map(|(label, servers)| (of(label), sum(servers))));
    }

    /// A family of one series for each label and each value of `key`.
    fn by(
        &self,
        page: &mut String,
        family: &Family,
        key: &str,
        values: impl Fn(&Server) -> Vec<(&'static str, u64)>,
    ) {
        let mut series: Vec<(String, u64)> = Vec::new();
        for (label, servers) in &self.0 {
            let mut sums: Vec<(&str, u64)> = Vec::new();
            for (name, value) in servers.iter().flat_map(|server| values(server)) {
                match sums.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, sum)) => *sum += value,
                    None => sums.push((name, value)),
                }
            }
            series
                .extend(sums.into_iter().map(|(name, sum)| (format!("{},{key}=\"{name}\"", of(label)), sum)));
        }
        family.write(page, series.into_iter());
    }

    fn durations(&self, page: &mut String) {
        let series = self
            .0
            .iter()
            .map(|(label, servers)| (of(label), servers.iter().map(|server| &server.durations).collect()));
        let help = "Seconds from asking a server to its answer.";
        names::write_histograms(page, names::UPSTREAM_DURATION, help, series);
    }
}

fn of(label: &str) -> String {
    format!("server=\"{label}\"")
}

fn pairs(labels: &[&'static str], counts: &[Counter]) -> Vec<(&'static str, u64)> {
    labels.iter().zip(counts).map(|(label, count)| (*label, count.value())).collect()
}

/// Whether a server is asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum State {
    /// With this part of its share of queries: less than 1 for some seconds after it came back.
    InUse(f64),
    /// It fails, and is asked only where no other is left.
    PassedOver(Duration),
    /// It has not answered a probe either, and nobody asks it.
    Down(Duration),
}

impl State {
    /// A server's.
    pub(super) fn of(server: &Server, now: Instant) -> Self {
        match server.health.away(now) {
            None => Self::InUse(server.health.share(now)),
            Some((since, false)) => Self::PassedOver(since),
            Some((since, true)) => Self::Down(since),
        }
    }

    /// Its label in JSON.
    fn label(self) -> &'static str {
        match self {
            Self::InUse(_) => "in_use",
            Self::PassedOver(_) => "passed_over",
            Self::Down(_) => "down",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InUse(share) if *share < 1.0 => {
                write!(f, "in use again, {:.0} % of its share", share * 100.0)
            }
            Self::InUse(_) => write!(f, "in use"),
            Self::PassedOver(since) => write!(f, "passed over for {:.1} s", since.as_secs_f64()),
            Self::Down(since) => write!(f, "down for {:.1} s", since.as_secs_f64()),
        }
    }
}

/// One line about a server.
pub(super) fn line(server: &Server) -> String {
    let state = State::of(server, clock::now());
    let (open, in_flight, waiting) = (server.open(), server.in_flight(), server.waiting());
    format!("{}: {state}, {open} connections, {in_flight} in flight, {waiting} waiting", server.label)
}

/// The same as JSON, and as that line.
pub(super) fn describe(server: &Server) -> Value {
    let state = State::of(server, clock::now());
    let (share, since) = match state {
        State::InUse(share) => (share, None),
        State::PassedOver(since) | State::Down(since) => (0.0, Some(since.as_secs_f64())),
    };
    json!({
        "server": &*server.label,
        "state": state.label(),
        "since_s": since,
        "share": share,
        "connections": server.open(),
        "in_flight": server.in_flight(),
        "waiting": server.waiting(),
        "late_after_us": server.pace.late_after().as_micros() as u64,
        "line": line(server),
    })
}
