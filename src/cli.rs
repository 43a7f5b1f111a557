//! The command line: one module a subcommand.

mod ask;
mod check;
#[cfg(feature = "demo")]
mod demo;
mod doctor;
mod keep;
mod query;
mod run;
mod trace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::sys;

/// EX_CONFIG of sysexits.h: the configuration is wrong.
const BAD_CONFIG: u8 = 78;
/// Where a running agent is asked by default.
const CONTROL: &str = "/run/nodens/control.sock";

/// The DNS cache agent of a Kubernetes node.
#[derive(Debug, Parser)]
#[command(name = "nodens", version, arg_required_else_help = true)]
#[cfg_attr(
    feature = "demo",
    command(
        after_help = "Example:\n  nodens demo\n  dig @127.0.0.1 -p 5053 webapp.default.svc.cluster.local"
    )
)]
#[cfg_attr(
    not(feature = "demo"),
    command(after_help = "Example:\n  nodens keep --config /etc/nodens/config.yaml")
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent in the foreground. SIGTERM drains and ends it, SIGHUP reloads, SIGUSR1 logs statistics.
    #[command(after_help = "Example:\n  nodens run --config /etc/nodens/config.yaml")]
    Run {
        /// Configuration; without it the defaults of config/reference.yaml hold.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Hold the sockets and run the agent as a child, which can crash, hang and be replaced without a query lost.
    #[command(after_help = "Example:\n  nodens keep --config /etc/nodens/config.yaml")]
    Keep {
        /// Configuration of the agent; without it the defaults of config/reference.yaml hold.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Say what `keep` is to hold.
    #[command(hide = true)]
    Plan {
        /// Configuration of the agent.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Run an agent on 127.0.0.1:5053 before a small cluster DNS of its own, with names to try.
    #[cfg(feature = "demo")]
    #[command(after_help = "Example:\n  nodens demo\n  nodens demo --listen 127.0.0.1:5300")]
    Demo(demo::Options),
    /// Read a configuration and say what it means. Exit code 0, or 78 if it is wrong.
    #[command(after_help = "Example:\n  nodens check /etc/nodens/config.yaml")]
    Check {
        /// The configuration.
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Ask a name, as dig would. Exit code 0 when there was an answer, whatever its RCODE.
    #[command(
        after_help = "Examples:\n  nodens query webapp.default.svc.cluster.local\n  nodens query example.com MX --server 127.0.0.1:5053 --tcp\n  nodens query example.com --trace"
    )]
    Query(query::Options),
    /// Look into the cache of a running agent, or empty it.
    #[command(
        after_help = "Examples:\n  nodens cache get example.com\n  nodens cache flush --zone cluster.local"
    )]
    Cache {
        #[command(subcommand)]
        action: ask::CacheAction,
        #[command(flatten)]
        options: ask::Options,
    },
    /// Examine this node: what is wrong, why it matters, and the command that mends it. Exit code 1 when queries are lost,
    /// or answered by somebody else.
    #[command(
        after_help = "Examples:\n  nodens doctor --config /etc/nodens/config.yaml\n  nodens doctor --json | jq 'select(.level != \"ok\")'"
    )]
    Doctor(doctor::Options),
    /// How a running agent is doing.
    #[command(after_help = "Example:\n  nodens stats --json")]
    Stats {
        #[command(flatten)]
        options: ask::Options,
    },
}

impl Command {
    /// Whether others depend on the process.
    fn serves(&self) -> bool {
        match self {
            Self::Run { .. } | Self::Keep { .. } => true,
            #[cfg(feature = "demo")]
            Self::Demo(_) => true,
            _ => false,
        }
    }
}

/// Runs the command of this process, and returns its exit code: 0 good, 1 failed, 2 usage, 78 bad
/// configuration.
pub fn run() -> ExitCode {
    // The parent process stays for ever, and would keep in memory all that the reader of arguments touches (1 MiB).
    let arguments: Vec<_> = std::env::args_os().skip(1).take(4).collect();
    match &arguments[..] {
        [keep] if keep == "keep" => return keep::keep(None),
        [keep, flag, path] if keep == "keep" && flag == "--config" => return keep::keep(Some(path.into())),
        _ => {}
    }
    let command = Cli::parse().command;
    if !command.serves() {
        sys::end_with_the_reader();
    }
    let result = match command {
        Command::Run { config } => return run::run(config),
        Command::Keep { config } => return keep::keep(config),
        Command::Plan { config } => return keep::plan(config.as_deref()),
        #[cfg(feature = "demo")]
        Command::Demo(options) => demo::demo(&options),
        Command::Check { file, json } => return check::check(&file, json),
        Command::Query(options) => query::query(&options),
        Command::Cache { action, options } => ask::cache(action, &options),
        Command::Doctor(options) => match doctor::doctor(&options) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Stats { options } => ask::stats(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nodens: {error:#}");
            ExitCode::FAILURE
        }
    }
}
