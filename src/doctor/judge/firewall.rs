//! Firewalls of others that drop what connection tracking has not seen, as our packets are.
//!
//! Rules are read as far as can be without knowing every expression: a chain is named when nothing in its table shows
//! that it lets these packets in, and not when something does.

use std::net::{IpAddr, SocketAddr};

use super::rules::is_ours;
use crate::doctor::Patient;
use crate::doctor::finding::{Finding, Unseen};
use crate::doctor::look::iptables::Saved;
use crate::doctor::words::nft;
use crate::node::netfilter::{Base, ChainSeen, Family, RuleSeen, TableSeen};

const CHECK: &str = "firewall";
/// It rejects new connections to Services; packets that are not tracked are not new.
const KUBE_PROXY: &str = "kube-proxy";
/// iptables(8): its tables and its own chains in them, which nft(8) shows under the same names.
const IPTABLES: [&str; 5] = ["filter", "raw", "mangle", "nat", "security"];
const IPTABLES_CHAINS: [&str; 2] = ["INPUT", "OUTPUT"];
const WHY: &str = "Queries and answers that connection tracking does not see are lost there; an accept in another \
                   chain does not save them.";

/// Looks, and judges.
pub fn check(patient: &Patient) -> Vec<Finding> {
    let untracked = patient.untracked();
    if untracked.is_empty() {
        return vec![Finding::ok(CHECK, "no packets go past connection tracking")];
    }
    let mut findings = match &patient.node.tables {
        Ok(tables) => tables.iter().flat_map(|table| judge(table, &untracked)).collect(),
        Err(unseen) => vec![Finding::unknown(CHECK, "chains could not be listed", unseen)],
    };
    for Saved { program, rules } in &patient.node.legacy {
        match rules {
            Ok(text) => findings.extend(legacy(program, text, &untracked)),
            Err(unseen) => findings.push(Finding::unknown(CHECK, format!("rules of {program}"), unseen)),
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no chain is seen to drop untracked packets"));
    }
    findings
}

fn judge(table: &TableSeen, untracked: &[SocketAddr]) -> Vec<Finding> {
    let v4 = matches!(table.family, Family::Inet | Family::Ip);
    let v6 = matches!(table.family, Family::Inet | Family::Ip6);
    if is_ours(table) || table.name == KUBE_PROXY {
        return Vec::new();
    }
    let ours: Vec<SocketAddr> =
        untracked.iter().copied().filter(|at| if at.is_ipv4() { v4 } else { v6 }).collect();
    let chains = table.chains.iter().filter_map(|chain| Some((chain, is_passed(chain)?)));
    chains.filter_map(|(chain, base)| closed(table, chain, base, &ours)).collect()
}

/// The place of a chain that packets for this machine, or from it, come to by themselves.
fn is_passed(chain: &ChainSeen) -> Option<&Base> {
    let base = chain.base.as_ref()?;
    (base.kind == "filter" && ["input", "output"].contains(&base.hook_name())).then_some(base)
}

fn closed(table: &TableSeen, chain: &ChainSeen, base: &Base, ours: &[SocketAddr]) -> Option<Finding> {
    let name = format!("{} {} {}", table.family.name(), table.name, chain.name);
    let refuses = chain.rules.iter().position(refuses_untracked);
    if let Some(at) = refuses {
        let lost: Vec<SocketAddr> =
            lost(ours, |ours| chain.rules[..at].iter().any(|rule| opens(rule, ours) == Some(true)));
        if !lost.is_empty() {
            let what =
                format!("chain {name} drops packets that are not tracked, those of {} too", listed(&lost));
            return Some(Finding::problem(CHECK, what, WHY, open(table, chain, base, &lost)));
        }
    }
    if !base.drops && !chain.rules.last().is_some_and(drops_all) {
        return None;
    }
    let all = || table.chains.iter().flat_map(|chain| &chain.rules);
    let lost = lost(ours, |ours| all().any(|rule| opens(rule, ours) == Some(true)));
    if lost.is_empty() {
        return None;
    }
    let mend = open(table, chain, base, &lost);
    if lost.iter().all(|&at| all().any(|rule| opens(rule, at).is_none())) {
        let why =
            Unseen::new("It has a rule for them that asks for states of connection tracking in a set.", mend);
        let what = format!("whether chain {name} lets untracked packets of {} through", listed(&lost));
        return Some(Finding::unknown(CHECK, what, &why));
    }
    let what = format!(
        "chain {name} drops what it does not know, and no rule in its table lets untracked packets of {} through",
        listed(&lost)
    );
    Some(Finding::warning(CHECK, what, WHY, mend))
}

fn lost(ours: &[SocketAddr], opened: impl Fn(SocketAddr) -> bool) -> Vec<SocketAddr> {
    ours.iter().copied().filter(|&at| !opened(at)).collect()
}

/// Whether a rule is seen to accept our packets: it names the address or the port, and no other. `None` where that
/// depends on what cannot be read.
fn opens(rule: &RuleSeen, at: SocketAddr) -> Option<bool> {
    let named = rule.addresses.contains(&at.ip());
    let anywhere = rule.addresses.iter().all(|address| *address == ZERO);
    let place =
        if rule.ports.is_empty() { named } else { rule.ports.contains(&at.port()) && (named || anywhere) };
    let accepts = rule.has("accept") || rule.has("ACCEPT");
    if !accepts || !place {
        return Some(false);
    }
    // A rule for our address alone has been made for us, whatever states it asks for.
    rule.is_for_untracked().or(named.then_some(true))
}

fn refuses_untracked(rule: &RuleSeen) -> bool {
    rule.drops() && rule.states.is_some() && rule.is_for_untracked() == Some(true) && rule.addresses == [ZERO]
}

/// nft(8) compares the bits of a state with it.
const ZERO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

/// Whether nothing gets past a rule.
fn drops_all(rule: &RuleSeen) -> bool {
    let unconditional = ["counter", "log", "comment", "LOG", "drop", "reject", "DROP", "REJECT"];
    rule.drops() && rule.expressions.iter().all(|name| unconditional.contains(&name.as_str()))
}

fn listed(addrs: &[SocketAddr]) -> String {
    addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The commands that open a chain, and the setting that keeps it so.
fn open(table: &TableSeen, chain: &ChainSeen, base: &Base, lost: &[SocketAddr]) -> String {
    let inward = base.hook_name() == "input";
    let by_iptables = table.family != Family::Inet
        && IPTABLES.contains(&table.name.as_str())
        && IPTABLES_CHAINS.contains(&chain.name.as_str());
    if by_iptables {
        let program = if table.family == Family::Ip6 { "ip6tables-nft" } else { "iptables-nft" };
        return iptables(program, &table.name, &chain.name, inward, lost);
    }
    if let Some(owner) = table.owner {
        return format!(
            "# only the program with netlink socket {owner} can change it: have that accept `ct state untracked`"
        );
    }
    let (direction, port) = if inward { ("daddr", "dport") } else { ("saddr", "sport") };
    let names = [table.name.as_str(), chain.name.as_str()];
    let command = |at: &SocketAddr| {
        let ip = if at.is_ipv4() { "ip" } else { "ip6" };
        nft(&names, || {
            format!(
                "nft 'insert rule {} {} {} {ip} {direction} {} meta l4proto {{ udp, tcp }} th {port} {} ct state \
                 untracked accept'",
                table.family.name(),
                names[0],
                names[1],
                at.ip(),
                at.port()
            )
        })
    };
    let commands: Vec<String> = lost.iter().map(command).collect();
    format!("{}\n# or network: {{ accept_untracked: true }}, and the agent keeps it so", commands.join("\n"))
}

fn iptables(program: &str, table: &str, chain: &str, inward: bool, lost: &[SocketAddr]) -> String {
    let (direction, port) = if inward { ("-d", "--dport") } else { ("-s", "--sport") };
    let commands = lost.iter().flat_map(|at| {
        ["udp", "tcp"].map(|protocol| {
            format!(
                "{program} -w -t {table} -I {chain} {direction} {} -p {protocol} {port} {} -m conntrack --ctstate \
                 UNTRACKED -j ACCEPT",
                at.ip(),
                at.port()
            )
        })
    });
    commands.collect::<Vec<_>>().join("\n")
}

/// The table `filter` as iptables-legacy-save prints it.
fn legacy(program: &str, text: &str, untracked: &[SocketAddr]) -> Vec<Finding> {
    let v6 = program.starts_with("ip6");
    let ours: Vec<SocketAddr> = untracked.iter().copied().filter(|at| at.is_ipv6() == v6).collect();
    let filter: Vec<&str> =
        text.lines().skip_while(|line| *line != "*filter").take_while(|line| *line != "COMMIT").collect();
    IPTABLES_CHAINS
        .into_iter()
        .filter_map(|chain| {
            let drops = |line: &&str| {
                line.starts_with(&format!(":{chain} DROP"))
                    || **line == format!("-A {chain} -j DROP")
                    || line.starts_with(&format!("-A {chain} -j REJECT"))
            };
            filter.iter().find(|line| drops(line))?;
            let inward = chain == "INPUT";
            let lost = lost(&ours, |at| filter.iter().any(|line| line_opens(line, at, inward)));
            if lost.is_empty() {
                return None;
            }
            let what = format!(
                "chain {chain} of {program} drops what it does not know, and no rule lets untracked packets of {} through",
                listed(&lost)
            );
            Some(Finding::warning(CHECK, what, WHY, iptables(program, "filter", chain, inward, &lost)))
        })
        .collect()
}

fn line_opens(line: &str, at: SocketAddr, inward: bool) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let behind = |option: &str| {
        words.iter().position(|word| *word == option).and_then(|at| words.get(at + 1)).copied()
    };
    let (direction, port) = if inward { ("-d", "--dport") } else { ("-s", "--sport") };
    let address = behind(direction).map(|text| text.split('/').next() == Some(&at.ip().to_string()));
    let port = behind(port).map(|text| text == at.port().to_string());
    let state =
        behind("--ctstate").or_else(|| behind("--state")).is_none_or(|states| states.contains("UNTRACKED"));
    let elsewhere = behind("-i").is_some()
        || behind("-o").is_some()
        || behind(if inward { "-s" } else { "-d" }).is_some();
    let place = match (address, port) {
        (Some(false), _) | (_, Some(false)) | (None, None) => false,
        (Some(true), _) => true,
        (None, Some(true)) => !elsewhere,
    };
    behind("-j") == Some("ACCEPT") && place && state
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;

    fn rule(expressions: &[&str], states: Option<u32>, address: Option<&str>, ports: &[u16]) -> RuleSeen {
        RuleSeen {
            expressions: expressions.iter().map(|name| (*name).to_owned()).collect(),
            states,
            addresses: address.into_iter().map(|text| text.parse().unwrap()).collect(),
            ports: ports.to_vec(),
            ..RuleSeen::default()
        }
    }

    fn judged(drops: bool, rules: Vec<RuleSeen>) -> Vec<Finding> {
        let base = Some(Base { kind: "filter".into(), hook: 1, priority: 0, drops });
        let chains = vec![ChainSeen { name: "input".into(), base, rules }];
        let table =
            TableSeen { family: Family::Inet, name: "firewall".into(), owner: None, chains, left_out: 0 };
        judge(&table, &["169.254.20.10:53".parse().unwrap()])
    }

    #[test]
    fn a_chain_that_drops_is_named_unless_a_rule_lets_us_in() {
        let lo = rule(&["meta", "cmp", "accept"], None, Some("6c6f::"), &[]);
        let established = rule(&["ct", "bitwise", "cmp", "accept"], Some(6), Some("0.0.0.0"), &[]);
        let new_dns = rule(&["cmp", "ct", "bitwise", "cmp", "accept"], Some(8), Some("0.0.0.0"), &[53]);
        let found = judged(true, vec![lo.clone(), established, new_dns]);
        assert_eq!((found.len(), found[0].level), (1, Level::Warning));
        let command = "nft 'insert rule inet firewall input ip daddr 169.254.20.10 meta l4proto { udp, tcp } th dport \
                       53 ct state untracked accept'";
        assert_eq!(found[0].mend.lines().next(), Some(command));
        assert!(found[0].mend.contains("accept_untracked"));
        for opened in [
            rule(&["cmp", "accept"], None, None, &[53]),
            rule(&["cmp", "accept"], None, Some("169.254.20.10"), &[]),
            rule(&["cmp", "conntrack", "ACCEPT"], Some(0), Some("169.254.20.10"), &[53]),
        ] {
            assert_eq!(judged(true, vec![lo.clone(), opened]), []);
        }
        let in_a_set = rule(&["cmp", "ct", "lookup", "accept"], Some(0), None, &[53]);
        assert_eq!(judged(true, vec![in_a_set])[0].level, Level::Unknown);
        assert_eq!(judged(false, vec![lo.clone()]), [], "what no rule decides about is accepted");
        assert_eq!(judged(false, vec![lo, rule(&["counter", "drop"], None, None, &[])]).len(), 1);
    }

    #[test]
    fn a_chain_is_no_command_whatever_it_is_called() {
        let base = Some(Base { kind: "filter".into(), hook: 1, priority: 0, drops: true });
        let chains = vec![ChainSeen { name: "a'; id; '".into(), base, rules: vec![] }];
        let table = TableSeen { family: Family::Inet, name: "x".into(), owner: None, chains, left_out: 0 };
        let found = judge(&table, &["169.254.20.10:53".parse().unwrap()]);
        let lines: Vec<&str> = found[0].mend.lines().collect();
        assert!(
            lines.iter().all(|line| line.starts_with('#') || *line == "nft -a list ruleset"),
            "{lines:?}"
        );
    }

    #[test]
    fn a_rule_against_untracked_packets_is_a_problem() {
        let against = rule(&["ct", "bitwise", "cmp", "drop"], Some(1 | 1 << 6), Some("0.0.0.0"), &[]);
        let found = judged(false, vec![against.clone()]);
        assert_eq!((found.len(), found[0].level), (1, Level::Problem));
        let invalid = rule(&["ct", "bitwise", "cmp", "drop"], Some(1), Some("0.0.0.0"), &[]);
        assert_eq!(judged(false, vec![invalid]), [], "what is not tracked is not invalid");
        let before = rule(&["cmp", "accept"], None, Some("169.254.20.10"), &[53]);
        assert_eq!(judged(false, vec![before, against]), []);
    }

    #[test]
    fn iptables_legacy_is_read_by_its_words() {
        let at: SocketAddr = "169.254.20.10:53".parse().unwrap();
        let text = |rules: &str| {
            format!("*raw\n:INPUT DROP [0:0]\nCOMMIT\n*filter\n:INPUT DROP [0:0]\n{rules}\nCOMMIT\n")
        };
        let of = |rules: &str| legacy("iptables-legacy", &text(rules), &[at]);
        let new = "-A INPUT -i pod+ -p udp -m udp --dport 53 -m conntrack --ctstate NEW -j ACCEPT";
        let found = of(new);
        assert_eq!((found.len(), found[0].level), (1, Level::Warning));
        let command = "iptables-legacy -w -t filter -I INPUT -d 169.254.20.10 -p udp --dport 53 -m conntrack --ctstate \
                       UNTRACKED -j ACCEPT";
        assert_eq!(found[0].mend.lines().next(), Some(command));
        let own = "-A INPUT -d 169.254.20.10/32 -p udp -m udp --dport 53 -m conntrack --ctstate UNTRACKED -j ACCEPT";
        assert_eq!(of(own), []);
        assert_eq!(of("-A INPUT -p udp -m udp --dport 53 -j ACCEPT"), []);
        assert_eq!(of("-A INPUT -d 10.0.0.1/32 -p udp -m udp --dport 53 -j ACCEPT").len(), 1);
        assert_eq!(legacy("ip6tables-legacy", &text(""), &[at]), [], "of the other family");
        assert_eq!(legacy("iptables-legacy", "", &[at]), []);
    }
}
