//! The topologies themselves, without any agent.

use crate::client::{Way, ask_from};
use crate::cluster_dns::TTL;
use crate::kernel::{entries_to, nft};
use crate::topology::{Families, Firewall, Node, PLACES, Proxy, Topology, on_a_node};

/// Everybody reaches the cluster's DNS by its ClusterIP, which is what connection tracking is for.
#[track_caller]
fn everybody_asks() {
    let node = Node::start();
    for server in node.cluster_ips() {
        for (way, protocol) in [(Way::Udp, "udp"), (Way::Tcp, "tcp")] {
            for seen in ask_from(&PLACES, server, way, 20) {
                seen.must_all_have(TTL);
            }
            let entries = entries_to(&server.ip().to_string(), protocol);
            assert_eq!(entries.len(), 60, "{server} {protocol}: {entries:?}");
        }
    }
}

#[test]
fn pods_and_host_reach_the_cluster_ip_through_iptables_legacy() {
    on_a_node(Topology::new(Proxy::IptablesLegacy).guarded(Firewall::Drops), || everybody_asks());
}

#[test]
fn pods_and_host_reach_the_cluster_ip_through_iptables_nft() {
    on_a_node(Topology::new(Proxy::IptablesNft).guarded(Firewall::DropsUntracked).endpoints(2), || {
        everybody_asks();
        let rules = nft("list ruleset");
        assert!(rules.contains("KUBE-SERVICES"), "{rules}");
    });
}

#[test]
fn pods_and_host_reach_the_cluster_ip_through_nftables() {
    on_a_node(Topology::new(Proxy::Nftables).guarded(Firewall::Drops).endpoints(2), || everybody_asks());
}

#[test]
fn one_family_is_enough() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V6), || everybody_asks());
}
