//! What is told of upstreams: their series in /metrics, their state in /ready, `nodens stats` and traces.

use std::collections::HashMap;
use std::sync::Arc;

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
        let autos = self
            .0
            .iter()
            .filter_map(|(label, servers)| Some((label, servers.iter().find(|of| of.is_auto())?)));
        let transports = autos.flat_map(|(label, server)| {
            let first = server.transport();
            ["tcp", "udp"].map(|by| (format!("{},transport=\"{by}\"", of(label)), u64::from(by == first)))
        });
        names::UPSTREAM_TRANSPORT.write(page, transports);
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

/// A server: whether it is in use, passed over for its failures (asked only where no other is left), or down (a probe
/// has failed too, and nobody asks it); since when; and what it has to do.
pub(super) fn describe(server: &Server) -> Value {
    let now = clock::now();
    let (state, since) = match server.health.away(now) {
        None => ("in_use", None),
        Some((since, false)) => ("passed_over", Some(since.as_secs_f64())),
        Some((since, true)) => ("down", Some(since.as_secs_f64())),
    };
    json!({
        "server": &*server.label,
        "transport": server.transport(),
        "state": state,
        "since_s": since,
        // Of its share of queries: it grows for some seconds when a server is back.
        "share": if since.is_none() { server.health.share(now) } else { 0.0 },
        "connections": server.open(),
        "in_flight": server.in_flight(),
        "waiting": server.waiting(),
        "late_after_us": server.pace.late_after().as_micros() as u64,
    })
}

/// The same in words.
pub fn line(server: &Value) -> String {
    let state = server["state"].as_str().unwrap_or_default().replace('_', " ");
    let share = server["share"].as_f64().unwrap_or(1.0);
    let state = match server["since_s"].as_f64() {
        Some(since) => format!("{state} for {since:.1} s"),
        None if share < 1.0 => format!("{state} again, {:.0} % of its share", share * 100.0),
        None => state,
    };
    let label = server["server"].as_str().unwrap_or_default();
    let by = match server["transport"].as_str() {
        Some(by) if label.starts_with("auto://") => format!(", by {by}"),
        _ => String::new(),
    };
    format!(
        "{label}: {state}{by}, {} connections, {} in flight, {} waiting",
        server["connections"], server["in_flight"], server["waiting"]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_since_when_a_server_is_away_or_how_much_of_its_share_it_gets() {
        let line = |state: &str, since: Option<f64>, share: f64| {
            line(&json!({
                "server": "tcp://192.0.2.1:53", "state": state, "since_s": since, "share": share,
                "connections": 2, "in_flight": 3, "waiting": 1,
            }))
        };
        let rest = "2 connections, 3 in flight, 1 waiting";
        assert_eq!(line("in_use", None, 1.0), format!("tcp://192.0.2.1:53: in use, {rest}"));
        let again = format!("tcp://192.0.2.1:53: in use again, 25 % of its share, {rest}");
        assert_eq!(line("in_use", None, 0.25), again);
        let away = format!("tcp://192.0.2.1:53: passed over for 1.5 s, {rest}");
        assert_eq!(line("passed_over", Some(1.5), 0.0), away);
    }
}
