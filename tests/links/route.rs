//! Marked packets are led here, by one rule and a route for each address.

use nodens::node::netfilter::Bits;
use nodens::node::route::{Changed, TABLE, keep_only, lead_here, let_go, seen};

use crate::node::{addresses, ip, on_a_node};

const MARK: Bits = Bits { value: 0x35, mask: 0xff };
const CLUSTER_IPS: [&str; 3] = ["10.96.0.10", "10.96.0.11", "fd00:96::10"];

/// Our rules of a family as `ip` has them.
fn rules(family: &str) -> Vec<String> {
    ip(&format!("-details {family} rule show"))
        .lines()
        .filter(|line| line.contains("10053"))
        .map(str::to_owned)
        .collect()
}

/// The routes of our table.
fn routes(family: &str) -> Vec<String> {
    let all = ip(&format!("{family} route show table all"));
    let ours = all.lines().filter(|line| line.contains(&format!("table {TABLE}")));
    ours.map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn marked_packets_to_a_cluster_ip_are_local_and_others_are_not() {
    on_a_node(|| {
        let changed = lead_here(&addresses(&CLUSTER_IPS), MARK).expect("led");
        assert_eq!(changed, Changed { rules: vec!["IPv4", "IPv6"], routes: addresses(&CLUSTER_IPS) });
        for (family, wanted) in [("-4", 2), ("-6", 1)] {
            assert_eq!(
                rules(family),
                ["100:\tfrom all fwmark 0x35/0xff lookup 10053 proto kernel"],
                "{family}"
            );
            assert_eq!(routes(family).len(), wanted, "{:?}", routes(family));
        }
        for address in CLUSTER_IPS {
            // Other bits of the mark are others'.
            for mark in ["0x35", "0x4035"] {
                let way = ip(&format!("route get {address} mark {mark}"));
                assert!(way.starts_with("local "), "{address} {mark}: {way}");
            }
            let way = crate::node::attempt("ip", "iproute2", &format!("route get {address} mark 0x36"));
            assert!(!String::from_utf8_lossy(&way.stdout).contains("local"), "{address}");
        }
        let again = lead_here(&addresses(&CLUSTER_IPS), MARK).expect("led");
        assert!(again.is_empty(), "{again:?}");
    });
}

#[test]
fn only_what_is_missing_is_put_back() {
    on_a_node(|| {
        let wanted = addresses(&CLUSTER_IPS);
        lead_here(&wanted, MARK).expect("led");
        ip("route del local 10.96.0.11 dev lo table 10053");
        ip("-6 rule del pref 100");
        let changed = lead_here(&wanted, MARK).expect("led");
        assert_eq!(changed, Changed { rules: vec!["IPv6"], routes: addresses(&["10.96.0.11"]) });
        assert!(lead_here(&wanted, MARK).expect("led").is_empty());
    });
}

#[test]
fn callers_at_once_make_one_rule() {
    on_a_node(|| {
        let wanted = addresses(&CLUSTER_IPS);
        for round in 0..20 {
            let made: usize = std::thread::scope(|scope| {
                let callers: Vec<_> = (0..4)
                    .map(|_| scope.spawn(|| lead_here(&wanted, MARK).expect("led").rules.len()))
                    .collect();
                callers.into_iter().map(|caller| caller.join().expect("no panic")).sum()
            });
            assert_eq!(made, 2, "round {round}: one of each family");
            assert_eq!((rules("-4").len(), rules("-6").len()), (1, 1), "round {round}");
            assert_eq!((routes("-4").len(), routes("-6").len()), (2, 1), "round {round}");
            let_go(&wanted, MARK).expect("let go");
        }
    });
}

/// By its content, whoever made it.
#[test]
fn a_rule_that_was_made_by_hand_is_taken_and_one_that_differs_is_not() {
    on_a_node(|| {
        ip("rule add fwmark 0x35/0xff lookup 10053 pref 100");
        ip("-6 rule add fwmark 0x35/0xff iif lo lookup 10053 pref 100");
        let changed = lead_here(&addresses(&CLUSTER_IPS), MARK).expect("led");
        assert_eq!(changed.rules, ["IPv6"]);
        assert_eq!((rules("-4").len(), rules("-6").len()), (1, 2));
        let (rules, routes) = seen(MARK).expect("rules");
        let ours: Vec<_> = rules.iter().map(|rule| (rule.family, rule.ours)).collect();
        assert_eq!(ours, [("IPv4", true), ("IPv6", false), ("IPv6", true)]);
        assert_eq!(routes.len(), 3);
        // It may be taken away as ours.
        let_go(&addresses(&CLUSTER_IPS), MARK).expect("let go");
        assert!(self::rules("-4").is_empty());
        assert_eq!(self::rules("-6").len(), 1, "the other one");
    });
}

#[test]
fn a_rule_of_somebody_else_at_our_preference_or_with_our_mark_stays_and_is_seen() {
    on_a_node(|| {
        ip("rule add fwmark 0x35/0xff lookup 77 pref 50");
        ip("rule add from 192.0.2.1 lookup 78 pref 100");
        ip("rule add fwmark 0x4000/0x4000 lookup 79 pref 60");
        lead_here(&addresses(&["10.96.0.10"]), MARK).expect("led");
        assert_eq!(rules("-4").len(), 1);
        let (seen, _) = seen(MARK).expect("rules");
        let tables: Vec<_> = seen.iter().map(|rule| (rule.preference, rule.table, rule.ours)).collect();
        assert_eq!(tables, [(50, 77, false), (100, 10053, true)], "marks of other bits are nobody's concern");
        let_go(&addresses(&["10.96.0.10"]), MARK).expect("let go");
        let all = ip("rule show");
        for table in ["77", "78", "79"] {
            assert!(all.contains(&format!("lookup {table}")), "{all}");
        }
    });
}

#[test]
fn the_rule_goes_with_the_last_route() {
    on_a_node(|| {
        lead_here(&addresses(&CLUSTER_IPS), MARK).expect("led");
        let gone = let_go(&addresses(&["10.96.0.10"]), MARK).expect("let go");
        assert_eq!(gone, Changed { rules: vec![], routes: addresses(&["10.96.0.10"]) });
        assert_eq!((rules("-4").len(), rules("-6").len()), (1, 1));
        let gone = let_go(&addresses(&CLUSTER_IPS), MARK).expect("let go");
        assert_eq!(gone, Changed { rules: vec!["IPv4", "IPv6"], routes: addresses(&CLUSTER_IPS[1..]) });
        for family in ["-4", "-6"] {
            assert!(rules(family).is_empty() && routes(family).is_empty(), "{family}");
        }
        assert!(let_go(&addresses(&CLUSTER_IPS), MARK).expect("nothing").is_empty());
    });
}

#[test]
fn the_routes_of_other_tables_are_not_taken_for_ours() {
    on_a_node(|| {
        ip("route add local 10.96.0.10 dev lo table 77");
        let changed = lead_here(&addresses(&["10.96.0.10"]), MARK).expect("led");
        assert_eq!(changed.routes, addresses(&["10.96.0.10"]));
        let (_, routes) = seen(MARK).expect("routes");
        assert_eq!(routes.len(), 1, "{routes:?}");
        let_go(&addresses(&["10.96.0.10"]), MARK).expect("let go");
        assert!(ip("route show table 77").contains("10.96.0.10"));
    });
}

#[test]
fn a_route_of_somebody_else_in_our_table_is_named_and_not_taken_for_ours() {
    on_a_node(|| {
        for (family, address) in [("-4", "10.96.0.12"), ("-6", "fd00:96::12")] {
            ip(&format!("{family} route add blackhole {address} table 10053"));
            let problem = lead_here(&addresses(&[address]), MARK).expect_err(address).to_string();
            let command = problem.split('`').nth(1).expect("a command").trim_start_matches("ip ").to_owned();
            ip(&command);
            let changed = lead_here(&addresses(&[address]), MARK).expect("led");
            assert_eq!(changed.routes, addresses(&[address]));
        }
    });
}

/// Of an agent that was killed, had another mark, and answered for more.
#[test]
fn what_an_agent_before_us_has_left_goes_and_what_is_wanted_stays() {
    on_a_node(|| {
        let old = Bits { value: 0x350000, mask: 0xff0000 };
        lead_here(&addresses(&CLUSTER_IPS), old).expect("led");
        lead_here(&addresses(&CLUSTER_IPS[..1]), MARK).expect("led");
        let gone = keep_only(&addresses(&CLUSTER_IPS[..1]), MARK).expect("gone");
        assert_eq!(gone, Changed { rules: vec!["IPv4", "IPv6"], routes: addresses(&CLUSTER_IPS[1..]) });
        assert_eq!(rules("-4"), ["100:\tfrom all fwmark 0x35/0xff lookup 10053 proto kernel"]);
        assert!(rules("-6").is_empty() && routes("-6").is_empty());
        assert_eq!(routes("-4"), ["local 10.96.0.10"]);
        assert!(keep_only(&addresses(&CLUSTER_IPS[..1]), MARK).expect("nothing").is_empty());
        assert!(lead_here(&addresses(&CLUSTER_IPS[..1]), MARK).expect("led").is_empty());
        let gone = keep_only(&[], MARK).expect("gone");
        assert_eq!(gone, Changed { rules: vec!["IPv4"], routes: addresses(&CLUSTER_IPS[..1]) });
    });
}

#[test]
fn rules_and_routes_that_no_agent_would_make_are_nobodys_leftovers() {
    on_a_node(|| {
        for rule in [
            "rule add fwmark 0x36/0xff lookup 10053 pref 100",
            "rule add fwmark 0x36/0xff lookup 10053 pref 99 proto kernel",
            "rule add fwmark 0x36/0xff iif lo lookup 10053 pref 100 proto kernel",
            "rule add lookup 10053 pref 100 proto kernel",
            "rule add fwmark 0x36/0xff lookup 77 pref 100 proto kernel",
            "route add local 10.96.0.10 dev lo table 10053",
            "route add local 10.96.1.0/24 dev lo table 10053 proto kernel",
            "route add blackhole 10.96.0.11 table 10053 proto kernel",
            "route add local 10.96.0.12 dev lo table 77 proto kernel",
        ] {
            ip(rule);
        }
        let state = || (ip("rule show"), ip("route show table all"));
        let before = state();
        assert_eq!(keep_only(&[], MARK).expect("nothing"), Changed::default());
        assert_eq!(state(), before);
    });
}
