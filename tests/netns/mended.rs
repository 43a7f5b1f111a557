//! What somebody takes away from a running agent comes back, within a second.

use std::time::{Duration, Instant};

use crate::agent::{AGENT_TTL, Agent, LISTEN, LISTEN6, holding, intercepting, zone};
use crate::client::{Way, ask_from};
use crate::kernel::{feed, holders, ip, nft, tables};
use crate::support::{seconds, wait_until};
use crate::topology::{Firewall, Node, PLACES, Place, Proxy, Topology, on_a_node};

/// Address and link are said by the kernel as they go.
const LIMIT: Duration = Duration::from_secs(1);

/// Takes something away, waits until it is there again, and prints how long that took. One of the steps counts it,
/// and the log names it.
#[track_caller]
fn mended(agent: &Agent, what: &str, steps: &[&str], take_away: impl FnOnce(), is_there: impl Fn() -> bool) {
    let repairs = || steps.iter().map(|step| agent.repairs(step)).sum::<usize>();
    let before = repairs();
    assert!(is_there(), "{what} is there before it goes");
    take_away();
    let gone = Instant::now();
    wait_until(&format!("{what} is there again: {}", agent.process.output()), seconds(5), is_there);
    let took = gone.elapsed();
    eprintln!("{what}: there again after {} ms", took.as_millis());
    assert!(took < LIMIT, "{what}: {took:?}");
    wait_until("it is counted", seconds(2), || repairs() > before);
    wait_until(&format!("it is logged: {}", agent.process.output()), seconds(1), || {
        let output = agent.process.output();
        let named = |line: &str| steps.iter().any(|step| line.contains(&format!("\"step\":\"{step}\"")));
        output.lines().any(|line| line.contains("put back") && named(line))
    });
}

#[test]
fn an_address_that_is_taken_away_comes_back() {
    on_a_node(Topology::new(Proxy::Nftables), || {
        let node = Node::start();
        let listen = node.sockets([LISTEN, LISTEN6]);
        let servers = zone(&[format!("tcp://{}", node.cluster_ips()[0])]);
        let agent = Agent::start(&holding(&listen, "address_on: nodelocaldns, notrack: true", &servers));
        for address in [LISTEN, LISTEN6] {
            let link = holders(address).remove(0);
            let length = if address.contains(':') { 128 } else { 32 };
            let take_away = || {
                ip(&format!("address del {address}/{length} dev {link}"));
            };
            mended(&agent, &format!("address {address} on {link}"), &["address"], take_away, || {
                !holders(address).is_empty()
            });
        }
        for server in listen {
            ask_from(&PLACES, server, Way::Udp, 5).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
        }
    });
}

/// node-cache's, or an operator's own.
#[test]
fn addresses_come_back_when_their_link_is_deleted() {
    on_a_node(Topology::new(Proxy::IptablesLegacy), || {
        let node = Node::start();
        // Any kind: not every kernel has dummies.
        ip("link add nodelocaldns type bridge");
        ip("link set nodelocaldns up");
        let listen = node.sockets([LISTEN, LISTEN6]);
        let servers = zone(&[format!("tcp://{}", node.cluster_ips()[0])]);
        let agent = Agent::start(&holding(&listen, "address_on: nodelocaldns, notrack: true", &servers));
        assert_eq!([LISTEN, LISTEN6].map(holders), [["nodelocaldns"], ["nodelocaldns"]]);
        let take_away = || {
            ip("link del nodelocaldns");
        };
        mended(&agent, "link nodelocaldns with both addresses", &["link", "address"], take_away, || {
            [LISTEN, LISTEN6].iter().all(|address| !holders(address).is_empty())
        });
        for server in listen {
            ask_from(&PLACES, server, Way::Udp, 5).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
        }
    });
}

#[test]
fn the_way_of_intercepted_queries_comes_back() {
    on_a_node(Topology::new(Proxy::IptablesNft), || {
        let node = Node::start();
        let servers = node.cluster_ips();
        let agent = Agent::start(&intercepting(&node, &zone(&[format!("tcp://{}", servers[0])])));
        for family in ["-4", "-6"] {
            let rule = || ip(&format!("{family} rule show")).contains("lookup 10053");
            let take_away = || {
                ip(&format!("{family} rule del pref 100"));
            };
            mended(&agent, &format!("rule (ip {family})"), &["route"], take_away, rule);
            let route = || ip(&format!("{family} route show table all")).contains("table 10053");
            let take_away = || {
                ip(&format!("{family} route flush table 10053"));
            };
            mended(&agent, &format!("route (ip {family})"), &["route"], take_away, route);
        }
        for server in servers {
            for way in [Way::Udp, Way::Tcp] {
                ask_from(&PLACES, server, way, 10).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
            }
        }
    });
}

#[test]
fn a_flush_of_all_rules_passes_ours_over() {
    on_a_node(Topology::new(Proxy::Nftables), || {
        let node = Node::start();
        let server = node.cluster_ips()[0];
        // The flush takes kube-proxy's rules as well, so the cluster's DNS is dialled directly.
        let _agent = Agent::start(&intercepting(&node, &zone(&["tcp://10.244.0.53".to_owned()])));
        let before = tables();
        nft("flush ruleset");
        assert_eq!(tables(), before);
        ask_from(&PLACES, server, Way::Udp, 10).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
    });
}

/// The one rule that stands in a chain of others can go with them.
#[test]
fn what_opens_a_firewall_comes_back() {
    on_a_node(Topology::new(Proxy::Nftables).guarded(Firewall::DropsUntracked), || {
        let node = Node::start();
        let listen = node.sockets([LISTEN, LISTEN6]);
        let servers = zone(&[format!("tcp://{}", node.cluster_ips()[0])]);
        let network = "address_on: lo, notrack: true, accept_untracked: true";
        let agent = Agent::start(&holding(&listen, network, &servers));
        // As somebody does who loads the firewall again.
        let ours = || nft("list chain inet firewall input").contains(LISTEN);
        let reload = || {
            feed(
                "nft",
                "nftables",
                &["-f", "-"],
                "flush chain inet firewall input\n\
                 add rule inet firewall input ct state { established, related } accept\n\
                 add rule inet firewall input iifname \"lo\" accept\n",
            );
        };
        mended(&agent, "rule in the firewall", &["firewall"], reload, ours);
        ask_from(&[Place::Pod1], listen[0], Way::Udp, 5)
            .iter()
            .for_each(|seen| seen.must_all_have(AGENT_TTL));
    });
}
