//! The agent on a node, asked by a pod over veth: what connection tracking costs, and what it costs to be spared it.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::cases::{BUSY, Case, Cores, Entrant, Run, expect_rest, one, run_of};
use crate::churn::{self, Churn};
use crate::load::{Load, Until};
use crate::machine::{Machine, Work, most_entries};
use crate::report::{Metric, Target};
use crate::servers::{Bed, Kind, Server};
use crate::sys;
use crate::way::Way;

/// Queries a second where there is a rate.
const RATE: u32 = 10_000;
/// Part of the table of connections that a client which makes as many as it can may fill.
const PART: f64 = 0.8;
/// Connections towards the upstream, which are tracked in every way but one.
const UPSTREAM_ENTRIES: f64 = 16.0;

/// Least part of a pod's queries whose address and port were not those of one before.
const DISTINCT: f64 = 0.95;

pub(crate) fn by(way: Way) -> Entrant {
    one(Kind::OnNode(way))
}

pub(crate) fn columns(case: Case) -> &'static [Metric] {
    use Metric::{Both, Busy, Client, Cpu, Entries, Latency, Machine, Qps, Softirq};
    match case {
        Case::VethPaced => &[Both, Cpu, Client, Machine, Softirq, Latency, Entries],
        _ => &[Qps, Both, Cpu, Client, Machine, Softirq, Busy, Latency, Entries],
    }
}

pub(crate) fn targets(case: Case) -> Vec<Target> {
    let spared = [Way::Notrack, Way::Intercept].map(by);
    // Where sockets last, tracking is cheap too: it finds what it knows.
    let most = if case == Case::Veth { 1.05 } else { 0.95 };
    let cheap = spared.map(|way| Target::ratio(Metric::Both, way, by(Way::Tracked)).at_most(most));
    let few = spared.map(|way| Target::value(Metric::Entries, way).at_most(UPSTREAM_ENTRIES));
    cheap.into_iter().chain(few).collect()
}

pub(crate) fn run(case: Case, entrant: Entrant, bed: &Bed, cores: Cores, seconds: u32) -> Result<Run> {
    let Kind::OnNode(way) = entrant.kind else { bail!("only the agent is measured on a node") };
    let node = bed.node.as_ref().context("no node")?;
    node.set_up(way)?;
    let server = Server::start(Kind::OnNode(way), 1, bed, &[cores.server])?;
    let load = |load: Load, input, until| {
        load.run(server.address, input, until, &[cores.load], &bed.file("dnsperf.log"))
    };
    let gently = Load { tcp: false, clients: 1, outstanding: 20, rate: None };
    let warm = node.in_pod(|| load(gently, &bed.inputs.distinct, Until::Twice))?;
    warm.fault.map_or(Ok(()), |fault| Err(anyhow!("while the cache is filled: {fault}")))?;
    node.forget_connections()?;

    let mix = &bed.inputs.mix;
    let rate = (case == Case::VethPaced).then_some(RATE);
    let most = (most_entries()? as f64 * PART) as u64;
    // Made before the client's time counts.
    let queries = mix.questions.iter().map(|question| question.wire(0)).collect();
    let churn = Churn { queries, time: Duration::from_secs(seconds.into()), most, rate };
    let (authority, process, machine) = (bed.authority.usage()?, server.process.usage()?, Machine::now()?);
    let (outcome, client) = node.in_pod(|| {
        let before = sys::client_cpu()?;
        let outcome = match case {
            Case::Veth => load(BUSY, mix, Until::Time(seconds))?,
            _ => churn::run(server.address, mix, churn)?,
        };
        Ok((outcome, sys::client_cpu()?.saturating_sub(before)))
    })?;
    let work = machine.work()?;
    let usage = server.process.usage()?.since(process);
    let both = usage.total + client;
    let mut run = run_of(usage, &outcome, &server.process)?;
    expect_rest(&mut run, bed.authority.usage()?.since(authority), &outcome);
    expect_entries(&mut run, case, way, outcome.completed, &work);
    let each = 1e6 / outcome.completed.max(1) as f64;
    run.values.extend([
        (Metric::Both, both.as_secs_f64() * each),
        (Metric::Client, client.as_secs_f64() * each),
        (Metric::Machine, work.busy.as_secs_f64() * each),
        (Metric::Softirq, work.softirq.as_secs_f64() * each),
        (Metric::Entries, work.entries),
    ]);
    // It takes its rules along.
    server.leave();
    Ok(run)
}

/// Marks a run in which connection tracking did not do what the way says.
fn expect_entries(run: &mut Run, case: Case, way: Way, queries: u64, work: &Work) {
    // Each query of a socket of its own is a connection, unless the kernel has picked a port again; else each socket is.
    let connections = if case == Case::Veth { f64::from(BUSY.clients) } else { queries as f64 * DISTINCT };
    let is_as_said = match way {
        Way::Bare => work.entries == 0.0,
        Way::Tracked => work.entries >= connections,
        Way::Notrack | Way::Intercept => work.entries <= UPSTREAM_ENTRIES,
    };
    if work.overflows > 0 {
        run.fault.get_or_insert("the table of connections was full".into());
    } else if !is_as_said {
        run.fault.get_or_insert(format!("{} more entries", work.entries));
    }
}
