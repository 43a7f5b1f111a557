//! The rules belong to the process: nobody else changes them, and they end with it.

use crate::agent::{Agent, Home, Settings};
use crate::kernel::{entries, nft, nft_refuses, tables};
use crate::support::{seconds, wait_until};
use crate::topology::{ENDPOINTS, Node, Proxy, Topology, on_a_node};

const TOPOLOGY: Topology = Topology::new(Proxy::Nftables);

fn config() -> String {
    format!(
        "network: {{ upstream_notrack: true }}\n\
         zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"udp://{}\"] }}\n",
        ENDPOINTS[0]
    )
}

#[test]
fn the_rules_end_with_the_process_even_when_it_is_killed() {
    on_a_node(TOPOLOGY, || {
        let _node = Node::start();
        for signal in ["KILL", "TERM"] {
            let mut agent = Agent::on_loopback(&[], &config());
            assert_eq!(tables().len(), 1, "{:?}", tables());
            agent.process.signal(signal);
            assert!(agent.process.wait(seconds(10)).is_some(), "SIG{signal}");
            assert!(tables().is_empty(), "after SIG{signal}: {:?}", tables());
        }
    });
}

#[test]
fn nobody_else_can_take_the_rules_away() {
    on_a_node(TOPOLOGY, || {
        let _node = Node::start();
        let agent = Agent::on_loopback(&[], &config());
        let before = tables();
        assert!(nft_refuses(&format!("delete table inet {}", before[0])));
        assert!(nft_refuses(&format!("flush table inet {}", before[0])));
        // It passes over what others own.
        nft("flush ruleset");
        assert_eq!(tables(), before);
        agent.miss("any", 5);
    });
}

/// Both are process 1 of a container, so the number of the process would be the same.
#[test]
fn two_agents_at_once_have_rules_of_their_own() {
    on_a_node(TOPOLOGY, || {
        let _node = Node::start();
        let container = ["unshare", "--pid", "--fork", "--kill-child"];
        let start = || Agent::on_loopback(&container, &config());
        let (mut first, second) = (start(), start());
        let both = tables();
        assert_eq!(both.len(), 2, "{both:?}");
        first.miss("first", 5);
        second.miss("second", 5);
        assert!(entries("udp").is_empty());
        first.process.signal("KILL");
        assert!(first.process.wait(seconds(10)).is_some());
        wait_until("the first one's rules are gone", seconds(10), || tables().len() == 1);
        second.miss("second", 5);
        assert!(entries("udp").is_empty());
        assert!(both.contains(&tables()[0]));
    });
}

#[test]
fn a_missing_capability_is_named_and_ends_the_start() {
    on_a_node(TOPOLOGY, || {
        let without = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
        let mut agent = Agent::launch_in(Home::new(), &without, Settings::new(&[], &config()));
        let status = agent.process.wait(seconds(10)).expect("an end");
        let output = agent.process.output();
        assert_eq!(status.code(), Some(1), "{output}");
        for part in ["network.upstream_notrack", "CAP_NET_ADMIN", "securityContext", "to false"] {
            assert!(output.contains(part), "`{part}` is not in: {output}");
        }
        assert!(tables().is_empty());
    });
}
