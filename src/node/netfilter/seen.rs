//! What is in the kernel's nftables, whoever has put it there: by nft, by iptables-nft, or by ourselves.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;

use super::super::netlink::{Attributes, Listed, Packet, Socket};
use super::numbers::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, CHAIN_TYPE, HOOK_NUMBER, HOOK_PRIORITY, RULE_CHAIN,
    RULE_EXPRESSIONS, RULE_HANDLE, RULE_TABLE, RULE_USERDATA, TABLE_NAME, TABLE_OWNER,
};
use super::rule::UNTRACKED;
use super::table::open;
use super::words;
use super::{FAMILY, Refusal, family, nftables, refusal};

/// A list that changes while it is read is read again, this often.
pub(super) const TRIES: usize = 5;
/// Tables, chains or rules that are looked at in one list. A node with 10,000 Services has some 100,000 rules of
/// kube-proxy.
pub(super) const LOOKED_AT: usize = 1_000_000;
/// Rules that are kept, some 300 bytes each.
const KEPT: usize = 50_000;

/// Which packets a table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Anything else, by its number in linux/netfilter.h.
    Other(u8),
}

impl Family {
    fn of(number: u8) -> Self {
        match i32::from(number) {
            libc::NFPROTO_INET => Self::Inet,
            libc::NFPROTO_IPV4 => Self::Ip,
            libc::NFPROTO_IPV6 => Self::Ip6,
            _ => Self::Other(number),
        }
    }

    /// Its number in linux/netfilter.h.
    pub(super) fn number(self) -> i32 {
        match self {
            Self::Inet => libc::NFPROTO_INET,
            Self::Ip => libc::NFPROTO_IPV4,
            Self::Ip6 => libc::NFPROTO_IPV6,
            Self::Other(number) => number.into(),
        }
    }

    /// As nft(8) names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Other(number) => match i32::from(number) {
                libc::NFPROTO_ARP => "arp",
                libc::NFPROTO_NETDEV => "netdev",
                libc::NFPROTO_BRIDGE => "bridge",
                _ => "unknown",
            },
        }
    }
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSeen {
    /// Which packets it is for.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// The number of the netlink socket that owns it, if one does.
    pub owner: Option<u32>,
    /// Its chains, as the kernel lists them.
    pub chains: Vec<ChainSeen>,
    /// Rules that are there and not here: there were too many of them.
    pub left_out: usize,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainSeen {
    /// Its name.
    pub name: String,
    /// Where packets come to it by themselves; `None` when other chains lead there.
    pub base: Option<Base>,
    /// From the first to the last.
    pub rules: Vec<RuleSeen>,
}

/// The place of a chain that packets come to by themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// `filter`, `nat`, `route`.
    pub kind: String,
    /// `NF_INET_PRE_ROUTING` and so on (linux/netfilter.h).
    pub hook: u32,
    /// The lowest come first.
    pub priority: i32,
    /// Whether packets that no rule decides about are dropped.
    pub drops: bool,
}

impl Base {
    /// As nft(8) names the hook; of families that are about IP.
    pub fn hook_name(&self) -> &'static str {
        match i32::try_from(self.hook).unwrap_or(-1) {
            libc::NF_INET_PRE_ROUTING => "prerouting",
            libc::NF_INET_LOCAL_IN => "input",
            libc::NF_INET_FORWARD => "forward",
            libc::NF_INET_LOCAL_OUT => "output",
            libc::NF_INET_POST_ROUTING => "postrouting",
            libc::NF_INET_INGRESS => "ingress",
            _ => "unknown",
        }
    }
}

/// A rule, as far as it can be read by somebody who does not know all expressions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleSeen {
    /// The kernel's number of it within its table.
    pub handle: u64,
    /// Packets that have come to its counter; `None` without one.
    pub packets: Option<u64>,
    /// The comment, written by nft or by iptables.
    pub comment: Option<String>,
    /// What it compares with or sets that is as long as an address. Marks are as long as an IPv4 address.
    pub addresses: Vec<IpAddr>,
    /// What it compares with that is as long as a port, and the destination port of iptables' `udp` and `tcp`.
    pub ports: Vec<u16>,
    /// Which packets it is about, as connection tracking knows them: bits of `NF_CT_STATE_BIT`, 0 where they cannot be
    /// read; `None` where it does not ask.
    pub states: Option<u32>,
    /// Its expressions from left to right: as the kernel calls them (`meta`, `payload`, `notrack`), a verdict by its
    /// own name (`accept`, `drop`, `jump KUBE-SERVICES`), iptables' matches and targets by theirs (`comment`, `CT`).
    pub expressions: Vec<String>,
}

impl RuleSeen {
    /// Whether it has an expression of this name.
    pub fn has(&self, expression: &str) -> bool {
        self.expressions.iter().any(|found| found == expression)
    }

    /// Whether it is about packets that are not tracked as well; `None` where that cannot be read.
    pub fn is_for_untracked(&self) -> Option<bool> {
        match self.states {
            None => Some(true),
            Some(0) => None,
            Some(states) => Some(states & UNTRACKED != 0),
        }
    }

    /// Whether it ends a packet: by a verdict, by a refusal that is sent back, or by iptables' targets for it.
    pub fn drops(&self) -> bool {
        ["drop", "reject", "DROP", "REJECT"].iter().any(|name| self.has(name))
    }
}

/// Every table with its chains and rules.
///
/// # Errors
/// [`Refusal`]
pub fn tables() -> Result<Vec<TableSeen>, Refusal> {
    let socket = open()?;
    let mut found = tables_without_rules(&socket)?;
    rules_into(&mut found, &socket)?;
    Ok(found)
}

/// Every table without its chains.
pub(super) fn names() -> Result<Vec<TableSeen>, Refusal> {
    names_by(&open()?)
}

fn names_by(socket: &Socket) -> Result<Vec<TableSeen>, Refusal> {
    let mut found = Vec::new();
    until_it_stays(|| {
        found.clear();
        list(socket, libc::NFT_MSG_GETTABLE, |family, attributes| {
            let Some(name) = attributes.text(TABLE_NAME) else { return };
            let owner = attributes.word(TABLE_OWNER);
            found.push(TableSeen { family, name, owner, chains: Vec::new(), left_out: 0 });
        })
    })?;
    Ok(found)
}

/// Every table with its chains, which have no rules yet.
pub(super) fn tables_without_rules(socket: &Socket) -> Result<Vec<TableSeen>, Refusal> {
    let mut found = names_by(socket)?;
    let places = places(&found);
    until_it_stays(|| {
        found.iter_mut().for_each(|table| table.chains.clear());
        list(socket, libc::NFT_MSG_GETCHAIN, |family, attributes| {
            let table = attributes.text(CHAIN_TABLE).and_then(|table| places.get(&(family, table)));
            if let (Some(&at), Some(chain)) = (table, chain(attributes)) {
                found[at].chains.push(chain);
            }
        })
    })?;
    Ok(found)
}

/// Reads rules into the chains of the tables.
fn rules_into(tables: &mut [TableSeen], socket: &Socket) -> Result<(), Refusal> {
    let places = places(tables);
    let mut chains: HashMap<(usize, String), usize> = HashMap::new();
    for (at, table) in tables.iter().enumerate() {
        let names = table.chains.iter().enumerate();
        chains.extend(names.map(|(chain, ChainSeen { name, .. })| ((at, name.clone()), chain)));
    }
    until_it_stays(|| {
        let mut kept = 0;
        for table in tables.iter_mut() {
            table.left_out = 0;
            table.chains.iter_mut().for_each(|chain| chain.rules.clear());
        }
        list(socket, libc::NFT_MSG_GETRULE, |family, attributes| {
            let table = attributes.text(RULE_TABLE).and_then(|table| places.get(&(family, table)));
            let chain = attributes.text(RULE_CHAIN);
            let (Some(&at), Some(chain)) = (table, chain) else { return };
            let Some(&chain) = chains.get(&(at, chain)) else { return };
            if kept == KEPT {
                tables[at].left_out += 1;
            } else {
                kept += 1;
                tables[at].chains[chain].rules.push(rule(attributes));
            }
        })
    })
}

/// The place of each table.
fn places(tables: &[TableSeen]) -> HashMap<(Family, String), usize> {
    tables.iter().enumerate().map(|(at, table)| ((table.family, table.name.clone()), at)).collect()
}

/// Reads a list again while it changes under the reader's hands. One that keeps changing is taken as it was read last.
fn until_it_stays(mut read: impl FnMut() -> io::Result<Listed>) -> Result<(), Refusal> {
    for _ in 0..TRIES {
        match read() {
            Ok(Listed::Changed) => {}
            Ok(Listed::Whole | Listed::Cut) => break,
            // So ends the list of a table that has gone meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) => return Err(refusal(None, error)),
        }
    }
    Ok(())
}

/// Has the kernel list what it has, and hands each to `read`.
fn list(socket: &Socket, kind: i32, mut read: impl FnMut(Family, Attributes<'_>)) -> io::Result<Listed> {
    let mut packet = Packet::default();
    packet.message(nftables(kind), libc::NLM_F_DUMP as u16, 1, |packet| {
        packet.raw(&family(libc::NFPROTO_UNSPEC, 0));
    });
    socket.list(&packet, LOOKED_AT, &mut |body| {
        if let Some(&family) = body.first() {
            read(Family::of(family), Attributes::behind(FAMILY, body));
        }
        ControlFlow::Continue(())
    })
}

/// Hands each rule of a table, or of one of its chains, to `each`, until that breaks off; `most` of them are looked at.
/// Nothing is kept. The kernel passes other chains over; from one that does not their rules are not handed on. A table or
/// chain that has gone has no rules.
pub(super) fn each_rule(
    socket: &Socket,
    table: (Family, &str),
    chain: Option<&str>,
    most: usize,
    each: &mut dyn FnMut(RuleSeen) -> ControlFlow<()>,
) -> Result<Listed, Refusal> {
    let mut packet = Packet::default();
    packet.message(nftables(libc::NFT_MSG_GETRULE), libc::NLM_F_DUMP as u16, 1, |packet| {
        packet.raw(&family(table.0.number(), 0));
        packet.text(RULE_TABLE, table.1);
        if let Some(chain) = chain {
            packet.text(RULE_CHAIN, chain);
        }
    });
    let listed = socket.list(&packet, most, &mut |body| {
        let attributes = Attributes::behind(FAMILY, body);
        let is_meant = chain.is_none_or(|chain| attributes.text(RULE_CHAIN).as_deref() == Some(chain));
        if is_meant { each(rule(attributes)) } else { ControlFlow::Continue(()) }
    });
    match listed {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Listed::Whole),
        listed => listed.map_err(|error| refusal(None, error)),
    }
}

fn chain(attributes: Attributes<'_>) -> Option<ChainSeen> {
    let hook = attributes.nested(CHAIN_HOOK);
    let base = hook.word(HOOK_NUMBER).map(|number| Base {
        kind: attributes.text(CHAIN_TYPE).unwrap_or_default(),
        hook: number,
        priority: hook.word(HOOK_PRIORITY).unwrap_or_default().cast_signed(),
        drops: attributes.word(CHAIN_POLICY) == Some(libc::NF_DROP as u32),
    });
    Some(ChainSeen { name: attributes.text(CHAIN_NAME)?, base, rules: Vec::new() })
}

fn rule(attributes: Attributes<'_>) -> RuleSeen {
    let user_data = attributes.find(RULE_USERDATA).unwrap_or_default();
    let rule = words::read(attributes.nested(RULE_EXPRESSIONS), user_data);
    RuleSeen { handle: attributes.long(RULE_HANDLE).unwrap_or_default(), ..rule }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_changes_is_read_again_and_not_for_ever() {
        let reads = |answers: &dyn Fn(usize) -> io::Result<Listed>| {
            let mut read = 0;
            let result = until_it_stays(|| {
                read += 1;
                answers(read)
            });
            (read, result.is_ok())
        };
        assert_eq!(reads(&|_| Ok(Listed::Whole)), (1, true));
        assert_eq!(reads(&|_| Ok(Listed::Cut)), (1, true));
        assert_eq!(reads(&|read| Ok(if read < 3 { Listed::Changed } else { Listed::Whole })), (3, true));
        assert_eq!(reads(&|_| Ok(Listed::Changed)), (TRIES, true));
        let error = |code| move |_| Err(io::Error::from_raw_os_error(code));
        assert_eq!(reads(&error(libc::ENOENT)), (1, true));
        assert_eq!(reads(&error(libc::EPERM)), (1, false));
    }
}
