//! What NodeLocal DNSCache leaves behind, and its last moments beside the agent.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Socket, Type};

use crate::agent::{AGENT_TTL, Agent, LISTEN, holding, zone};
use crate::client::{Way, ask_from};
use crate::kernel::{entries, feed, holders, ip, iptables_rules};
use crate::topology::{CLUSTER_IP, Node, PLACES, Proxy, Topology, dns_at, on_a_node};

/// Its link, with its addresses: that of the ClusterIP too, where it runs beside kube-proxy in iptables mode.
fn its_link() {
    // A dummy, where it is node-cache's own; not every kernel has those.
    ip("link add nodelocaldns type bridge");
    ip("link set nodelocaldns up");
    ip(&format!("address add {LISTEN}/32 dev nodelocaldns"));
}

/// Its rules, as it writes them.
fn its_rules() -> String {
    let (skip, allow) = ("NodeLocal DNS Cache: skip conntrack", "NodeLocal DNS Cache: allow DNS traffic");
    let (mut raw, mut filter) = (String::new(), String::new());
    for protocol in ["tcp", "udp"] {
        for (chain, side, port) in
            [("PREROUTING", "-d", "--dport"), ("OUTPUT", "-s", "--sport"), ("OUTPUT", "-d", "--dport")]
        {
            let _ = writeln!(
                raw,
                "-A {chain} {side} {LISTEN}/32 -p {protocol} -m {protocol} {port} 53 -m comment --comment \"{skip}\" \
                 -j NOTRACK"
            );
        }
        for (chain, side, port) in [("INPUT", "-d", "--dport"), ("OUTPUT", "-s", "--sport")] {
            let _ = writeln!(
                filter,
                "-A {chain} {side} {LISTEN}/32 -p {protocol} -m {protocol} {port} 53 -m comment --comment \"{allow}\" \
                 -j ACCEPT"
            );
        }
    }
    format!("*raw\n{raw}COMMIT\n*filter\n{filter}COMMIT\n")
}

/// Sockets as node-cache has them (its `-setupiptables` aside, CoreDNS with `reuseport`): others may join in.
fn its_sockets(at: SocketAddr) -> (UdpSocket, TcpListener) {
    let shared = |kind| {
        let socket = Socket::new(Domain::for_address(at), kind, None).expect("socket");
        socket.set_reuse_port(true).expect("SO_REUSEPORT");
        socket.set_reuse_address(true).expect("SO_REUSEADDR");
        socket.bind(&at.into()).expect("an address of this node");
        socket
    };
    let stream = shared(Type::STREAM);
    stream.listen(16).expect("listen");
    (shared(Type::DGRAM).into(), stream.into())
}

#[track_caller]
fn the_agent_works_beside_what_is_left(program: &str) {
    let node = Node::start();
    its_link();
    feed(&format!("{program}-restore"), "iptables", &["--noflush", "-w", "20"], &its_rules());
    let rules = || iptables_rules(&format!("{program}-save"));
    let before = rules();
    assert_eq!(before.iter().filter(|rule| rule.contains("NodeLocal DNS Cache")).count(), 10, "{before:?}");
    let old = its_sockets(dns_at(LISTEN));
    let body = holding(
        &[dns_at(LISTEN)],
        "address_on: nodelocaldns, notrack: true",
        &zone(&[format!("tcp://{}", node.cluster_ips()[0])]),
    );
    let mut agent = Agent::start(&body);
    drop(old);
    assert_eq!(holders(LISTEN), ["nodelocaldns"], "adopted");
    for way in [Way::Udp, Way::UdpOnePort, Way::Tcp, Way::TcpOneConnection] {
        ask_from(&PLACES, dns_at(LISTEN), way, 100).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
    }
    assert!(entries("udp").is_empty(), "{:?}", entries("udp"));
    agent.stop();
    assert_eq!(rules(), before, "others' rules are as they were");
    assert_eq!(holders(LISTEN), ["nodelocaldns"]);
}

#[test]
fn the_agent_takes_over_from_node_cache_beside_iptables_legacy() {
    on_a_node(Topology::new(Proxy::IptablesLegacy), || {
        the_agent_works_beside_what_is_left("iptables-legacy")
    });
}

#[test]
fn the_agent_takes_over_from_node_cache_beside_iptables_nft() {
    on_a_node(Topology::new(Proxy::IptablesNft), || the_agent_works_beside_what_is_left("iptables-nft"));
}

/// Beside kube-proxy in iptables mode node-cache holds the ClusterIP itself. An agent that answers for it does so for
/// as long as it is held, and afterwards.
#[test]
fn a_cluster_ip_that_node_cache_has_left_on_its_link_is_answered_and_named() {
    on_a_node(Topology::new(Proxy::IptablesLegacy), || {
        let node = Node::start();
        its_link();
        ip(&format!("address add {CLUSTER_IP}/32 dev nodelocaldns"));
        let network = format!("address_on: nodelocaldns, notrack: true, intercept: [{CLUSTER_IP}]");
        // The ClusterIP itself is this machine's now, so the agent asks a pod.
        let body = holding(&[dns_at(LISTEN)], &network, &zone(&["tcp://10.244.0.53".to_owned()]));
        let agent = Agent::start(&body);
        agent.must_log(&[CLUSTER_IP, "nodelocaldns", "ip address del"]);
        for _ in 0..2 {
            for way in [Way::Udp, Way::Tcp] {
                let seen = ask_from(&PLACES, node.cluster_ips()[0], way, 20);
                seen.iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
            }
            if !holders(CLUSTER_IP).is_empty() {
                ip(&format!("address del {CLUSTER_IP}/32 dev nodelocaldns"));
            }
        }
    });
}
