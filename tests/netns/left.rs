//! What an agent leaves of itself on its node, however it ends, and what of the node's own it never touches.

use std::time::Duration;

use crate::agent::{AGENT_TTL, Agent, LISTEN, LISTEN6, holding, intercepting, zone};
use crate::client::{Way, ask_from};
use crate::kernel::{holders, ip, nft, tables};
use crate::support::{seconds, wait_until};
use crate::topology::{CLUSTER_IP, Firewall, Node, PLACES, Proxy, Topology, dns_at, on_a_node};

/// As the log, nft and `nodens doctor` know our rules in the firewalls of others.
const OPENED: &str = "nodens: untracked DNS";
/// An agent looks for leftovers this often.
const LIMIT: Duration = seconds(15);

/// Rules in firewalls, and the way of intercepted queries: what the kernel does not take away with the process.
fn left() -> [usize; 3] {
    let count = |words: &str, what: &str| {
        ["-4", "-6"].map(|family| ip(&format!("{family} {words}")).matches(what).count())
    };
    let sum = |both: [usize; 2]| both.into_iter().sum();
    let opened = nft("list ruleset").matches(OPENED).count();
    [opened, sum(count("rule show", "lookup 10053")), sum(count("route show table all", "table 10053"))]
}

/// Addresses and routes of the node.
fn addresses_and_routes() -> String {
    ["-oneline address show", "-4 route show table all", "-6 route show table all"].map(ip).concat()
}

/// It listens at the node's own address, on the node's own link.
#[test]
fn the_nodes_own_address_and_routes_stay_where_addresses_are_taken_away() {
    on_a_node(Topology::new(Proxy::Nftables), || {
        let node = Node::start();
        ip("link add eth9 type bridge");
        ip("link set eth9 up");
        ip("address add 192.0.2.10/24 dev eth9");
        ip("route add 198.51.100.0/24 via 192.0.2.1 dev eth9");
        let servers = zone(&[format!("tcp://{}", node.cluster_ips()[0])]);
        wait_until("IPv6 has its addresses", seconds(5), || !ip("-6 address show").contains("tentative"));
        let before = addresses_and_routes();
        let listen = ["192.0.2.10", LISTEN].map(dns_at);
        let mut agent =
            Agent::start(&holding(&listen, "address_on: eth9, keep_address: false, notrack: true", &servers));
        assert_eq!(holders(LISTEN), ["eth9"]);
        agent.stop();
        assert_eq!(holders(LISTEN), [] as [&str; 0], "what it has added itself goes");
        assert_eq!(addresses_and_routes(), before);
    });
}

#[test]
fn a_start_that_fails_leaves_the_node_as_it_was() {
    on_a_node(Topology::new(Proxy::Nftables).guarded(Firewall::DropsUntracked), || {
        let node = Node::start();
        let before = (addresses_and_routes(), nft("list ruleset"));
        let network = "address_on: nodelocaldns, keep_address: false, notrack: true, accept_untracked: true";
        let nobody = "zones:\n  - match: [\".\"]\n    upstream: { servers: [\"tls://192.0.2.1#dns.example\"], \
                      ca: /nonexistent }\n";
        let mut agent = Agent::launch(&holding(&node.sockets([LISTEN, LISTEN6]), network, nobody));
        let ended = agent.process.wait(seconds(10)).expect("an end");
        let output = agent.process.output();
        assert!(!ended.success() && output.contains("/nonexistent"), "{ended}: {output}");
        assert!(output.contains("holding the listen addresses"), "it has got that far: {output}");
        assert_eq!((addresses_and_routes(), nft("list ruleset")), before);
    });
}

/// One that was killed had another mark, answered for a ClusterIP and opened a firewall. The next one wants none of it.
#[test]
fn what_a_killed_agent_has_left_goes_with_the_next_and_not_while_it_lives() {
    on_a_node(Topology::new(Proxy::Nftables).guarded(Firewall::DropsUntracked), || {
        let node = Node::start();
        let servers = zone(&[format!("tcp://{}", node.cluster_ips()[0])]);
        let mut old = intercepting(&node, &servers);
        old.body = old.body.replace(
            "notrack: true",
            "notrack: true, accept_untracked: true, mark: { intercept: 0x3500, own: 0x3600, mask: 0xff00 }",
        );
        let mut old = Agent::start(&old);
        let there = left();
        assert!(there[0] > 0 && there[1..] == [2, 2], "{there:?}");
        let listen = ["169.254.20.11"].map(dns_at);
        let next = Agent::start(&holding(&listen, "address_on: nodelocaldns, notrack: true", &servers));
        // Longer than it takes where nobody else is there.
        std::thread::sleep(seconds(2));
        assert_eq!(left(), there);
        for server in node.cluster_ips() {
            ask_from(&PLACES, server, Way::Udp, 5).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
        }
        old.process.signal("KILL");
        assert!(old.process.wait(seconds(5)).is_some());
        wait_until("nothing is left", LIMIT, || left() == [0; 3]);
        next.must_log(&["before us has left"]);
        assert_eq!(tables().len(), 1, "that of the next");
    });
}

/// kube-proxy that begins to use IPVS: while the ClusterIP is there, nobody would answer in our place.
#[test]
fn a_cluster_ip_that_comes_to_ipvs_is_left_alone_within_a_second() {
    on_a_node(Topology::new(Proxy::Nftables), || {
        let node = Node::start();
        // The agent asks a pod, since the ClusterIP will be this machine's.
        let agent = Agent::start(&intercepting(&node, &zone(&["tcp://10.244.0.53".to_owned()])));
        ip("link add kube-ipvs0 type bridge");
        let is_led = || agent.admin.count("nodens_intercepting", &[]) > 0.0;
        assert!(is_led());
        ip(&format!("address add {CLUSTER_IP}/32 dev kube-ipvs0"));
        wait_until("no query is led here", seconds(1), || !is_led());
        wait_until("/ready says why", seconds(1), || agent.ready().1.contains("kube-ipvs0"));
        ip("link del kube-ipvs0");
        wait_until("they are again", seconds(10), is_led);
    });
}
