//! Addresses, routes and connection tracking that are not as they should be.

use crate::examine::{Level, examine, mend, named, wrong};
use crate::home::{Home, LISTEN, LISTEN6, stop};
use crate::kernel::{holders, ip, program};
use crate::topology::{CLUSTER_IP, Families, Node, Proxy, Topology, on_a_node};

const HOLDING: &str = "address_on: nodelocaldns, notrack: true";

#[test]
fn an_address_that_is_gone_is_named_and_comes_back_by_its_command() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::listening(&[LISTEN, LISTEN6], HOLDING);
        stop(home.start());
        assert!(wrong(&examine(&home), "address").is_empty(), "it is kept");
        for (address, bits) in [(LISTEN, 32), (LISTEN6, 128)] {
            // A dummy, or the loopback link where the kernel has no dummies.
            let links = holders(address);
            assert_eq!(links.len(), 1, "{links:?}");
            ip(&format!("address del {address}/{bits} dev {}", links[0]));
            mend(&home, &named(&home, "address", Level::Problem, &[address, "is on no link"]));
        }
    });
}

#[test]
fn an_address_on_a_second_link_leaves_it_by_its_command() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        let _agent = home.start();
        ip(&format!("address add {LISTEN}/32 dev uplink"));
        mend(&home, &named(&home, "address", Level::Warning, &[LISTEN, "several links", "uplink"]));
    });
}

#[test]
fn a_wide_prefix_and_a_link_that_is_down_are_mended() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        ip(&format!("address add {LISTEN}/16 dev lo"));
        mend(&home, &named(&home, "address", Level::Warning, &[LISTEN, "/16 on link lo"]));
        ip(&format!("address del {LISTEN}/32 dev lo"));
        ip("link add nodelocaldns type bridge");
        ip(&format!("address add {LISTEN}/32 dev nodelocaldns"));
        mend(&home, &named(&home, "address", Level::Warning, &[LISTEN, "nodelocaldns, which is down"]));
    });
}

#[test]
fn a_cluster_ip_on_a_link_is_named_by_what_holds_it() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let node = Node::start();
        let home = Home::intercepting(&node);
        let _agent = home.start();
        ip(&format!("address add {CLUSTER_IP}/32 dev uplink"));
        mend(&home, &named(&home, "address", Level::Warning, &[CLUSTER_IP, "on link uplink"]));
        // As kube-proxy's IPVS mode makes it. It is a dummy there, which this kernel does not have.
        ip("link add kube-ipvs0 type bridge");
        ip(&format!("address add {CLUSTER_IP}/32 dev kube-ipvs0"));
        let refused = named(&home, "address", Level::Problem, &[CLUSTER_IP, "kube-ipvs0"]);
        assert!(refused.mend.contains("clusterDNS"), "{}", refused.mend);
    });
}

#[test]
fn rules_of_others_that_take_our_marks_are_named() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let node = Node::start();
        let home = Home::intercepting(&node);
        let _agent = home.start();
        ip("rule add fwmark 0x35/0xff lookup 7 pref 50");
        let found = named(&home, "routes", Level::Problem, &["IPv4 rule 50", "comes before ours"]);
        assert!(found.mend.contains("network.mark"), "{}", found.mend);
        ip("rule del pref 50");
        assert!(wrong(&examine(&home), "routes").is_empty());
    });
}

#[test]
fn entries_of_queries_that_should_not_be_tracked_go_by_the_command() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        let _agent = home.start();
        // As queries before the rules came have left it.
        for protocol in ["udp", "tcp"] {
            let mut words = vec!["-I", "-p", protocol, "-s", "10.244.0.2", "-d", LISTEN];
            words.extend(["--sport", "4000", "--dport", "53", "--timeout", "100"]);
            if protocol == "tcp" {
                words.extend(["--state", "ESTABLISHED"]);
            }
            program("conntrack", "conntrack", &words);
        }
        mend(&home, &named(&home, "conntrack", Level::Warning, &["2 entries", LISTEN]));
    });
}
