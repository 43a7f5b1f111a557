//! What the agent asks of its node: rules in the kernel, which end with it.

pub mod netfilter;
mod netlink;
pub mod rules;

use std::collections::BTreeSet;

use netfilter::{Refusal, Table};
use rules::{Wanted, chains};

use crate::config::{Config, Server};

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

/// Rules by which queries to upstreams and their answers go past connection tracking, for as long as this lives.
#[derive(Debug)]
pub struct Bypass {
    ports: BTreeSet<u16>,
    _table: Table,
}

impl Bypass {
    /// As the configuration wants it: `None` for none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn of(config: &Config) -> Result<Option<Self>, NodeError> {
        if !config.network.upstream_notrack {
            return Ok(None);
        }
        let ports = ports(config);
        let mut table = Table::open()?;
        table.replace(&chains(&Wanted {
            notrack: &[],
            intercept: &[],
            leaving: &[],
            upstream_ports: &ports,
            never_upstream: &[],
            mark: config.network.mark,
        }))?;
        tracing::info!(table = table.name(), ?ports, "queries to upstreams go past connection tracking");
        Ok(Some(Self { ports, _table: table }))
    }

    /// Whether another configuration has servers at the same ports. All else is fixed while the agent runs.
    pub fn fits(&self, config: &Config) -> bool {
        self.ports == ports(config)
    }
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

    #[test]
    fn nothing_is_asked_of_the_kernel_unless_it_is_wanted() {
        assert!(Bypass::of(&Config::default()).unwrap().is_none());
    }
}
