//! Queries to the listen addresses and their answers, from the node and from a pod.

use nodens::node::netfilter::{Table, tables};
use nodens::node::rules::{Wanted, chains};

use crate::node::{
    LISTEN, NOTHING, PROTOCOLS, address, entries, forget, host_asks, listen, nft, on_a_node, pod_asks, track,
};

#[test]
fn queries_to_the_listen_addresses_leave_no_entry() {
    on_a_node(|| {
        track();
        let at = LISTEN.map(address);
        at.into_iter().for_each(listen);
        let everybody_asks = || {
            for to in at {
                for protocol in PROTOCOLS {
                    assert!(host_asks(protocol, to, 0), "the node, {protocol} {to}");
                    assert!(pod_asks(protocol, to), "the pod, {protocol} {to}");
                }
            }
        };
        everybody_asks();
        assert_eq!(entries(&at).len(), 8, "without rules each leaves one: {:#?}", entries(&at));
        let mut table = Table::open().expect("a table");
        table.replace(&chains(&Wanted { notrack: &at, ..NOTHING })).expect("rules");
        println!("{}", nft(&format!("list table inet {}", table.name())));
        forget();
        everybody_asks();
        assert_eq!(entries(&at), [] as [&str; 0]);
        // Doctor can see that every rule has had its packets.
        let seen = tables().expect("tables");
        let ours = seen.iter().find(|seen| seen.name == table.name()).expect("ours");
        let rules: Vec<_> = ours.chains.iter().flat_map(|chain| &chain.rules).collect();
        assert_eq!(rules.len(), 12);
        for rule in rules {
            assert!(rule.packets.is_some_and(|packets| packets > 0), "{rule:?}");
            assert!(at.iter().any(|at| rule.addresses == [at.ip()]) && rule.ports == [53], "{rule:?}");
        }
    });
}

#[test]
fn other_ports_and_other_addresses_are_tracked() {
    on_a_node(|| {
        track();
        let at = LISTEN.map(address);
        let beside = ["169.254.20.10:5300", "10.244.0.1:53"].map(address);
        beside.into_iter().for_each(listen);
        let mut table = Table::open().expect("a table");
        table.replace(&chains(&Wanted { notrack: &at, ..NOTHING })).expect("rules");
        for to in beside {
            forget();
            assert!(pod_asks("udp", to) && host_asks("tcp", to, 0), "{to}");
            assert_eq!(entries(&[to]).len(), 2, "{to}: {:#?}", entries(&[to]));
        }
    });
}
