//! Queries to the agent's own address leave nothing in connection tracking.

use crate::agent::{AGENT_TTL, Agent, LISTEN, LISTEN6, holding, zone};
use crate::client::{Way, ask_from};
use crate::kernel::{self, entries, entries_to, forget_connections, iptables_rules, nft, tables};
use crate::topology::{Families, Firewall, Node, PLACES, Place, Proxy, Topology, on_a_node};

/// Over all places, protocols and families of a topology.
const QUERIES: u64 = 10_000;

/// Pods and host ask the agent, which asks the cluster's DNS by its ClusterIP.
#[track_caller]
fn ten_thousand_queries_leave_no_entry(topology: Topology) {
    let node = Node::start();
    let cluster_ip = node.cluster_ips()[0];
    let listen = node.sockets([LISTEN, LISTEN6]);
    let accept = topology.firewall == Firewall::DropsUntracked;
    let network = format!("address_on: nodelocaldns, notrack: true, accept_untracked: {accept}");
    let agent = Agent::start(&holding(&listen, &network, &zone(&[format!("tcp://{cluster_ip}")])));
    let ways = [(Way::Udp, "udp"), (Way::Tcp, "tcp")];
    let each = QUERIES.div_ceil((ways.len() * listen.len() * PLACES.len()) as u64);
    let mut asked = 0;
    for server in listen {
        for (way, protocol) in ways {
            for seen in ask_from(&PLACES, server, way, each) {
                seen.must_all_have(AGENT_TTL);
                asked += seen.sent;
            }
            let entries = entries_to(&server.ip().to_string(), protocol);
            assert!(entries.is_empty(), "{server} by {protocol}: {entries:?}");
        }
    }
    // What is tracked is what the agent itself has opened.
    let [connections, tracked] = agent.connections_and(|| entries("tcp").len());
    eprintln!(
        "{topology}: {asked} queries by pods and host, 0 conntrack entries of theirs; {connections} connections to the \
         ClusterIP, {tracked} entries"
    );
    assert!(asked >= QUERIES && connections > 0);
    assert_eq!(tracked, connections);
    assert!(entries("udp").is_empty(), "{:?}", entries("udp"));
}

macro_rules! leaves_no_entry {
    ($($name:ident: $topology:expr;)*) => {$(
        #[test]
        fn $name() {
            on_a_node($topology, || ten_thousand_queries_leave_no_entry($topology));
        }
    )*};
}

leaves_no_entry! {
    no_entry_beside_iptables_legacy: Topology::new(Proxy::IptablesLegacy).guarded(Firewall::Drops);
    no_entry_beside_iptables_nft: Topology::new(Proxy::IptablesNft).guarded(Firewall::Drops);
    no_entry_beside_nftables: Topology::new(Proxy::Nftables).guarded(Firewall::Drops).endpoints(2);
    no_entry_without_a_firewall: Topology::new(Proxy::IptablesLegacy);
    no_entry_where_a_firewall_is_told_to_accept: Topology::new(Proxy::Nftables).guarded(Firewall::DropsUntracked);
    no_entry_by_ipv4_alone: Topology::new(Proxy::IptablesNft).only(Families::V4);
    no_entry_by_ipv6_alone: Topology::new(Proxy::Nftables).only(Families::V6).guarded(Firewall::Drops);
}

#[test]
fn unless_it_is_wanted_every_query_leaves_an_entry() {
    on_a_node(Topology::new(Proxy::IptablesLegacy), || {
        let node = Node::start();
        let listen = node.sockets([LISTEN, LISTEN6]);
        let cluster_ip = node.cluster_ips()[0];
        let body = holding(&listen, "address_on: nodelocaldns", &zone(&[format!("tcp://{cluster_ip}")]));
        let _agent = Agent::start(&body);
        for server in listen {
            for (way, protocol) in [(Way::Udp, "udp"), (Way::Tcp, "tcp")] {
                ask_from(&PLACES, server, way, 25).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
                let entries = entries_to(&server.ip().to_string(), protocol);
                assert_eq!(entries.len(), 75, "{server} by {protocol}: {entries:?}");
            }
        }
        assert!(tables().is_empty(), "{:?}", tables());
    });
}

/// The rule that lets untracked packets in stands in a chain of others, and goes with the agent.
#[test]
fn a_firewall_that_drops_what_is_untracked_is_opened_only_where_asked_and_closed_at_the_end() {
    on_a_node(Topology::new(Proxy::Nftables).guarded(Firewall::DropsUntracked), || {
        let node = Node::start();
        let listen = node.sockets([LISTEN, LISTEN6]);
        let servers = zone(&[format!("tcp://{}", node.cluster_ips()[0])]);
        let firewall = nft("list table inet firewall");
        {
            let mut agent = Agent::start(&holding(&listen, "address_on: lo, notrack: true", &servers));
            let seen = ask_from(&[Place::Pod1], listen[0], Way::Udp, 5).remove(0);
            assert_eq!(seen.lost.len(), 5, "dropped: {seen}");
            agent.stop();
        }
        let network = "address_on: lo, notrack: true, accept_untracked: true";
        let mut agent = Agent::start(&holding(&listen, network, &servers));
        forget_connections();
        for &server in &listen {
            ask_from(&PLACES, server, Way::Udp, 5).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
        }
        assert!(entries("udp").is_empty(), "{:?}", entries("udp"));
        assert!(nft("list table inet firewall") != firewall);
        agent.stop();
        assert_eq!(nft("list table inet firewall"), firewall);
    });
}

/// iptables cannot list its own tables when foreign rules are in them, and kube-proxy would fail.
#[track_caller]
fn the_chain_is_named_and_left_alone(save: &str) {
    let node = Node::start();
    let listen = node.sockets([LISTEN, LISTEN6]);
    let servers = zone(&[format!("tcp://{}", node.cluster_ips()[0])]);
    let before = iptables_rules(save);
    let network = "address_on: lo, notrack: true, accept_untracked: true";
    let agent = Agent::start(&holding(&listen, network, &servers));
    let program = save.strip_suffix("-save").expect("one that saves");
    agent.must_log(&["INPUT", "iptables", "169.254.20.10"]);
    ask_from(&[Place::Host], listen[0], Way::Udp, 5).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
    let seen = ask_from(&[Place::Pod1], listen[0], Way::Udp, 5).remove(0);
    assert_eq!(seen.lost.len(), 5, "dropped: {seen}");
    assert_eq!(iptables_rules(save), before);
    // The commands that it names do what they say.
    for words in named_commands(&agent) {
        kernel::program(program, "iptables", &words.split(' ').skip(1).collect::<Vec<_>>());
    }
    ask_from(&PLACES, listen[0], Way::Udp, 5).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
}

/// Those for IPv4, in the log.
fn named_commands(agent: &Agent) -> Vec<String> {
    let output = agent.process.output();
    let line = output.lines().find(|line| line.contains("-I INPUT -d 169.254.20.10 ")).expect("commands");
    let text = line.split_once("change it: ").expect("commands").1;
    let text = text.split('"').next().unwrap_or_default();
    text.split("; ").map(str::to_owned).collect()
}

/// What is in it cannot be seen from outside of iptables-legacy.
#[test]
fn a_firewall_of_iptables_legacy_stays_as_it_is_and_is_named() {
    let topology = Topology::new(Proxy::IptablesLegacy).guarded(Firewall::DropsUntracked);
    on_a_node(topology, || the_chain_is_named_and_left_alone("iptables-legacy-save"));
}

#[test]
fn a_firewall_of_iptables_nft_stays_as_it_is_and_is_named() {
    let topology = Topology::new(Proxy::IptablesNft).guarded(Firewall::DropsUntracked);
    on_a_node(topology, || the_chain_is_named_and_left_alone("iptables-nft-save"));
}
