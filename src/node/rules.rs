//! What is wanted of the kernel, as chains of our table: whose packets go past connection tracking, and which queries
//! are answered here although they are for a ClusterIP.
//!
//! Each purpose has chains of its own, so that what one of them accepts is still for the others to see. Every rule
//! counts the packets that it acts on.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::netfilter::{Addresses, Bits, Chain, Connections, Hook, Kind, MANGLE, RAW, Rule};
use crate::config::Mark;

const UDP: u8 = libc::IPPROTO_UDP as u8;
const TCP: u8 = libc::IPPROTO_TCP as u8;
/// Both protocols of DNS.
const PROTOCOLS: [u8; 2] = [UDP, TCP];

/// What the rules are for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Listen addresses to spare connection tracking; empty for none.
    pub notrack: &'a [SocketAddr],
    /// ClusterIPs, with their port, that are answered here; empty for none, or not now.
    pub intercept: &'a [SocketAddr],
    /// ClusterIPs, with their port, that were answered here until now: no more queries come, but connections that were
    /// led here still are, and answers get out as they are.
    pub leaving: &'a [SocketAddr],
    /// How connections to ClusterIPs are kept in mind.
    pub kept: Kept,
    /// Ports of servers that are dialled directly, to spare connection tracking; empty for none.
    pub upstream_ports: &'a BTreeSet<u16>,
    /// Addresses where servers are not dialled directly, whatever their port: who asks a ClusterIP needs connection
    /// tracking to get there.
    pub never_upstream: &'a [IpAddr],
    /// Marks of packets.
    pub mark: Mark,
}

/// How connections are kept in mind that were led here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Of each family, so many at the most. While there are as many, further ones go to the cluster's DNS.
    pub most: u32,
    /// Longer than any of them says nothing.
    pub silence: Duration,
}

impl Kept {
    /// Those to this address.
    fn of(self, ip: IpAddr) -> Connections {
        let (name, addresses) = match ip {
            IpAddr::V4(_) => ("connections", Addresses::V4),
            IpAddr::V6(_) => ("connections6", Addresses::V6),
        };
        Connections { name, addresses, most: self.most, silence: self.silence }
    }
}

/// The chains that do what is wanted, and none for what is not.
pub fn chains(wanted: &Wanted<'_>) -> Vec<Chain> {
    let Wanted { notrack, intercept, leaving, kept, upstream_ports, never_upstream, mark } = *wanted;
    let mut chains = Vec::new();
    if !notrack.is_empty() {
        chains.extend(notrack_chains(notrack));
    }
    if !(intercept.is_empty() && leaving.is_empty()) {
        chains.extend(intercept_chains(intercept, leaving, kept, mark));
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
///
/// A connection stays where it began: its first packet has it kept in mind, and later ones are led here only if it is.
/// One that the cluster's DNS answers goes on there when queries begin to be led here, and one of ours goes on here when
/// they cease to be. One for which there is no room is not taken at all: the cluster's DNS answers it. What this machine
/// sends is kept in mind before connection tracking, and marked behind it if it is, whatever packet it is.
fn intercept_chains(
    addresses: &[SocketAddr],
    leaving: &[SocketAddr],
    kept: Kept,
    Mark { intercept, own, mask }: Mark,
) -> [Chain; 3] {
    let here = Bits { value: intercept, mask };
    let all = [addresses, leaving].concat();
    let pass = || vec![Rule::default().mark(Bits { value: own, mask }).counter().accept()];
    let queries = |act: &dyn Fn(Rule) -> Rule| -> Vec<Rule> {
        let new = addresses.iter().flat_map(|&at| {
            let begins = to(TCP, at).begins().remember(kept.of(at.ip()));
            [act(to(UDP, at).counter()), act(begins.counter())]
        });
        // Whoever has the port of a connection of ours now has another one.
        let others = leaving.iter().map(|&at| to(TCP, at).begins().forget(kept.of(at.ip())).counter());
        let known = all.iter().map(|&at| {
            let connections = kept.of(at.ip());
            // Kept in mind for longer, since it has said something.
            act(to(TCP, at).goes_on().known(connections).remember(connections).counter())
        });
        new.chain(others).chain(known).collect()
    };
    let datagrams = addresses.iter().map(|&at| to(UDP, at));
    let routed = datagrams.chain(all.iter().map(|&at| to(TCP, at).known(kept.of(at.ip()))));
    let routed: Vec<Rule> = routed.map(|rule| rule.counter().set_mark(here)).collect();
    let arriving = queries(&|rule| rule.set_mark(here).notrack());
    let sent = [answers(&all), pass(), queries(&Rule::notrack)].concat();
    [
        chain("intercept_prerouting", Hook::Prerouting, arriving),
        chain("intercept_output", Hook::Output, sent),
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
            PROTOCOLS.map(|protocol| rule(Rule::default().protocol(protocol), port).counter().notrack())
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
    addresses.iter().flat_map(|&at| PROTOCOLS.map(|protocol| rule(protocol, at))).collect()
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
    const KEPT: Kept = Kept { most: 4, silence: Duration::from_secs(1) };

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
            kept: KEPT,
            upstream_ports: &BTreeSet::new(),
            never_upstream: &["10.96.0.10".parse().unwrap()],
            mark: MARK,
        };
        assert!(chains(&nothing).is_empty());
        let listen = ["listen_prerouting", "listen_output"];
        assert_eq!(names(&chains(&Wanted { notrack: &[address], ..nothing })), listen);
        let intercept = ["intercept_prerouting", "intercept_output", "intercept_route"];
        assert_eq!(names(&chains(&Wanted { intercept: &[address], ..nothing })), intercept);
        assert_eq!(names(&chains(&Wanted { leaving: &[address], ..nothing })), intercept);
        let upstream = ["upstream_output", "upstream_prerouting"];
        assert_eq!(names(&chains(&Wanted { upstream_ports: &dns, ..nothing })), upstream);
        let all = Wanted { notrack: &[address], intercept: &[address], upstream_ports: &dns, ..nothing };
        assert_eq!(names(&chains(&all)), [&listen[..], &intercept, &upstream].concat());
    }

    #[test]
    fn our_own_queries_pass_by_before_any_query_is_taken_and_after_no_answer() {
        let at = "10.96.0.10:53".parse().unwrap();
        let pass = Rule::default().mark(Bits { value: 0x36, mask: 0xff }).counter().accept();
        for (now, before) in [(&[at][..], &[][..]), (&[], &[at])] {
            let [_, output, route] = intercept_chains(now, before, KEPT, MARK);
            assert_eq!(output.rules.iter().position(|rule| *rule == pass), Some(2), "behind two for answers");
            assert_eq!(route.rules.iter().position(|rule| *rule == pass), Some(0));
        }
    }

    #[test]
    fn what_leaves_takes_nothing_that_is_not_kept_in_mind() {
        let at: SocketAddr = "[fd00:96::a]:53".parse().unwrap();
        let set = KEPT.of(at.ip());
        assert_eq!((set.name, set.addresses), ("connections6", Addresses::V6));
        let [arriving, ..] = intercept_chains(&[], &[at], KEPT, MARK);
        let [others, known] = &arriving.rules[..] else { panic!("{arriving:?}") };
        assert_eq!(*others, to(TCP, at).begins().forget(set).counter(), "and nothing more");
        let here = Bits { value: 0x35, mask: 0xff };
        let led = to(TCP, at).goes_on().known(set).remember(set).counter().set_mark(here).notrack();
        assert_eq!(*known, led);
    }
}
