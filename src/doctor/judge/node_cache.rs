//! What NodeLocal DNSCache has left: rules, its link. What it still uses, while it runs, is not called left.

use std::net::IpAddr;

use super::hold;
use super::port::sees_all;
use crate::doctor::Patient;
use crate::doctor::finding::{Finding, Seen, Unseen};
use crate::doctor::look::iptables::{self, Saved};
use crate::doctor::look::processes::{Origin, Process, named};
use crate::doctor::words::{nft, quoted, saved_lines};
use crate::node::link::LOOPBACK;
use crate::node::netfilter::{Family, RuleSeen, TableSeen};

const CHECK: &str = "node-cache";
/// Its program, as proc(5) has it.
const PROGRAM: &str = "node-cache";
/// Its link (`-interfacename`).
const LINK: &str = "nodelocaldns";
/// Its rules have comments that begin like this (kubernetes/dns, cmd/node-cache/app/cache_app.go).
const COMMENT: &str = "NodeLocal DNS Cache:";
/// What it listens at beside port 53: health, and metrics of its own and of CoreDNS.
const PORTS: [u16; 3] = [8080, 9253, 9353];

/// What is there.
#[derive(Debug)]
struct Facts<'a> {
    running: &'a Seen<Vec<Process>>,
    /// All processes can be seen.
    sees_all: bool,
    /// Where its processes listen, beside port 53.
    ports: &'a [String],
    saved: &'a [Saved],
    tables: &'a Seen<Vec<TableSeen>>,
    /// Its link is there, with these addresses.
    link: Option<&'a [(IpAddr, u8)]>,
    /// Somebody else than an agent listens at one of these.
    link_is_used: bool,
    /// The names of all links.
    links: &'a [String],
    address_on: Option<&'a str>,
    /// An agent is there, which puts addresses back.
    agent: bool,
    /// Addresses that the agent listens at.
    listen: &'a [IpAddr],
    /// And those that it answers for without having them.
    intercept: &'a [IpAddr],
    notrack: bool,
}

/// Looks, and judges.
pub fn check(patient: &Patient) -> Vec<Finding> {
    let Patient { sources, node, config, .. } = patient;
    let running = named(sources, PROGRAM);
    let tables = node.tables.as_ref().map_or(&[][..], Vec::as_slice);
    let mut saved = node.legacy.clone();
    for (family, program) in [(Family::Ip, "iptables-nft"), (Family::Ip6, "ip6tables-nft")] {
        if tables.iter().any(|table| table.family == family && count(table) > 0) {
            saved.push(Saved { program, rules: iptables::save(program) });
        }
    }
    let holders = node.holders.as_deref().unwrap_or_default();
    let on_link = holders.iter().filter(|holder| holder.link == LINK);
    let addresses: Vec<(IpAddr, u8)> = on_link.map(|holder| (holder.address, holder.prefix)).collect();
    let is_there = node.links.as_ref().is_ok_and(|links| links.iter().any(|link| link == LINK));
    judge(&Facts {
        running: &running,
        sees_all: sees_all(&node.sockets, &node.owners),
        ports: &ports(patient),
        saved: &saved,
        tables: &node.tables,
        link: is_there.then_some(&addresses[..]),
        link_is_used: addresses.iter().any(|(address, _)| is_anothers(patient, *address)),
        links: node.links.as_deref().unwrap_or_default(),
        address_on: config.network.address_on.as_deref(),
        agent: !patient.agent.is_absent(),
        listen: &config.listen.iter().map(std::net::SocketAddr::ip).collect::<Vec<_>>(),
        intercept: &config.network.intercept,
        notrack: config.network.notrack,
    })
}

/// Whether somebody listens at this very address who is not the agent that is examined.
fn is_anothers(patient: &Patient, address: IpAddr) -> bool {
    let (Ok(sockets), Ok(owners)) = (&patient.node.sockets, &patient.node.owners) else { return false };
    let agent = patient.agent.pid;
    let is_the_agents = |inode| {
        owners.of.get(inode).is_some_and(|owners| owners.iter().all(|process| Some(process.pid) == agent))
    };
    sockets.iter().any(|socket| socket.addr.ip() == address && !is_the_agents(&socket.inode))
}

/// Where its processes listen.
fn ports(patient: &Patient) -> Vec<String> {
    let (Ok(sockets), Ok(owners)) = (&patient.node.sockets, &patient.node.owners) else { return Vec::new() };
    let is_its = |inode| {
        let owners = owners.of.get(inode);
        owners.is_some_and(|owners| owners.iter().any(|process| process.name == PROGRAM))
    };
    let its = sockets.iter().filter(|socket| PORTS.contains(&socket.addr.port()) && is_its(&socket.inode));
    its.map(|socket| socket.addr.to_string()).collect()
}

fn judge(facts: &Facts<'_>) -> Vec<Finding> {
    let running = match facts.running {
        Ok(running) => running,
        Err(unseen) => return vec![Finding::unknown(CHECK, "whether it runs could not be seen", unseen)],
    };
    if !running.is_empty() {
        return vec![runs(running, facts.ports)];
    }
    let mut findings = rules(facts);
    findings.extend(link(facts));
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "nothing of NodeLocal DNSCache is seen"));
    } else if !facts.sees_all {
        let why = Unseen::new(
            "Not all processes can be seen: if it runs, what is called left here is in use.",
            "# look on the node first: pgrep -a node-cache",
        );
        findings.insert(0, Finding::unknown(CHECK, "whether NodeLocal DNSCache still runs", &why));
    }
    findings
}

fn runs(running: &[Process], ports: &[String]) -> Finding {
    let names = running.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let ports =
        if ports.is_empty() { String::new() } else { format!(", and listens at {}", ports.join(", ")) };
    let mut mend: Vec<String> = running.iter().map(Process::stop).collect();
    mend.dedup();
    if running.iter().any(|process| process.origin == Origin::Pod) {
        // It is on all nodes, and pods of the others ask it.
        mend.push(
            "# once every node has the agent: kubectl -n kube-system delete daemonset node-local-dns"
                .to_owned(),
        );
    }
    mend.push(
        "# once pods are answered by the agent; then examine again, for what it leaves behind".to_owned(),
    );
    Finding::warning(
        CHECK,
        format!("NodeLocal DNSCache still runs: {names}{ports}"),
        "Both have rules and sockets for the same addresses; it answers a part of the queries while it does.",
        mend.join("\n"),
    )
}

/// Its rules in a table.
fn count(table: &TableSeen) -> usize {
    let rules = table.chains.iter().flat_map(|chain| &chain.rules);
    rules.filter(|rule| rule.comment.as_ref().is_some_and(|text| text.starts_with(COMMENT))).count()
}

fn rules(facts: &Facts<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Saved { program, rules } in facts.saved {
        let nft = program.ends_with("-nft");
        match rules {
            Ok(text) => findings.extend(left(program, &saved(facts, program, text))),
            // The kernel knows them by number as well.
            Err(_) if nft => {}
            Err(unseen) => findings.push(Finding::unknown(CHECK, format!("rules of {program}"), unseen)),
        }
    }
    match facts.tables {
        Err(unseen) => findings.push(Finding::unknown(CHECK, "rules of iptables-nft", unseen)),
        Ok(tables) => {
            let listed = |family| {
                let program = if family == Family::Ip6 { "ip6tables-nft" } else { "iptables-nft" };
                facts.saved.iter().any(|saved| saved.program == program && saved.rules.is_ok())
            };
            let mut all = Left::default();
            for table in tables.iter().filter(|table| !listed(table.family)) {
                by_handle(facts, tables, table, &mut all);
            }
            findings.extend(left("nftables", &all));
        }
    }
    findings
}

/// Rules that it has left.
#[derive(Debug, Default)]
struct Left {
    /// What deletes each.
    commands: Vec<String>,
    /// Those that let the agent's clients through a firewall, which stay.
    needed: usize,
}

fn left(of: &str, left: &Left) -> Vec<Finding> {
    let count = |count| match count {
        1 => "a rule".to_owned(),
        several => format!("{several} rules"),
    };
    let mut findings = Vec::new();
    if left.needed > 0 {
        let what = format!(
            "{} of NodeLocal DNSCache in {of} let queries to the agent through chains that drop others, and should stay",
            count(left.needed)
        );
        findings.push(Finding::ok(CHECK, what));
    }
    if !left.commands.is_empty() {
        findings.push(Finding::warning(
            CHECK,
            format!("NodeLocal DNSCache has left {} of {of}", count(left.commands.len())),
            "They spare its address connection tracking, and let it through firewalls, whoever has the address now.",
            left.commands.join("\n"),
        ));
    }
    findings
}

/// Rules as its saving program prints them, to be deleted.
fn saved(facts: &Facts<'_>, program: &str, text: &str) -> Left {
    let lines = saved_lines(text);
    let mut left = Left::default();
    for (table, rule) in rules_of(&lines) {
        if !rule.iter().any(|word| word.starts_with(COMMENT)) {
            continue;
        }
        if is_needed(facts, &lines, table, rule) {
            left.needed += 1;
        } else if rule.iter().any(|word| word.contains(char::is_control)) {
            left.commands
                .push(format!("{program} -w -t {} -S   # one has a line's end in it", quoted(table)));
        } else {
            let rule = rule.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
            left.commands.push(format!("{program} -w -t {} -D {rule}", quoted(table)));
        }
    }
    left
}

/// Each rule with its table, and without the `-A` in front.
fn rules_of(lines: &[Vec<String>]) -> impl Iterator<Item = (&str, &[String])> {
    let mut table = "";
    lines.iter().filter_map(move |words| {
        if let Some(name) = words[0].strip_prefix('*') {
            table = name;
        }
        (words[0] == "-A" && words.len() > 1).then_some((table, &words[1..]))
    })
}

/// The word behind an option.
fn behind<'a>(rule: &'a [String], option: &str) -> Option<&'a str> {
    let at = rule.iter().position(|word| word == option)?;
    rule.get(at + 1).map(String::as_str)
}

/// Whether a rule is what lets the agent's queries through where others are dropped.
fn is_needed(facts: &Facts<'_>, lines: &[Vec<String>], table: &str, rule: &[String]) -> bool {
    let address = behind(rule, "-d").or_else(|| behind(rule, "-s"));
    let address = address.and_then(|text| text.split('/').next()?.parse::<IpAddr>().ok());
    let Some(address) = address else { return false };
    match behind(rule, "-j") {
        Some("ACCEPT") => is_the_agents(facts, address) && drops(lines, table, &rule[0]),
        // Without it they are tracked, and a rule for untracked ones does not let them in.
        Some("NOTRACK" | "CT") => {
            !facts.notrack
                && facts.listen.contains(&address)
                && ["INPUT", "OUTPUT"].iter().any(|chain| drops(lines, "filter", chain))
        }
        _ => false,
    }
}

fn is_the_agents(facts: &Facts<'_>, address: IpAddr) -> bool {
    facts.listen.contains(&address) || facts.intercept.contains(&address)
}

/// Whether packets can be dropped in a chain, or in one that it may lead to.
fn drops(lines: &[Vec<String>], table: &str, chain: &str) -> bool {
    let section = lines.iter().skip_while(|words| words[0] != format!("*{table}"));
    let policy = section
        .take_while(|words| words[0] != "COMMIT")
        .any(|words| words[0] == format!(":{chain}") && words.get(1).is_some_and(|policy| policy == "DROP"));
    policy
        || rules_of(lines).any(|(of, rule)| {
            of == table
                && (rule[0] == chain || may_be_led_to(&rule[0]))
                && matches!(behind(rule, "-j"), Some("DROP" | "REJECT"))
        })
}

/// Chains of somebody's own, but for kube-proxy's and the kubelet's, which drop no DNS.
fn may_be_led_to(chain: &str) -> bool {
    !["INPUT", "OUTPUT", "FORWARD", "PREROUTING", "POSTROUTING"].contains(&chain)
        && !chain.starts_with("KUBE-")
}

/// The same where iptables' program is missing.
fn by_handle(facts: &Facts<'_>, tables: &[TableSeen], table: &TableSeen, left: &mut Left) {
    let drops = |table: &TableSeen, name: &str| {
        table.chains.iter().filter(|chain| chain.name == name || may_be_led_to(&chain.name)).any(|chain| {
            chain.base.as_ref().is_some_and(|base| base.drops) || chain.rules.iter().any(RuleSeen::drops)
        })
    };
    let rules = table.chains.iter().flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)));
    let its = rules.filter(|(_, rule)| rule.comment.as_ref().is_some_and(|text| text.starts_with(COMMENT)));
    for (chain, rule) in its {
        let ours = rule.addresses.iter().any(|address| is_the_agents(facts, *address));
        let accepts = rule.has("ACCEPT") || rule.has("accept");
        let needed = match accepts {
            true => drops(table, &chain.name),
            false => {
                !facts.notrack && tables.iter().any(|table| drops(table, "INPUT") || drops(table, "OUTPUT"))
            }
        };
        if ours && needed {
            left.needed += 1;
            continue;
        }
        let names = [table.name.as_str(), chain.name.as_str()];
        left.commands.push(nft(&names, || {
            let family = table.family.name();
            format!("nft delete rule {family} {} {} handle {}", names[0], names[1], rule.handle)
        }));
    }
}

fn link(facts: &Facts<'_>) -> Option<Finding> {
    let addresses = facts.link?;
    if facts.address_on == Some(LINK) {
        return None;
    }
    let used: Vec<IpAddr> =
        addresses.iter().map(|(address, _)| *address).filter(|ip| facts.listen.contains(ip)).collect();
    let listed = addresses.iter().map(|(ip, bits)| format!("{ip}/{bits}")).collect::<Vec<_>>().join(", ");
    let with = if listed.is_empty() { String::new() } else { format!(" with {listed}") };
    let delete = format!("ip link del {LINK}");
    if facts.link_is_used {
        return Some(Finding::warning(
            CHECK,
            format!("NodeLocal DNSCache has left its link {LINK}{with}, where somebody else listens"),
            "Who cleans up after it takes these addresses away.",
            format!("ss -tulnp\nip address show dev {LINK}\n# once nobody needs these addresses: {delete}"),
        ));
    }
    if used.is_empty() {
        return Some(Finding::warning(
            CHECK,
            format!("NodeLocal DNSCache has left its link {LINK}{with}"),
            "Queries to its addresses end on this node, and nobody answers them.",
            delete,
        ));
    }
    let (uses, mend) = match facts.address_on {
        None => ("uses and does not look after", moved(&used, LOOPBACK, &delete)),
        Some(on) if facts.links.iter().any(|link| link == on) => ("uses", moved(&used, on, &delete)),
        Some(on) if facts.agent => {
            ("uses", format!("{delete}\n# within a second the agent holds them on {}", quoted(on)))
        }
        Some(on) => {
            ("will use", format!("{delete}\n# when the agent starts it holds them on {}", quoted(on)))
        }
    };
    Some(Finding::warning(
        CHECK,
        format!("NodeLocal DNSCache has left its link {LINK}{with}, which the agent {uses}"),
        "Who cleans up after it takes the agent's address away.",
        format!("{mend}\n# or adopt it: network: {{ address_on: {LINK} }}"),
    ))
}

/// Another link has the addresses before this one goes, so that no query is lost.
fn moved(addresses: &[IpAddr], to: &str, delete: &str) -> String {
    let first = addresses.iter().map(|&address| hold(address, to));
    first.chain([delete.to_owned()]).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;
    use crate::node::netfilter::{Base, ChainSeen};

    const SAVED: &str = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment \
                         --comment \"NodeLocal DNS Cache: skip conntrack\" -j NOTRACK\n-A PREROUTING -j OTHER\nCOMMIT\n\
                         *filter\n-A INPUT -d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment \"NodeLocal \
                         DNS Cache: allow DNS traffic\" -j ACCEPT\nCOMMIT\n";

    fn facts<'a>(
        running: &'a Seen<Vec<Process>>,
        saved: &'a [Saved],
        tables: &'a Seen<Vec<TableSeen>>,
    ) -> Facts<'a> {
        Facts {
            running,
            sees_all: true,
            ports: &[],
            saved,
            tables,
            link: None,
            link_is_used: false,
            links: &[],
            address_on: None,
            agent: true,
            listen: &[],
            intercept: &[],
            notrack: true,
        }
    }

    fn legacy() -> Saved {
        Saved { program: "iptables-legacy", rules: Ok(SAVED.to_owned()) }
    }

    #[test]
    fn rules_are_deleted_in_the_words_in_which_they_are_listed() {
        let (nobody, none) = (Ok(vec![]), Ok(vec![]));
        let found = judge(&facts(&nobody, &[legacy()], &none));
        assert_eq!((found.len(), found[0].level), (1, Level::Warning));
        let commands: Vec<&str> = found[0].mend.lines().collect();
        assert_eq!(
            commands[0],
            "iptables-legacy -w -t raw -D PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -m comment --comment \
             'NodeLocal DNS Cache: skip conntrack' -j NOTRACK"
        );
        assert!(commands[1].starts_with("iptables-legacy -w -t filter -D INPUT ") && commands.len() == 2);
        assert_eq!(judge(&facts(&nobody, &[], &none))[0].level, Level::Ok);
        let unseen = Saved { program: "iptables-legacy", rules: Err(Unseen::new("no program", "")) };
        assert_eq!(judge(&facts(&nobody, &[unseen], &none))[0].level, Level::Unknown);
    }

    #[test]
    fn without_iptables_program_rules_go_by_their_number() {
        let comment = Some("NodeLocal DNS Cache: skip conntrack".to_owned());
        let rules = vec![RuleSeen { handle: 9, comment, ..RuleSeen::default() }, RuleSeen::default()];
        let chains = vec![ChainSeen { name: "PREROUTING".into(), base: None, rules }];
        let table = TableSeen { family: Family::Ip, name: "raw".into(), owner: None, chains, left_out: 0 };
        let (nobody, tables) = (Ok(vec![]), Ok(vec![table]));
        let saved = [Saved { program: "iptables-nft", rules: Err(Unseen::new("no program", "")) }];
        let found = judge(&facts(&nobody, &saved, &tables));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].mend, "nft delete rule ip raw PREROUTING handle 9");
    }

    #[test]
    fn what_it_still_uses_is_not_left() {
        let process = Process { pid: 8, name: PROGRAM.to_owned(), origin: Origin::Pod };
        let (running, none) = (Ok(vec![process]), Ok(vec![]));
        let saved = [legacy()];
        let ports = ["169.254.20.10:8080".to_owned()];
        let found = judge(&Facts { ports: &ports, link: Some(&[]), ..facts(&running, &saved, &none) });
        assert_eq!((found.len(), found[0].level), (1, Level::Warning));
        assert!(found[0].what.contains("still runs: node-cache (pid 8), and listens at 169.254.20.10:8080"));
        assert!(found[0].mend.contains("kubectl -n kube-system delete daemonset node-local-dns"));
        let nobody = Ok(vec![]);
        let blind = judge(&Facts { sees_all: false, ..facts(&nobody, &saved, &none) });
        assert_eq!((blind.len(), blind[0].level), (2, Level::Unknown));
    }

    #[test]
    fn its_link_is_left_unless_it_is_ours() {
        let (nobody, none) = (Ok(vec![]), Ok(vec![]));
        let ip: IpAddr = "169.254.20.10".parse().unwrap();
        let addresses = [(ip, 32)];
        let ours = [ip];
        let links = ["lo".to_owned(), "eth7".to_owned()];
        let is = |link_is_used, agent, address_on, listen| {
            let basis = facts(&nobody, &[], &none);
            judge(&Facts {
                link: Some(&addresses),
                links: &links,
                address_on,
                listen,
                agent,
                link_is_used,
                ..basis
            })
        };
        let of = |address_on, listen| is(false, true, address_on, listen);
        assert_eq!(of(Some(LINK), &ours)[0].level, Level::Ok);
        let left = of(None, &[]);
        assert_eq!((left[0].level, left[0].mend.as_str()), (Level::Warning, "ip link del nodelocaldns"));
        let used = of(None, &ours);
        assert!(used[0].what.ends_with("the agent uses and does not look after"), "{used:#?}");
        let commands =
            "ip address add 169.254.20.10/32 dev lo scope host\nip link del nodelocaldns\n# or adopt";
        assert!(used[0].mend.starts_with(commands), "{used:#?}");
        let anothers = is(true, true, None, &[]);
        assert!(anothers[0].mend.lines().all(|line| line.starts_with("ss ")
            || line.starts_with("ip address show ")
            || line.starts_with('#')));
        // Held on a link of the configuration, it comes to be there and nowhere else.
        let moved = of(Some("eth7"), &ours);
        assert!(moved[0].what.ends_with("which the agent uses"), "{moved:#?}");
        assert!(
            moved[0].mend.starts_with("ip address add 169.254.20.10/32 dev eth7 scope host\nip link del")
        );
        let made = of(Some("dns0"), &ours);
        assert!(made[0].mend.starts_with("ip link del nodelocaldns\n# within a second"), "{made:#?}");
        let later = is(false, false, Some("dns0"), &ours);
        assert!(later[0].mend.starts_with("ip link del nodelocaldns\n# when the agent starts"), "{later:#?}");
    }

    #[test]
    fn rules_that_let_the_agents_queries_in_stay() {
        let (nobody, none) = (Ok(vec![]), Ok(vec![]));
        let ours: [IpAddr; 1] = ["169.254.20.10".parse().unwrap()];
        let with = |filter: &str, listen: &[IpAddr], notrack| {
            let text = SAVED.replace("*filter\n", &format!("*filter\n{filter}"));
            let saved = [Saved { program: "iptables-legacy", rules: Ok(text) }];
            let found = judge(&Facts { listen, notrack, ..facts(&nobody, &saved, &none) });
            let lines = |found: &Finding| found.mend.lines().count();
            found.iter().map(|found| (found.level, lines(found))).collect::<Vec<_>>()
        };
        let both = [(Level::Warning, 2)];
        let kept = [(Level::Ok, 0), (Level::Warning, 1)];
        assert_eq!(with(":INPUT ACCEPT [0:0]\n", &ours, true), both, "nothing is dropped");
        assert_eq!(with(":INPUT DROP [0:0]\n", &ours, true), kept);
        assert_eq!(with(":INPUT DROP [0:0]\n", &[], true), both, "of an address that is not ours");
        assert_eq!(with(":INPUT DROP [0:0]\n", &ours, false), [(Level::Ok, 0)], "as untracked ones");
        assert_eq!(with("-A INPUT -p udp -j REJECT\n", &ours, true), kept);
        assert_eq!(with("-A mine -j DROP\n", &ours, true), kept);
        assert_eq!(with("-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP\n", &ours, true), both);
        let base = |drops| Some(Base { kind: "filter".into(), hook: 1, priority: 0, drops });
        let by_number = |drops| {
            let comment = Some("NodeLocal DNS Cache: allow DNS traffic".to_owned());
            let expressions = vec!["ACCEPT".to_owned()];
            let rule =
                RuleSeen { handle: 9, comment, addresses: ours.into(), expressions, ..RuleSeen::default() };
            let chains = vec![ChainSeen { name: "INPUT".into(), base: base(drops), rules: vec![rule] }];
            let table =
                TableSeen { family: Family::Ip, name: "filter".into(), owner: None, chains, left_out: 0 };
            judge(&Facts { listen: &ours, ..facts(&nobody, &[], &Ok(vec![table])) })[0].level
        };
        assert_eq!([by_number(true), by_number(false)], [Level::Ok, Level::Warning]);
    }

    #[test]
    fn a_comment_is_no_command() {
        let (nobody, none) = (Ok(vec![]), Ok(vec![]));
        let rule = |comment: &str| {
            format!("-A INPUT -m comment --comment \"NodeLocal DNS Cache: {comment}\" -j ACCEPT\n")
        };
        let text = format!("*filter\n{}{}COMMIT\n", rule("$(id)`id`\\\""), rule("a\nreboot"));
        let saved = [Saved { program: "iptables-legacy", rules: Ok(text) }];
        let found = judge(&facts(&nobody, &saved, &none));
        let lines: Vec<&str> = found[0].mend.lines().collect();
        let first = r#"--comment 'NodeLocal DNS Cache: $(id)`id`"' -j"#;
        assert!(lines.len() == 2 && lines[0].contains(first), "{lines:#?}");
        assert!(lines[1].starts_with("iptables-legacy -w -t filter -S "), "{lines:#?}");
        let chains = vec![ChainSeen {
            name: "a;flush ruleset".into(),
            base: None,
            rules: vec![RuleSeen { comment: Some(COMMENT.to_owned()), ..RuleSeen::default() }],
        }];
        let table = TableSeen { family: Family::Ip, name: "raw".into(), owner: None, chains, left_out: 0 };
        let found = judge(&facts(&nobody, &[], &Ok(vec![table])));
        assert!(found[0].mend.starts_with("# ") && found[0].mend.ends_with("\nnft -a list ruleset"));
    }
}
