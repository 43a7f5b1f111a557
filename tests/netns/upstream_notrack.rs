//! Servers that are dialled directly leave no entry, and nothing else is spared.

use std::net::UdpSocket;

use socket2::SockRef;

use crate::agent::Agent;
use crate::cluster_dns::SECOND_PORT;
use crate::kernel::{entries, entries_to, nft, tables};
use crate::support::{seconds, wait_until};
use crate::topology::{CLUSTER_IP, ENDPOINTS, ENDPOINTS6, Node, Proxy, Topology, on_a_node};

/// A proxy and a firewall in the family `inet` have the kernel track connections of both families.
const TOPOLOGY: Topology = Topology::new(Proxy::Nftables);
/// Where the cluster's DNS is dialled directly.
const DIRECT: &str = ENDPOINTS[0];
/// The same by IPv6.
const DIRECT6: &str = ENDPOINTS6[0];

/// Misses in each zone.
const MISSES: usize = 25;
/// The zones of [`four_ways`].
const ZONES: [&str; 4] = ["tcp4", "udp4", "tcp6", "udp6"];

/// A configuration with a zone for each protocol and family, all to servers that are dialled directly.
fn four_ways(notrack: bool) -> String {
    let servers = [
        format!("tcp://{DIRECT}"),
        format!("udp://{DIRECT}"),
        format!("tcp://[{DIRECT6}]"),
        format!("udp://[{DIRECT6}]"),
    ];
    let mut body = format!("network: {{ upstream_notrack: {notrack} }}\nzones:\n");
    for (zone, server) in ZONES.iter().zip(servers) {
        body.push_str(&format!(
            "  - match: [{zone}.load.test]\n    upstream: {{ servers: [\"{server}\"] }}\n"
        ));
    }
    body
}

fn miss_in_all_zones(agent: &Agent) {
    for zone in ZONES {
        agent.miss(zone, MISSES);
    }
}

#[test]
fn servers_that_are_dialled_directly_leave_no_entry() {
    on_a_node(TOPOLOGY, || {
        let _node = Node::start();
        let agent = Agent::on_loopback(&[], &four_ways(true));
        miss_in_all_zones(&agent);
        let (connections, tcp) = (agent.connections(), entries("tcp").len());
        let (sent, udp) = (agent.sent("udp"), entries("udp").len());
        eprintln!(
            "upstream_notrack: true: {connections} connections, {tcp} entries; {sent} queries by UDP, {udp} entries"
        );
        assert!(connections >= 2 && sent >= 2 * MISSES, "{connections} {sent}");
        assert_eq!((tcp, udp), (0, 0));
    });
}

#[test]
fn unless_it_is_wanted_every_connection_and_every_datagram_leaves_one() {
    on_a_node(TOPOLOGY, || {
        let _node = Node::start();
        let agent = Agent::on_loopback(&[], &four_ways(false));
        miss_in_all_zones(&agent);
        let [connections, tcp] = agent.connections_and(|| entries("tcp").len());
        let (sent, udp) = (agent.sent("udp"), entries("udp").len());
        eprintln!(
            "upstream_notrack: false: {connections} connections, {tcp} entries; {sent} queries by UDP, {udp} entries"
        );
        assert_eq!(tcp, connections);
        assert!(udp > MISSES, "{udp} entries of {sent} queries");
        assert!(tables().is_empty(), "{:?}", tables());
    });
}

#[test]
fn connections_that_close_leave_no_entry() {
    on_a_node(TOPOLOGY, || {
        let _node = Node::start();
        let agent = Agent::on_loopback(
            &[],
            &format!(
                "network: {{ upstream_notrack: true }}\nzones:\n  - match: [\".\"]\n    upstream:\n      \
             servers: [\"tcp://{DIRECT}\"]\n      connections: {{ min: 0, idle: 1s }}\n"
            ),
        );
        for _ in 0..2 {
            agent.miss("closing", MISSES);
            wait_until("the idle connections are closed", seconds(10), || {
                agent.admin.metric("nodens_upstream_connections", &[]) == Some(0.0)
            });
        }
        let connections = agent.connections();
        assert!(connections >= 2, "{connections}");
        assert!(entries("tcp").is_empty(), "of {connections} connections: {:?}", entries("tcp"));
    });
}

/// A ClusterIP can only be reached by way of connection tracking.
#[test]
fn whoever_resolves_names_is_tracked_and_the_servers_so_found_are_not() {
    on_a_node(TOPOLOGY, || {
        let _node = Node::start();
        let agent = Agent::on_loopback(
            &[],
            &format!(
                "network: {{ upstream_notrack: true }}\nzones:\n  - match: [\".\"]\n    upstream:\n      \
             servers: [\"tcp://ns.test\", \"udp://ns.test\"]\n      bootstrap: [\"tcp://{CLUSTER_IP}\"]\n"
            ),
        );
        agent.miss("named", MISSES);
        let of_bootstrap = entries_to(CLUSTER_IP, "tcp").len();
        assert!(of_bootstrap > 0);
        assert_eq!((entries("tcp").len(), entries("udp").len()), (of_bootstrap, 0));
    });
}

/// Sends one datagram of a client with this mark; the kernel tracks it, or not, before anybody answers.
fn datagram(server: &str, port: u16, mark: u32) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("socket");
    SockRef::from(&socket).set_mark(mark).expect("mark");
    socket.send_to(b"nothing", (server, port)).expect("datagram");
}

#[test]
fn packets_of_others_are_tracked_whatever_their_mark() {
    on_a_node(TOPOLOGY, || {
        let _node = Node::start();
        let _agent = Agent::on_loopback(&[], &four_ways(true));
        let mut before = entries("udp").len();
        assert_eq!(before, 0);
        // Without a mark; with bits that are not ours; with ours, but another value; with ours, to another port.
        for (port, mark) in [(53, 0), (53, 0x4000), (53, 0x37), (53, 0x3600), (SECOND_PORT, 0x36)] {
            datagram(DIRECT, port, mark);
            let now = entries("udp").len();
            assert_eq!(now, before + 1, "mark {mark:#x} to port {port}");
            before = now;
        }
        datagram(CLUSTER_IP, 53, 0x4000);
        assert_eq!(entries_to(CLUSTER_IP, "udp").len(), 1);
    });
}

#[test]
fn bits_that_others_set_in_our_marks_do_not_matter() {
    on_a_node(TOPOLOGY, || {
        let _node = Node::start();
        // As others do, and before us.
        nft("
            table inet others {
              chain output {
                type filter hook output priority -310
                meta mark set meta mark | 0x00a14000
              }
              chain prerouting {
                type filter hook prerouting priority -310
                meta mark set meta mark | 0x00a18000
              }
            }");
        let agent = Agent::on_loopback(&[], &four_ways(true));
        miss_in_all_zones(&agent);
        assert_eq!((entries("tcp").len(), entries("udp").len()), (0, 0));
        // And theirs are as they were, behind our rules.
        nft("
            table inet others {
              chain late {
                type filter hook postrouting priority 0
                udp dport 53 meta mark & 0xffffff00 != 0x00a14000 drop
              }
            }");
        agent.miss("udp4", MISSES);
    });
}

#[test]
fn the_rules_follow_the_ports_of_a_reload() {
    on_a_node(TOPOLOGY, || {
        let _node = Node::start();
        let mut agent = Agent::on_loopback(&[], &four_ways(true));
        agent.miss("tcp4", MISSES);
        let before = tables();
        let moved = format!("tcp://{DIRECT}:{SECOND_PORT}");
        let body = four_ways(true)
            .replace(&format!("\"tcp://{DIRECT}\""), &format!("\"{moved}\""))
            .replace(&format!("\"udp://{DIRECT}\""), &format!("\"udp://{DIRECT}:{SECOND_PORT}\""));
        agent.reload(&body, "ok");
        miss_in_all_zones(&agent);
        assert_eq!((entries("tcp").len(), entries("udp").len()), (0, 0));
        let after = tables();
        assert!(after.len() == 1, "{before:?} {after:?}");
        // What needs no other rules leaves them as they are.
        agent
            .reload(&body.replace("zones:", "hosts: { records: { \"10.0.0.7\": [db.test] } }\nzones:"), "ok");
        assert_eq!(tables(), after);
    });
}

/// More rules than a socket sends at once.
#[test]
fn a_reload_whose_rules_the_kernel_refuses_changes_nothing() {
    on_a_node(TOPOLOGY, || {
        let _node = Node::start();
        let mut agent = Agent::on_loopback(&[], &four_ways(true));
        miss_in_all_zones(&agent);
        let before = tables();
        let servers: Vec<_> = (0..1_000).map(|port| format!("tcp://{DIRECT}:{}", 10_000 + port)).collect();
        let more = format!("zones:\n  - match: [\"many.test\"]\n    upstream: {{ servers: {servers:?} }}\n");
        let body = four_ways(true).replace("zones:\n", &more);
        agent.reload(&body, "failed");
        let said = agent.process.output();
        let line = said.lines().find(|line| line.contains("stays in force")).expect("a line");
        assert!(line.contains("network.upstream_notrack: the kernel refused the rules: "), "{line}");
        assert_eq!(tables(), before);
        assert_eq!(agent.ready().0, 200, "{}", agent.ready().1);
        miss_in_all_zones(&agent);
        assert_eq!((entries("tcp").len(), entries("udp").len()), (0, 0));
        // The next one is as good as it was.
        let next =
            four_ways(true).replace("zones:", "hosts: { records: { \"10.0.0.7\": [db.test] } }\nzones:");
        agent.reload(&next, "ok");
        assert_eq!(tables(), before);
    });
}
