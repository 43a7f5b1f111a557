//! How queries come to the agent on its node: what connection tracking sees of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where the agent listens on its node.
const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10)), 53);
/// The cluster DNS, for which the agent answers where it intercepts.
const CLUSTER_IP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// No rule in the node's namespace, so that its kernel tracks nothing
    Bare,
    /// Rules for NAT as kube-proxy has them, so that the node's kernel tracks connections
    Tracked,
    /// The same, and the agent's address is spared
    Notrack,
    /// The same, and pods ask the ClusterIP, for which the agent answers
    Intercept,
}

impl Way {
    pub(crate) const ALL: [Self; 4] = [Self::Bare, Self::Tracked, Self::Notrack, Self::Intercept];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Tracked => "tracked",
            Self::Notrack => "notrack",
            Self::Intercept => "intercept",
        }
    }

    /// Whom pods ask.
    pub(crate) fn asked(self) -> SocketAddr {
        if self == Self::Intercept { CLUSTER_IP } else { LOCAL }
    }

    /// The agent's keys for it.
    pub(crate) fn keys(self) -> String {
        let intercept = if self == Self::Intercept { CLUSTER_IP.ip().to_string() } else { String::new() };
        format!(
            "listen: [\"{LOCAL}\"]
network:
  address_on: lo
  notrack: {}
  intercept: [{intercept}]
",
            matches!(self, Self::Notrack | Self::Intercept)
        )
    }

    /// What kube-proxy has, where it has anything.
    pub(crate) fn others_rules(self) -> String {
        if self == Self::Bare { String::new() } else { kube_proxy() }
    }
}

/// The chains of kube-proxy's mode nftables and one service: the first packet of each connection passes them, and
/// they are why connections are tracked at all. Nobody is at the endpoint, so what is not intercepted is lost.
fn kube_proxy() -> String {
    let ip = CLUSTER_IP.ip();
    format!(
        "table ip kube-proxy {{
            map services {{
                type ipv4_addr . inet_proto . inet_service : verdict
                elements = {{ {ip} . udp . 53 : goto service, {ip} . tcp . 53 : goto service }}
            }}
            chain service {{
                dnat to 10.244.9.9
            }}
            chain prerouting {{
                type nat hook prerouting priority dstnat
                ip daddr . meta l4proto . th dport vmap @services
            }}
            chain output {{
                type nat hook output priority -100
                ip daddr . meta l4proto . th dport vmap @services
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat
                meta mark & 0x4000 != 0 masquerade
            }}
            chain forward {{
                type filter hook forward priority 0
                ct state invalid drop
            }}
        }}\n"
    )
}
