//! The cases: who takes part, how each is measured, and what is aimed at.

use std::collections::{BTreeMap, HashMap};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::authority::program;
use crate::load::{Load, Outcome, Until};
use crate::process::{Process, Usage};
use crate::report::{Metric, Target};
use crate::servers::{Bed, Kind, Server};
use crate::veth;
use crate::way::Way;

/// Starts of which the median is a round's figure.
const STARTS: usize = 5;
/// How long a server rests before its memory counts as that of an idle one.
const REST: Duration = Duration::from_secs(1);
/// CPU time of the upstream above which cached answers were not all cached: about one query in a hundred.
const AUTHORITY_SECONDS_PER_QUERY: f64 = 0.1e-6;
/// What health checks may cost the upstream, in seconds a second.
const AUTHORITY_SHARE: f64 = 0.002;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// Cached answers over UDP, as many as the server gives
    Cached,
    /// Cached answers over UDP, 5,000 a second
    Paced,
    /// Cached answers over TCP, pipelined
    Tcp,
    /// One busy client, two workers on two cores
    TwoWorkers,
    /// Misses over TCP upstream, 100 outstanding
    Miss,
    /// Misses over TCP upstream, one outstanding
    MissOne,
    /// Resident memory, idle and with 10,000 entries
    Memory,
    /// From the start of the process to its first answer
    Start,
    /// A pod's cached answers over veth, eight sockets, as many as the agent gives
    Veth,
    /// A pod's cached answers over veth, a socket for each query, as many as the pod can ask for
    VethChurn,
    /// A pod's cached answers over veth, a socket for each query, 10,000 a second
    VethPaced,
}

/// A server with so many workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entrant {
    pub(crate) kind: Kind,
    pub(crate) workers: u32,
}

impl Entrant {
    pub(crate) fn label(self) -> String {
        match self.workers {
            1 => self.kind.name().to_owned(),
            workers => format!("{} x{workers}", self.kind.name()),
        }
    }
}

pub(crate) const fn one(kind: Kind) -> Entrant {
    Entrant { kind, workers: 1 }
}

const fn two(kind: Kind) -> Entrant {
    Entrant { kind, workers: 2 }
}

/// Which core has the server, and which the load and the upstream.
#[derive(Clone, Copy)]
pub(crate) struct Cores {
    pub(crate) server: usize,
    pub(crate) load: usize,
}

/// What one run gave.
pub(crate) struct Run {
    pub(crate) values: BTreeMap<Metric, f64>,
    /// Why it does not count, if so.
    pub(crate) fault: Option<String>,
}

/// Eight sockets with 120 queries between them keep a server busy, and never overflow a receive buffer of the
/// default size, which the kernel fills with 166 datagrams of 1,280 bytes (what a query of more than 100 takes).
pub(crate) const BUSY: Load = Load { tcp: false, clients: 8, outstanding: 120, rate: None };

impl Case {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether it runs on a node of its own, which takes root.
    pub(crate) fn is_over_veth(self) -> bool {
        matches!(self, Self::Veth | Self::VethChurn | Self::VethPaced)
    }

    /// What it is, in a line.
    pub(crate) fn about(self) -> String {
        self.to_possible_value().and_then(|value| Some(value.get_help()?.to_string())).unwrap_or_default()
    }

    /// Who takes part, in the order of the runs.
    pub(crate) fn entrants(self) -> Vec<Entrant> {
        use Kind::{Dnsdist, Dnsmasq, Echo, Nodens, Unbound};
        match self {
            Self::Cached | Self::Paced => Kind::ALL.map(one).to_vec(),
            // dnsmasq forks for each connection and closes it after 100 queries: not to be pipelined.
            Self::Tcp => [Echo, Nodens, Unbound, Dnsdist].map(one).to_vec(),
            Self::TwoWorkers => vec![one(Echo), two(Echo), one(Nodens), two(Nodens)],
            // dnsmasq has no TCP towards its upstream.
            Self::Miss | Self::MissOne => vec![one(Nodens), one(Unbound), one(Dnsdist)],
            // nodens as it is shipped, the others with the one thread that is their least.
            Self::Memory | Self::Start => vec![two(Nodens), one(Unbound), one(Dnsdist), one(Dnsmasq)],
            Self::Veth | Self::VethChurn | Self::VethPaced => Way::ALL.map(veth::by).to_vec(),
        }
    }

    /// The entrant whose ratios to the others are printed.
    pub(crate) fn subject(self) -> Entrant {
        match self {
            Self::TwoWorkers | Self::Memory | Self::Start => two(Kind::Nodens),
            Self::Veth | Self::VethChurn | Self::VethPaced => veth::by(Way::Notrack),
            _ => one(Kind::Nodens),
        }
    }

    /// What is printed of each run. The first is what the ratios are of.
    pub(crate) fn columns(self) -> &'static [Metric] {
        use Metric::{
            Busy, Connections, Cpu, Idle, InFlight, Latency, LesserShare, Loaded, Qps, ReplyBytes, Resident,
            Segments, Start, System, User, Writes,
        };
        match self {
            Self::Cached | Self::Paced | Self::Tcp => {
                &[Cpu, User, System, Qps, Busy, Latency, ReplyBytes, Resident]
            }
            Self::TwoWorkers => &[Cpu, User, System, Qps, Busy, LesserShare],
            Self::Miss | Self::MissOne => {
                &[Cpu, User, System, Qps, Latency, Connections, InFlight, Segments, Writes, Resident]
            }
            Self::Memory => &[Idle, Loaded],
            Self::Start => &[Start],
            Self::Veth | Self::VethChurn | Self::VethPaced => veth::columns(self),
        }
    }

    /// What is aimed at.
    pub(crate) fn targets(self) -> Vec<Target> {
        use Kind::{Dnsdist, Echo, Nodens, Unbound};
        use Metric::{Cpu, Idle, LesserShare, Loaded, Start, User};
        let nodens = one(Nodens);
        match self {
            Self::Cached => vec![
                Target::ratio(Cpu, nodens, one(Echo)).at_most(1.10),
                Target::value(User, nodens).at_most(0.6),
                Target::ratio(Cpu, one(Unbound), nodens).at_least(1.2),
                Target::ratio(Cpu, one(Dnsdist), nodens).at_least(1.2),
            ],
            Self::Paced => vec![Target::ratio(Cpu, nodens, one(Echo)).at_most(1.15)],
            Self::Tcp => vec![Target::ratio(Cpu, nodens, one(Echo)).at_most(1.3)],
            Self::TwoWorkers => vec![
                Target::ratio(Cpu, two(Nodens), nodens).at_most(1.10),
                Target::value(LesserShare, two(Nodens)).at_least(40.0),
            ],
            Self::Miss => vec![
                Target::value(Cpu, nodens).at_most(15.0),
                Target::ratio(Cpu, one(Unbound), nodens).at_least(2.0),
                Target::ratio(Cpu, one(Dnsdist), nodens).at_least(2.0),
            ],
            Self::MissOne => vec![],
            Self::Memory => vec![
                Target::value(Idle, two(Nodens)).at_most(8.0),
                Target::value(Loaded, two(Nodens)).at_most(12.0),
            ],
            Self::Start => vec![Target::value(Start, two(Nodens)).at_most(20.0)],
            Self::Veth | Self::VethChurn | Self::VethPaced => veth::targets(self),
        }
    }

    /// One run of one server. Each has a fresh process, so that runs do not know of each other.
    pub(crate) fn run(self, entrant: Entrant, bed: &mut Bed, cores: Cores, seconds: u32) -> Result<Run> {
        bed.authority.must_live().context("NSD")?;
        match self {
            Self::Cached => cached(entrant, bed, cores, seconds, BUSY),
            Self::Paced => cached(entrant, bed, cores, seconds, Load { rate: Some(5000), ..BUSY }),
            Self::Tcp => {
                let load = Load { tcp: true, clients: 10, outstanding: 100, rate: None };
                cached(entrant, bed, cores, seconds, load)
            }
            Self::TwoWorkers => shared(entrant, bed, cores, seconds),
            Self::Miss => missed(entrant, bed, cores, seconds, 100),
            Self::MissOne => missed(entrant, bed, cores, seconds, 1),
            Self::Memory => memory(entrant, bed, cores),
            Self::Start => start(entrant, bed, cores),
            Self::Veth | Self::VethChurn | Self::VethPaced => veth::run(self, entrant, bed, cores, seconds),
        }
    }
}

/// One core for the server, the other for the load; NSD, on the load's core too, has nothing to do.
fn cached(entrant: Entrant, bed: &Bed, cores: Cores, seconds: u32, load: Load) -> Result<Run> {
    let server = Server::start(entrant.kind, entrant.workers, bed, &[cores.server])?;
    warm(&server, bed, cores, load.tcp)?;
    let authority = bed.authority.usage()?;
    let (mut run, outcome) = measure(&server, bed, load, seconds, &[cores.load])?;
    expect_rest(&mut run, bed.authority.usage()?.since(authority), &outcome);
    Ok(run)
}

/// Both cores for both the server and the load, which is one socket. One worker runs under the same conditions,
/// so that its cost can be compared.
fn shared(entrant: Entrant, bed: &Bed, cores: Cores, seconds: u32) -> Result<Run> {
    let both = [cores.server, cores.load];
    let server = Server::start(entrant.kind, entrant.workers, bed, &both)?;
    warm(&server, bed, cores, false)?;
    let (authority, threads) = (bed.authority.usage()?, server.process.threads()?);
    let (mut run, outcome) = measure(&server, bed, Load { clients: 1, ..BUSY }, seconds, &both)?;
    expect_rest(&mut run, bed.authority.usage()?.since(authority), &outcome);
    if entrant.workers > 1 {
        run.values.insert(Metric::LesserShare, lesser_share(&threads, &server.process.threads()?));
    }
    Ok(run)
}

/// The second busiest thread's part, in percent, of what the two busiest used.
fn lesser_share(before: &HashMap<String, Duration>, after: &HashMap<String, Duration>) -> f64 {
    let used = after.iter().map(|(thread, &used)| {
        used.saturating_sub(before.get(thread).copied().unwrap_or_default()).as_secs_f64()
    });
    let mut used: Vec<f64> = used.collect();
    used.sort_by(|one, other| other.total_cmp(one));
    match used[..] {
        [first, second, ..] if first > 0.0 => 100.0 * second / (first + second),
        _ => 0.0,
    }
}

/// Asks for everything twice, gently. Over TCP where TCP is measured: dnsdist keeps such answers apart.
fn warm(server: &Server, bed: &Bed, cores: Cores, tcp: bool) -> Result<()> {
    let load = Load { tcp, clients: 1, outstanding: 20, rate: None };
    let distinct = &bed.inputs.distinct;
    let outcome =
        load.run(server.address, distinct, Until::Twice, &[cores.load], &bed.file("dnsperf.log"))?;
    outcome.fault.map_or(Ok(()), |fault| Err(anyhow::anyhow!("while the cache is filled: {fault}")))
}

/// The server's use of CPU while dnsperf runs, by query.
fn measure(server: &Server, bed: &Bed, load: Load, seconds: u32, cpus: &[usize]) -> Result<(Run, Outcome)> {
    let log = bed.file("dnsperf.log");
    let before = server.process.usage()?;
    let outcome = load.run(server.address, &bed.inputs.mix, Until::Time(seconds), cpus, &log)?;
    let used = server.process.usage()?.since(before);
    Ok((run_of(used, &outcome, &server.process)?, outcome))
}

pub(crate) fn run_of(used: Usage, outcome: &Outcome, process: &Process) -> Result<Run> {
    let each = 1e6 / outcome.completed.max(1) as f64;
    let values = BTreeMap::from([
        (Metric::Cpu, used.total.as_secs_f64() * each),
        (Metric::User, used.user().as_secs_f64() * each),
        (Metric::System, used.total.saturating_sub(used.user()).as_secs_f64() * each),
        (Metric::Qps, outcome.completed as f64 / outcome.seconds),
        (Metric::Busy, 100.0 * used.total.as_secs_f64() / outcome.seconds),
        (Metric::Latency, outcome.latency_seconds * 1e6),
        (Metric::ReplyBytes, outcome.reply_bytes),
        (Metric::Resident, process.resident_mib()?),
    ]);
    Ok(Run { values, fault: outcome.fault.clone() })
}

/// Marks a run in which the upstream had to work.
pub(crate) fn expect_rest(run: &mut Run, authority: Usage, outcome: &Outcome) {
    let worked = authority.total.as_secs_f64();
    let allowed = AUTHORITY_SECONDS_PER_QUERY * outcome.completed as f64 + AUTHORITY_SHARE * outcome.seconds;
    if worked > allowed && run.fault.is_none() {
        run.fault = Some(format!("not all were cached: NSD worked {:.1} ms", worked * 1000.0));
    }
}

/// Every name is asked for once. The load's core has dnsperf and NSD.
fn missed(entrant: Entrant, bed: &Bed, cores: Cores, seconds: u32, outstanding: u32) -> Result<Run> {
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

/// Memory after the first answer and a rest, and after 10,000 different answers.
fn memory(entrant: Entrant, bed: &Bed, cores: Cores) -> Result<Run> {
    let server = Server::start(entrant.kind, entrant.workers, bed, &[cores.server])?;
    thread::sleep(REST);
    let idle = server.process.resident_mib()?;
    let load = Load { tcp: false, clients: 1, outstanding: 50, rate: None };
    let (many, log) = (&bed.inputs.many, bed.file("dnsperf.log"));
    let outcome = load.run(server.address, many, Until::Once, &[cores.load], &log)?;
    let loaded = server.process.resident_mib()?;
    let values = BTreeMap::from([(Metric::Idle, idle), (Metric::Loaded, loaded)]);
    Ok(Run { values, fault: outcome.fault })
}

/// A name that the agent answers itself; dnsdist has to ask its upstream.
fn start(entrant: Entrant, bed: &Bed, cores: Cores) -> Result<Run> {
    let starts = (0..STARTS).map(|_| {
        let server = Server::start(entrant.kind, entrant.workers, bed, &[cores.server])?;
        Ok(server.started_in.as_secs_f64() * 1000.0)
    });
    let starts = starts.collect::<Result<Vec<_>>>()?;
    let median = crate::report::Spread::of(&starts).map(|spread| spread.median).unwrap_or_default();
    Ok(Run { values: BTreeMap::from([(Metric::Start, median)]), fault: None })
}
