//! Names that are not cached: what they cost, and what connections to the upstream they take.

use std::collections::{BTreeMap, HashMap};
use std::process::Command;

use anyhow::{Context, Result};

use crate::authority::program;
use crate::cases::{Cores, Entrant, Run, run_of};
use crate::load::{Load, Outcome, Until};
use crate::report::Metric;
use crate::servers::{Bed, Server};

/// Every name is asked for once. The load's core has dnsperf and NSD.
pub(crate) fn missed(
    entrant: Entrant,
    bed: &Bed,
    cores: Cores,
    seconds: u32,
    outstanding: u32,
) -> Result<Run> {
    let server = Server::start(entrant.kind, entrant.workers, bed, &[cores.server])?;
    let load = Load { tcp: false, clients: 1, outstanding, rate: None };
    let (log, load_cpus) = (bed.file("dnsperf.log"), [cores.load]);
    load.run(server.address, &bed.inputs.once_before, Until::Once, &load_cpus, &log)?;
    let (before, connected) = (Counted::now(&server, bed)?, server.process.usage()?);
    let outcome = load.run(server.address, &bed.inputs.once, Until::TimeOrOnce(seconds), &load_cpus, &log)?;
    let used = server.process.usage()?.since(connected);
    let after = Counted::now(&server, bed)?;
    let mut run = run_of(used, &outcome, &server.process)?;
    after.since(&before, &outcome, &mut run.values);
    Ok(run)
}

/// What can be counted of the connections to the upstream.
struct Counted {
    /// Local port of each connection, and its segments with data towards the upstream.
    connections: HashMap<String, u64>,
    /// Connections that were closed less than a minute ago.
    closed: usize,
    /// The agent's own count of its writes.
    writes: Option<f64>,
    requests: Option<f64>,
}

impl Counted {
    fn now(server: &Server, bed: &Bed) -> Result<Self> {
        let port = bed.upstream_port();
        let sockets = |state: &str, filter: &str| -> Result<String> {
            let mut command: Command = program("ss");
            let output =
                command.args(["-Htinp", "state", state, filter]).output().context("ss (iproute2)")?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let established = sockets("established", &format!("dport = :{port}"))?;
        // A line with the addresses, then an indented one with the figures.
        let mut connections = HashMap::new();
        let mut local = String::new();
        for line in established.lines() {
            if line.starts_with(char::is_whitespace) {
                let mut words = line.split_whitespace();
                let segments = words.find_map(|word| word.strip_prefix("data_segs_out:")?.parse().ok());
                connections.insert(local.clone(), segments.unwrap_or_default());
            } else {
                local = line.split_whitespace().nth(2).unwrap_or_default().to_owned();
            }
        }
        let waiting = sockets("time-wait", &format!("dport = :{port} or sport = :{port}"))?;
        let metrics = server.metrics().ok();
        let sum = |name| metrics.as_ref().and_then(|metrics| metrics.sum(name));
        Ok(Self {
            connections,
            closed: waiting.lines().filter(|line| !line.starts_with(char::is_whitespace)).count(),
            writes: sum("nodens_upstream_writes_total"),
            requests: sum("nodens_upstream_requests_total"),
        })
    }

    fn since(&self, before: &Self, outcome: &Outcome, values: &mut BTreeMap<Metric, f64>) {
        let queries = outcome.completed.max(1) as f64;
        let closed = self.closed.saturating_sub(before.closed);
        values.insert(Metric::Connections, (self.connections.len() + closed) as f64);
        // Little's law.
        values.insert(Metric::InFlight, queries / outcome.seconds * outcome.latency_seconds);
        // What a closed connection sent is not known any more.
        if closed == 0 {
            let segments = self.connections.iter().map(|(local, segments)| {
                segments.saturating_sub(before.connections.get(local).copied().unwrap_or_default())
            });
            values.insert(Metric::Segments, segments.sum::<u64>() as f64 / queries);
        }
        if let (Some(writes), Some(writes_before), Some(requests), Some(requests_before)) =
            (self.writes, before.writes, self.requests, before.requests)
        {
            values.insert(Metric::Writes, (writes - writes_before) / (requests - requests_before).max(1.0));
        }
    }
}
