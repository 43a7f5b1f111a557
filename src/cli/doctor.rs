//! `nodens doctor`: examines this node.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::{BAD_CONFIG, CONTROL};
use crate::config::{Config, file};
use crate::doctor::finding::{Finding, Level};
use crate::doctor::sources::Sources;
use crate::doctor::{self};

/// Where kubeadm and most installers have it (kubelet's `--config`).
const KUBELET: &str = "/var/lib/kubelet/config.yaml";

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The agent's configuration; without it the defaults of config/reference.yaml hold.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent's control socket; without it the configuration's.
    #[arg(long, value_name = "PATH", help = format!("The agent's control socket [default: the configuration's, {CONTROL}]"))]
    control: Option<PathBuf>,
    /// The kubelet's configuration.
    #[arg(long, value_name = "FILE", default_value = KUBELET)]
    kubelet_config: PathBuf,
    /// Print JSON, one finding a line.
    #[arg(long)]
    json: bool,
}

/// Exit code 1 when queries are lost, or answered by somebody else.
pub(super) fn doctor(options: &Options) -> anyhow::Result<ExitCode> {
    let config = match &options.config {
        None => Config::default(),
        Some(path) => match file::load(path) {
            Ok(loaded) => loaded.config,
            Err(error) => {
                eprintln!("{error}");
                return Ok(ExitCode::from(BAD_CONFIG));
            }
        },
    };
    let control = options.control.clone().unwrap_or_else(|| config.control.clone());
    let sources = Sources { root: "/".into(), kubelet: options.kubelet_config.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut worst = Level::Ok;
    runtime.block_on(doctor::examine(config, sources, control, |finding| {
        worst = worst.max(finding.level);
        if options.json { println!("{}", json!(finding)) } else { print(&finding) }
    }));
    Ok(if worst == Level::Problem { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(finding: &Finding) {
    let level = match finding.level {
        Level::Ok => "ok",
        Level::Warning => "warning",
        Level::Unknown => "not seen",
        Level::Problem => "PROBLEM",
    };
    println!("{level:<9}{:<12}{}", finding.check, finding.what);
    for line in finding.why.lines() {
        println!("{:21}{line}", "");
    }
    for line in finding.mend.lines() {
        println!("{:23}{line}", "");
    }
}
