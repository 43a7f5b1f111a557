//! Servers that are dialled directly, and those that are not.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use nodens::node::netfilter::{Table, tables};
use nodens::node::rules::{Wanted, chains};

use crate::node::{
    CLUSTER, LISTEN, NOTHING, POD, PROTOCOLS, address, entries, host_asks, host_asks_in_vain, on_a_node,
    track,
};

/// A server's addresses.
fn servers(port: u16) -> [SocketAddr; 2] {
    POD.map(|ip| SocketAddr::new(ip.parse().expect("an address"), port))
}

#[test]
fn our_own_queries_to_servers_leave_no_entry_unless_the_address_is_never_one() {
    on_a_node(|| {
        track();
        let (ports, at) = (BTreeSet::from([53, 853]), CLUSTER.map(address));
        let never = at.map(|at| at.ip());
        let wanted = Wanted { upstream_ports: &ports, never_upstream: &never, ..NOTHING };
        let mut table = Table::open().expect("a table");
        table.replace(&chains(&wanted)).expect("rules");
        // Nobody answers; the kernel tracks a packet, or not, before that.
        let entries_of = |to: SocketAddr, mark| {
            let before = entries(&[to]).len();
            for protocol in PROTOCOLS {
                host_asks_in_vain(protocol, to, mark);
            }
            entries(&[to]).len() - before
        };
        for to in [servers(53), servers(853)].concat() {
            assert_eq!(entries_of(to, 0x36), 0, "{to}");
            assert_eq!(entries_of(to, 0xab36), 0, "{to}");
        }
        assert!(entries_of(servers(53)[0], 0x35) > 0);
        assert!(entries_of(servers(5353)[0], 0x36) > 0);
        for to in at {
            assert_eq!(entries_of(to, 0x36), 2, "{to} is never dialled directly: {:#?}", entries(&[to]));
        }
        let seen = tables().expect("tables");
        let ours = seen.iter().find(|seen| seen.name == table.name()).expect("ours");
        let output = ours.chains.iter().find(|chain| chain.name == "upstream_output").expect("a chain");
        assert!(
            output.rules.iter().all(|rule| rule.packets.is_some_and(|packets| packets > 0)),
            "{output:?}"
        );
    });
}

/// All rules at once: each does what it does alone.
#[test]
fn the_rules_of_one_purpose_leave_the_others_alone() {
    on_a_node(|| {
        track();
        let (ports, listen, at) = (BTreeSet::from([53]), LISTEN.map(address), CLUSTER.map(address));
        let never: [IpAddr; 2] = at.map(|at| at.ip());
        let mut table = Table::open().expect("a table");
        let wanted = Wanted {
            notrack: &listen,
            intercept: &at,
            upstream_ports: &ports,
            never_upstream: &never,
            ..NOTHING
        };
        table.replace(&chains(&wanted)).expect("rules");
        listen.into_iter().for_each(crate::node::listen);
        for to in listen {
            // With our own mark, as an agent whose server is another agent.
            for mark in [0, 0x36] {
                assert!(
                    PROTOCOLS.into_iter().all(|protocol| host_asks(protocol, to, mark)),
                    "{to} {mark:#x}"
                );
            }
        }
        for to in servers(53) {
            host_asks_in_vain("udp", to, 0x36);
        }
        for to in at {
            // Taken, whoever has no mark of ours; there is no route that leads here, so nobody answers.
            host_asks_in_vain("udp", to, 0);
        }
        let all = [listen, servers(53), at].concat();
        assert_eq!(entries(&all), [] as [&str; 0]);
        for to in at {
            host_asks_in_vain("udp", to, 0x36);
            assert_eq!(entries(&[to]).len(), 1, "{to}");
        }
    });
}
