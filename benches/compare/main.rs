//! Side by side, on loopback: the agent, Unbound, dnsdist, dnsmasq, and an echo server as the floor.
//! README.md in the directory above says what is measured, and how.

mod authority;
mod cases;
mod churn;
mod echo;
mod load;
mod machine;
mod misses;
mod mix;
mod node;
mod process;
mod report;
mod servers;
mod sys;
mod tuned;
mod veth;
mod way;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

use crate::authority::program;
use crate::cases::{Case, Cores};
use crate::churn::Churn;
use crate::node::Node;
use crate::report::Results;
use crate::servers::{Bed, Kind, tool_versions};

/// Misses a second for which names are made: more than any of the servers can ask for.
const MISSES_PER_SECOND: usize = 60_000;

/// Compares the agent with other caching DNS servers and with the floor that the kernel sets.
///
/// Needs nsd, unbound, dnsdist, dnsmasq-base, dnsperf and iproute2, and two cores with nothing else to do. The cases over
/// veth run only when they are named; they need root, nftables, conntrack and util-linux too.
/// Example: cargo bench --bench compare -- --rounds 3 --only cached --only miss
#[derive(Parser)]
#[command(name = "compare")]
struct Arguments {
    /// Runs of each server in each case, in turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of a run
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Only this case; may be given more than once
    #[arg(long, value_name = "CASE", value_parser = groups())]
    only: Vec<String>,
    /// The core of the server
    #[arg(long, default_value_t = 0, value_name = "CPU")]
    server_core: usize,
    /// The core of the load and of the upstream
    #[arg(long, default_value_t = 1, value_name = "CPU")]
    load_core: usize,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// What cargo passes to every bench
    #[arg(long, hide = true)]
    bench: bool,
    /// This process has a network namespace of its own
    #[arg(long, hide = true)]
    inside: bool,
    /// Be the client with a socket for each query of the server at this address
    #[arg(long, hide = true, requires = "input")]
    churn: Option<SocketAddr>,
    /// Of that client
    #[arg(long, hide = true)]
    rate: Option<u32>,
    /// Of that client
    #[arg(long, hide = true)]
    input: Option<PathBuf>,
    /// Be the echo server on this address
    #[arg(long, hide = true, requires = "replies")]
    echo: Option<SocketAddr>,
    /// Of the echo server
    #[arg(long, hide = true, default_value_t = 1)]
    workers: u32,
    /// Of the echo server
    #[arg(long, hide = true)]
    replies: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let (Some(address), Some(replies)) = (arguments.echo, &arguments.replies) {
        echo::run(address, arguments.workers, replies)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let (Some(server), Some(input)) = (arguments.churn, &arguments.input) {
        let (seconds, rate, input) = (arguments.seconds, arguments.rate, input.clone());
        churn::be(&Churn { server, seconds, rate, input })?;
        return Ok(ExitCode::SUCCESS);
    }
    let cores = Cores { server: arguments.server_core, load: arguments.load_core };
    ensure!(cores.server != cores.load, "the server and the load need a core each");
    sys::pin(&[cores.load]).context("cannot run on the load's core")?;

    let cases = cases(&arguments.only);
    let (inside, here): (Vec<_>, Vec<_>) =
        cases.into_iter().partition(|case| case.is_over_veth() && !arguments.inside);
    if !inside.is_empty() {
        node::must_be_root()?;
    }
    let mut done = Done::default();
    if !here.is_empty() {
        done = run_here(&here, cores, &arguments)?;
    }
    if !inside.is_empty() {
        done.add(run_inside(&inside, &arguments)?);
    }
    if arguments.json {
        println!("{:#}", json!({ "about": done.about, "cases": done.cases }));
    }
    Ok(if done.has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What `--only` takes: a case, or all cases over veth.
fn groups() -> impl TypedValueParser<Value = String> {
    let cases = Case::value_variants().iter().filter_map(Case::to_possible_value);
    let veth = PossibleValue::new("veth").help("All cases over veth: in network namespaces, by root");
    PossibleValuesParser::new(cases.chain([veth]))
}

/// The cases that were named, or those that need no root.
fn cases(only: &[String]) -> Vec<Case> {
    let all = Case::value_variants().iter().copied();
    all.filter(|case| match only {
        [] => !case.is_over_veth(),
        names => names.iter().any(|name| *name == case.name() || (name == "veth" && case.is_over_veth())),
    })
    .collect()
}

/// What cases gave, as JSON; their tables have been printed.
#[derive(Default)]
struct Done {
    about: Value,
    cases: Vec<Value>,
    has_failed: bool,
}

impl Done {
    fn add(&mut self, other: Self) {
        if self.about.is_null() {
            self.about = other.about;
        }
        self.cases.extend(other.cases);
        self.has_failed |= other.has_failed;
    }
}

fn run_here(cases: &[Case], cores: Cores, arguments: &Arguments) -> Result<Done> {
    let directory = tempfile::Builder::new().prefix("compare-").tempdir()?;
    let node = if arguments.inside { Some(Node::here(directory.path(), &[cores.load])?) } else { None };
    let misses = MISSES_PER_SECOND * arguments.seconds as usize;
    let mut bed = Bed::new(directory.path(), misses, &[cores.load])?;
    bed.node = node;
    let (mix, distinct) = (bed.inputs.mix.questions.len(), bed.inputs.distinct.questions.len());
    let about = about(arguments, mix, distinct);
    if !arguments.json {
        for (name, value) in &about {
            println!("- {name}: {value}");
        }
    }
    let mut all = Vec::new();
    for &case in cases {
        let results = rounds(case, &mut bed, cores, arguments);
        if !arguments.json {
            print!("{results}");
        }
        all.push(results);
    }
    Ok(Done {
        about: json!(about),
        cases: all.iter().map(Results::json).collect(),
        has_failed: all.iter().any(Results::has_failed),
    })
}

/// Runs cases by another process of this program, in a network namespace without a name: it ends with the last process
/// in it, however that ends.
fn run_inside(cases: &[Case], arguments: &Arguments) -> Result<Done> {
    let mut command = program("unshare");
    command.arg("--net").arg(env::current_exe()?).arg("--inside");
    for case in cases {
        command.args(["--only", &case.name()]);
    }
    for (option, value) in [
        ("--rounds", arguments.rounds as usize),
        ("--seconds", arguments.seconds as usize),
        ("--server-core", arguments.server_core),
        ("--load-core", arguments.load_core),
    ] {
        command.args([option, &value.to_string()]);
    }
    if arguments.json {
        command.arg("--json").stdout(Stdio::piped());
    }
    sys::confine(&mut command, &[arguments.load_core]);
    let child = command.stdin(Stdio::null()).spawn().context("cannot start unshare (util-linux)")?;
    let output = child.wait_with_output()?;
    let has_failed = !output.status.success();
    if !arguments.json {
        return Ok(Done { has_failed, ..Done::default() });
    }
    let mut said: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("no JSON came out of the namespace: {}", output.status))?;
    let cases = said["cases"].as_array_mut().map(std::mem::take).unwrap_or_default();
    Ok(Done { about: said["about"].take(), cases, has_failed })
}

/// All rounds of a case: every server once, then all again. One that fails is not tried again.
fn rounds(case: Case, bed: &mut Bed, cores: Cores, arguments: &Arguments) -> Results {
    let mut results = Results { case, rounds: Vec::new() };
    for number in 1..=arguments.rounds {
        let mut round = BTreeMap::new();
        for entrant in case.entrants() {
            let label = entrant.label();
            if results
                .rounds
                .iter()
                .any(|round: &BTreeMap<_, Result<_, _>>| matches!(round.get(&label), Some(Err(_))))
            {
                continue;
            }
            eprintln!("{}, round {number} of {}: {label}", case.name(), arguments.rounds);
            let run = case.run(entrant, bed, cores, arguments.seconds).map_err(|error| format!("{error:#}"));
            round.insert(label, run);
        }
        results.rounds.push(round);
    }
    results
}

/// What must be known of a run to compare it with another.
fn about(arguments: &Arguments, mix: usize, distinct: usize) -> BTreeMap<String, Value> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let mut about = BTreeMap::from([
        ("kernel".to_owned(), json!(kernel.trim())),
        ("CPU".to_owned(), json!(model.map_or("unknown", |(_, name)| name.trim()))),
        ("queries in the mix".to_owned(), json!(mix)),
        ("distinct questions".to_owned(), json!(distinct)),
        ("rounds".to_owned(), json!(arguments.rounds)),
        ("seconds".to_owned(), json!(arguments.seconds)),
    ]);
    about.extend(Kind::ALL.map(|kind| (kind.name().to_owned(), json!(kind.version()))));
    about.extend(tool_versions().map(|(name, version)| (name.to_owned(), json!(version))));
    about
}
