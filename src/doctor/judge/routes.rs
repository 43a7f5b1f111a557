//! The way of intercepted queries: our ip rule, a local route for each ClusterIP, and rules of others that use the same
//! bits of the mark.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::rules::intercepted;
use super::{START, bits, whole};
use crate::config::Mark;
use crate::doctor::Patient;
use crate::doctor::finding::{Finding, Seen, Unseen};
use crate::doctor::look::agent::Agent;
use crate::node::netfilter::Bits;
use crate::node::route::{PREFERENCE, Route, Rule, TABLE, seen};

const CHECK: &str = "routes";

/// Looks, and judges.
pub fn check(patient: &Patient) -> Vec<Finding> {
    let network = &patient.config.network;
    let Mark { intercept, mask, .. } = network.mark;
    match seen(Bits { value: intercept, mask }) {
        Ok((rules, routes)) => {
            let led = match (&patient.node.tables, &patient.node.netlink) {
                (Ok(tables), Ok(alive)) => Ok(intercepted(tables, alive)),
                (Err(unseen), _) | (_, Err(unseen)) => Err(unseen.clone()),
            };
            judge(&patient.agent, &network.intercept, network.mark, &rules, &routes, &led)
        }
        Err(problem) => {
            let why = Unseen::new(problem.to_string(), "ip rule; ip -6 rule");
            vec![Finding::unknown(CHECK, "rules and routes could not be listed", &why)]
        }
    }
}

fn judge(
    agent: &Agent,
    cluster_ips: &[IpAddr],
    mark: Mark,
    rules: &[Rule],
    routes: &[Route],
    led: &Seen<BTreeSet<IpAddr>>,
) -> Vec<Finding> {
    let (mut findings, left) = left(cluster_ips, mark, rules, routes, led);
    if cluster_ips.is_empty() {
        if findings.is_empty() {
            findings.push(Finding::ok(CHECK, "no ClusterIP is intercepted, which alone needs any"));
        }
        return findings;
    }
    for (family, option) in [("IPv4", ""), ("IPv6", " -6")] {
        let of: Vec<IpAddr> =
            cluster_ips.iter().copied().filter(|ip| ip.is_ipv4() == (family == "IPv4")).collect();
        if of.is_empty() {
            continue;
        }
        if !rules.iter().any(|rule| rule.ours && rule.family == family) {
            let Mark { intercept, mask, .. } = mark;
            let add = format!(
                "ip{option} rule add fwmark {intercept:#x}/{mask:#x} lookup {TABLE} pref {PREFERENCE}"
            );
            findings.push(missing(agent, format!("the {family} rule for marked packets is not there"), &add));
        }
        for ip in of {
            let leads = |route: &&Route| route.to == ip && route.prefix == bits(ip);
            match routes.iter().find(leads) {
                Some(route) if route.local => {}
                Some(_) => findings.push(Finding::problem(
                    CHECK,
                    format!("table {TABLE} has a route to {ip} that leads elsewhere"),
                    "Queries to it are not answered here, and the agent does not touch it.",
                    format!("ip{option} route del {} table {TABLE}", whole(ip)),
                )),
                None => {
                    let add = format!("ip{option} route add local {} dev lo table {TABLE}", whole(ip));
                    findings.push(missing(agent, format!("table {TABLE} has no local route to {ip}"), &add));
                }
            }
        }
    }
    let others = rules.iter().filter(|rule| !rule.ours && !left.contains(rule));
    findings.extend(others.filter_map(|rule| other(rule, mark)));
    if findings.is_empty() {
        let what = format!("packets with mark {:#x}/{:#x} are led here", mark.intercept, mark.mask);
        findings.push(Finding::ok(CHECK, what));
    }
    findings
}

/// What agents have left that were killed, and that no other takes over: it intercepts other ClusterIPs, or by another mark.
/// `led` is what all agents lead here that run.
fn left<'a>(
    cluster_ips: &[IpAddr],
    mark: Mark,
    rules: &'a [Rule],
    routes: &[Route],
    led: &Seen<BTreeSet<IpAddr>>,
) -> (Vec<Finding>, Vec<&'a Rule>) {
    let family = |ip: &IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    let option = |family: &str| if family == "IPv6" { " -6" } else { "" };
    let is_wanted = |rule: &Rule| rule.ours && cluster_ips.iter().any(|ip| family(ip) == rule.family);
    let is_an_agents = |rule: &&Rule| {
        rule.table == TABLE
            && rule.preference == PREFERENCE
            && rule.mark.1 != 0
            && (rule.ours || rule.mark != (mark.intercept, mark.mask))
    };
    let old_rules: Vec<&Rule> = rules.iter().filter(is_an_agents).filter(|rule| !is_wanted(rule)).collect();
    let old_routes: Vec<&Route> = routes
        .iter()
        .filter(|route| route.local && route.prefix == bits(route.to) && !cluster_ips.contains(&route.to))
        .collect();
    let led = match led {
        Ok(led) => led,
        Err(_) if old_rules.is_empty() && old_routes.is_empty() => return (Vec::new(), old_rules),
        Err(unseen) => {
            let what = format!("whether an agent needs what else is in table {TABLE} and leads there");
            return (vec![Finding::unknown(CHECK, what, unseen)], old_rules);
        }
    };
    let why = "Nobody needs it: it is of an agent that was killed, and of another mark or other ClusterIPs than this one's.";
    let is_anothers = |of: &str| led.iter().any(|ip| family(ip) == of && !cluster_ips.contains(ip));
    let mut findings = Vec::new();
    for rule in old_rules.iter().filter(|rule| !is_anothers(rule.family)) {
        let (value, mask) = rule.mark;
        findings.push(Finding::warning(
            CHECK,
            format!("an agent has left the {} rule {PREFERENCE} for mark {value:#x}/{mask:#x}", rule.family),
            why,
            format!(
                "ip{} rule del fwmark {value:#x}/{mask:#x} lookup {TABLE} pref {PREFERENCE}",
                option(rule.family)
            ),
        ));
    }
    for route in old_routes.into_iter().filter(|route| !led.contains(&route.to)) {
        findings.push(Finding::warning(
            CHECK,
            format!("an agent has left a local route to {} in table {TABLE}", route.to),
            why,
            format!("ip{} route del local {} table {TABLE}", option(family(&route.to)), whole(route.to)),
        ));
    }
    (findings, old_rules)
}

fn missing(agent: &Agent, what: String, add: &str) -> Finding {
    if agent.is_ready() {
        let mend = format!("{add}\n# the agent does it by itself: its log says what keeps it from that");
        return Finding::problem(
            CHECK,
            what,
            "Marked queries go where all others go, and are lost there.",
            mend,
        );
    }
    let why = "The agent makes it when it is ready; until then the cluster's DNS answers.";
    Finding::warning(CHECK, what, why, START)
}

/// A rule of others for marks that ours could be.
fn other(rule: &Rule, mark: Mark) -> Option<Finding> {
    let (value, mask) = rule.mark;
    let takes = |ours: u32| (value ^ ours) & mask & mark.mask == 0;
    let command = if rule.family == "IPv6" { "ip -6 rule" } else { "ip rule" };
    let named = format!(
        "{} rule {} (fwmark {value:#x}/{mask:#x} lookup {})",
        rule.family, rule.preference, rule.table
    );
    let mend =
        format!("{command}\n# give network.mark bits that nobody else uses (mask {:#x} now)", mark.mask);
    if rule.table == TABLE && mask == 0 {
        let why = "Packets are led here that are not marked for it.";
        return Some(Finding::warning(CHECK, format!("{named} looks up our table"), why, mend));
    }
    if takes(mark.intercept) && rule.preference < PREFERENCE {
        let why = "Queries that are led here by their mark are routed there instead.";
        return Some(Finding::problem(
            CHECK,
            format!("{named} comes before ours and takes our mark"),
            why,
            mend,
        ));
    }
    if takes(mark.own) {
        let why = "The agent's own packets to upstreams may be routed by it.";
        return Some(Finding::warning(
            CHECK,
            format!("{named} takes the mark of our upstream packets"),
            why,
            mend,
        ));
    }
    if takes(mark.intercept) {
        let why = "A packet that somebody else has marked may be led here.";
        return Some(Finding::warning(CHECK, format!("{named} uses the bits of our mark"), why, mend));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;
    use crate::doctor::look::agent::State;

    const MARK: Mark = Mark { intercept: 0x35, own: 0x36, mask: 0xff };

    fn rule(preference: u32, mark: (u32, u32), ours: bool) -> Rule {
        Rule { family: "IPv4", preference, mark, table: if ours { TABLE } else { 7 }, ours }
    }

    fn route(local: bool) -> Route {
        Route { to: "10.96.0.10".parse().unwrap(), prefix: 32, local }
    }

    fn judged(state: State, rules: &[Rule], routes: &[Route]) -> Vec<(Level, String)> {
        let unseen = || Unseen::new("", "");
        let agent = Agent { pid: None, state, capabilities: Err(unseen()), is_in_our_network: Err(unseen()) };
        let found =
            judge(&agent, &["10.96.0.10".parse().unwrap()], MARK, rules, routes, &Ok(BTreeSet::new()));
        found
            .into_iter()
            .map(|found| (found.level, found.mend.lines().next().unwrap_or("").to_owned()))
            .collect()
    }

    fn ready() -> State {
        State::Works { reasons: vec![] }
    }

    #[test]
    fn both_are_needed_once_the_agent_is_ready() {
        let ours = rule(PREFERENCE, (0x35, 0xff), true);
        assert_eq!(
            judged(ready(), std::slice::from_ref(&ours), &[route(true)]),
            [(Level::Ok, String::new())]
        );
        let found = judged(ready(), &[], &[]);
        assert_eq!(
            found[0],
            (Level::Problem, "ip rule add fwmark 0x35/0xff lookup 10053 pref 100".to_owned())
        );
        assert_eq!(
            found[1],
            (Level::Problem, "ip route add local 10.96.0.10/32 dev lo table 10053".to_owned())
        );
        assert_eq!(judged(State::Absent(String::new()), &[], &[])[0].0, Level::Warning);
        let taken = judged(ready(), &[ours], &[route(false)]);
        assert_eq!(taken, [(Level::Problem, "ip route del 10.96.0.10/32 table 10053".to_owned())]);
    }

    #[test]
    fn what_a_killed_agent_has_left_is_named_unless_another_needs_it() {
        let unseen = || Unseen::new("closed", "look");
        let agent = Agent {
            pid: None,
            state: ready(),
            capabilities: Err(unseen()),
            is_in_our_network: Err(unseen()),
        };
        let by = |wanted: &[&str], led: Seen<&[&str]>, rules: &[Rule], routes: &[Route]| {
            let ips = |texts: &[&str]| texts.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
            let led = led.map(|led| ips(led).into_iter().collect());
            let found = judge(&agent, &ips(wanted), MARK, rules, routes, &led);
            found.into_iter().map(|found| (found.level, found.mend)).collect::<Vec<_>>()
        };
        let (ours, old) = (
            rule(PREFERENCE, (0x35, 0xff), true),
            Rule { table: TABLE, ..rule(PREFERENCE, (0x10, 0xf0), false) },
        );
        let deleted =
            |mark: &str| (Level::Warning, format!("ip rule del fwmark {mark} lookup 10053 pref 100"));
        let route_deleted = (Level::Warning, "ip route del local 10.96.0.10/32 table 10053".to_owned());
        let both = [ours.clone(), old];
        // Intercepting is switched off.
        let found = by(&[], Ok(&[]), &both, &[route(true)]);
        assert_eq!(found, [deleted("0x35/0xff"), deleted("0x10/0xf0"), route_deleted]);
        // The mark was another one.
        assert_eq!(by(&["10.96.0.10"], Ok(&["10.96.0.10"]), &both, &[route(true)]), [deleted("0x10/0xf0")]);
        // Another agent intercepts.
        let none = (Level::Ok, String::new());
        assert_eq!(by(&[], Ok(&["10.96.0.10"]), &both, &[route(true)]), std::slice::from_ref(&none));
        let found = by(&[], Err(unseen()), &[ours], &[]);
        assert_eq!(found, [(Level::Unknown, "look".to_owned())]);
        assert_eq!(by(&[], Err(unseen()), &[], &[]), [none]);
    }

    #[test]
    fn rules_of_others_matter_when_they_take_our_marks() {
        let ours = rule(PREFERENCE, (0x35, 0xff), true);
        let beside = |other: Rule| judged(ready(), &[ours.clone(), other], &[route(true)])[0].0;
        assert_eq!(beside(rule(50, (0x35, 0xff), false)), Level::Problem);
        assert_eq!(beside(rule(50, (0x1, 0x1), false)), Level::Problem, "bit 0 of 0x35 is set");
        assert_eq!(beside(rule(1024, (0x1, 0x1), false)), Level::Warning);
        assert_eq!(beside(rule(1024, (0x36, 0xff), false)), Level::Warning, "upstream");
        assert_eq!(beside(rule(1024, (0x80, 0x80), false)), Level::Ok, "no mark of ours has that bit");
    }
}
