//! A command leaves alone whatever its finding is not about.

use std::collections::BTreeSet;

use crate::examine::{Finding, Level, examine, shell, wrong};
use crate::home::{Home, LISTEN};
use crate::kernel::{feed, ip, iptables_rules, program};
use crate::topology::{CLUSTER_IP, Families, Node, Proxy, Topology, on_a_node};

/// The node's own address, in the network that its default route goes by (tests/netns/topology_links.rs).
const NODE_IP: &str = "192.0.2.10";

/// Which iptables lists in words that tell more.
const IPTABLES: [&str; 8] = [
    "table ip raw {",
    "table ip filter {",
    "table ip mangle {",
    "table ip nat {",
    "table ip6 raw {",
    "table ip6 filter {",
    "table ip6 mangle {",
    "table ip6 nat {",
];

/// What the node has at one moment, line by line: addresses, links that are up, routes, rules of routing, of nftables and
/// of iptables, sysctls of links. What agents have made for themselves is not in it.
pub(crate) struct Rest(BTreeSet<String>);

impl Rest {
    #[track_caller]
    pub(crate) fn now() -> Self {
        let mut lines = BTreeSet::new();
        for words in
            ["-o address show", "-4 route show table all", "-6 route show table all", "-4 rule", "-6 rule"]
        {
            lines.extend(ip(words).lines().map(|line| format!("ip {words}: {}", line.trim())));
        }
        let up = ip("-o link show up");
        lines.extend(
            up.lines().filter_map(|line| line.split(": ").nth(1)).map(|link| format!("{link} is up")),
        );
        for save in
            ["iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save"]
        {
            lines.extend(iptables_rules(save).into_iter().map(|rule| format!("{save}: {rule}")));
        }
        let keys = "^net\\.ipv[46]\\.conf\\..*\\.(arp_ignore|rp_filter|disable_ipv6|forwarding|proxy_arp)$";
        lines.extend(program("sysctl", "procps", &["-a", "-r", keys]).lines().map(str::to_owned));
        let (mut table, mut chain) = (String::new(), String::new());
        for line in program("nft", "nftables", &["-s", "list", "ruleset"]).lines().map(str::trim) {
            if line.starts_with("table ") {
                line.clone_into(&mut table);
            } else if line.starts_with("chain ") {
                line.clone_into(&mut chain);
            } else if !table.starts_with("table inet nodens-") && !IPTABLES.contains(&table.as_str()) {
                lines.insert(format!("{table} {chain} {line}"));
            }
        }
        Self(lines)
    }

    /// What was there then and is not now.
    #[track_caller]
    pub(crate) fn gone(&self) -> Vec<String> {
        let now = Self::now();
        self.0.difference(&now.0).cloned().collect()
    }

    /// Only what a finding names may be gone: its addresses, links and tables, and node-cache's rules.
    #[track_caller]
    pub(crate) fn is_left_alone_by(&self, finding: &Finding) {
        let words = finding.what.split(|letter: char| letter.is_whitespace() || ",;()".contains(letter));
        let names = |word: &str| word.parse::<std::net::IpAddr>().is_ok() || word.starts_with("nodens-");
        let mut subjects: Vec<&str> =
            words.map(|word| word.split('/').next().unwrap_or(word)).filter(|word| names(word)).collect();
        match finding.check.as_str() {
            "node-cache" => subjects.extend(["NodeLocal DNS Cache", "nodelocaldns"]),
            "sysctls" => subjects.extend(["disable_ipv6 = 1", "tcp_migrate_req"]),
            _ => {}
        }
        let mut gone = self.gone();
        gone.retain(|line| !subjects.iter().any(|subject| line.contains(subject)));
        assert!(gone.is_empty(), "{finding:#?} took away {gone:#?}");
    }
}

/// Carries out all that a check prints, and sees that nothing at all is gone but lines with one of these words.
#[track_caller]
fn only_these_go(home: &Home, check: &str, words: &[&str]) -> Vec<Finding> {
    let all = examine(home);
    let found: Vec<Finding> = wrong(&all, check).into_iter().cloned().collect();
    let rest = Rest::now();
    for finding in &found {
        eprintln!("{}\n$ {}", finding.what, finding.mend.replace('\n', "\n$ "));
        shell(&finding.mend, &[]);
    }
    let mut gone = rest.gone();
    gone.retain(|line| !words.iter().any(|word| line.contains(word)));
    assert!(gone.is_empty(), "{found:#?} took away {gone:#?}");
    found
}

#[test]
fn the_nodes_own_address_is_well_where_it_is_and_stays_there() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        ip("address add 192.0.2.11/24 dev uplink");
        let home = Home::listening(&[LISTEN, NODE_IP], "address_on: nodelocaldns, notrack: true");
        let _agent = home.start();
        assert_eq!(only_these_go(&home, "address", &[]), [], "the agent has adopted it");
    });
}

#[test]
fn the_nodes_own_address_stays_though_another_link_has_it_too() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        ip("address add 192.0.2.11/24 dev uplink");
        ip(&format!("address add {NODE_IP}/32 dev lo"));
        let home = Home::listening(&[LISTEN, NODE_IP], "address_on: lo, notrack: true");
        let _agent = home.start();
        let found = only_these_go(&home, "address", &[]);
        assert!(found.len() == 1 && found[0].what.contains("several links"), "{found:#?}");
        assert!(found[0].mend.contains("ip address show dev uplink"), "{found:#?}");
    });
}

#[test]
fn addresses_of_others_in_the_same_network_stay() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        ip(&format!("address add {LISTEN}/16 dev lo"));
        ip("address add 169.254.99.99/16 dev lo");
        let home = Home::new("notrack: true");
        let _agent = home.start();
        let found = only_these_go(&home, "address", &[]);
        assert!(found.len() == 1 && found[0].what.contains("/16 on link lo"), "{found:#?}");
    });
}

#[test]
fn the_routes_of_a_link_stay_though_its_only_address_is_a_cluster_ip() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let node = Node::start();
        ip("link add cni9 type bridge");
        ip("link set cni9 up");
        ip(&format!("address add {CLUSTER_IP}/32 dev cni9"));
        ip("route add 198.51.100.0/24 dev cni9");
        let home = Home::intercepting(&node);
        let _agent = home.start();
        let found = only_these_go(&home, "address", &[]);
        assert!(found.len() == 1 && found[0].what.contains("on link cni9"), "{found:#?}");
    });
}

#[test]
fn a_link_that_is_down_for_reasons_of_its_own_stays_down() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        ip("link add spare type bridge");
        ip(&format!("address add {LISTEN}/32 dev spare"));
        let home = Home::new("notrack: true");
        let _agent = home.start();
        let found = only_these_go(&home, "address", &[]);
        assert!(found.len() == 1 && found[0].what.contains("spare, which is down"), "{found:#?}");
        assert!(!ip("-o link show up").contains(" spare:"), "nobody has set it up");
    });
}

/// kube-proxy's strictARP, MetalLB and LVS need it, and a pod's network plugin may do without.
#[test]
fn what_others_have_set_against_arp_stays() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        program("sysctl", "procps", &["-w", "net.ipv4.tcp_migrate_req=1", "net.ipv4.conf.all.arp_ignore=1"]);
        ip("address flush dev pod2");
        ip("route replace 10.244.0.3 dev pod2");
        let home = Home::new("address_on: nodelocaldns, notrack: true");
        let _agent = home.start();
        let found = only_these_go(&home, "sysctls", &[]);
        assert!(found.len() == 1 && found[0].what.contains("pod2 (1)"), "{found:#?}");
    });
}

#[test]
fn rules_and_routes_that_a_killed_agent_has_left_go_and_others_stay() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new("address_on: nodelocaldns, notrack: true");
        let _agent = home.start();
        assert!(wrong(&examine(&home), "routes").is_empty());
        // Of an agent with another mark that has intercepted; and somebody's own route in a table of theirs.
        ip("rule add fwmark 0x10/0xf0 lookup 10053 pref 100");
        ip(&format!("route add local {CLUSTER_IP}/32 dev lo table 10053"));
        ip("rule add fwmark 0x20/0xf00 lookup 77 pref 90");
        ip("route add 198.51.100.0/24 via 192.0.2.1 table 77");
        let found = only_these_go(&home, "routes", &["10053"]);
        assert!(found.len() == 2 && found.iter().all(|found| found.level == Level::Warning), "{found:#?}");
        assert!(wrong(&examine(&home), "routes").is_empty());
    });
}

/// In a firewall's chain, with comments as the agent writes them: of an address where nobody listens any more.
#[test]
fn rules_that_a_killed_agent_has_left_in_a_firewall_go_and_others_stay() {
    on_a_node(Topology::new(Proxy::IptablesLegacy).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new("address_on: nodelocaldns, notrack: true");
        let _agent = home.start();
        let rule = |at: &str, said: &str| {
            format!("ip daddr {at} udp dport 53 ct state untracked accept comment \"{said}\"\n")
        };
        let left = rule("198.51.100.7", "nodens: untracked DNS udp to 198.51.100.7:53");
        let used = rule(LISTEN, "nodens: untracked DNS udp to 169.254.20.10:53");
        let others = rule("198.51.100.7", "of somebody else");
        let chain = "type filter hook input priority 0; policy accept;";
        let table = format!("table inet fw {{\nchain input {{\n{chain}\n{left}{used}{others}}}\n}}\n");
        feed("nft", "nftables", &["-f", "-"], &table);
        let found = only_these_go(&home, "rules", &["nodens: untracked DNS udp to 198.51.100.7:53"]);
        assert_eq!(found.len(), 2, "{found:#?}");
        let left = wrong(&examine(&home), "rules").into_iter().cloned().collect::<Vec<_>>();
        assert!(left.len() == 1 && left[0].what.contains(LISTEN), "a setting would look after it: {left:#?}");
        assert!(left[0].mend.contains("accept_untracked"), "{left:#?}");
    });
}

/// A name that nft and a shell would take for more than a name.
#[test]
fn names_of_others_are_no_commands() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new("address_on: nodelocaldns, notrack: true");
        let _agent = home.start();
        let witness = home.dir.path().join("w");
        // 15 bytes at the most, and no slash.
        for name in ["a;id>w;b", "p$(id>w)", "`id>w`", "x\u{1b}[2Jy", "'id>w'"] {
            program("ip", "iproute2", &["link", "add", name, "type", "bridge"]);
            program("ip", "iproute2", &["address", "add", &format!("{LISTEN}/32"), "dev", name]);
            let all = examine(&home);
            let found = wrong(&all, "address");
            assert!(!found.is_empty(), "{name}");
            for finding in found {
                let texts = [&finding.what, &finding.mend];
                assert!(texts.iter().all(|text| !text.contains('\u{1b}')), "{finding:#?}");
                let lines = format!("cd {}\n{}", home.dir.path().display(), finding.mend);
                // What names a link with a control character finds none, and does nothing.
                let _ = std::process::Command::new("sh").args(["-c", &lines]).output().expect("a shell");
            }
            program("ip", "iproute2", &["link", "del", name]);
        }
        assert!(!witness.exists(), "a name was carried out");
    });
}
