//! What agents before, ours or node-cache, have left.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use crate::examine::{Level, examine, mend, named, shell, wrong};
use crate::home::{Home, LISTEN};
use crate::kernel::{feed, ip, iptables_rules, nft};
use crate::support::{Process, seconds, wait_until};
use crate::topology::{CLUSTER_IP, Families, Firewall, Node, Proxy, Topology, on_a_node};

const HOLDING: &str = "address_on: dns0, notrack: true";

/// node-cache's rules, as it writes them.
fn its_rules() -> String {
    let (skip, allow) = ("NodeLocal DNS Cache: skip conntrack", "NodeLocal DNS Cache: allow DNS traffic");
    let (mut raw, mut filter) = (String::new(), String::new());
    for protocol in ["tcp", "udp"] {
        for (chain, side, port) in
            [("PREROUTING", "-d", "--dport"), ("OUTPUT", "-s", "--sport"), ("OUTPUT", "-d", "--dport")]
        {
            let _ = writeln!(
                raw,
                "-A {chain} {side} {LISTEN}/32 -p {protocol} -m {protocol} {port} 53 -m comment --comment \"{skip}\" \
                 -j NOTRACK"
            );
        }
        for (chain, side, port) in [("INPUT", "-d", "--dport"), ("OUTPUT", "-s", "--sport")] {
            let _ = writeln!(
                filter,
                "-A {chain} {side} {LISTEN}/32 -p {protocol} -m {protocol} {port} 53 -m comment --comment \"{allow}\" \
                 -j ACCEPT"
            );
        }
    }
    format!("*raw\n{raw}COMMIT\n*filter\n{filter}COMMIT\n")
}

#[track_caller]
fn what_node_cache_leaves_goes_by_the_commands(program: &str) {
    let _node = Node::start();
    let home = Home::new(HOLDING);
    let _agent = home.start();
    assert!(wrong(&examine(&home), "node-cache").is_empty());
    // Once more as node-cache does it when it fails to look first (kubernetes/dns#568): every rule twice.
    let before = iptables_rules(&format!("{program}-save"));
    for _ in 0..2 {
        feed(&format!("{program}-restore"), "iptables", &["--noflush", "-w", "20"], &its_rules());
    }
    mend(&home, &named(&home, "node-cache", Level::Warning, &["20 rules", program]));
    assert_eq!(iptables_rules(&format!("{program}-save")), before, "others' rules are as they were");
}

/// In a migration node-cache's rules are what lets queries to its address in.
#[track_caller]
fn what_the_agents_clients_need_stays(program: &str) {
    let _node = Node::start();
    let home = Home::new(HOLDING);
    let _agent = home.start();
    feed(&format!("{program}-restore"), "iptables", &["--noflush", "-w", "20"], &its_rules());
    assert!(wrong(&examine(&home), "firewall").is_empty(), "node-cache's rules let them in");
    mend(&home, &named(&home, "node-cache", Level::Warning, &["8 rules", program]));
    let all = examine(&home);
    assert!(wrong(&all, "firewall").is_empty(), "{all:#?}");
    // Of the chain INPUT, which drops.
    let kept = iptables_rules(&format!("{program}-save"));
    let kept = kept.iter().filter(|rule| rule.contains("NodeLocal DNS Cache: allow")).count();
    assert_eq!(kept, 2, "{all:#?}");
    let says =
        |found: &&crate::examine::Finding| found.check == "node-cache" && found.what.contains("2 rules");
    assert_eq!(all.iter().filter(says).count(), 1, "it is said that they stay: {all:#?}");
}

#[test]
fn rules_of_node_cache_in_iptables_legacy_that_let_our_queries_in_stay() {
    let topology = Topology::new(Proxy::IptablesLegacy).guarded(Firewall::DropsUntracked);
    on_a_node(topology.only(Families::V4), || what_the_agents_clients_need_stays("iptables-legacy"));
}

#[test]
fn rules_of_node_cache_in_iptables_nft_that_let_our_queries_in_stay() {
    let topology = Topology::new(Proxy::IptablesNft).guarded(Firewall::DropsUntracked);
    on_a_node(topology.only(Families::V4), || what_the_agents_clients_need_stays("iptables-nft"));
}

#[test]
fn node_caches_rules_in_iptables_legacy_go_by_the_commands() {
    on_a_node(Topology::new(Proxy::IptablesLegacy).only(Families::V4), || {
        what_node_cache_leaves_goes_by_the_commands("iptables-legacy");
    });
}

#[test]
fn node_caches_rules_in_iptables_nft_go_by_the_commands() {
    on_a_node(Topology::new(Proxy::IptablesNft).only(Families::V4), || {
        what_node_cache_leaves_goes_by_the_commands("iptables-nft")
    });
}

/// A dummy, where it is node-cache's own; this kernel does not have those.
#[test]
fn node_caches_link_goes_by_the_command() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        let _agent = home.start();
        ip("link add nodelocaldns type bridge");
        ip("link set nodelocaldns up");
        ip(&format!("address add {CLUSTER_IP}/32 dev nodelocaldns"));
        mend(&home, &named(&home, "node-cache", Level::Warning, &["its link nodelocaldns", CLUSTER_IP]));
    });
}

#[test]
fn a_link_of_node_cache_that_the_agent_uses_is_not_taken_from_under_it() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        ip("link add nodelocaldns type bridge");
        ip("link set nodelocaldns up");
        ip(&format!("address add {LISTEN}/32 dev nodelocaldns"));
        let home = Home::new("notrack: true");
        let _agent = home.start();
        mend(&home, &named(&home, "node-cache", Level::Warning, &["nodelocaldns", LISTEN, "the agent uses"]));
        assert!(wrong(&examine(&home), "address").is_empty());
        assert!(wrong(&examine(&home), "port").is_empty());
    });
}

#[test]
fn while_node_cache_runs_nothing_of_it_is_called_left() {
    on_a_node(Topology::new(Proxy::IptablesLegacy).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        let _agent = home.start();
        feed("iptables-legacy-restore", "iptables", &["--noflush", "-w", "20"], &its_rules());
        // A process of its name, with its port of health.
        let script = "import socket, time\nopen('/proc/self/comm', 'w').write('node-cache')\n\
                      s = socket.create_server(('127.0.0.1', 8080))\nprint('there', flush=True)\ntime.sleep(60)\n";
        let mut command = Command::new("python3");
        command.args(["-c", script]);
        let process = Process::start(command, "python3", &home.dir.path().join("node-cache"));
        wait_until("it listens", seconds(10), || process.output().contains("there"));
        let found = named(
            &home,
            "node-cache",
            Level::Warning,
            &["still runs", &format!("(pid {})", process.id()), "127.0.0.1:8080"],
        );
        assert_eq!(wrong(&examine(&home), "node-cache").len(), 1);
        shell(&found.mend, &[]);
        let rules = named(&home, "node-cache", Level::Warning, &["10 rules", "iptables-legacy"]);
        mend(&home, &rules);
    });
}

#[test]
fn a_table_of_an_agent_that_has_gone_goes_by_the_command() {
    on_a_node(Topology::new(Proxy::Nftables).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        let _agent = home.start();
        // As a kernel without owners leaves it; nobody has a process number so high.
        nft("add table inet nodens-4194305");
        nft("add chain inet nodens-4194305 intercept_route { type route hook output priority -150; }");
        mend(&home, &named(&home, "rules", Level::Problem, &["nodens-4194305"]));
        nft("add table inet nodens-4194305");
        mend(&home, &named(&home, "rules", Level::Warning, &["nodens-4194305"]));
    });
}

#[test]
fn without_iptables_program_node_caches_rules_go_by_their_numbers() {
    on_a_node(Topology::new(Proxy::IptablesNft).only(Families::V4), || {
        let _node = Node::start();
        let home = Home::new(HOLDING);
        let _agent = home.start();
        feed("iptables-nft-restore", "iptables", &["--noflush", "-w", "20"], &its_rules());
        // Nothing is found in an empty directory.
        let empty = home.dir.path().join("empty");
        fs::create_dir(&empty).expect("a directory of ours");
        let path = format!("PATH={}", empty.display());
        let output = crate::examine::doctor(&home, &["/usr/bin/env", &path], &["--json"]);
        let found = crate::examine::findings(&output);
        let wrong = wrong(&found, "node-cache");
        assert_eq!((wrong.len(), wrong[0].mend.lines().count()), (1, 10), "{found:#?}");
        assert!(wrong[0].mend.starts_with("nft delete rule ip "), "{}", wrong[0].mend);
        mend(&home, wrong[0]);
    });
}
