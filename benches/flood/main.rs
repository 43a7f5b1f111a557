//! Floods: what becomes of the agent's memory and of others' hits. README.md in the directory above says what is
//! measured, and how.

#[expect(dead_code, reason = "`pool` uses the rest")]
mod agent;
mod attacks;
mod cases;
mod cgroup;
#[expect(dead_code, reason = "`pool` uses the rest")]
mod load;
mod net;
mod packet;
#[expect(dead_code, reason = "`compare` and `pool` use the rest")]
#[path = "../compare/process.rs"]
mod process;
mod report;
#[expect(dead_code, reason = "`compare` uses the rest")]
#[path = "../compare/sys.rs"]
mod sys;
mod upstream;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use serde_json::Value;

use crate::cases::Setting;
use crate::report::Report;
use crate::upstream::Mode;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// Unique names while the upstream takes queries and says nothing
    Silent,
    /// Unique names while SYNs to the upstream are dropped
    Unreachable,
    /// One expired name, 5,000 a second, while the upstream stalls for 3 s
    HotStale,
    /// One name that was never cached, the same
    HotNew,
    /// Cached names while hostile clients of each kind do their worst
    Clients,
}

/// Floods the agent under a memory limit of 64 MiB, with a full cache and an upstream that is gone.
///
/// Needs root (a cgroup, large socket buffers) and two cores with nothing else to do.
/// Example: cargo bench --bench flood -- --seconds 10 --only silent
#[derive(Parser)]
#[command(name = "flood")]
struct Arguments {
    /// Length of a flood; the clients' kinds have a tenth each, at least 3
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Unique names a second
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=200_000))]
    flood: u64,
    /// Cached names a second beside it
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    hits: u64,
    /// Only this case; may be given more than once
    #[arg(long, value_name = "CASE")]
    only: Vec<Case>,
    /// The core of the agent
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
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    ensure!(arguments.server_core != arguments.load_core, "the agent and the load need a core each");
    sys::pin(&[arguments.load_core]).context("cannot run on the load's core")?;
    net::wake_precisely();
    let directory = tempfile::Builder::new().prefix("flood-").tempdir()?;
    let cpus = [arguments.server_core];
    let setting = Setting {
        seconds: arguments.seconds,
        flood: arguments.flood,
        hits: arguments.hits,
        cpus: &cpus,
        directory: directory.path(),
    };
    let cases = if arguments.only.is_empty() { Case::value_variants() } else { &arguments.only };
    let mut all = Vec::new();
    let mut failed = false;
    for &case in cases {
        eprintln!("{case:?}");
        match run(case, &setting) {
            Ok(report) if arguments.json => all.push(report.json()),
            Ok(report) => print!("{report}"),
            Err(error) => {
                eprintln!("{case:?} failed: {error:#}");
                failed = true;
            }
        }
    }
    if arguments.json {
        println!("{:#}", Value::Array(all));
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn run(case: Case, setting: &Setting<'_>) -> Result<Report> {
    match case {
        Case::Silent => {
            cases::flood(setting, Mode::Silent, "silent: the upstream takes queries and says nothing")
        }
        Case::Unreachable => {
            cases::flood(setting, Mode::Unreachable, "unreachable: SYNs to the upstream are dropped")
        }
        Case::HotStale => {
            cases::hot(setting, true, "hot-stale: one expired name, the upstream stalls for 3 s")
        }
        Case::HotNew => {
            cases::hot(setting, false, "hot-new: one name never cached, the upstream stalls for 3 s")
        }
        Case::Clients => {
            let seconds = (setting.seconds / 10).max(3);
            attacks::clients(
                &Setting { seconds, ..*setting },
                "clients: hits beside hostile clients of each kind",
            )
        }
    }
}
