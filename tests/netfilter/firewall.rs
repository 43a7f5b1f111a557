//! Firewalls of others that drop what is not tracked.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use nodens::node::netfilter::{Firewall, OPENED, Opened, Table};
use nodens::node::rules::{Wanted, chains};

use crate::node::{
    LISTEN, NOTHING, PROTOCOLS, address, entries, host_asks, host_asks_in_vain, nft, on_a_node, pod_asks,
    program,
};
use crate::support::{missing, seconds, wait_until};

/// Drops whatever connection tracking does not know, in both directions; tracks, too.
const GUARD: &str = "table inet guard {
  chain input {
    type filter hook input priority 0; policy drop
    ct state established,new accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
  }
  chain output {
    type filter hook output priority 0; policy drop
    ct state established,new accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
  }
}
table ip guard4 {
  chain in {
    type filter hook input priority 20
    ct state untracked jump refuse
  }
  chain refuse {
    drop
  }
}
table inet open {
  chain input {
    type filter hook input priority 30
    accept
  }
}";

/// More than fits on a command line.
#[track_caller]
fn feed(rules: &str) {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}", missing("nft", "nftables", &error)));
    nft.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("rules");
    assert!(nft.wait().expect("an end").success());
}

fn everybody_is_answered(at: [SocketAddr; 2]) -> bool {
    at.into_iter()
        .all(|to| PROTOCOLS.into_iter().all(|protocol| host_asks(protocol, to, 0) && pod_asks(protocol, to)))
}

#[test]
fn chains_that_drop_are_opened_for_untracked_dns_and_closed_again() {
    on_a_node(|| {
        nft(GUARD);
        let at = LISTEN.map(address);
        at.into_iter().for_each(crate::node::listen);
        let mut table = Table::open().expect("a table");
        table.replace(&chains(&Wanted { notrack: &at, ..NOTHING })).expect("rules");
        let nobody_is_answered =
            || at.into_iter().all(|to| host_asks_in_vain("udp", to, 0) && !pod_asks("udp", to));
        assert!(nobody_is_answered(), "the firewall drops what is not tracked");
        let before = nft("list table inet guard");

        let firewall = Firewall::find().expect("a socket");
        let mut done = firewall.open_for(&at).expect("open");
        done.opened.sort();
        assert_eq!(done.opened, ["inet guard input", "inet guard output", "ip guard4 in"]);
        assert_eq!(done.cannot, [] as [&str; 0]);
        println!("{}", nft("list chain inet guard input"));
        assert!(everybody_is_answered(at));
        assert_eq!(entries(&at), [] as [&str; 0]);
        assert!(!nft("list table inet open").contains(OPENED));
        // What is there already is adopted, and what is lost is put back.
        assert_eq!(firewall.open_for(&at).expect("open"), Opened::default());
        let another = Firewall::find().expect("a socket");
        assert_eq!(another.open_for(&at).expect("open"), Opened::default());
        nft("flush chain ip guard4 in");
        nft("add rule ip guard4 in ct state untracked jump refuse");
        assert_eq!(firewall.open_for(&at).expect("open").opened, ["ip guard4 in"]);
        assert!(everybody_is_answered(at));

        // Eight for each family in a chain of both, in two chains; four in that of IPv4.
        assert_eq!(another.close(&|_| true).expect("close"), 20);
        assert_eq!(nft("list table inet guard"), before);
        assert_eq!(another.close(&|_| true).expect("close"), 0);
        assert!(nobody_is_answered());
    });
}

/// Such as a block list. What is not found is added again at every look.
#[test]
fn rules_of_ours_are_found_behind_any_number_of_others() {
    on_a_node(|| {
        let at = LISTEN.map(address);
        let many: String =
            (0..50_500).map(|n| format!("ip saddr 198.18.{}.{} drop\n", n / 256 % 256, n % 256)).collect();
        feed(&format!(
            "table inet fw {{\n chain block {{\n{many}}}\n chain input {{ type filter hook input priority 0; jump block; }}\n}}"
        ));
        let firewall = Firewall::find().expect("a socket");
        assert_eq!(firewall.open_for(&at).expect("open").opened, ["inet fw input"]);
        for _ in 0..3 {
            assert_eq!(firewall.open_for(&at).expect("open"), Opened::default());
        }
        assert_eq!(nft("list chain inet fw input").matches(OPENED).count(), 8);
        assert_eq!(firewall.close(&|ip| ip == at[0]).expect("close"), 4, "of one address alone");
        assert_eq!(firewall.close(&|_| true).expect("close"), 4);
        assert!(!nft("list chain inet fw input").contains(OPENED));
    });
}

#[test]
fn a_chain_that_is_not_read_to_its_end_is_named_and_left_alone() {
    on_a_node(|| {
        let at = LISTEN.map(address);
        let rules = "ct state invalid drop\n".repeat(20);
        feed(&format!("table inet fw {{\n chain input {{ type filter hook input priority 0\n{rules}}}\n}}"));
        let before = nft("list ruleset");
        let firewall = Firewall::find().expect("a socket").reading(19);
        let done = firewall.open_for(&at).expect("open");
        let [said] = &done.cannot[..] else { panic!("{done:?}") };
        assert!(said.starts_with("inet fw input: ") && said.contains("more than 19 rules"), "{said}");
        assert!(firewall.close(&|_| true).is_err(), "and ours may be there");
        assert_eq!(nft("list ruleset"), before);
        assert_eq!(firewall.reading(20).open_for(&at).expect("open").opened, ["inet fw input"]);
    });
}

#[test]
fn chains_of_iptables_and_of_kube_proxy_are_left_alone_and_the_command_that_helps_is_named() {
    on_a_node(|| {
        let at = LISTEN.map(address);
        let iptables = |arguments: &[&str]| {
            let (done, text) = program("iptables-nft", "iptables", arguments);
            assert!(done, "iptables-nft {arguments:?}: {text}");
            text
        };
        iptables(&["-P", "INPUT", "DROP"]);
        iptables(&["-A", "OUTPUT", "-p", "icmp", "-j", "ACCEPT"]);
        nft("table inet kube-proxy {
               chain filter-input {
                 type filter hook input priority 0
                 ct state new reject
               }
             }");
        let before = [nft("list ruleset"), iptables(&["-S"])];
        let firewall = Firewall::find().expect("a socket");
        let done = firewall.open_for(&at).expect("open");
        assert_eq!(done.opened, [] as [&str; 0]);
        let [said] = &done.cannot[..] else { panic!("{done:?}") };
        for part in [
            "ip filter INPUT: ",
            "iptables-nft -w -t filter -I INPUT -d 169.254.20.10 -p udp --dport 53 ",
            "UNTRACKED -j ACCEPT",
        ] {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!([nft("list ruleset"), iptables(&["-S"])], before);
        iptables(&["-L"]);
        // The command that it names does what it says.
        let command =
            said.split_once("change it: ").expect("a command").1.split("; ").next().expect("a command");
        let words: Vec<&str> = command.split(' ').skip(1).collect();
        iptables(&words);
        assert!(iptables(&["-S", "INPUT"]).contains("UNTRACKED"));
    });
}

#[test]
fn tables_of_iptables_legacy_cannot_be_seen_and_are_named_with_the_commands_that_help() {
    on_a_node(|| {
        let at = LISTEN.map(address);
        let firewall = Firewall::find().expect("a socket");
        let cannot = |at: &[SocketAddr]| firewall.open_for(at).expect("open").cannot;
        let legacy = |name: &str, arguments: &[&str]| {
            let (done, text) = program(name, "iptables", arguments);
            assert!(done, "{name} {arguments:?}: {text}");
        };
        // Nothing is dropped in `nat`.
        legacy("iptables-legacy", &["-t", "nat", "-A", "OUTPUT", "-p", "icmp", "-j", "ACCEPT"]);
        assert_eq!(cannot(&at), [] as [&str; 0]);
        legacy("ip6tables-legacy", &["-P", "INPUT", "DROP"]);
        assert_eq!(cannot(&at[..1]), [] as [&str; 0], "IPv4 alone");
        let [said] = &cannot(&at)[..] else { panic!("{:?}", cannot(&at)) };
        for part in [
            "ip6tables-legacy",
            "filter",
            "ip6tables-legacy -w -t filter -I INPUT -d fd00:",
            "UNTRACKED -j ACCEPT",
        ] {
            assert!(said.contains(part), "{said}");
        }
        assert!(!said.contains("169.254.20.10"), "{said}");
        legacy("iptables-legacy", &["-t", "mangle", "-A", "INPUT", "-j", "DROP"]);
        assert_eq!(cannot(&at).len(), 2);
        let commands: Vec<String> = cannot(&at)
            .iter()
            .filter_map(|said| said.split_once("change it: "))
            .flat_map(|(_, commands)| commands.split("; "))
            .map(str::to_owned)
            .collect();
        assert_eq!(
            commands.len(),
            16,
            "to and from, in and out, of both protocols and families: {commands:?}"
        );
        for command in commands {
            let words: Vec<&str> = command.split(' ').collect();
            legacy(words[0], &words[1..]);
        }
    });
}

/// As those of firewalld since version 2.3.
#[test]
fn a_table_with_an_owner_is_left_alone_and_named() {
    on_a_node(|| {
        let mut owner = Command::new("nft")
            .arg("-i")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}", missing("nft", "nftables", &error)));
        let mut stdin = owner.stdin.take().expect("a pipe");
        let rules = "add table inet theirs { flags owner; }\n\
                     add chain inet theirs input { type filter hook input priority 0; policy drop; }\n";
        stdin.write_all(rules.as_bytes()).expect("rules");
        let list = || nft("list ruleset");
        wait_until("their table is there", seconds(5), || list().contains("policy drop"));
        let before = list();
        let done =
            Firewall::find().and_then(|firewall| firewall.open_for(&LISTEN.map(address))).expect("open");
        assert_eq!((done.opened.len(), done.cannot.len()), (0, 1), "{done:?}");
        assert!(
            done.cannot[0].starts_with("inet theirs input: ") && done.cannot[0].contains("netlink socket")
        );
        assert_eq!(list(), before);
        drop(stdin);
        owner.wait().expect("an end");
    });
}
