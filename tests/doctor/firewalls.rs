//! Firewalls that drop what connection tracking has not seen.

use crate::examine::{Level, examine, mend, named, wrong};
use crate::home::{Home, LISTEN, LISTEN6};
use crate::kernel::{feed, nft};
use crate::topology::{Firewall, Node, Proxy, Topology, on_a_node};

const HOLDING: &str = "address_on: nodelocaldns, notrack: true";

/// Drops all that begins nothing.
const DROPS: &str = "table inet firewall {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname \"lo\" accept
    meta l4proto { icmp, ipv6-icmp } accept
    iifname \"pod*\" meta l4proto { udp, tcp } th dport 53 ct state new accept
  }
}\n";

#[test]
fn a_firewall_in_nftables_that_drops_is_opened_by_its_commands() {
    on_a_node(Topology::new(Proxy::IptablesLegacy), || {
        let _node = Node::start();
        let home = Home::listening(&[LISTEN, LISTEN6], HOLDING);
        let _agent = home.start();
        feed("nft", "nftables", &["-f", "-"], DROPS);
        let found = named(&home, "firewall", Level::Warning, &["inet firewall input", LISTEN, LISTEN6]);
        assert!(found.mend.contains("accept_untracked"), "{}", found.mend);
        mend(&home, &found);
    });
}

#[test]
fn accept_untracked_opens_the_same_firewall() {
    on_a_node(Topology::new(Proxy::IptablesLegacy), || {
        let _node = Node::start();
        feed("nft", "nftables", &["-f", "-"], DROPS);
        let home = Home::new(&format!("{HOLDING}, accept_untracked: true"));
        let _agent = home.start();
        let all = examine(&home);
        assert!(wrong(&all, "firewall").is_empty(), "{all:#?}");
    });
}

#[test]
fn a_rule_against_untracked_packets_is_a_problem_that_its_command_ends() {
    on_a_node(Topology::new(Proxy::IptablesLegacy), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        let _agent = home.start();
        nft("add table inet strict");
        nft("add chain inet strict input { type filter hook input priority 0; }");
        nft("add rule inet strict input iifname != lo ct state invalid,untracked drop");
        nft("add rule inet strict input ct state invalid,untracked drop");
        mend(&home, &named(&home, "firewall", Level::Problem, &["inet strict input", LISTEN]));
    });
}

#[test]
fn states_in_a_set_are_not_seen_and_not_called_good() {
    on_a_node(Topology::new(Proxy::Nftables).guarded(Firewall::Drops), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        let _agent = home.start();
        named(&home, "firewall", Level::Unknown, &["inet firewall input", LISTEN]);
    });
}

#[track_caller]
fn a_firewall_of_iptables(program: &str) {
    let node = Node::start();
    let home = Home::intercepting(&node);
    let _agent = home.start();
    let all = examine(&home);
    let wrong = wrong(&all, "firewall");
    assert_eq!(wrong.len(), 2, "of IPv4 and of IPv6: {all:#?}");
    assert!(
        wrong.iter().all(|found| found.level == Level::Warning && found.what.contains("INPUT")),
        "{wrong:#?}"
    );
    assert!(wrong[0].mend.contains(program) && wrong[0].mend.contains("--ctstate UNTRACKED"), "{wrong:#?}");
    let both =
        crate::examine::Finding { mend: format!("{}\n{}", wrong[0].mend, wrong[1].mend), ..wrong[0].clone() };
    mend(&home, &both);
}

#[test]
fn a_firewall_of_iptables_legacy_is_opened_by_its_commands() {
    let topology = Topology::new(Proxy::IptablesLegacy).guarded(Firewall::DropsUntracked);
    on_a_node(topology, || a_firewall_of_iptables("iptables-legacy"));
}

#[test]
fn a_firewall_of_iptables_nft_is_opened_by_its_commands() {
    let topology = Topology::new(Proxy::IptablesNft).guarded(Firewall::DropsUntracked);
    on_a_node(topology, || a_firewall_of_iptables("iptables-nft"));
}
