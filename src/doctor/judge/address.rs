//! Addresses: each listen address is on one link, alone, and no link has the ClusterIPs that the agent answers for.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{START, bits, whole};
use crate::doctor::Patient;
use crate::doctor::finding::Finding;
use crate::node::link::{Holder, IPVS, LOOPBACK};

const CHECK: &str = "address";
/// Links of this kind hold addresses and do nothing else.
const DUMMY: &str = "dummy";

/// A link that has an address.
#[derive(Debug, Clone)]
struct Held {
    address: IpAddr,
    prefix: u8,
    link: String,
    kind: Option<String>,
    up: bool,
    answers: bool,
}

impl From<&Holder> for Held {
    fn from(holder: &Holder) -> Self {
        let Holder { address, prefix, link, kind, up, answers, .. } = holder.clone();
        Self { address, prefix, link, kind, up, answers }
    }
}

/// What is wanted of the node's links.
#[derive(Debug)]
struct Wanted<'a> {
    listen: BTreeSet<IpAddr>,
    intercept: &'a [IpAddr],
    address_on: Option<&'a str>,
    /// Who would put addresses back.
    agent: bool,
}

/// Looks, and judges.
pub fn check(patient: &Patient) -> Vec<Finding> {
    let network = &patient.config.network;
    let wanted = Wanted {
        listen: patient.config.listen.iter().map(std::net::SocketAddr::ip).collect(),
        intercept: &network.intercept,
        address_on: network.address_on.as_deref(),
        agent: !patient.agent.is_absent(),
    };
    match (&patient.node.holders, &patient.node.links) {
        (Ok(holders), Ok(links)) => {
            judge(&wanted, &holders.iter().map(Held::from).collect::<Vec<_>>(), links)
        }
        (Err(unseen), _) | (_, Err(unseen)) => {
            vec![Finding::unknown(CHECK, "the links' addresses could not be listed", unseen)]
        }
    }
}

fn judge(wanted: &Wanted<'_>, all: &[Held], links: &[String]) -> Vec<Finding> {
    let of = |address: IpAddr| all.iter().filter(|held| held.address == address).collect::<Vec<_>>();
    let listen = wanted.listen.iter().flat_map(|&address| listened(wanted, address, &of(address), links));
    let intercepted = wanted.intercept.iter().flat_map(|&address| {
        of(address).into_iter().map(move |held| intercepted(address, held)).collect::<Vec<_>>()
    });
    listen.chain(intercepted).collect()
}

fn listened(wanted: &Wanted<'_>, address: IpAddr, holders: &[&Held], links: &[String]) -> Vec<Finding> {
    if address.is_loopback() || address.is_unspecified() {
        return vec![Finding::ok(CHECK, format!("{address} needs no link"))];
    }
    let ours: Vec<&Held> = holders.iter().copied().filter(|held| held.link != IPVS).collect();
    if ours.is_empty() {
        return vec![nowhere(wanted, address, !holders.is_empty(), links)];
    }
    let mut findings = Vec::new();
    if let Some(kept) = several(wanted, &ours) {
        let others: Vec<&Held> = ours.iter().copied().filter(|held| held.link != kept.link).collect();
        let names: Vec<&str> = ours.iter().map(|held| held.link.as_str()).collect();
        let commands = others.iter().map(|held| delete(held)).collect::<Vec<_>>().join("\n");
        findings.push(Finding::warning(
            CHECK,
            format!("{address} is on several links: {}", names.join(", ")),
            "One of them is somebody else's, who may take it away or count on it.",
            commands,
        ));
    }
    for held in ours {
        findings.extend(flaws(wanted, held));
    }
    if findings.is_empty() {
        let places = holders.iter().filter(|held| held.link != IPVS);
        findings.extend(places.take(1).map(|Held { address, prefix, link, .. }| {
            Finding::ok(CHECK, format!("{address}/{prefix} is on link {link}"))
        }));
    }
    findings
}

fn nowhere(wanted: &Wanted<'_>, address: IpAddr, ipvs: bool, links: &[String]) -> Finding {
    let on = wanted.address_on.filter(|on| links.iter().any(|link| link == on)).unwrap_or(LOOPBACK);
    let scope = if on == LOOPBACK && address.is_ipv4() { " scope host" } else { "" };
    let nodad = if address.is_ipv6() { " nodad" } else { "" };
    let add = format!("ip address add {} dev {on}{scope}{nodad}", whole(address));
    let mend = match wanted.address_on {
        Some(_) if wanted.agent => {
            format!("{add}\n# the agent does it by itself: its log says what keeps it from that")
        }
        Some(_) => format!("{add}\n# the agent does it when it starts"),
        None => format!("{add}\n# or have the agent do it: network: {{ address_on: nodelocaldns }}"),
    };
    if ipvs {
        Finding::problem(
            CHECK,
            format!("{address} is on link {IPVS} alone"),
            "kube-proxy takes away from there what is no Service's.",
            mend,
        )
    } else {
        Finding::problem(
            CHECK,
            format!("{address} is on no link"),
            "Queries to it leave the node, and nobody answers them.",
            mend,
        )
    }
}

/// The one to keep, where there are several.
fn several<'a>(wanted: &Wanted<'_>, holders: &[&'a Held]) -> Option<&'a Held> {
    let named = |name: &str| holders.iter().copied().find(|held| held.link == name);
    let different = holders.iter().any(|held| held.link != holders[0].link);
    different.then(|| wanted.address_on.and_then(named).or_else(|| named(LOOPBACK)).unwrap_or(holders[0]))
}

fn flaws(wanted: &Wanted<'_>, held: &Held) -> Vec<Finding> {
    let Held { address, prefix, link, kind, .. } = held;
    let mut findings = Vec::new();
    if !held.answers {
        findings.push(Finding::problem(
            CHECK,
            format!("{address} is on link {link} and does not answer"),
            "It is taken for a duplicate of another machine's, or its link has no carrier.",
            format!("{}\nip address add {} dev {link} nodad", delete(held), whole(*address)),
        ));
    }
    // An address of the node itself has the prefix of the node's network; the agent is not asked to hold those.
    let is_for_us = wanted.address_on.is_some() || link == LOOPBACK || kind.as_deref() == Some(DUMMY);
    if is_for_us && *prefix != bits(*address) {
        let add = format!("ip address add {} dev {link}", whole(*address));
        // The kernel takes an IPv6 address once on a link.
        let commands = if address.is_ipv4() { [add, delete(held)] } else { [delete(held), add + " nodad"] };
        findings.push(Finding::warning(
            CHECK,
            format!("{address}/{prefix} on link {link} has a prefix of more than one address"),
            "Packets to its neighbours end on this node.",
            commands.join("\n"),
        ));
    }
    if !held.up {
        findings.push(Finding::warning(
            CHECK,
            format!("{address} is on link {link}, which is down"),
            "An IPv6 address does not come to a link that is down, and others take it for unused.",
            format!("ip link set {link} up"),
        ));
    }
    findings
}

fn intercepted(address: IpAddr, held: &Held) -> Finding {
    if held.link == IPVS {
        return Finding::problem(
            CHECK,
            format!("{address} of network.intercept is on link {IPVS}: kube-proxy is in IPVS mode"),
            "Queries would not come back to the cluster's DNS when the agent ends, so the agent refuses.",
            format!(
                "# leave {address} out of network.intercept, and set clusterDNS of the kubelet's configuration to an \
                 address of `listen`\n{START}"
            ),
        );
    }
    Finding::warning(
        CHECK,
        format!("{address} of network.intercept is on link {}", held.link),
        "While a link of this node has it, nobody answers there when the agent ends.",
        delete(held),
    )
}

fn delete(held: &Held) -> String {
    format!("ip address del {}/{} dev {}", held.address, held.prefix, held.link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn held(address: &str, prefix: u8, link: &str) -> Held {
        Held { address: ip(address), prefix, link: link.to_owned(), kind: None, up: true, answers: true }
    }

    fn judged(all: &[Held]) -> Vec<(Level, String, String)> {
        let intercept = [ip("10.96.0.10")];
        let wanted = Wanted {
            listen: BTreeSet::from([ip("169.254.20.10")]),
            intercept: &intercept,
            address_on: Some("nodelocaldns"),
            agent: false,
        };
        let found = judge(&wanted, all, &["lo".to_owned(), "nodelocaldns".to_owned()]);
        found.into_iter().map(|found| (found.level, found.what, found.mend)).collect()
    }

    #[test]
    fn one_link_is_right_and_none_and_two_are_not() {
        let right = held("169.254.20.10", 32, "nodelocaldns");
        let found = judged(std::slice::from_ref(&right));
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].0, found[0].1.as_str()),
            (Level::Ok, "169.254.20.10/32 is on link nodelocaldns")
        );
        let found = judged(&[]);
        assert_eq!((found.len(), found[0].0), (1, Level::Problem));
        assert!(
            found[0].2.starts_with("ip address add 169.254.20.10/32 dev nodelocaldns\n"),
            "{}",
            found[0].2
        );
        let found = judged(&[held("169.254.20.10", 32, "lo"), right]);
        assert_eq!((found.len(), found[0].0), (1, Level::Warning));
        assert!(found[0].1.ends_with("several links: lo, nodelocaldns"), "{}", found[0].1);
        assert_eq!(found[0].2, "ip address del 169.254.20.10/32 dev lo");
    }

    #[test]
    fn a_link_of_kube_proxy_is_no_place_for_either() {
        let found = judged(&[held("169.254.20.10", 32, IPVS), held("10.96.0.10", 32, IPVS)]);
        assert!(
            found.iter().all(|(level, what, _)| *level == Level::Problem && what.contains(IPVS)),
            "{found:?}"
        );
        assert_eq!(found.len(), 2);
        let found = judged(&[held("169.254.20.10", 32, "lo"), held("10.96.0.10", 32, "nodelocaldns")]);
        assert_eq!((found.len(), found[1].0), (2, Level::Warning));
        assert_eq!(found[1].2, "ip address del 10.96.0.10/32 dev nodelocaldns");
    }

    #[test]
    fn a_wide_prefix_a_link_that_is_down_and_a_silent_address_are_named() {
        let wide = judged(&[held("169.254.20.10", 16, "lo")]);
        assert_eq!(wide[0].0, Level::Warning);
        let commands = "ip address add 169.254.20.10/32 dev lo\nip address del 169.254.20.10/16 dev lo";
        assert_eq!(wide[0].2, commands);
        let of_the_node = Wanted {
            listen: BTreeSet::from([ip("192.0.2.10")]),
            intercept: &[],
            address_on: None,
            agent: false,
        };
        let found = judge(&of_the_node, &[held("192.0.2.10", 24, "eth0")], &[]);
        assert_eq!((found[0].level, found[0].what.as_str()), (Level::Ok, "192.0.2.10/24 is on link eth0"));
        let down = judged(&[Held { up: false, ..held("169.254.20.10", 32, "nodelocaldns") }]);
        assert_eq!((down[0].0, down[0].2.as_str()), (Level::Warning, "ip link set nodelocaldns up"));
        let silent = judged(&[Held { answers: false, ..held("169.254.20.10", 32, "lo") }]);
        assert_eq!(silent[0].0, Level::Problem);
    }

    #[test]
    fn a_link_that_is_not_there_is_not_in_the_command() {
        let wanted = Wanted {
            listen: BTreeSet::from([ip("fd00::a"), ip("127.0.0.1")]),
            intercept: &[],
            address_on: Some("dns0"),
            agent: true,
        };
        let found = judge(&wanted, &[], &["lo".to_owned()]);
        assert_eq!(found[0].level, Level::Ok, "loopback");
        assert!(found[1].mend.starts_with("ip address add fd00::a/128 dev lo nodad\n"), "{}", found[1].mend);
    }
}
