//! How a case is run: where, how long, against which agent.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::agent::Agent;
use crate::load::{Make, Pace, Source, drive};
use crate::names::ZONE;
use crate::window::DRAIN;

/// Sockets of one source.
const SOCKETS: usize = 8;
/// Of a quiet phase, the beginning does not count: connections are being opened.
pub(crate) const WARM_UP: Duration = Duration::from_secs(1);

pub(crate) struct Setting<'a> {
    /// Of each phase.
    pub(crate) seconds: u64,
    pub(crate) cpus: &'a [usize],
    /// Of the load and of the upstreams.
    pub(crate) load_cpus: &'a [usize],
    pub(crate) directory: &'a Path,
}

impl Setting<'_> {
    pub(crate) fn phase(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// Starts the agent.
    pub(crate) fn agent(&self, config: &str) -> Result<Agent> {
        Agent::start(config, None, self.cpus, self.directory)
    }

    /// Whether this agent takes such a configuration.
    pub(crate) fn is_accepted(&self, config: &str) -> Result<bool> {
        let file = self.directory.join("tried.yaml");
        fs::write(&file, config)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodens"));
        command.arg("check").arg(file).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.status().context("nodens check")?.success())
    }
}

/// A zone with these servers over TCP; `keys` are further ones of its upstream.
pub(crate) fn config(servers: &[SocketAddr], keys: &str) -> String {
    let servers: Vec<_> = servers.iter().map(|server| format!("\"tcp://{server}\"")).collect();
    zone(&servers.join(", "), keys)
}

/// A zone whose servers are written so.
pub(crate) fn zone(servers: &str, keys: &str) -> String {
    format!("zones:\n  - match: [{ZONE}]\n    upstream:\n      servers: [{servers}]\n{keys}")
}

/// Load from one address.
pub(crate) fn source<'a>(agent: &Agent, from: Ipv4Addr, rate: u64, make: Make<'a>) -> Result<Source<'a>> {
    Source::new(agent.address, from, SOCKETS, rate, make)
}

/// The same from 127.0.0.1.
pub(crate) fn local<'a>(agent: &Agent, rate: u64, make: Make<'a>) -> Result<Source<'a>> {
    source(agent, Ipv4Addr::LOCALHOST, rate, make)
}

/// Has so many names cached.
pub(crate) fn warm(agent: &Agent, count: u64, make: Make<'_>) -> Result<()> {
    let mut sources = [local(agent, count, make)?];
    drive(&mut sources, Duration::from_secs(1), DRAIN);
    let tally = &sources[0].tally;
    ensure!(tally.good() == count, "{} of {count} names are cached: {}", tally.good(), tally.by_verdict());
    Ok(())
}

/// One phase without anything else.
pub(crate) fn quiet(sources: &mut [Source<'_>], time: Duration) -> Pace {
    drive(sources, time, DRAIN)
}
