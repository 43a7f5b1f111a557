//! Upstreams that fail, stall and multiply: what clients notice of it. README.md in the directory above says what is
//! measured, and how.

#[expect(dead_code, reason = "`flood` uses the rest")]
#[path = "../flood/agent.rs"]
mod agent;
#[path = "../compare/authority.rs"]
mod authority;
mod cluster;
#[expect(dead_code, reason = "`flood` uses the rest")]
#[path = "../flood/load.rs"]
mod load;
mod loss;
mod names;
#[expect(dead_code, reason = "`flood` uses the rest")]
#[path = "../flood/net.rs"]
mod net;
#[expect(dead_code, reason = "`flood` uses the rest")]
#[path = "../flood/packet.rs"]
mod packet;
#[expect(dead_code, reason = "`compare` uses the rest")]
#[path = "../compare/process.rs"]
mod process;
mod programs;
mod queue;
#[expect(dead_code, reason = "`flood` uses the rest")]
#[path = "../flood/report.rs"]
mod report;
mod restart;
mod script;
mod setting;
mod spread;
#[expect(dead_code, reason = "`compare` uses the rest")]
#[path = "../compare/sys.rs"]
mod sys;
mod wait;
mod window;

use std::env;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use serde_json::Value;

use crate::authority::program;
use crate::cluster::{Cluster, Reject};
use crate::programs::{Program, Upstream};
use crate::report::Report;
use crate::script::{Manner, Script};
use crate::setting::Setting;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// One of two servers keeps silent
    BlackHole,
    /// Packets to one of two servers are dropped
    Dropped,
    /// Packets to one of two endpoints behind a ClusterIP are dropped
    ClusterIp,
    /// Both endpoints are gone, and kube-proxy rejects by ICMP
    GoneIcmp,
    /// The same, and all is rejected by RST
    GoneReset,
    /// Every connection is reset, five times
    Reset,
    /// The only server is down for 2 s: the scripted one, then NSD
    Restart,
    /// One name takes 2 s
    SlowName,
    /// Two servers in the list become four by a reload
    Spread,
    /// A name gets four addresses instead of two
    SpreadByName,
    /// A ClusterIP gets four endpoints instead of two
    SpreadClusterIp,
    /// One answer in a hundred is 500 ms late
    Hedge,
    /// One address floods unique names
    Fair,
    /// Unbound as the upstream: one of two keeps silent, the only one is restarted
    Servers,
}

impl Case {
    /// Whether it needs a network namespace of its own, and with that root.
    fn is_inside(self) -> bool {
        matches!(
            self,
            Self::Dropped | Self::ClusterIp | Self::GoneIcmp | Self::GoneReset | Self::SpreadClusterIp
        )
    }
}

/// Lets upstreams fail, stall and multiply while clients ask for names that are not cached.
///
/// Needs nsd, unbound, iproute2, nftables and util-linux, two cores with nothing else to do, and root for the cases in a
/// network namespace (dropped, cluster-ip, gone-icmp, gone-reset, spread-cluster-ip).
/// Example: cargo bench --bench pool -- --seconds 5 --only black-hole
#[derive(Parser)]
#[command(name = "pool")]
struct Arguments {
    /// Length of a phase: quiet, and disturbed
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(4..=600))]
    seconds: u64,
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
    /// This process has a network namespace of its own
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    ensure!(arguments.server_core != arguments.load_core, "the agent and the load need a core each");
    sys::pin(&[arguments.load_core]).context("cannot run on the load's core")?;
    net::wake_precisely();
    let cases = if arguments.only.is_empty() { Case::value_variants() } else { &arguments.only };
    let mut all = Vec::new();
    let mut failed = false;
    for &case in cases {
        let result = if case.is_inside() && !arguments.inside {
            inside(case, &arguments)
        } else {
            eprintln!("{case:?}");
            outside(case, &arguments)
        };
        match result {
            Ok(values) => all.extend(values),
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

/// Runs a case here, and prints its tables or returns its values.
fn outside(case: Case, arguments: &Arguments) -> Result<Vec<Value>> {
    let directory = tempfile::Builder::new().prefix("pool-").tempdir()?;
    let setting = Setting {
        seconds: arguments.seconds,
        cpus: &[arguments.server_core],
        load_cpus: &[arguments.load_core],
        directory: directory.path(),
    };
    let reports = run(case, &setting)?;
    if arguments.json {
        return Ok(reports.iter().map(Report::json).collect());
    }
    for report in reports {
        print!("{report}");
    }
    Ok(Vec::new())
}

/// Runs a case by another process of this program, in a network namespace without a name: it ends with the last process
/// in it, however that ends.
fn inside(case: Case, arguments: &Arguments) -> Result<Vec<Value>> {
    let name = case.to_possible_value().context("a case without a name")?;
    let mut command: Command = program("unshare");
    command.arg("--net").arg(env::current_exe()?).args(["--inside", "--only", name.get_name()]);
    command.args(["--seconds", &arguments.seconds.to_string()]);
    command.args(["--server-core", &arguments.server_core.to_string()]);
    command.args(["--load-core", &arguments.load_core.to_string()]);
    if arguments.json {
        command.arg("--json").stdout(Stdio::piped());
    }
    sys::confine(&mut command, &[arguments.load_core]);
    let child = command.stdin(Stdio::null()).spawn().context("cannot start unshare (util-linux)")?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "in a network namespace, which needs root: {}", output.status);
    match serde_json::from_slice(&output.stdout) {
        Ok(Value::Array(values)) => Ok(values),
        _ if arguments.json => anyhow::bail!("no JSON came out of the namespace"),
        _ => Ok(Vec::new()),
    }
}

fn run(case: Case, setting: &Setting<'_>) -> Result<Vec<Report>> {
    Ok(match case {
        Case::BlackHole => vec![loss::silent(setting)?],
        Case::Dropped => vec![dropped(setting, false)?],
        Case::ClusterIp => vec![dropped(setting, true)?],
        Case::GoneIcmp => vec![restart::gone(setting, Reject::Icmp)?],
        Case::GoneReset => vec![restart::gone(setting, Reject::Reset)?],
        Case::Reset => vec![loss::reset(setting)?],
        Case::Restart => vec![restart::scripted(setting)?, restarted(setting, Program::Nsd)?],
        Case::SlowName => vec![queue::slow_name(setting)?],
        Case::Spread => vec![spread::by_list(setting)?],
        Case::SpreadByName => vec![spread::by_name(setting)?],
        Case::SpreadClusterIp => vec![spread::by_cluster_ip(setting)?],
        Case::Hedge => vec![queue::hedge(setting, false)?, queue::hedge(setting, true)?],
        Case::Fair => vec![queue::fair(setting)?],
        Case::Servers => vec![frozen(setting)?, restarted(setting, Program::Unbound)?],
    })
}

/// Packets to one of two endpoints are dropped: the agent knows the endpoints, or only their ClusterIP.
fn dropped(setting: &Setting<'_>, behind_cluster_ip: bool) -> Result<Report> {
    let cluster = Cluster::here()?;
    let listen = Cluster::addresses(2);
    let scripts = Script::start_all(&listen, &Manner::serial(2))?;
    cluster.forward(2)?;
    let gone = |gone: bool| cluster.go(None, if gone { &[1] } else { &[] });
    let asked = || scripts.iter().map(Script::queries).sum();
    let title = "cluster-ip: packets to one of two endpoints behind a ClusterIP are dropped";
    if behind_cluster_ip {
        return loss::black_hole(setting, title, &[Cluster::IP], &gone, Some(&asked));
    }
    let title = "dropped: packets to one of two servers are dropped";
    loss::black_hole(setting, title, &listen, &gone, Some(&asked))
}

/// One of two Unbounds stands still.
fn frozen(setting: &Setting<'_>) -> Result<Report> {
    let listen = script::addresses(2)?;
    let start = |&address| Upstream::start(Program::Unbound, address, setting.directory, setting.load_cpus);
    let upstreams: Vec<_> = listen.iter().map(start).collect::<Result<_>>()?;
    let gone = |gone: bool| upstreams[1].freeze(gone);
    loss::black_hole(setting, "servers: one of two Unbounds stands still", &listen, &gone, None)
}

/// The only server is ended, and started again.
fn restarted(setting: &Setting<'_>, program: Program) -> Result<Report> {
    let address = script::addresses(1)?[0];
    let mut upstream = Upstream::start(program, address, setting.directory, setting.load_cpus)?;
    let title = match program {
        Program::Nsd => "restart: the only server, NSD, is down for 2 s",
        Program::Unbound => "servers: the only server, Unbound, is down for 2 s",
    };
    let upstream = std::sync::Mutex::new(&mut upstream);
    let lock = || upstream.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let down = || {
        lock().end();
        Ok(())
    };
    restart::restart(setting, title, address, down, || lock().go_on())
}
