//! The agent answers for the ClusterIP, which no link holds.

use std::net::SocketAddr;
use std::thread;

use crate::agent::{AGENT_TTL, Agent, LISTEN, LISTEN6, STALE_TTL, intercepting, zone};
use crate::client::{Load, Pace, Way, ask_again, ask_from};
use crate::cluster_dns::TTL;
use crate::kernel::{entries, ip, nft, tables};
use crate::support::{seconds, wait_until};
use crate::topology::{
    CLUSTER_IP, CLUSTER_IP6, ENDPOINTS, Families, Firewall, Node, PLACES, Place, Proxy, Topology, on_a_node,
};

const WAYS: [Way; 4] = [Way::Udp, Way::UdpOnePort, Way::Tcp, Way::TcpOneConnection];

/// Everybody's queries to the ClusterIPs are answered by the agent, and from there: the clients listen to nobody else.
#[track_caller]
fn everybody_is_answered_by_the_agent(servers: &[SocketAddr], each: u64) {
    for &server in servers {
        for way in WAYS {
            ask_from(&PLACES, server, way, each).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
        }
    }
}

/// The rules that lead queries to the ClusterIPs here.
fn rules() -> String {
    let of = |table: &String| nft(&format!("list table inet {table}"));
    let text: String = tables().iter().map(of).collect();
    text.lines().filter(|line| line.contains(CLUSTER_IP) || line.contains(CLUSTER_IP6)).collect()
}

#[track_caller]
fn answers_come_from_the_cluster_ip(topology: Topology) {
    let node = Node::start();
    let servers = node.cluster_ips();
    let agent = Agent::start(&intercepting(&node, &zone(&[format!("tcp://{}", servers[0])])));
    everybody_is_answered_by_the_agent(&servers, 50);
    // Its own way to the ClusterIP is tracked, and nothing else is.
    let [connections, tracked] = agent.connections_and(|| entries("tcp").len());
    eprintln!(
        "{topology}: intercepted by 4 ways from 3 places: {connections} connections of ours, {tracked} entries"
    );
    assert!(connections > 0);
    assert_eq!(tracked, connections, "{:?}", entries("tcp"));
    assert!(entries("udp").is_empty(), "{:?}", entries("udp"));
}

macro_rules! answers_come_from_the_cluster_ip {
    ($($name:ident: $topology:expr;)*) => {$(
        #[test]
        fn $name() {
            on_a_node($topology, || answers_come_from_the_cluster_ip($topology));
        }
    )*};
}

answers_come_from_the_cluster_ip! {
    answers_for_the_cluster_ip_of_iptables_legacy: Topology::new(Proxy::IptablesLegacy).endpoints(2);
    answers_for_the_cluster_ip_of_iptables_nft: Topology::new(Proxy::IptablesNft);
    answers_for_the_cluster_ip_of_nftables: Topology::new(Proxy::Nftables).endpoints(2);
    answers_behind_a_firewall_of_iptables_legacy: Topology::new(Proxy::IptablesLegacy).guarded(Firewall::Drops);
    answers_behind_a_firewall_of_iptables_nft: Topology::new(Proxy::IptablesNft).guarded(Firewall::Drops);
    answers_behind_a_firewall_of_nftables: Topology::new(Proxy::Nftables).guarded(Firewall::Drops);
    answers_by_ipv4_alone: Topology::new(Proxy::Nftables).only(Families::V4);
    answers_by_ipv6_alone: Topology::new(Proxy::IptablesLegacy).only(Families::V6);
}

#[test]
fn its_own_queries_by_udp_get_through_as_well() {
    on_a_node(Topology::new(Proxy::IptablesLegacy), || {
        let node = Node::start();
        for server in node.cluster_ips() {
            let mut agent = Agent::start(&intercepting(&node, &zone(&[format!("udp://{server}")])));
            ask_from(&PLACES, server, Way::Udp, 20).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
            let sent = agent.sent_by_udp();
            assert!(sent >= 60, "{sent} queries by UDP");
            agent.stop();
        }
    });
}

/// kube-proxy's bit, and such as Calico (`0xffff0000`) and Cilium (`0x0f00`) use, before our rules and after them.
#[test]
fn bits_of_others_in_the_mark_do_not_matter_and_stay() {
    on_a_node(Topology::new(Proxy::Nftables), || {
        let node = Node::start();
        nft("
            table inet others {
              chain before { type filter hook prerouting priority -310; meta mark set meta mark | 0x00014000; }
              chain before-out { type filter hook output priority -310; meta mark set meta mark | 0x00014200; }
              chain after { type filter hook prerouting priority -150; meta mark set meta mark | 0x00080000; }
              chain after-out { type filter hook output priority -160; meta mark set meta mark | 0x00080000; }
            }");
        let servers = node.cluster_ips();
        let _agent = Agent::start(&intercepting(&node, &zone(&[format!("tcp://{}", servers[0])])));
        everybody_is_answered_by_the_agent(&servers, 10);
        // And theirs are still there where packets arrive.
        nft("
            table inet others {
              chain late {
                type filter hook input priority 0
                th dport 53 meta l4proto { udp, tcp } meta mark & 0x00094000 != 0x00094000 drop
              }
            }");
        for server in servers {
            ask_from(&PLACES, server, Way::Udp, 10).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
        }
    });
}

/// An upgrade: the next one begins while the one before it still answers.
#[test]
fn of_two_at_once_either_may_leave() {
    on_a_node(Topology::new(Proxy::IptablesLegacy).alone(), || {
        let node = Node::start();
        let server = node.cluster_ips()[0];
        let body = intercepting(&node, &zone(&[format!("tcp://{server}")]));
        let mut first = Agent::start(&body);
        let pace = Pace::Rate { per_second: 500, for_ms: 4_000 };
        let loads = [Place::Pod1, Place::Host].map(|place| Load::start(place, server, Way::Udp, pace));
        let mut second = Agent::start(&body);
        assert_eq!(tables().len(), 2, "{:?}", tables());
        first.stop();
        let mut third = Agent::start(&body);
        second.process.signal("KILL");
        assert!(second.process.wait(seconds(5)).is_some());
        let seen = loads.map(Load::finish);
        eprintln!("two agents at once, the first stopped, the second killed: {} | {}", seen[0], seen[1]);
        let lost: usize = seen.iter().map(|seen| seen.lost.len()).sum();
        assert!(lost <= 20, "{lost} of the killed one's");
        third.stop();
        assert!(tables().is_empty(), "{:?}", tables());
    });
}

/// The names are asked for once, and again when nobody is behind the ClusterIP any more.
#[track_caller]
fn stale_answers_come_though_the_proxy_rejects() {
    let mut node = Node::start();
    let servers = node.cluster_ips();
    let brief = zone(&[format!("tcp://{}", servers[0])]).replace("max_ttl: 7s", "max_ttl: 1s");
    let agent = Agent::start(&intercepting(&node, &brief));
    let names = Load::new_names();
    let asked = ask_again(Place::Pod1, servers[0], Way::Udp, 30, &names);
    asked.must_all_have(1);
    node.set_endpoints(0);
    node.dns.stop();
    // What everybody else gets now.
    let direct = SocketAddr::new(ENDPOINTS[0].parse().expect("an address"), 53);
    let refused = ask_from(&[Place::Host], direct, Way::Udp, 1).remove(0);
    assert_eq!(refused.lost.len(), 1, "{refused}");
    thread::sleep(seconds(1)); // Their lives end.
    for server in servers {
        for place in PLACES {
            for way in [Way::Udp, Way::Tcp] {
                let seen = ask_again(place, server, way, 30, &names);
                assert_eq!(seen.with_ttl(STALE_TTL), 30, "{server} {place:?} {way:?}: {seen}");
            }
        }
    }
    assert_eq!(agent.ready().0, 200, "upstreams do not make it unready: {}", agent.ready().1);
}

#[test]
fn stale_answers_come_where_iptables_rejects() {
    on_a_node(Topology::new(Proxy::IptablesLegacy), || stale_answers_come_though_the_proxy_rejects());
}

#[test]
fn stale_answers_come_where_nftables_rejects() {
    on_a_node(Topology::new(Proxy::Nftables), || stale_answers_come_though_the_proxy_rejects());
}

#[test]
fn queries_are_led_here_once_it_can_answer_and_while_upstreams_are_down_and_no_longer_when_it_leaves() {
    on_a_node(Topology::new(Proxy::IptablesNft), || {
        let mut node = Node::start();
        node.dns.stop();
        let server = node.cluster_ips()[0];
        let mut agent = Agent::launch(&intercepting(&node, &zone(&[format!("tcp://{server}")])));
        wait_until("the admin port answers", seconds(5), || agent.ready().0 != 0);
        assert_eq!(agent.ready().0, 503, "{}", agent.ready().1);
        assert_eq!(rules(), "", "nothing is led to an agent that is not ready");
        node.dns.start();
        agent.wait_until_ready();
        wait_until("the rules are there", seconds(1), || rules().contains(CLUSTER_IP));
        ask_from(&PLACES, server, Way::Udp, 5).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
        assert_eq!(agent.admin.metric("nodens_intercepting", &[]), Some(1.0));
        node.dns.stop();
        // Nobody is behind it, and it says so itself.
        let seen = ask_from(&[Place::Pod1], server, Way::Udp, 5).remove(0);
        assert!(seen.lost.len() == 5 && seen.lost.iter().all(|lost| lost.why == "RCODE 2"), "{seen}");
        assert_eq!(agent.ready().0, 200, "{}", agent.ready().1);
        assert!(rules().contains(CLUSTER_IP));
        node.dns.start();
        agent.stop();
        assert!(tables().is_empty(), "{:?}", tables());
        ask_from(&PLACES, server, Way::Udp, 5).iter().for_each(|seen| seen.must_all_have(TTL));
    });
}

#[test]
fn an_address_that_ipvs_holds_is_not_intercepted_and_ready_says_why() {
    on_a_node(Topology::new(Proxy::Nftables), || {
        let node = Node::start();
        // As kube-proxy's IPVS mode makes it. It is a dummy there, which not every kernel has.
        ip("link add kube-ipvs0 type bridge");
        ip(&format!("address add {CLUSTER_IP}/32 dev kube-ipvs0"));
        let direct = format!("tcp://{}:53", ENDPOINTS[0]);
        let agent = Agent::launch(&intercepting(&node, &zone(&[direct])));
        wait_until("/ready says why", seconds(5), || {
            let (code, body) = agent.ready();
            code == 503 && body.contains("kube-ipvs0") && body.contains(CLUSTER_IP)
        });
        assert_eq!(rules(), "");
        // All else works.
        for server in node.sockets([LISTEN, LISTEN6]) {
            ask_from(&PLACES, server, Way::Udp, 5).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
        }
        ip("link del kube-ipvs0");
        wait_until("it is intercepted once it can be", seconds(10), || agent.ready().0 == 200);
        everybody_is_answered_by_the_agent(&node.cluster_ips(), 5);
    });
}
