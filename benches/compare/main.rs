//! Side by side, on loopback: the agent, Unbound, dnsdist, dnsmasq, and an echo server as the floor. And the agent over
//! veth, with and without connection tracking.
//! README.md in the directory above says what is measured, and how.

mod authority;
mod cases;
mod churn;
mod echo;
mod load;
mod machine;
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
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

use crate::cases::{Case, Cores};
use crate::node::Node;
use crate::report::Results;
use crate::servers::{Bed, Kind, tool_versions};

/// Misses a second for which names are made: more than any of the servers can ask for.
const MISSES_PER_SECOND: usize = 60_000;

/// Compares the agent with other caching DNS servers and with the floor that the kernel sets.
///
/// Needs nsd, unbound, dnsdist, dnsmasq-base, dnsperf and iproute2, and two cores with nothing else to do.
/// The cases over veth run only when they are named, and without the others. They need root, nftables and conntrack too.
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
    #[arg(long, value_name = "CASE")]
    only: Vec<Case>,
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
    let cores = Cores { server: arguments.server_core, load: arguments.load_core };
    ensure!(cores.server != cores.load, "the server and the load need a core each");
    sys::pin(&[cores.load]).context("cannot run on the load's core")?;

    let mut cases = arguments.only.clone();
    if cases.is_empty() {
        cases.extend(Case::value_variants().iter().filter(|case| !case.is_over_veth()));
    }
    let over_veth = cases.iter().filter(|case| case.is_over_veth()).count();
    ensure!([0, cases.len()].contains(&over_veth), "the cases over veth run on a node, without the others");
    // Before anything has an address.
    let node = if over_veth > 0 { Some(Node::enter()?) } else { None };

    let directory = tempfile::Builder::new().prefix("compare-").tempdir()?;
    let misses = MISSES_PER_SECOND * arguments.seconds as usize;
    let mut bed = Bed::new(directory.path(), misses, &[cores.load])?;
    bed.node = node;
    let (mix, distinct) = (bed.inputs.mix.questions.len(), bed.inputs.distinct.questions.len());
    let about = about(&arguments, mix, distinct);
    if !arguments.json {
        for (name, value) in &about {
            println!("- {name}: {value}");
        }
    }

    let mut all = Vec::new();
    for case in cases {
        let results = rounds(case, &mut bed, cores, &arguments);
        if !arguments.json {
            print!("{results}");
        }
        all.push(results);
    }
    if arguments.json {
        let cases: Vec<_> = all.iter().map(Results::json).collect();
        println!("{:#}", json!({ "about": about, "cases": cases }));
    }
    Ok(if all.iter().any(Results::has_failed) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
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
