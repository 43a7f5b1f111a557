//! What the facts mean, one module a check. Each has a `check`, which looks, and a pure function from facts to findings.

pub mod address;
pub mod agent;
pub mod buffers;
pub mod conntrack;
pub mod firewall;
pub mod kubelet;
pub mod memory;
pub mod node_cache;
mod opened;
pub mod port;
pub mod resolv;
pub mod routes;
pub mod rules;
pub mod sysctls;
pub mod upstreams;

use std::net::IpAddr;

use super::Patient;
use super::finding::Unseen;
use super::words::quoted;

/// What starts the agent, whoever runs it.
pub const START: &str = "systemctl restart nodens\n\
    # where Kubernetes runs it: kubectl get pods -A -o wide | grep nodens, and `kubectl describe` that of this node";

/// Checks of what belongs to a network namespace.
pub const OF_THE_NETWORK: [&str; 7] =
    ["address", "port", "rules", "firewall", "routes", "conntrack", "node-cache"];

/// An address alone, as a prefix.
fn whole(address: IpAddr) -> String {
    format!("{address}/{}", bits(address))
}

/// Gives a link an address, as the agent does it.
fn hold(address: IpAddr, link: &str) -> String {
    let how = if address.is_ipv4() { "scope host" } else { "nodad" };
    format!("ip address add {} dev {} {how}", whole(address), quoted(link))
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Why files of our own network namespace would say nothing of the agent's; `None` where they do, or where that is not
/// known.
pub(super) fn elsewhere(patient: &Patient) -> Option<Unseen> {
    let why = "The agent is in another network namespace than this.";
    patient.agent.is_elsewhere().then(|| Unseen::new(why, agent::there(patient)))
}
