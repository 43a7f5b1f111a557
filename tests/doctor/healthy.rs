//! Nodes that are well.

use crate::examine::{Finding, Level, doctor, examine};
use crate::home::{Home, LISTEN, LISTEN6};
use crate::kernel::program;
use crate::topology::{Node, Proxy, Topology, on_a_node};

/// What these tests' way into a namespace forces on every node, by check and the text's beginning: nothing else may be
/// found on one that is well. `ip netns exec` mounts a /sys that has no cgroups.
const FORCED: [(&str, &str); 1] = [("memory", "the memory limit could not be read")];

#[track_caller]
fn is_well(home: &Home) {
    let findings = examine(home);
    let forced = |finding: &Finding| {
        FORCED.iter().any(|(check, what)| finding.check == *check && finding.what.starts_with(what))
    };
    let wrong: Vec<_> =
        findings.iter().filter(|finding| finding.level != Level::Ok && !forced(finding)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let text = String::from_utf8(doctor(home, &[], &[]).stdout).expect("text");
    eprintln!("{text}");
    let last = text.lines().last().expect("a summary");
    assert!(last.contains(" checks: 0 problems, "), "{last}");
}

/// What no kernel has by itself, and doctor says of every node.
fn as_recommended() {
    program("sysctl", "procps", &["-w", "net.ipv4.tcp_migrate_req=1"]);
}

#[track_caller]
fn a_node_in_kubelet_mode() {
    let _node = Node::start();
    as_recommended();
    let home = Home::listening(&[LISTEN, LISTEN6], "address_on: nodelocaldns, notrack: true");
    let _agent = home.start();
    is_well(&home);
}

#[track_caller]
fn a_node_that_intercepts() {
    let node = Node::start();
    as_recommended();
    let home = Home::intercepting(&node);
    let _agent = home.start();
    is_well(&home);
}

#[test]
fn a_node_in_kubelet_mode_beside_iptables_nft_is_well() {
    on_a_node(Topology::new(Proxy::IptablesNft), || a_node_in_kubelet_mode());
}

#[test]
fn a_node_in_kubelet_mode_beside_iptables_legacy_is_well() {
    on_a_node(Topology::new(Proxy::IptablesLegacy), || a_node_in_kubelet_mode());
}

#[test]
fn a_node_that_intercepts_beside_nftables_is_well() {
    on_a_node(Topology::new(Proxy::Nftables), || a_node_that_intercepts());
}

#[test]
fn a_node_that_intercepts_beside_iptables_nft_is_well() {
    on_a_node(Topology::new(Proxy::IptablesNft), || a_node_that_intercepts());
}
