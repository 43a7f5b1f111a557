//! What is wanted of the kernel, as chains of our table: whose packets go past connection tracking, and which queries
//! are answered here although they are for a ClusterIP.
//!
//! Each purpose has chains of its own, so that what one of them accepts is still for the others to see. Every rule
//! counts the packets that it acts on.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::netfilter::{Bits, Chain, Hook, Kind, MANGLE, RAW, Rule};
use crate::config::Mark;

/// Both protocols of DNS.
const PROTOCOLS: [i32; 2] = [libc::IPPROTO_UDP, libc::IPPROTO_TCP];

/// What the rules are for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Listen addresses to spare connection tracking; empty for none.
    pub notrack: &'a [SocketAddr],
    /// ClusterIPs, with their port, that are answered here; empty for none, or not now.
    pub intercept: &'a [SocketAddr],
    /// ClusterIPs, with their port, that were answered here until now: the answers to queries that came get out as
    /// they are, and no more queries come.
    pub leaving: &'a [SocketAddr],
    /// Ports of servers that are dialled directly, to spare connection tracking; empty for none.
    pub upstream_ports: &'a BTreeSet<u16>,
    /// Addresses where servers are not dialled directly, whatever their port: who asks a ClusterIP needs connection
    /// tracking to get there.
    pub never_upstream: &'a [IpAddr],
    /// Marks of packets.
    pub mark: Mark,
}

/// The chains that do what is wanted, and none for what is not.
pub fn chains(wanted: &Wanted<'_>) -> Vec<Chain> {
    let Wanted { notrack, intercept, leaving, upstream_ports, never_upstream, mark } = *wanted;
    let mut chains = Vec::new();
    if !notrack.is_empty() {
        chains.extend(notrack_chains(notrack));
    }
    if !intercept.is_empty() {
        chains.extend(intercept_chains(intercept, leaving, mark));
    } else if !leaving.is_empty() {
        chains.push(chain("intercept_output", Hook::Output, answers(leaving)));
    }
    if !upstream_ports.is_empty() {
        chains.extend(upstream_chains(upstream_ports, never_upstream, mark));
    }
    chains
}

/// Queries to the listen addresses, from links and from this machine, and the answers.
fn notrack_chains(addresses: &[SocketAddr]) -> [Chain; 2] {
    let queries = || each(addresses, |packet, at| to(packet, at).counter().notrack());
    [
        chain("listen_prerouting", Hook::Prerouting, queries()),
        chain("listen_output", Hook::Output, [answers(addresses), queries()].concat()),
    ]
}

/// Queries to ClusterIPs: their mark has them routed to this machine, where a transparent socket answers. Our own
/// queries go on to the cluster's DNS. Without these rules everybody's do.
fn intercept_chains(
    addresses: &[SocketAddr],
    leaving: &[SocketAddr],
    Mark { intercept, own, mask }: Mark,
) -> [Chain; 3] {
    let here = Bits { value: intercept, mask };
    let pass = || vec![Rule::default().mark(Bits { value: own, mask }).counter().accept()];
    let arriving = each(addresses, |packet, at| to(packet, at).counter().set_mark(here).notrack());
    let answers = [answers(addresses), answers(leaving)].concat();
    let queries = each(addresses, |packet, at| to(packet, at).counter().notrack());
    let routed = each(addresses, |packet, at| to(packet, at).counter().set_mark(here));
    [
        chain("intercept_prerouting", Hook::Prerouting, arriving),
        chain("intercept_output", Hook::Output, [answers, pass(), queries].concat()),
        Chain {
            name: "intercept_route",
            kind: Kind::Route,
            hook: Hook::Output,
            priority: MANGLE,
            rules: [pass(), routed].concat(),
        },
    ]
}

/// What the agent's own sockets send to these ports, by the packet's mark, and what comes for them from there, by
/// the socket's: a packet that comes has no mark yet. The ports come first in that direction, because looking for a
/// socket costs more. Marks of others that use the same bits by accident concern no other port.
fn upstream_chains(ports: &BTreeSet<u16>, never: &[IpAddr], Mark { own, mask, .. }: Mark) -> [Chain; 2] {
    let bits = Bits { value: own, mask };
    let except = |rule: &dyn Fn(IpAddr) -> Rule| -> Vec<Rule> {
        never.iter().map(|&address| rule(address).counter().accept()).collect()
    };
    let protocols = |rule: &dyn Fn(Rule, u16) -> Rule| -> Vec<Rule> {
        let rules = ports.iter().flat_map(|&port| {
            PROTOCOLS.map(|protocol| rule(Rule::default().protocol(protocol as u8), port).counter().notrack())
        });
        rules.collect()
    };
    let sent = protocols(&|rule, port| rule.destination_port(port).mark(bits));
    let received = protocols(&|rule, port| rule.source_port(port).socket_mark(bits));
    let to_never = except(&|address| Rule::default().destination(address));
    let from_never = except(&|address| Rule::default().source(address));
    [
        chain("upstream_output", Hook::Output, [to_never, sent].concat()),
        chain("upstream_prerouting", Hook::Prerouting, [from_never, received].concat()),
    ]
}

/// What these addresses say goes past connection tracking.
fn answers(addresses: &[SocketAddr]) -> Vec<Rule> {
    each(addresses, |packet, at| from(packet, at).counter().notrack())
}

/// A rule for each address and protocol.
fn each(addresses: &[SocketAddr], rule: impl Fn(u8, SocketAddr) -> Rule) -> Vec<Rule> {
    addresses.iter().flat_map(|&at| PROTOCOLS.map(|protocol| rule(protocol as u8, at))).collect()
}

fn to(protocol: u8, at: SocketAddr) -> Rule {
    Rule::default().destination(at.ip()).protocol(protocol).destination_port(at.port())
}

fn from(protocol: u8, at: SocketAddr) -> Rule {
    Rule::default().source(at.ip()).protocol(protocol).source_port(at.port())
}

fn chain(name: &'static str, hook: Hook, rules: Vec<Rule>) -> Chain {
    Chain { name, kind: Kind::Filter, hook, priority: RAW, rules }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark = Mark { intercept: 0x35, own: 0x36, mask: 0xff };

    fn names(chains: &[Chain]) -> Vec<&str> {
        chains.iter().map(|chain| chain.name).collect()
    }

    #[test]
    fn nothing_wanted_is_no_chain_and_each_wish_has_its_own() {
        let (address, dns) = ("169.254.20.10:53".parse().unwrap(), BTreeSet::from([53]));
        let nothing = Wanted {
            notrack: &[],
            intercept: &[],
            leaving: &[],
            upstream_ports: &BTreeSet::new(),
            never_upstream: &["10.96.0.10".parse().unwrap()],
            mark: MARK,
        };
        assert!(chains(&nothing).is_empty());
        let listen = ["listen_prerouting", "listen_output"];
        assert_eq!(names(&chains(&Wanted { notrack: &[address], ..nothing })), listen);
        let intercept = ["intercept_prerouting", "intercept_output", "intercept_route"];
        assert_eq!(names(&chains(&Wanted { intercept: &[address], ..nothing })), intercept);
        let leaving = chains(&Wanted { leaving: &[address], ..nothing });
        assert_eq!((names(&leaving), leaving[0].rules.len()), (vec!["intercept_output"], 2));
        let upstream = ["upstream_output", "upstream_prerouting"];
        assert_eq!(names(&chains(&Wanted { upstream_ports: &dns, ..nothing })), upstream);
        let all = Wanted { notrack: &[address], intercept: &[address], upstream_ports: &dns, ..nothing };
        assert_eq!(names(&chains(&all)), [&listen[..], &intercept, &upstream].concat());
    }

    #[test]
    fn our_own_queries_pass_by_before_any_query_is_taken_and_after_no_answer() {
        let at = "10.96.0.10:53".parse().unwrap();
        let [_, output, route] = intercept_chains(&[at], &[], MARK);
        let pass = Rule::default().mark(Bits { value: 0x36, mask: 0xff }).counter().accept();
        assert_eq!(output.rules.iter().position(|rule| *rule == pass), Some(2), "behind two for answers");
        assert_eq!(output.rules.len(), 5);
        assert_eq!(route.rules.iter().position(|rule| *rule == pass), Some(0));
        assert_eq!(route.rules.len(), 3);
    }
}
