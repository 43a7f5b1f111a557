//! What is read of the rules and the connections that are there, whoever has made them.

use std::net::IpAddr;

use nodens::node::netfilter::{Family, RuleSeen, TableSeen, conntrack, tables};

use crate::node::{
    CLUSTER, LISTEN, POD, PROTOCOLS, address, host_asks_in_vain, nft, on_a_node, program, track,
};

fn table(family: Family, name: &str) -> TableSeen {
    let mut found =
        tables().expect("tables").into_iter().filter(|seen| seen.family == family && seen.name == name);
    let table = found.next().unwrap_or_else(|| panic!("no table {} {name}", family.name()));
    assert_eq!((found.next(), table.left_out), (None, 0));
    table
}

fn rules<'a>(table: &'a TableSeen, chain: &str) -> &'a [RuleSeen] {
    let found = table.chains.iter().find(|seen| seen.name == chain);
    &found.unwrap_or_else(|| panic!("no chain {chain}: {table:#?}")).rules
}

#[test]
fn tables_of_nft_are_seen_with_their_comments_counters_and_values() {
    on_a_node(|| {
        assert_eq!(tables().expect("tables"), []);
        nft("table ip guard {
               chain input {
                 type filter hook input priority 10; policy drop
                 ip saddr 10.1.2.3 udp dport 53 counter packets 7 bytes 700 accept comment \"from the office\"
                 tcp dport { 22, 80 } jump more
               }
               chain more {
                 reject
               }
             }
             table arp quiet { }");
        assert_eq!(table(Family::Other(3), "quiet").family.name(), "arp");
        let guard = table(Family::Ip, "guard");
        assert_eq!(guard.owner, None);
        let base = guard.chains[0].base.as_ref().expect("a base chain");
        assert_eq!(
            (base.kind.as_str(), base.hook_name(), base.priority, base.drops),
            ("filter", "input", 10, true)
        );
        assert!(guard.chains[1].base.is_none());
        let [first, second] = rules(&guard, "input") else { panic!("{guard:#?}") };
        assert_eq!(first.comment.as_deref(), Some("from the office"));
        assert_eq!((first.packets, first.ports.as_slice()), (Some(7), &[53][..]));
        assert_eq!(first.addresses, ["10.1.2.3".parse::<IpAddr>().expect("an address")]);
        assert!(first.has("accept") && !first.drops() && first.handle > 0);
        assert!(second.has("jump more") && second.packets.is_none(), "{second:?}");
        assert!(rules(&guard, "more")[0].drops());
    });
}

/// As node-cache writes them.
#[test]
fn rules_of_iptables_are_seen_with_their_comments() {
    on_a_node(|| {
        let iptables = |program_name: &str, rule: &str| {
            let arguments: Vec<&str> = rule.split(' ').collect();
            let comment = ["-m", "comment", "--comment", "NodeLocal DNS Cache: skip conntrack"];
            let (done, text) = program(program_name, "iptables", &[&arguments[..], &comment].concat());
            assert!(done, "{program_name} {rule}: {text}");
        };
        iptables(
            "iptables-nft",
            "-t raw -A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -j NOTRACK",
        );
        iptables(
            "iptables-nft",
            "-t raw -A OUTPUT -s 169.254.20.10/32 -p tcp -m tcp --sport 53 -j CT --notrack",
        );
        iptables("ip6tables-nft", "-t filter -A INPUT -d fd00:20::10/128 -p tcp -m tcp --dport 53 -j DROP");
        let raw = table(Family::Ip, "raw");
        for chain in ["PREROUTING", "OUTPUT"] {
            let [rule] = rules(&raw, chain) else { panic!("{raw:#?}") };
            assert_eq!(rule.comment.as_deref(), Some("NodeLocal DNS Cache: skip conntrack"), "{rule:?}");
            assert_eq!(rule.addresses, [address(LISTEN[0]).ip()], "{rule:?}");
            assert!(rule.has("CT") || rule.has("NOTRACK") || rule.has("notrack"), "{rule:?}");
            assert_eq!(rule.packets, Some(0));
            assert_eq!(rule.ports, [53], "{rule:?}");
        }
        let filter = table(Family::Ip6, "filter");
        let [rule] = rules(&filter, "INPUT") else { panic!("{filter:#?}") };
        assert!(rule.drops() && rule.addresses == [address(LISTEN[1]).ip()], "{rule:?}");
    });
}

/// More than one part of a list.
#[test]
fn long_lists_are_read_to_their_end() {
    on_a_node(|| {
        let rules: String =
            (0..3000).map(|n| format!("udp dport {n} counter comment \"rule {n}\"\n")).collect();
        let file = std::env::temp_dir().join(format!("nodens-netfilter-{}.nft", std::process::id()));
        std::fs::write(&file, format!("table inet long {{ chain every {{\n{rules}}}\n}}\n")).expect("a file");
        let (done, text) = program("nft", "nftables", &["-f", &file.display().to_string()]);
        std::fs::remove_file(&file).expect("a file");
        assert!(done, "{text}");
        let long = table(Family::Inet, "long");
        let comments: Vec<_> = long.chains[0].rules.iter().filter_map(|rule| rule.comment.clone()).collect();
        assert_eq!(comments, (0..3000).map(|n| format!("rule {n}")).collect::<Vec<_>>());
    });
}

#[test]
fn tracked_connections_are_counted_by_where_they_lead() {
    on_a_node(|| {
        let cluster = CLUSTER.map(address);
        let ips = cluster.map(|at| at.ip());
        let empty = conntrack(&ips).expect("a list");
        assert_eq!((empty.entries, empty.cut), (0, false));
        track();
        for to in cluster {
            for protocol in PROTOCOLS {
                assert!(host_asks_in_vain(protocol, to, 0), "nobody is there");
            }
        }
        assert!(host_asks_in_vain("udp", format!("{}:53", POD[0]).parse().expect("an address"), 0));
        assert!(host_asks_in_vain("udp", format!("{}:5353", POD[0]).parse().expect("an address"), 0));
        let tracked = conntrack(&ips).expect("a list");
        assert_eq!((tracked.dns_udp, tracked.dns_tcp), (3, 2), "{tracked:?}");
        assert_eq!(tracked.dns_to, ips.map(|ip| (ip, 2)));
        let (_, listed) = program("conntrack", "conntrack", &["-C"]);
        assert_eq!(tracked.entries.to_string(), listed.trim());
        assert!(tracked.entries >= 6);
    });
}
