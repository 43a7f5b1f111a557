//! The agent on a node, asked by a pod over veth: what connection tracking costs, and what it costs to be spared it.

use std::env;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cases::{BUSY, Case, Cores, Entrant, Run, by, expect_rest, run_of};
use crate::churn::Churn;
use crate::load::{Load, Outcome, Until};
use crate::machine::Machine;
use crate::node::{Node, Tracking};
use crate::report::{Metric, Target};
use crate::servers::{Bed, Server};
use crate::way::Way;

/// Connections towards the upstream, which are tracked in every way but one.
const UPSTREAM_ENTRIES: f64 = 8.0;
/// More entries than that where queries are spared, and they are not.
const MOST_ENTRIES: f64 = 100.0;

pub(crate) fn ways(case: Case) -> &'static [Way] {
    match case {
        // Where nothing is tracked no table can be full.
        Case::VethFull => &[Way::Tracked, Way::Notrack, Way::Intercept],
        _ => &[Way::Bare, Way::Tracked, Way::Notrack, Way::Intercept],
    }
}

pub(crate) fn columns(case: Case) -> &'static [Metric] {
    use Metric::{Busy, Cpu, Dropped, Entries, Evicted, Latency, Lost, Machine, Others, Qps, Softirq};
    match case {
        Case::VethUdp | Case::VethTcp => &[Qps, Machine, Cpu, Softirq, Busy, Latency, Entries, Others],
        Case::VethPaced => &[Machine, Cpu, Qps, Latency, Entries, Others],
        Case::VethChurn => &[Machine, Cpu, Qps, Latency, Entries, Evicted, Others],
        Case::VethChurnMost => &[Qps, Machine, Cpu, Softirq, Busy, Latency, Entries, Evicted, Others],
        _ => &[Lost, Qps, Latency, Entries, Dropped, Evicted],
    }
}

pub(crate) fn targets(case: Case) -> Vec<Target> {
    use Metric::{Entries, Lost, Machine, Qps};
    let (bare, tracked) = (by(Way::Bare), by(Way::Tracked));
    let (notrack, intercept) = (by(Way::Notrack), by(Way::Intercept));
    let few = [notrack, intercept].map(|way| Target::value(Entries, way).at_most(UPSTREAM_ENTRIES));
    let aims = match case {
        Case::VethUdp | Case::VethTcp | Case::VethChurnMost => vec![
            Target::ratio(Qps, notrack, tracked).at_least(1.0),
            Target::ratio(Qps, intercept, tracked).at_least(1.0),
        ],
        Case::VethPaced | Case::VethChurn => vec![
            Target::ratio(Machine, notrack, tracked).at_most(1.0),
            Target::ratio(Machine, intercept, tracked).at_most(1.0),
            Target::ratio(Machine, notrack, bare).at_most(1.1),
        ],
        _ => vec![Target::value(Lost, notrack).at_most(0.0), Target::value(Lost, intercept).at_most(0.0)],
    };
    aims.into_iter().chain(few).collect()
}

pub(crate) fn run(case: Case, entrant: Entrant, bed: &Bed, cores: Cores, seconds: u32) -> Result<Run> {
    let node = bed.node.as_ref().context("no node")?;
    node.set_up(entrant.way)?;
    let server = Server::on_node(entrant.way, bed, &[cores.server])?;
    let asking = Asking { node, server: &server, bed, cpus: &[cores.load], seconds };
    asking.warm(case == Case::VethTcp)?;
    node.forget_connections()?;
    if case == Case::VethFull {
        node.fill_connections()?;
    }

    let others = Machine::others_percent()?;
    let (authority, process) = (bed.authority.usage()?, server.process.usage()?);
    let (tracking, machine) = (Tracking::now()?, Machine::now()?);
    let (outcome, lost) = asking.measured(case)?;
    let (work, tracked) = (machine.work()?, Tracking::now()?);
    let mut run = run_of(server.process.usage()?.since(process), &outcome, &server.process)?;
    expect_rest(&mut run, bed.authority.usage()?.since(authority), &outcome);
    let grown = tracked.entries as f64 - tracking.entries as f64;
    expect_tracking(&mut run, case, entrant.way, grown);
    let each = 1e6 / outcome.completed.max(1) as f64;
    run.values.extend([
        (Metric::Machine, work.busy.as_secs_f64() * each),
        (Metric::Softirq, work.softirq.as_secs_f64() * each),
        (Metric::Others, others),
        (Metric::Entries, grown),
        (Metric::Dropped, tracked.dropped.saturating_sub(tracking.dropped) as f64),
        (Metric::Evicted, tracked.evicted.saturating_sub(tracking.evicted) as f64),
        (Metric::Lost, lost),
    ]);
    server.leave();
    Ok(run)
}

/// Marks a run in which connection tracking did not do what the way says.
fn expect_tracking(run: &mut Run, case: Case, way: Way, entries: f64) {
    let is_as_it_should = match way {
        Way::Tracked if case == Case::VethFull => true,
        // As many as there are sockets, or queries that have one each.
        Way::Tracked => entries >= f64::from(BUSY.clients),
        Way::Loopback | Way::Bare => entries == 0.0,
        Way::Notrack | Way::Intercept => entries <= MOST_ENTRIES,
    };
    if !is_as_it_should && run.fault.is_none() {
        run.fault = Some(format!("{entries} more entries"));
    }
}

/// Who asks whom, and for how long.
struct Asking<'a> {
    node: &'a Node,
    server: &'a Server,
    bed: &'a Bed,
    cpus: &'a [usize],
    seconds: u32,
}

impl Asking<'_> {
    /// Asks for everything twice, gently.
    fn warm(&self, tcp: bool) -> Result<()> {
        let load = Load { tcp, clients: 1, outstanding: 20, rate: None };
        let (distinct, log) = (&self.bed.inputs.distinct, self.bed.file("dnsperf.log"));
        let outcome =
            load.run_by(self.dnsperf(), self.server.address, distinct, Until::Twice, self.cpus, &log)?;
        outcome.fault.map_or(Ok(()), |fault| Err(anyhow::anyhow!("while the cache is filled: {fault}")))
    }

    /// The load of a case, and how many queries of a hundred were lost.
    fn measured(&self, case: Case) -> Result<(Outcome, f64)> {
        let load = match case {
            Case::VethUdp => BUSY,
            Case::VethPaced => Load { rate: Some(20_000), ..BUSY },
            Case::VethTcp => Load { tcp: true, clients: 10, outstanding: 100, rate: None },
            Case::VethChurn => return self.churn(Some(10_000), false),
            Case::VethChurnMost => return self.churn(None, false),
            _ => return self.churn(Some(1_000), true),
        };
        let (mix, log) = (&self.bed.inputs.mix, self.bed.file("dnsperf.log"));
        let until = Until::Time(self.seconds);
        let outcome = load.run_by(self.dnsperf(), self.server.address, mix, until, self.cpus, &log)?;
        Ok((outcome, 0.0))
    }

    fn churn(&self, rate: Option<u32>, may_lose: bool) -> Result<(Outcome, f64)> {
        let (mix, log) = (&self.bed.inputs.mix, self.bed.file("churn.log"));
        let churn =
            Churn { server: self.server.address, seconds: self.seconds, rate, input: mix.path.clone() };
        let mut client = self.node.in_pod(&env::current_exe()?);
        churn.tell(&mut client);
        churn.run(client, mix, may_lose, self.cpus, &log)
    }

    fn dnsperf(&self) -> Command {
        self.node.in_pod("dnsperf")
    }
}
