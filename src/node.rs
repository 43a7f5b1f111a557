//! What the agent asks of its node: rules in the kernel, which end with it.

pub mod netfilter;
mod netlink;

use std::collections::BTreeSet;
use std::sync::Arc;

use netfilter::{Bits, Chain, Hook, RAW, Refusal, Rule, Table};

use crate::config::{Config, Mark, Server};
use crate::readiness::Readiness;

/// RFC 1035 §4.2: where the servers of `/etc/resolv.conf` are.
const DNS: u16 = 53;

/// Why the node cannot be what the configuration says, and what helps.
#[derive(Debug, thiserror::Error)]
#[error("network.upstream_notrack: {refusal}: {}", fix(.refusal))]
pub struct NodeError {
    /// Said with the rest, so that it is no source to be said once more.
    refusal: Refusal,
}

impl From<Refusal> for NodeError {
    fn from(refusal: Refusal) -> Self {
        Self { refusal }
    }
}

fn fix(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Capability => {
            "add NET_ADMIN to the capabilities in the container's securityContext (for systemd: \
             AmbientCapabilities=CAP_NET_ADMIN), or set network.upstream_notrack to false"
        }
        _ => "set network.upstream_notrack to false",
    }
}

/// The node.
#[derive(Debug)]
pub struct Node {
    table: std::sync::Mutex<Option<(BTreeSet<u16>, Table)>>,
}

impl Node {
    /// Begins.
    pub async fn start(config: &Config, _readiness: &Arc<Readiness>) -> Arc<Self> {
        let node = Arc::new(Self { table: std::sync::Mutex::default() });
        let _ = node.ask(config);
        node
    }
    /// Whether it intercepts.
    pub fn intercepts(&self) -> bool {
        false
    }
    /// Reload.
    pub fn ask(&self, config: &Config) -> Result<(), NodeError> {
        let mut table = self.table.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if config.network.upstream_notrack && table.as_ref().is_none_or(|(known, _)| *known != ports(config))
        {
            let ports = ports(config);
            let new = Table::install(&chains(&ports, config.network.mark))?;
            *table = Some((ports, new));
        }
        Ok(())
    }
    /// Withdraws.
    pub fn withdraw(&self) {}
    /// Leaves.
    pub async fn leave(&self) {}
}

/// The ports of all servers.
fn ports(config: &Config) -> BTreeSet<u16> {
    let servers = config.zones.iter().flat_map(|zone| &zone.upstream.servers);
    let port = |server: &Server| match server {
        Server::Named(_, _, port) => *port,
        server => server.addr().map_or(DNS, |addr| addr.port()),
    };
    servers.map(port).collect()
}

/// What the agent's own sockets send to these ports, by the packet's mark, and what comes for them from there, by
/// the socket's: a packet that comes has no mark yet. The ports come first in that direction, because looking for a
/// socket costs more. Marks of others that use the same bits by accident concern no other port.
fn chains(ports: &BTreeSet<u16>, Mark { own, mask, .. }: Mark) -> [Chain; 2] {
    let bits = Bits { value: own, mask };
    let protocols = [libc::IPPROTO_TCP, libc::IPPROTO_UDP];
    let each = |rule: &dyn Fn(Rule, u16) -> Rule| {
        let rules = ports.iter().flat_map(|&port| {
            protocols.map(|protocol| rule(Rule::default().protocol(protocol as u8), port).notrack())
        });
        rules.collect()
    };
    [
        Chain {
            name: "output",
            hook: Hook::Output,
            priority: RAW,
            rules: each(&|rule, port| rule.destination_port(port).mark(bits)),
        },
        Chain {
            name: "prerouting",
            hook: Hook::Prerouting,
            priority: RAW,
            rules: each(&|rule, port| rule.source_port(port).socket_mark(bits)),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Scheme, Zone};
    use hickory_proto::rr::Name;

    #[test]
    fn the_ports_of_every_kind_of_server_are_known_once() {
        let addr = |text: &str| text.parse().unwrap();
        let servers = vec![
            Server::Tcp(addr("10.0.0.1:53")),
            Server::Udp(addr("[fd00::1]:5353")),
            Server::Tls(addr("10.0.0.1:853"), "dns.example".to_owned()),
            Server::Auto(addr("10.0.0.2:5353")),
            Server::Named(Scheme::Tcp, Name::root(), 1053),
        ];
        let zones = vec![Zone::new(vec![Name::root()], servers)];
        let config = Config { zones, ..Config::default() };
        assert_eq!(ports(&config).into_iter().collect::<Vec<_>>(), [53, 853, 1053, 5353]);
        assert_eq!(ports(&Config::default()).into_iter().collect::<Vec<_>>(), [53], "of the system");
    }
}
