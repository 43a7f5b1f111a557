//! What of root's power the agent keeps: the capabilities (capabilities(7)) that its configuration needs, and no other.
//!
//! They belong to a thread and go on to those that it starts, so [`restrict`] comes before the first of them.

use std::fmt;
use std::fs;
use std::net::SocketAddr;

use caps::errors::CapsError;
use caps::{CapSet, CapsHashSet};

pub use caps::Capability;

use crate::config::{Config, DNS_PORT, Network};

/// ip-sysctl: ports below need CAP_NET_BIND_SERVICE, those of IPv6 too.
const FIRST_FREE_PORT: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
/// Its default.
const DEFAULT_FIRST_FREE_PORT: u16 = 1024;

/// A setting that the kernel grants only to who has a capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// What it takes.
    pub capability: Capability,
    /// The key of the configuration, with the address where there are several.
    pub setting: String,
    /// What does without: "set … to false".
    pub instead: String,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { capability, setting, instead } = self;
        write!(
            f,
            "{setting} needs {capability}: add {} to the capabilities in the container's securityContext (for systemd: \
             AmbientCapabilities={capability}), or {instead}",
            name(*capability)
        )
    }
}

/// Settings for which the agent has no capability.
#[derive(Debug, PartialEq, Eq)]
pub struct MissingCapabilities {
    /// All of them.
    pub needs: Vec<Need>,
    /// Whether the process may have all of them, and only was not given them.
    pub allowed: bool,
}

impl std::error::Error for MissingCapabilities {}

/// One line for each.
impl fmt::Display for MissingCapabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.needs.iter().map(Need::to_string).collect();
        f.write_str(&lines.join("\n"))?;
        if self.allowed {
            let mut missing: Vec<_> = self.needs.iter().map(|need| need.capability.to_string()).collect();
            missing.sort();
            missing.dedup();
            write!(
                f,
                "\nthe container or unit allows this already, and gives it to root alone: run as user 0, or let the \
                 program's file give it (`setcap {}+ep FILE`)",
                missing.join(",").to_lowercase()
            )?;
        }
        Ok(())
    }
}

/// What this configuration needs, here and now.
pub fn needed(config: &Config) -> Vec<Need> {
    let first_free = fs::read_to_string(FIRST_FREE_PORT).ok().and_then(|text| text.trim().parse().ok());
    needed_below(config, first_free.unwrap_or(DEFAULT_FIRST_FREE_PORT))
}

/// As [`needed`], where ports from `first_free` on are for everybody.
fn needed_below(config: &Config, first_free: u16) -> Vec<Need> {
    let mut needs = Vec::new();
    let mut need = |capability, setting: String, instead: String| {
        needs.push(Need { capability, setting, instead });
    };
    for (key, instead) in network_settings(&config.network) {
        need(Capability::CAP_NET_ADMIN, key.to_owned(), format!("set {key} to {instead}"));
    }
    for &address in &config.network.intercept {
        let addr = SocketAddr::new(address, DNS_PORT);
        if is_privileged(addr, first_free) {
            let instead = "set network.intercept to []".to_owned();
            need(Capability::CAP_NET_BIND_SERVICE, format!("network.intercept {addr}"), instead);
        }
    }
    let listen = config.listen.iter().map(|addr| ("listen", addr));
    for (key, addr) in listen.chain([("admin", &config.admin)]) {
        if is_privileged(*addr, first_free) {
            let instead = format!("give it a port above {}", first_free - 1);
            need(Capability::CAP_NET_BIND_SERVICE, format!("{key} {addr}"), instead);
        }
    }
    needs
}

/// The keys that change the node's network or mark packets, and what turns each off.
fn network_settings(network: &Network) -> impl Iterator<Item = (&'static str, &'static str)> {
    let all = [
        (network.address_on.is_some(), "network.address_on", "none"),
        (network.notrack, "network.notrack", "false"),
        (network.accept_untracked, "network.accept_untracked", "false"),
        (!network.intercept.is_empty(), "network.intercept", "[]"),
        (network.upstream_notrack, "network.upstream_notrack", "false"),
    ];
    all.into_iter().filter_map(|(is_set, key, off)| is_set.then_some((key, off)))
}

/// Port 0 is any that is free.
fn is_privileged(addr: SocketAddr, first_free: u16) -> bool {
    (1..first_free).contains(&addr.port())
}

/// Gives up every capability that the configuration does not need, for this thread and all that it starts later.
/// What cannot be given up is logged: an agent that does not answer is worse.
///
/// # Errors
/// When one that is needed is missing. Nothing has been given up then.
pub fn restrict(config: &Config) -> Result<(), MissingCapabilities> {
    let mut needs = needed(config);
    let kept: CapsHashSet = needs.iter().map(|need| need.capability).collect();
    let held = match caps::read(None, CapSet::Permitted) {
        Ok(held) => held,
        Err(error) => {
            tracing::warn!(%error, "the capabilities of this process are unknown and stay as they are");
            return Ok(());
        }
    };
    needs.retain(|need| !held.contains(&need.capability));
    if !needs.is_empty() {
        let may = |need: &Need| caps::has_cap(None, CapSet::Bounding, need.capability).unwrap_or(false);
        return Err(MissingCapabilities { allowed: needs.iter().all(may), needs });
    }
    match keep_only(&kept) {
        Ok(()) => tracing::info!(capabilities = ?names(&kept), "all other capabilities are given up"),
        Err(error) => tracing::warn!(%error, "capabilities that are not needed could not be given up"),
    }
    Ok(())
}

/// Calls the kernel only where something changes: a filter of system calls may forbid what is not needed.
fn keep_only(kept: &CapsHashSet) -> Result<(), CapsError> {
    let superfluous = |set| caps::read(None, set).map(|held| &held - kept);
    // First, since it takes a capability that is not kept. Without that the set stays: it gives nothing by itself.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in superfluous(CapSet::Bounding)? {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    for capability in superfluous(CapSet::Ambient)? {
        caps::drop(None, CapSet::Ambient, capability)?;
    }
    let inheritable = &caps::read(None, CapSet::Inheritable)? & kept;
    // What is in force is never more than what is permitted.
    for (set, wanted) in
        [(CapSet::Effective, kept), (CapSet::Permitted, kept), (CapSet::Inheritable, &inheritable)]
    {
        if caps::read(None, set)? != *wanted {
            caps::set(None, set, wanted)?;
        }
    }
    Ok(())
}

/// As a securityContext has it: without `CAP_`.
fn name(capability: Capability) -> String {
    capability.to_string().trim_start_matches("CAP_").to_owned()
}

fn names(capabilities: &CapsHashSet) -> Vec<String> {
    let mut names: Vec<_> = capabilities.iter().map(|&capability| name(capability)).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(config: &Config, first_free: u16) -> Vec<(Capability, String)> {
        let needs = needed_below(config, first_free);
        needs.into_iter().map(|need| (need.capability, need.setting)).collect()
    }

    fn listening(addrs: &[&str]) -> Config {
        let listen = addrs.iter().map(|addr| addr.parse().unwrap()).collect();
        Config { listen, network: Network::default(), ..Config::default() }
    }

    #[test]
    fn without_network_settings_and_low_ports_nothing_is_needed() {
        assert_eq!(settings(&listening(&["127.0.0.1:5053", "[::1]:1024", "127.0.0.1:0"]), 1024), []);
    }

    #[test]
    fn every_address_with_a_privileged_port_needs_to_bind_it() {
        let mut config = listening(&["169.254.20.10:53", "[fd00::10]:53", "127.0.0.1:5053"]);
        config.admin = "127.0.0.1:1023".parse().unwrap();
        let bind = |setting: &str| (Capability::CAP_NET_BIND_SERVICE, setting.to_owned());
        let all =
            [bind("listen 169.254.20.10:53"), bind("listen [fd00::10]:53"), bind("admin 127.0.0.1:1023")];
        assert_eq!(settings(&config, 1024), all);
        assert_eq!(settings(&config, 54), all[..2], "where ports from 54 on are for everybody");
        assert_eq!(settings(&config, 53), []);
        assert_eq!(settings(&config, 0), []);
    }

    #[test]
    fn every_setting_that_changes_the_network_needs_to_administer_it() {
        let mut config = listening(&["127.0.0.1:5053"]);
        config.network = Network {
            address_on: Some("nodelocaldns".to_owned()),
            keep_address: false,
            notrack: true,
            accept_untracked: true,
            intercept: vec!["fd00:96::a".parse().unwrap()],
            upstream_notrack: true,
            ..config.network
        };
        let mut all: Vec<_> = ["address_on", "notrack", "accept_untracked", "intercept", "upstream_notrack"]
            .map(|key| (Capability::CAP_NET_ADMIN, format!("network.{key}")))
            .into();
        assert_eq!(settings(&config, 53), all);
        let bind = (Capability::CAP_NET_BIND_SERVICE, "network.intercept [fd00:96::a]:53".to_owned());
        all.push(bind);
        assert_eq!(settings(&config, 1024), all);
        config.network = Network { keep_address: false, ..Network::default() };
        assert_eq!(settings(&config, 1024), [], "one that asks for nothing by itself");
    }

    #[test]
    fn a_need_says_for_which_setting_how_it_is_met_and_how_to_do_without() {
        let mut config = listening(&["169.254.20.10:53"]);
        config.network.upstream_notrack = true;
        let needs = needed_below(&config, 1024);
        let said = MissingCapabilities { needs, allowed: false }.to_string();
        let expected = "network.upstream_notrack needs CAP_NET_ADMIN: add NET_ADMIN to the capabilities in the \
                        container's securityContext (for systemd: AmbientCapabilities=CAP_NET_ADMIN), or set \
                        network.upstream_notrack to false\n\
                        listen 169.254.20.10:53 needs CAP_NET_BIND_SERVICE: add NET_BIND_SERVICE to the capabilities \
                        in the container's securityContext (for systemd: \
                        AmbientCapabilities=CAP_NET_BIND_SERVICE), or give it a port above 1023";
        assert_eq!(said, expected);
    }

    #[test]
    fn capabilities_that_are_allowed_but_not_given_can_be_put_on_the_file() {
        let mut config = listening(&["169.254.20.10:53", "[fd00::10]:53"]);
        config.network.notrack = true;
        let said = MissingCapabilities { needs: needed_below(&config, 1024), allowed: true }.to_string();
        assert!(said.ends_with("(`setcap cap_net_admin,cap_net_bind_service+ep FILE`)"), "{said}");
    }

    /// In a thread of its own, whose capabilities end with it.
    #[test]
    fn a_thread_gives_up_what_it_does_not_need() {
        let kept = CapsHashSet::default();
        let after = std::thread::spawn(move || {
            keep_only(&kept).unwrap();
            [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient]
                .map(|set| caps::read(None, set).unwrap())
        });
        assert!(after.join().unwrap().iter().all(CapsHashSet::is_empty));
    }
}
