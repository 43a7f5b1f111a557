//! Addresses: each listen address is on one link, alone, and no link has the ClusterIPs that the agent answers for.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{START, bits};
use crate::doctor::Patient;
use crate::doctor::finding::Finding;
use crate::doctor::words::{quoted, shown};
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
    scope: &'static str,
}

impl From<&Holder> for Held {
    fn from(holder: &Holder) -> Self {
        let Holder { address, prefix, link, kind, up, answers, scope, .. } = holder.clone();
        Self { address, prefix, link: shown(&link), kind, up, answers, scope }
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
    let listen =
        wanted.listen.iter().flat_map(|&address| listened(wanted, address, all, &of(address), links));
    let intercepted = wanted.intercept.iter().flat_map(|&address| {
        of(address).into_iter().map(move |held| intercepted(address, held, all)).collect::<Vec<_>>()
    });
    listen.chain(intercepted).collect()
}

fn listened(
    wanted: &Wanted<'_>,
    address: IpAddr,
    all: &[Held],
    holders: &[&Held],
    links: &[String],
) -> Vec<Finding> {
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
        let commands = others.iter().map(|held| delete(held, all)).collect::<Vec<_>>().join("\n");
        findings.push(Finding::warning(
            CHECK,
            format!("{address} is on several links: {}", names.join(", ")),
            "One of them is somebody else's, who may take it away or count on it.",
            commands,
        ));
    }
    for held in ours {
        findings.extend(flaws(wanted, held, all));
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
    let add = super::hold(address, on);
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

fn flaws(wanted: &Wanted<'_>, held: &Held, all: &[Held]) -> Vec<Finding> {
    let Held { address, prefix, link, .. } = held;
    let is_given = wanted.address_on == Some(link.as_str());
    let mut findings = Vec::new();
    if !held.answers {
        findings.push(Finding::problem(
            CHECK,
            format!("{address} is on link {link} and does not answer"),
            "It is taken for a duplicate of another machine's, or its link has no carrier.",
            format!(
                "ip address show dev {}\n# dadfailed: take it away from the other machine, which `ip neigh` there tells of\n\
                 # tentative: set up the link's other end, or let network.address_on be another link",
                quoted(link)
            ),
        ));
    }
    // An address of the node itself has the prefix of the node's network; the agent is not asked to hold those.
    let is_for_us = held.is_on_a_holder() || (is_given && held.scope == "host");
    if is_for_us && *prefix != bits(*address) {
        // The kernel takes an IPv6 address once on a link.
        let commands = match (held.goes_alone(all), address.is_ipv4()) {
            (false, _) => vec![delete(held, all)],
            (_, true) => vec![super::hold(*address, link), delete(held, all)],
            (_, false) => vec![delete(held, all), super::hold(*address, link)],
        };
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
            match held.is_on_a_holder() || is_given {
                true => format!("ip link set {} up", quoted(link)),
                false => format!(
                    "ip address show dev {0}\n# if nothing else keeps it down: ip link set {0} up",
                    quoted(link)
                ),
            },
        ));
    }
    findings
}

fn intercepted(address: IpAddr, held: &Held, all: &[Held]) -> Finding {
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
        delete(held, all),
    )
}

impl Held {
    /// On a link that holds addresses and does nothing else.
    fn is_on_a_holder(&self) -> bool {
        self.link == LOOPBACK || self.kind.as_deref() == Some(DUMMY)
    }

    /// Whether nothing goes with it when it is taken away. With an IPv4 address the kernel takes others of its network on its
    /// link, the routes to that network, and all of the link's routes with the last (net/ipv4/devinet.c,
    /// `__inet_del_ifa`; net/ipv4/fib_frontend.c, `fib_inetaddr_event`).
    fn goes_alone(&self, all: &[Self]) -> bool {
        let beside = || {
            let of_its_family =
                |held: &&Self| held.link == self.link && held.address.is_ipv4() == self.address.is_ipv4();
            let is_it = |held: &Self| held.address == self.address && held.prefix == self.prefix;
            all.iter().filter(of_its_family).filter(move |held| !is_it(held))
        };
        let is_alone_in_its_network = !beside().any(|held| {
            held.prefix == self.prefix
                && network(held.address, held.prefix) == network(self.address, self.prefix)
        });
        let has_no_network = self.prefix == bits(self.address);
        let is_the_last = beside().next().is_none();
        if self.is_on_a_holder() {
            return is_alone_in_its_network;
        }
        has_no_network && !(self.address.is_ipv4() && is_the_last)
    }
}

/// The bits of an address that its prefix has, as a number.
fn network(address: IpAddr, prefix: u8) -> u128 {
    let (number, bits) = match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    number.checked_shr(bits - u32::from(prefix).min(bits)).unwrap_or_default()
}

/// Takes an address away where nothing else goes with it, or says how to look.
fn delete(held: &Held, all: &[Held]) -> String {
    let link = quoted(&held.link);
    let delete = format!("ip address del {}/{} dev {link}", held.address, held.prefix);
    if held.goes_alone(all) {
        return delete;
    }
    let family = if held.address.is_ipv4() { "-4" } else { "-6" };
    format!(
        "ip address show dev {link}\nip {family} route show table all dev {link}\n# routes or other addresses of the link \
         go with it; if nobody needs those:\n# {delete}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn held(address: &str, prefix: u8, link: &str) -> Held {
        let (link, kind, scope) = (link.to_owned(), None, "global");
        Held { address: ip(address), prefix, link, kind, up: true, answers: true, scope }
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
            found[0].2.starts_with("ip address add 169.254.20.10/32 dev nodelocaldns scope host\n"),
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
        let dummy = Held { kind: Some(DUMMY.to_owned()), ..held("10.96.0.10", 32, "nodelocaldns") };
        let found = judged(&[held("169.254.20.10", 32, "lo"), dummy]);
        assert_eq!((found.len(), found[1].0), (2, Level::Warning));
        assert_eq!(found[1].2, "ip address del 10.96.0.10/32 dev nodelocaldns");
    }

    #[test]
    fn a_wide_prefix_a_link_that_is_down_and_a_silent_address_are_named() {
        let wide = judged(&[held("169.254.20.10", 16, "lo")]);
        assert_eq!(wide[0].0, Level::Warning);
        let commands =
            "ip address add 169.254.20.10/32 dev lo scope host\nip address del 169.254.20.10/16 dev lo";
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
        assert!(!changes(&silent[0].2), "another machine may have it: {}", silent[0].2);
        let spare = judged(&[Held { up: false, ..held("169.254.20.10", 32, "eth1") }]);
        assert!(!changes(&spare[0].2), "{}", spare[0].2);
    }

    /// Whether a line does more than to look.
    fn changes(mend: &str) -> bool {
        mend.lines().any(|line| !line.starts_with('#') && !line.contains(" show "))
    }

    #[test]
    fn the_nodes_own_address_is_well_whatever_link_others_are_for() {
        let wanted = Wanted {
            listen: BTreeSet::from([ip("169.254.20.10"), ip("192.0.2.10"), ip("2001:db8::10")]),
            intercept: &[],
            address_on: Some("nodelocaldns"),
            agent: true,
        };
        let all = [
            held("169.254.20.10", 32, "nodelocaldns"),
            held("192.0.2.10", 24, "eth0"),
            held("2001:db8::10", 64, "eth0"),
        ];
        let found = judge(&wanted, &all, &[]);
        assert!(found.len() == 3 && found.iter().all(|found| found.level == Level::Ok), "{found:#?}");
        // Given by the configuration, it is still the link's own.
        let on_eth0 = Wanted { address_on: Some("eth0"), ..wanted };
        assert!(
            judge(&on_eth0, &all, &[]).iter().all(|found| found.mend.is_empty() || found.level == Level::Ok)
        );
    }

    #[test]
    fn an_address_is_taken_away_only_where_nothing_goes_with_it() {
        let own = held("192.0.2.10", 24, "eth0");
        let second = held("192.0.2.11", 24, "eth0");
        let alone = held("169.254.20.10", 32, "eth0");
        assert!(!own.goes_alone(&[own.clone(), alone.clone()]), "it has a network");
        assert!(alone.goes_alone(&[own, alone.clone()]));
        assert!(
            !alone.goes_alone(std::slice::from_ref(&alone)),
            "the link's routes go with its last address"
        );
        let v6 = held("fd00::a", 128, "eth0");
        assert!(v6.goes_alone(std::slice::from_ref(&v6)));
        let on_lo = Held { link: LOOPBACK.to_owned(), ..second };
        assert!(on_lo.goes_alone(std::slice::from_ref(&on_lo)));
        let first = Held { address: ip("192.0.2.12"), ..on_lo.clone() };
        assert!(!on_lo.goes_alone(&[first, on_lo.clone()]), "the second goes with the first");
        let elsewhere = Held { address: ip("198.51.100.1"), ..on_lo.clone() };
        assert!(on_lo.goes_alone(&[elsewhere, on_lo.clone()]));
    }

    #[test]
    fn a_link_is_one_word_whatever_it_is_called() {
        for name in ["a;id>&2;b", "p$(id)", "x\u{1b}[2J"] {
            let own = held("192.0.2.10", 24, name);
            let found = judged(&[held("169.254.20.10", 32, "lo"), held("169.254.20.10", 32, name), own]);
            assert_eq!(found[0].2, format!("ip address del 169.254.20.10/32 dev {}", quoted(name)));
        }
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
