//! Queries to ClusterIPs that are answered here: who is led here, by which mark, and who passes by.

use std::net::SocketAddr;

use nodens::node::netfilter::{Table, tables};
use nodens::node::rules::{Wanted, chains};

use crate::node::{
    CLUSTER, NOTHING, POD, PROTOCOLS, address, entries, forget, host_asks, host_asks_in_vain, listen, nft,
    on_a_node, pod_asks, program, track,
};

/// Has packets with the mark of intercepted queries come to this machine.
pub(crate) fn lead_here() {
    for (family, cluster) in ["-4", "-6"].into_iter().zip(CLUSTER.map(address)) {
        let ip = cluster.ip().to_string();
        let rule = [family, "rule", "add", "fwmark", "0x35/0xff", "lookup", "10053", "pref", "100"];
        let route = [family, "route", "add", "local", &ip, "dev", "lo", "table", "10053"];
        for arguments in [&rule[..], &route] {
            let (done, text) = program("ip", "iproute2", arguments);
            assert!(done, "ip {arguments:?}: {text}");
        }
    }
}

#[test]
fn queries_to_cluster_ips_are_answered_here_and_leave_no_entry() {
    on_a_node(|| {
        track();
        lead_here();
        let at = CLUSTER.map(address);
        at.into_iter().for_each(listen);
        let mut table = Table::open().expect("a table");
        table.replace(&chains(&Wanted { intercept: &at, ..NOTHING })).expect("rules");
        println!("{}", nft(&format!("list table inet {}", table.name())));
        for to in at {
            for protocol in PROTOCOLS {
                assert!(host_asks(protocol, to, 0), "the node, {protocol} {to}");
                assert!(host_asks(protocol, to, 0xa140_0000), "the node with others' marks, {protocol} {to}");
                assert!(pod_asks(protocol, to), "the pod, {protocol} {to}");
            }
        }
        assert_eq!(entries(&at), [] as [&str; 0]);
        // Our own go on to the cluster's DNS, which is the pod here, as far as routes are concerned.
        for to in at {
            assert!(host_asks_in_vain("udp", to, 0x36), "{to}: nobody answers there");
            assert!(host_asks_in_vain("udp", to, 0x1236), "{to}: bits of others do not matter");
            assert_eq!(entries(&[to]).len(), 2, "{to}: {:#?}", entries(&[to]));
        }
        // Every rule has had its packets.
        let seen = tables().expect("tables");
        let ours = seen.iter().find(|seen| seen.name == table.name()).expect("ours");
        for rule in ours.chains.iter().flat_map(|chain| &chain.rules) {
            assert!(rule.packets.is_some_and(|packets| packets > 0), "{rule:?}");
            // But for that one that lets our own pass each tells whom it is for, whatever else it looks into.
            let is_ours = rule.has("accept") && rule.ports.is_empty();
            let is_for = |at: &SocketAddr| rule.addresses == [at.ip()] && rule.ports == [53];
            assert!(is_ours || at.iter().any(is_for), "{rule:?}");
        }
        let looks = |chain: &str| {
            let chain = ours.chains.iter().find(|seen| seen.name == chain).expect("a chain");
            ["dynset", "lookup"].map(|name| chain.rules.iter().filter(|rule| rule.has(name)).count())
        };
        assert_eq!(looks("intercept_prerouting"), [4, 2]);
        assert_eq!(looks("intercept_output"), [4, 2]);
        assert_eq!(looks("intercept_route"), [0, 2]);
    });
}

#[test]
fn without_the_rules_queries_take_their_old_way() {
    on_a_node(|| {
        track();
        lead_here();
        let at = CLUSTER.map(address);
        at.into_iter().for_each(listen);
        let mut table = Table::open().expect("a table");
        table.replace(&chains(&Wanted { intercept: &at, ..NOTHING })).expect("rules");
        assert!(at.iter().all(|to| host_asks("udp", *to, 0)));
        for gone in [true, false] {
            forget();
            if gone {
                table.replace(&chains(&Wanted { leaving: &at, ..NOTHING })).expect("rules");
            } else {
                table.remove().expect("no rules");
            }
            for to in at {
                assert!(host_asks_in_vain("udp", to, 0), "{to}");
                assert_eq!(entries(&[to]).len(), 1, "{to}: {:#?}", entries(&[to]));
            }
        }
    });
}

/// What others have in a mark stays, and what is in our bits becomes ours.
#[test]
fn a_mark_is_set_within_our_bits_alone() {
    on_a_node(|| {
        track();
        let at = CLUSTER.map(address);
        // Theirs, before us; and what is there behind us.
        nft("table inet others {
               counter right { }
               counter wrong { }
               chain before {
                 type filter hook prerouting priority -310
                 meta mark set 0xa14000ff
               }
               chain behind {
                 type filter hook prerouting priority -290
                 th dport 53 meta mark 0xa1400035 counter name right
                 th dport 53 meta mark != 0xa1400035 counter name wrong
                 th dport 5353 meta mark 0xa14000ff counter name right
                 th dport 5353 meta mark != 0xa14000ff counter name wrong
               }
               chain sent {
                 type filter hook postrouting priority 0
                 th dport 53 meta mark 0x12340035 counter name right
                 th dport 53 meta mark != 0x12340035 counter name wrong
                 th dport 5353 meta mark 0x12340077 counter name right
                 th dport 5353 meta mark != 0x12340077 counter name wrong
               }
             }");
        let mut table = Table::open().expect("a table");
        table.replace(&chains(&Wanted { intercept: &at, ..NOTHING })).expect("rules");
        for to in at {
            let mut beside = to;
            beside.set_port(5353);
            for to in [to, beside] {
                assert!(!pod_asks("udp", to) && host_asks_in_vain("udp", to, 0x1234_0077), "nobody is there");
            }
        }
        let counters = nft("list counters table inet others");
        let count = |name: &str| {
            let behind = counters.split_once(&format!("counter {name} {{")).expect("a counter").1;
            behind.split_whitespace().nth(1).expect("packets").parse::<u32>().expect("a number")
        };
        assert_eq!(count("wrong"), 0, "{counters}");
        assert!(count("right") >= 8, "{counters}");
        // Packets of others have their marks untouched, too: the pod's own address is no ClusterIP.
        assert!(host_asks_in_vain(
            "udp",
            format!("{}:5353", POD[0]).parse().expect("an address"),
            0x1234_0077
        ));
        assert!(nft("list counter inet others wrong").contains("packets 0 "));
    });
}
