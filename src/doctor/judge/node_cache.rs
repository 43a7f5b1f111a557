//! What NodeLocal DNSCache has left: rules, its link. What it still uses, while it runs, is not called left.

use std::net::IpAddr;

use super::port::sees_all;
use crate::doctor::Patient;
use crate::doctor::finding::{Finding, Seen, Unseen};
use crate::doctor::look::iptables::{self, Saved};
use crate::doctor::look::processes::{Origin, Process, named};
use crate::node::netfilter::{Family, TableSeen};

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
    address_on: Option<&'a str>,
    /// Addresses that the agent listens at.
    listen: &'a [IpAddr],
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
        address_on: config.network.address_on.as_deref(),
        listen: &config.listen.iter().map(std::net::SocketAddr::ip).collect::<Vec<_>>(),
    })
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
        mend.push("kubectl -n kube-system delete daemonset node-local-dns".to_owned());
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
            Ok(text) => findings.extend(left(program, &commands(program, text))),
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
            let commands = tables.iter().filter(|table| !listed(table.family)).flat_map(by_handle);
            findings.extend(left("nftables", &commands.collect::<Vec<_>>()));
        }
    }
    findings
}

fn left(of: &str, commands: &[String]) -> Option<Finding> {
    if commands.is_empty() {
        return None;
    }
    let count = match commands.len() {
        1 => "a rule".to_owned(),
        several => format!("{several} rules"),
    };
    Some(Finding::warning(
        CHECK,
        format!("NodeLocal DNSCache has left {count} of {of}"),
        "They spare its address connection tracking, and let it through firewalls, whoever has the address now.",
        commands.join("\n"),
    ))
}

/// Rules as its saving program prints them, to be deleted.
fn commands(program: &str, text: &str) -> Vec<String> {
    let mut table = "";
    let mut commands = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(rule) = line.strip_prefix("-A ").filter(|rule| rule.contains(COMMENT)) {
            commands.push(format!("{program} -w -t {table} -D {rule}"));
        }
    }
    commands
}

/// The same where iptables' program is missing.
fn by_handle(table: &TableSeen) -> Vec<String> {
    let rules = table.chains.iter().flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)));
    let ours = rules.filter(|(_, rule)| rule.comment.as_ref().is_some_and(|text| text.starts_with(COMMENT)));
    ours.map(|(chain, rule)| {
        format!(
            "nft delete rule {} {} {} handle {}",
            table.family.name(),
            table.name,
            chain.name,
            rule.handle
        )
    })
    .collect()
}

fn link(facts: &Facts<'_>) -> Option<Finding> {
    let addresses = facts.link?;
    if facts.address_on == Some(LINK) {
        return None;
    }
    let used: Vec<&(IpAddr, u8)> =
        addresses.iter().filter(|(address, _)| facts.listen.contains(address)).collect();
    let listed = addresses.iter().map(|(ip, bits)| format!("{ip}/{bits}")).collect::<Vec<_>>().join(", ");
    let with = if listed.is_empty() { String::new() } else { format!(" with {listed}") };
    let delete = format!("ip link del {LINK}");
    if used.is_empty() {
        return Some(Finding::warning(
            CHECK,
            format!("NodeLocal DNSCache has left its link {LINK}{with}"),
            "Queries to its addresses end on this node, and nobody answers them.",
            delete,
        ));
    }
    let again = used.iter().map(|(ip, bits)| {
        let scope = if ip.is_ipv4() { "scope host" } else { "nodad" };
        format!("ip address add {ip}/{bits} dev lo {scope}")
    });
    Some(Finding::warning(
        CHECK,
        format!(
            "NodeLocal DNSCache has left its link {LINK}{with}, which the agent uses and does not look after"
        ),
        "Who cleans up after it takes the agent's address away.",
        format!(
            "{delete}\n{}\n# or adopt it: network: {{ address_on: {LINK} }}",
            again.collect::<Vec<_>>().join("\n")
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;
    use crate::node::netfilter::{ChainSeen, RuleSeen};

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
            address_on: None,
            listen: &[],
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
             \"NodeLocal DNS Cache: skip conntrack\" -j NOTRACK"
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
        let of = |address_on, listen| {
            judge(&Facts { link: Some(&addresses), address_on, listen, ..facts(&nobody, &[], &none) })
        };
        assert_eq!(of(Some(LINK), &ours)[0].level, Level::Ok);
        let left = of(None, &[]);
        assert_eq!((left[0].level, left[0].mend.as_str()), (Level::Warning, "ip link del nodelocaldns"));
        let used = of(None, &ours);
        assert!(
            used[0]
                .mend
                .starts_with("ip link del nodelocaldns\nip address add 169.254.20.10/32 dev lo scope host\n")
        );
    }
}
