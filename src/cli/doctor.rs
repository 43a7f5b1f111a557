//! `nodens doctor`: examines this node.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::{BAD_CONFIG, CONTROL};
use crate::config::file;
use crate::doctor::finding::{Finding, Level};
use crate::doctor::sources::Sources;
use crate::doctor::words::quoted;
use crate::doctor::{self, Case};

/// Where kubeadm and most installers have it (kubelet's `--config`).
const KUBELET: &str = "/var/lib/kubelet/config.yaml";

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The agent's configuration; without it that of the agent that runs, or the defaults of config/reference.yaml.
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
    let sources = Sources { root: "/".into(), kubelet: options.kubelet_config.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (config, first) = match &options.config {
        None => {
            let control = options.control.clone().unwrap_or_else(|| CONTROL.into());
            let (config, finding) = runtime.block_on(doctor::configuration(&sources, &control));
            (config, Some(finding))
        }
        Some(path) => match file::load(path) {
            Ok(loaded) => (loaded.config, None),
            Err(error) => {
                eprintln!("{error}");
                return Ok(ExitCode::from(BAD_CONFIG));
            }
        },
    };
    let control = options.control.clone().unwrap_or_else(|| config.control.clone());
    let case = Case { config, sources, control, again: command_line() };
    let mut seen = Summary::default();
    let mut tell = |finding: Finding| {
        let finding = finding.printable();
        seen.add(&finding);
        if options.json { println!("{}", json!(finding)) } else { print(&finding) }
    };
    first.into_iter().for_each(&mut tell);
    runtime.block_on(doctor::examine(case, tell));
    if !options.json {
        println!("{}", seen.line());
    }
    Ok(if seen.count(Level::Problem) > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// This very command, as a shell takes it.
fn command_line() -> String {
    std::env::args_os().map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
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

/// What was found in all.
#[derive(Debug, Default)]
struct Summary {
    checks: BTreeSet<&'static str>,
    levels: BTreeMap<Level, usize>,
}

impl Summary {
    fn add(&mut self, finding: &Finding) {
        self.checks.insert(finding.check);
        *self.levels.entry(finding.level).or_default() += 1;
    }

    fn count(&self, level: Level) -> usize {
        self.levels.get(&level).copied().unwrap_or_default()
    }

    /// `12 checks: 1 problem, 2 warnings, 1 not seen`.
    fn line(&self) -> String {
        let several = |count, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
        let (problems, warnings) = (self.count(Level::Problem), self.count(Level::Warning));
        let unseen = match self.count(Level::Unknown) {
            0 => String::new(),
            count => format!(", {count} not seen"),
        };
        let checks = several(self.checks.len(), "check");
        format!("{checks}: {}, {}{unseen}", several(problems, "problem"), several(warnings, "warning"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_checks_and_what_they_found() {
        let mut summary = Summary::default();
        assert_eq!(summary.line(), "0 checks: 0 problems, 0 warnings");
        for (check, level) in [
            ("port", Level::Ok),
            ("port", Level::Problem),
            ("rules", Level::Warning),
            ("rules", Level::Warning),
            ("memory", Level::Unknown),
        ] {
            summary.add(&Finding { level, ..Finding::ok(check, "") });
        }
        assert_eq!(summary.line(), "3 checks: 1 problem, 2 warnings, 1 not seen");
    }
}
