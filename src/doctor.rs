//! `nodens doctor`: what is wrong on this node, why it matters, and the command that mends it.
//!
//! [`look`] gathers facts and says nothing about them; [`judge`] says what they mean for this configuration, one
//! module a check, without looking at anything itself. It reads, and asks questions that any client may ask; it
//! changes nothing.

pub mod finding;
pub mod judge;
pub mod look;
pub mod sources;
pub mod words;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::config::{Config, DNS_PORT, file};
use finding::{Finding, Level, Unseen};
use look::agent::{Agent, agent, config_file};
use look::node::{Node, node};
use sources::{AS_ROOT, Sources};

/// Findings of one check that are shown. One that has more to say has one cause for most of it.
pub const SHOWN: usize = 24;

/// What is examined, and how.
#[derive(Debug)]
pub struct Case {
    /// What the agent is configured to do.
    pub config: Config,
    /// Where facts are read.
    pub sources: Sources,
    /// The agent's control socket.
    pub control: PathBuf,
    /// What examines again, for a shell.
    pub again: String,
}

/// The node that is examined.
#[derive(Debug)]
pub struct Patient {
    /// What the agent is configured to do.
    pub config: Config,
    /// Where facts are read.
    pub sources: Sources,
    /// The agent's control socket.
    pub control: PathBuf,
    /// What examines again, for a shell.
    pub again: String,
    /// The agent that runs, or why none is seen.
    pub agent: Agent,
    /// Its node.
    pub node: Node,
}

impl Patient {
    /// The ClusterIPs that the agent answers for.
    pub fn cluster_ips(&self) -> Vec<SocketAddr> {
        cluster_ips(&self.config)
    }

    /// Where queries come that are not to be tracked.
    pub fn untracked(&self) -> Vec<SocketAddr> {
        let listen = if self.config.network.notrack { &self.config.listen[..] } else { &[] };
        listen.iter().copied().chain(self.cluster_ips()).collect()
    }
}

fn cluster_ips(config: &Config) -> Vec<SocketAddr> {
    config.network.intercept.iter().map(|&ip| SocketAddr::new(ip, DNS_PORT)).collect()
}

/// What the agent at this control socket is configured to do, and how far that is known.
pub async fn configuration(sources: &Sources, control: &Path) -> (Config, Finding) {
    let pid = agent(sources, control).await.pid;
    let none = || Unseen::new("no agent is seen that could be asked for its own", "");
    let loaded = pid.ok_or_else(none).and_then(|pid| {
        let path = config_file(sources, pid)?;
        let loaded = file::load(&path).map_err(|error| Unseen::new(error.to_string(), AS_ROOT))?;
        Ok((loaded.config, Finding::ok("config", format!("the agent's own, {}", path.display()))))
    });
    loaded.unwrap_or_else(|Unseen { why, .. }| {
        let what = "no configuration is given: this is about the defaults of config/reference.yaml";
        (
            Config::default(),
            Finding::unknown("config", what, &Unseen::new(why, "nodens doctor --config FILE")),
        )
    })
}

/// Examines a node, one check after the other, and hands over each finding as it is made.
pub async fn examine(case: Case, mut each: impl FnMut(Finding)) {
    let Case { config, sources, control, again } = case;
    let agent = agent(&sources, &control).await;
    let addrs: Vec<SocketAddr> = config.listen.iter().copied().chain(cluster_ips(&config)).collect();
    let node = node(&sources, &addrs).await;
    let patient = Patient { config, sources, control, again, agent, node };
    let mut tell = |findings: Vec<Finding>| bounded(findings).into_iter().for_each(&mut each);
    tell(judge::agent::check(&patient));
    if let Some(why) = judge::elsewhere(&patient) {
        for check in judge::OF_THE_NETWORK {
            tell(vec![Finding::unknown(check, "not looked at", &why)]);
        }
    } else {
        tell(judge::address::check(&patient));
        tell(judge::port::check(&patient));
        tell(judge::rules::check(&patient));
        tell(judge::firewall::check(&patient));
        tell(judge::routes::check(&patient));
        tell(judge::conntrack::check(&patient));
        tell(judge::node_cache::check(&patient));
    }
    tell(judge::kubelet::check(&patient));
    tell(judge::resolv::check(&patient).await);
    tell(judge::upstreams::check(&patient).await);
    tell(judge::buffers::check(&patient).await);
    tell(judge::sysctls::check(&patient));
    tell(judge::memory::check(&patient));
}

/// No more than [`SHOWN`], the worst of them.
fn bounded(mut findings: Vec<Finding>) -> Vec<Finding> {
    if findings.len() <= SHOWN {
        return findings;
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    let left = findings.split_off(SHOWN - 1);
    let level = left.first().map_or(Level::Ok, |finding| finding.level);
    let check = left.first().map_or("", |finding| finding.check);
    let what = format!("{} more are not shown", left.len());
    findings.push(Finding { level, ..Finding::ok(check, what) });
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_findings_the_worst_are_shown_and_the_others_are_counted() {
        let many = |level| (0..SHOWN).map(move |at| Finding { level, ..Finding::ok("port", at.to_string()) });
        let shown = bounded(many(Level::Ok).chain(many(Level::Problem)).collect());
        assert_eq!(shown.len(), SHOWN);
        assert!(shown[..SHOWN - 1].iter().all(|finding| finding.level == Level::Problem));
        assert_eq!(shown[SHOWN - 1].what, format!("{} more are not shown", SHOWN + 1));
        assert_eq!(shown[SHOWN - 1].level, Level::Problem);
        assert_eq!(bounded(many(Level::Ok).collect()).len(), SHOWN);
    }
}
