//! The agent's rules in nftables: there, counting, and none left by an agent that has gone.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::{START, opened};
use crate::doctor::Patient;
use crate::doctor::finding::{Finding, Unseen};
use crate::doctor::look::agent::Agent;
use crate::doctor::look::answers::Answer;
use crate::doctor::words::nft;
use crate::node::netfilter::{ChainSeen, Family, RAW, RuleSeen, TableSeen};

const CHECK: &str = "rules";
/// A table's name begins like this; the number of its netlink socket comes next.
const PREFIX: &str = "nodens-";
/// Chains of one purpose begin like this (node/rules.rs).
const LISTEN: &str = "listen_";
const INTERCEPT: &str = "intercept_";
const UPSTREAM: &str = "upstream_";

/// What is there, and what is wanted.
#[derive(Debug)]
struct Facts<'a> {
    agent: &'a Agent,
    /// Listen addresses that `network.notrack` is about.
    listen: &'a [SocketAddr],
    cluster_ips: &'a [SocketAddr],
    upstream: bool,
    before: &'a [TableSeen],
    now: &'a [TableSeen],
    /// Netlink sockets of netfilter.
    alive: &'a BTreeSet<u32>,
    answers: &'a [Answer],
}

/// Looks, and judges.
pub fn check(patient: &Patient) -> Vec<Finding> {
    let Patient { agent, node, config, .. } = patient;
    let (before, now, alive) = match (&node.before, &node.tables, &node.netlink) {
        (Ok(before), Ok(now), Ok(alive)) => (before, now, alive),
        (Err(unseen), ..) | (_, Err(unseen), _) | (.., Err(unseen)) => {
            return vec![Finding::unknown(CHECK, "rules could not be listed", unseen)];
        }
    };
    let network = &config.network;
    let listen = if network.notrack { &config.listen[..] } else { &[] };
    let cluster_ips = patient.cluster_ips();
    let upstream = network.upstream_notrack;
    let answers = &node.answers;
    let facts = Facts { agent, listen, cluster_ips: &cluster_ips, upstream, before, now, alive, answers };
    let mut findings = judge(&facts);
    findings.extend(opened::check(patient, now));
    findings
}

fn judge(facts: &Facts<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        facts.now.iter().filter_map(|table| orphan(table, facts.alive)).collect();
    let wanted = !facts.listen.is_empty() || !facts.cluster_ips.is_empty() || facts.upstream;
    let now = live(facts.now, facts.alive);
    if !wanted {
        findings.push(Finding::ok(CHECK, "the configuration asks for none"));
        return findings;
    }
    if now.is_empty() {
        findings.push(missing(facts.agent));
        return findings;
    }
    findings.extend(now.iter().filter(|table| table.left_out > 0).map(|table| {
        let why = Unseen::new("There are too many rules on this node.", "nft list ruleset");
        Finding::unknown(CHECK, format!("{} was read in part", table.name), &why)
    }));
    for at in facts.listen {
        findings.push(purpose(facts, &now, *at, LISTEN));
    }
    for at in facts.cluster_ips {
        findings.push(purpose(facts, &now, *at, INTERCEPT));
    }
    if facts.upstream {
        findings.push(upstream(&now));
    }
    findings
}

/// Queries to upstreams are sent when clients ask: that none has come yet says nothing.
fn upstream(now: &[&TableSeen]) -> Finding {
    let chains: Vec<&ChainSeen> = now.iter().flat_map(|table| chains(table, UPSTREAM)).collect();
    if chains.is_empty() {
        let what = "no rule spares queries to upstreams connection tracking (network.upstream_notrack)";
        return Finding::problem(CHECK, what, "Each makes an entry, as without the setting.", START);
    }
    let rules = chains.into_iter().flat_map(|chain| &chain.rules).filter(|rule| rule.has("notrack"));
    match rules.filter_map(|rule| rule.packets).sum::<u64>() {
        0 => {
            let why = Unseen::new(
                "No packet to or from a server that is dialled directly has come to them yet; those to ClusterIPs pass \
                 them by.",
                "nodens query . SOA\nnft -a list ruleset",
            );
            Finding::unknown(CHECK, "whether rules spare queries to upstreams connection tracking", &why)
        }
        packets => Finding::ok(
            CHECK,
            format!(
                "rules spare queries to upstreams connection tracking, and have counted {packets} packets"
            ),
        ),
    }
}

/// The ClusterIPs that agents lead here, whoever's configuration they are of.
pub(super) fn intercepted(tables: &[TableSeen], alive: &BTreeSet<u32>) -> BTreeSet<IpAddr> {
    let live = live(tables, alive);
    let chains = live.into_iter().flat_map(|table| chains(table, INTERCEPT));
    chains.flat_map(|chain| &chain.rules).flat_map(|rule| rule.addresses.iter().copied()).collect()
}

/// The number in the name of a table that an agent has made.
fn number(table: &TableSeen) -> Option<u32> {
    let number = table.name.strip_prefix(PREFIX)?.parse().ok()?;
    (table.family == Family::Inet).then_some(number)
}

/// Whether a table is an agent's that is there.
pub(super) fn is_ours(table: &TableSeen) -> bool {
    number(table).is_some()
}

/// Tables of agents that run.
fn live<'a>(tables: &'a [TableSeen], alive: &BTreeSet<u32>) -> Vec<&'a TableSeen> {
    let lives = |table: &&TableSeen| {
        number(table).is_some_and(|number| table.owner.is_some() || alive.contains(&number))
    };
    tables.iter().filter(lives).collect()
}

/// A table that the kernel has not taken away, of an agent that has gone.
fn orphan(table: &TableSeen, alive: &BTreeSet<u32>) -> Option<Finding> {
    let number = number(table)?;
    if table.owner.is_some() || alive.contains(&number) {
        return None;
    }
    let what = format!("table inet {} is left of an agent that has gone", table.name);
    let mend = nft(&[&table.name], || format!("nft delete table inet {}", table.name));
    Some(if chains(table, INTERCEPT).is_empty() {
        Finding::warning(CHECK, what, "Its rules are nobody's, and add to those of the agent.", mend)
    } else {
        Finding::problem(
            CHECK,
            what,
            "It leads queries to ClusterIPs here though nobody may answer them.",
            mend,
        )
    })
}

fn missing(agent: &Agent) -> Finding {
    let what = "there is no table of an agent";
    if agent.is_absent() {
        return Finding::warning(CHECK, what, "No agent runs, and its rules go with it.", START);
    }
    Finding::problem(
        CHECK,
        what,
        "Each query makes an entry in connection tracking, and ClusterIPs are not answered here.",
        START,
    )
}

fn chains<'a>(table: &'a TableSeen, purpose: &str) -> Vec<&'a ChainSeen> {
    table.chains.iter().filter(|chain| chain.name.starts_with(purpose)).collect()
}

/// The rules of one purpose about an address.
fn about<'a>(tables: &[&'a TableSeen], purpose: &str, at: IpAddr) -> Vec<(&'a ChainSeen, &'a RuleSeen)> {
    let chains = tables.iter().flat_map(|table| chains(table, purpose));
    let rules = chains.flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)));
    rules.filter(|(_, rule)| rule.addresses.contains(&at)).collect()
}

/// Packets that have come to them.
fn packets(rules: &[(&ChainSeen, &RuleSeen)]) -> u64 {
    rules.iter().filter_map(|(_, rule)| rule.packets).sum()
}

/// The chains that the rules of one purpose are in.
fn wanted_chains(purpose: &str) -> &'static [&'static str] {
    match purpose {
        LISTEN => &["listen_prerouting", "listen_output"],
        _ => &["intercept_prerouting", "intercept_output", "intercept_route"],
    }
}

fn purpose(facts: &Facts<'_>, now: &[&TableSeen], at: SocketAddr, purpose: &str) -> Finding {
    let (does, setting) = match purpose {
        LISTEN => ("spare it connection tracking", "network.notrack"),
        _ => ("lead its queries here", "network.intercept"),
    };
    let rules = about(now, purpose, at.ip());
    let has = |chain: &&&str| rules.iter().any(|(found, _)| found.name == **chain);
    let lacks: Vec<&str> = wanted_chains(purpose).iter().filter(|chain| !has(chain)).copied().collect();
    if !lacks.is_empty() && purpose == INTERCEPT && !facts.agent.is_ready() {
        let why = "They come when the agent is ready; until then the cluster's DNS answers.";
        let what = format!("{at}: no rules {does} now");
        return Finding::warning(CHECK, what, why, "# see the findings about the agent");
    }
    if !lacks.is_empty() {
        return Finding::problem(
            CHECK,
            format!("{at}: no rule in {} ({setting})", lacks.join(", ")),
            format!("Nothing is there to {does}."),
            START,
        );
    }
    let counted = packets(&rules);
    let before = packets(&about(&live(facts.before, facts.alive), purpose, at.ip()));
    let asked = || facts.answers.iter().filter(|answer| answer.addr == at);
    if counted <= before && !asked().any(|answer| answer.has_left) {
        let error = asked().find_map(|answer| answer.from.as_ref().err());
        let why = Unseen::new(
            format!("No question of ours has left: {}", error.map_or("none was asked", String::as_str)),
            format!("ip route get {}", at.ip()),
        );
        let what = format!(
            "whether {} rules to {does} act for {at}; they have counted {counted} packets",
            rules.len()
        );
        return Finding::unknown(CHECK, what, &why);
    }
    if counted > before {
        let rose = counted.saturating_sub(before);
        let what =
            format!("{at}: {} rules {does}, and count ({counted} packets, {rose} of them now)", rules.len());
        return Finding::ok(CHECK, what);
    }
    let (what, mend) = match first_to_drop(facts.now) {
        Some((table, chain)) => {
            let name = format!("{} {} {}", table.family.name(), table.name, chain.name);
            let list = nft(&[&table.name, &chain.name], || format!("nft list chain {name}"));
            (format!("chain {name} comes before them and drops packets"), list)
        }
        None => ("no chain of nftables before them drops any".to_owned(), "nft list ruleset".to_owned()),
    };
    Finding::problem(
        CHECK,
        format!(
            "{at}: the rules to {does} have not counted the packets of our own questions ({counted} before and after)"
        ),
        format!("Something takes the packets before they come to the rules: {what}."),
        mend,
    )
}

/// A chain that sees packets before ours do, and drops some.
fn first_to_drop(tables: &[TableSeen]) -> Option<(&TableSeen, &ChainSeen)> {
    let others = tables.iter().filter(|table| !is_ours(table));
    others.flat_map(|table| table.chains.iter().map(move |chain| (table, chain))).find(|(_, chain)| {
        let early = chain.base.as_ref().is_some_and(|base| {
            base.priority <= RAW && ["prerouting", "output", "ingress"].contains(&base.hook_name())
        });
        let drops =
            chain.base.as_ref().is_some_and(|base| base.drops) || chain.rules.iter().any(RuleSeen::drops);
        early && drops
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;
    use crate::doctor::look::agent::State;
    use crate::doctor::look::answers::Answerer;
    use crate::doctor::look::sockets::Protocol;
    use crate::node::netfilter::Base;

    const AT: &str = "169.254.20.10:53";

    fn chain(name: &str, address: &str, packets: u64) -> ChainSeen {
        let addresses = vec![address.parse().unwrap()];
        let rule = RuleSeen { packets: Some(packets), addresses, ..RuleSeen::default() };
        ChainSeen { name: name.to_owned(), base: None, rules: vec![rule] }
    }

    fn table(name: &str, owner: Option<u32>, chains: Vec<ChainSeen>) -> TableSeen {
        TableSeen { family: Family::Inet, name: name.to_owned(), owner, chains, left_out: 0 }
    }

    fn listening(packets: u64) -> TableSeen {
        let chains = ["listen_prerouting", "listen_output"].map(|name| chain(name, "169.254.20.10", packets));
        table("nodens-7", Some(7), chains.into())
    }

    fn judged(state: State, before: &[TableSeen], now: &[TableSeen], intercept: bool) -> Vec<Finding> {
        let unseen = || Unseen::new("", "");
        let agent = Agent { pid: None, state, capabilities: Err(unseen()), is_in_our_network: Err(unseen()) };
        let at: SocketAddr = AT.parse().unwrap();
        let cluster_ips: &[SocketAddr] = if intercept { &["10.96.0.10:53".parse().unwrap()] } else { &[] };
        let from = Ok(Answerer::Agent);
        let answers = [Answer { addr: at, protocol: Protocol::Udp, from, has_left: true }];
        judge(&Facts {
            agent: &agent,
            listen: &[at],
            cluster_ips,
            upstream: false,
            before,
            now,
            alive: &BTreeSet::from([7]),
            answers: &answers,
        })
    }

    fn ready() -> State {
        State::Works { reasons: vec![] }
    }

    #[test]
    fn rules_are_right_when_they_count_what_we_ask() {
        let found = judged(ready(), &[listening(3)], &[listening(5)], false);
        assert_eq!((found.len(), found[0].level), (1, Level::Ok));
        assert!(found[0].what.ends_with("count (10 packets, 4 of them now)"), "{}", found[0].what);
        let first = ChainSeen {
            base: Some(Base { kind: "filter".into(), hook: 3, priority: -310, drops: true }),
            ..chain("early", "10.0.0.1", 0)
        };
        let eaten =
            judged(ready(), &[listening(5)], &[listening(5), table("guard", None, vec![first])], false);
        assert_eq!(
            (eaten[0].level, eaten[0].mend.as_str()),
            (Level::Problem, "nft list chain inet guard early")
        );
    }

    #[test]
    fn rules_that_no_question_has_come_to_are_not_called_good() {
        let agent = Agent {
            pid: None,
            state: ready(),
            capabilities: Err(Unseen::new("", "")),
            is_in_our_network: Err(Unseen::new("", "")),
        };
        let at: SocketAddr = AT.parse().unwrap();
        let from = Err("No route to host".to_owned());
        let answers = [Answer { addr: at, protocol: Protocol::Udp, from, has_left: false }];
        let facts = Facts {
            agent: &agent,
            listen: &[at],
            cluster_ips: &[],
            upstream: false,
            before: &[listening(0)],
            now: &[listening(0)],
            alive: &BTreeSet::from([7]),
            answers: &answers,
        };
        let found = judge(&facts);
        assert_eq!((found.len(), found[0].level), (1, Level::Unknown), "{found:#?}");
        assert!(found[0].why.contains("No route to host"), "{found:#?}");
        let others = Facts { now: &[listening(1)], ..facts };
        assert_eq!(judge(&others)[0].level, Level::Ok, "packets of others have come to them");
    }

    #[test]
    fn rules_for_upstreams_are_good_once_they_have_counted() {
        let with = |packets: Option<u64>| {
            let rules = packets.map(|packets| RuleSeen {
                packets: Some(packets),
                expressions: vec!["notrack".to_owned()],
                ..RuleSeen::default()
            });
            let passed =
                RuleSeen { packets: Some(9), expressions: vec!["accept".into()], ..RuleSeen::default() };
            let rules: Vec<RuleSeen> = rules.into_iter().chain([passed]).collect();
            let name = if packets.is_some() { "upstream_output" } else { "listen_output" };
            table("nodens-7", Some(7), vec![ChainSeen { name: name.to_owned(), base: None, rules }])
        };
        let level = |packets| upstream(&[&with(packets)]).level;
        assert_eq!(
            [level(None), level(Some(0)), level(Some(2))],
            [Level::Problem, Level::Unknown, Level::Ok]
        );
    }

    #[test]
    fn missing_rules_matter_by_what_the_agent_is() {
        assert_eq!(judged(ready(), &[], &[], false)[0].level, Level::Problem);
        assert_eq!(judged(State::Absent("".into()), &[], &[], false)[0].level, Level::Warning);
        let half = table("nodens-7", Some(7), vec![chain("listen_output", "169.254.20.10", 1)]);
        let found = judged(ready(), &[], &[half], false);
        assert_eq!(
            (found[0].level, found[0].what.contains("no rule in listen_prerouting")),
            (Level::Problem, true)
        );
        let waits = State::Works { reasons: vec!["no upstream".into()] };
        let found = judged(waits, &[listening(1)], &[listening(2)], true);
        assert_eq!((found[0].level, found[1].level), (Level::Ok, Level::Warning));
        assert_eq!(judged(ready(), &[listening(1)], &[listening(2)], true)[1].level, Level::Problem);
    }

    #[test]
    fn a_table_without_a_socket_is_an_orphan() {
        let left = table("nodens-9", None, vec![chain("listen_output", "169.254.20.10", 1)]);
        let leads = table("nodens-10", None, vec![chain("intercept_route", "10.96.0.10", 1)]);
        let alive = table("nodens-7", None, vec![]);
        let others = table("nodens-mine", None, vec![]);
        let now = [listening(2), left, leads, alive, others];
        let found = judged(ready(), &[listening(1)], &now, false);
        let told: Vec<_> = found.iter().map(|found| (found.level, found.mend.as_str())).collect();
        assert_eq!(
            told,
            [
                (Level::Warning, "nft delete table inet nodens-9"),
                (Level::Problem, "nft delete table inet nodens-10"),
                (Level::Ok, "")
            ]
        );
    }
}
