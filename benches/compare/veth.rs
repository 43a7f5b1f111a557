//! The agent on a node, asked by a pod over veth: what connection tracking costs, and what it costs to be spared it.

use anyhow::{Context, Result, anyhow, bail};

use crate::cases::{BUSY, Case, Cores, Entrant, Run, expect_rest, one, run_of};
use crate::churn;
use crate::load::{Load, Until};
use crate::machine::Machine;
use crate::report::{Metric, Target};
use crate::servers::{Bed, Kind, Server};
use crate::sys;
use crate::way::Way;

/// Queries a second where there is a rate.
const RATE: u32 = 10_000;
/// Connections towards the upstream, which are tracked in every way but one.
const UPSTREAM_ENTRIES: f64 = 16.0;

/// Least part of a pod's queries whose address and port were not those of one before.
const DISTINCT: f64 = 0.95;

pub(crate) fn by(way: Way) -> Entrant {
    one(Kind::OnNode(way))
}

pub(crate) fn columns(case: Case) -> &'static [Metric] {
    use Metric::{Busy, Client, Cpu, Entries, Latency, Machine, Qps, Softirq};
    match case {
        Case::VethPaced => &[Machine, Cpu, Client, Softirq, Latency, Entries],
        _ => &[Qps, Machine, Cpu, Client, Softirq, Busy, Latency, Entries],
    }
}

pub(crate) fn targets(case: Case) -> Vec<Target> {
    let spared = [Way::Notrack, Way::Intercept].map(by).into_iter();
    let cheaper = spared.clone().map(|way| match case {
        Case::VethPaced => Target::ratio(Metric::Machine, way, by(Way::Tracked)).at_most(1.0),
        _ => Target::ratio(Metric::Qps, way, by(Way::Tracked)).at_least(1.0),
    });
    cheaper.chain(spared.map(|way| Target::value(Metric::Entries, way).at_most(UPSTREAM_ENTRIES))).collect()
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
    let (authority, process, machine) = (bed.authority.usage()?, server.process.usage()?, Machine::now()?);
    let (outcome, client) = node.in_pod(|| {
        let before = sys::client_cpu()?;
        let outcome = match case {
            Case::VethChurn => churn::run(server.address, mix, seconds, None)?,
            Case::VethPaced => churn::run(server.address, mix, seconds, Some(RATE))?,
            _ => load(BUSY, mix, Until::Time(seconds))?,
        };
        Ok((outcome, sys::client_cpu()?.saturating_sub(before)))
    })?;
    let work = machine.work()?;
    let mut run = run_of(server.process.usage()?.since(process), &outcome, &server.process)?;
    expect_rest(&mut run, bed.authority.usage()?.since(authority), &outcome);
    // Each query of a socket of its own is a connection, unless the kernel has picked a port again; else each socket is.
    let connections =
        if case == Case::Veth { f64::from(BUSY.clients) } else { outcome.completed as f64 * DISTINCT };
    let is_as_said = match way {
        Way::Bare => work.entries == 0.0,
        Way::Tracked => work.entries >= connections,
        Way::Notrack | Way::Intercept => work.entries <= UPSTREAM_ENTRIES,
    };
    if work.overflows > 0 {
        run.fault.get_or_insert("the table of connections was full: --seconds is too long".into());
    } else if !is_as_said {
        run.fault.get_or_insert(format!("{} more entries", work.entries));
    }
    let each = 1e6 / outcome.completed.max(1) as f64;
    run.values.extend([
        (Metric::Client, client.as_secs_f64() * each),
        (Metric::Machine, work.busy.as_secs_f64() * each),
        (Metric::Softirq, work.softirq.as_secs_f64() * each),
        (Metric::Entries, work.entries),
    ]);
    // It takes its rules along.
    server.leave();
    Ok(run)
}
