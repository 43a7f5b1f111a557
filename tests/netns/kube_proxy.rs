//! What kube-proxy and a firewall put into the node's kernel, in the words of their choice.

use crate::iptables;
use crate::kernel::program;
use crate::nftables;
use crate::topology::{
    CLUSTER_IP, CLUSTER_IP6, ENDPOINTS, ENDPOINTS6, Firewall, POD_RANGES, Proxy, Topology,
};

/// The Service of the cluster's DNS in one family.
#[derive(Clone, Copy)]
pub(crate) struct Service {
    pub(crate) v6: bool,
    pub(crate) cluster_ip: &'static str,
    pub(crate) pods: &'static str,
    /// Without one, packets to it are rejected.
    pub(crate) endpoints: &'static [&'static str],
}

/// The bit by which kube-proxy remembers what to masquerade.
pub(crate) const MASQUERADE: &str = "0x4000";

fn services(topology: Topology) -> Vec<Service> {
    let service = |v6, cluster_ip, pods, endpoints: &'static [&'static str]| Service {
        v6,
        cluster_ip,
        pods,
        endpoints: &endpoints[..topology.endpoints],
    };
    let v4 = service(false, CLUSTER_IP, POD_RANGES[0], &ENDPOINTS);
    topology.families.of([v4, service(true, CLUSTER_IP6, POD_RANGES[1], &ENDPOINTS6)])
}

/// Puts everything there.
#[track_caller]
pub(crate) fn install(topology: Topology) {
    match topology.proxy {
        Proxy::IptablesLegacy | Proxy::IptablesNft => {
            for service in services(topology) {
                let program = iptables::program_of(topology.proxy, service.v6);
                iptables::install(&program, service, topology.firewall);
            }
        }
        Proxy::Nftables => {
            nftables::guard(topology.firewall);
            services(topology).into_iter().for_each(nftables::replace);
        }
    }
}

/// As the proxy does it when endpoints have come or gone.
#[track_caller]
pub(crate) fn update(topology: Topology) {
    for service in services(topology) {
        match topology.proxy {
            Proxy::Nftables => nftables::replace(service),
            proxy => iptables::replace(&iptables::program_of(proxy, service.v6), service),
        }
        // It forgets connections by UDP to endpoints that are gone: they would stay translated for ever.
        let family = if service.v6 { "ipv6" } else { "ipv4" };
        let forget =
            format!("conntrack -D -f {family} -p udp --orig-dst {} 2>&1 || true", service.cluster_ip);
        program("sh", "dash", &["-c", &forget]);
    }
}

/// Whether a firewall of this kind lets packets in that are not tracked.
pub(crate) fn states(firewall: Firewall) -> Option<&'static [&'static str]> {
    match firewall {
        Firewall::Open => None,
        Firewall::Drops => Some(&["new", "untracked"]),
        Firewall::DropsUntracked => Some(&["new"]),
    }
}
