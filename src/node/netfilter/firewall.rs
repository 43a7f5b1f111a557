//! Firewalls of others that drop what connection tracking has not seen.
//!
//! A packet has to be accepted by every chain that it passes, so nothing in a table of our own saves it from a chain
//! that drops (nft(8), verdict statements). Where it is asked for, and only then, rules of ours go to the head of
//! chains of others. Not into those of iptables: it could not show its own tables any more, and kube-proxy would fail.
//! Those of iptables-legacy are not in nftables at all: all that can be seen is that they are there.
//!
//! A chain is read by itself, and to its end: a rule of ours that was not found would be put there once more, each time.

mod iptables;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;

use super::super::netlink::{Listed, Packet, Socket};
use super::numbers::{RULE_CHAIN, RULE_EXPRESSIONS, RULE_HANDLE, RULE_TABLE, RULE_USERDATA};
use super::rule::Rule;
use super::seen::{self, Base, ChainSeen, Family, LOOKED_AT, RuleSeen, TRIES, TableSeen};
use super::table::open;
use super::transaction::{Batch, Step};
use super::{Refusal, words};

/// The comments of our rules in the chains of others begin like this.
pub const OPENED: &str = "nodens: untracked DNS";

/// Both protocols of DNS.
const PROTOCOLS: [(i32, &str); 2] = [(libc::IPPROTO_UDP, "udp"), (libc::IPPROTO_TCP, "tcp")];
/// Queries and answers.
const WAYS: [&str; 2] = ["to", "from"];
/// Rules of ours that go at once.
const AT_ONCE: usize = 1_000;
/// It rejects new connections to Services, and writes its table itself; packets that are not tracked are not new.
const KUBE_PROXY: &str = "kube-proxy";

/// What became of the chains that drop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opened {
    /// Chains that have rules of ours since now, as nft(8) names them: `inet filter input`.
    pub opened: Vec<String>,
    /// Chains that drop, or may, and are not ours to change: which, why, and what helps.
    pub cannot: Vec<String>,
}

/// The firewalls of this network namespace.
#[derive(Debug)]
pub struct Firewall {
    socket: Socket,
    most: usize,
}

/// What is in a chain, as far as it matters.
#[derive(Debug, Default)]
struct Looked {
    drops: bool,
    /// Comments of those of our rules that are wanted there.
    there: BTreeSet<String>,
}

impl Firewall {
    /// Nothing has changed yet.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn find() -> Result<Self, Refusal> {
        Ok(Self { socket: open()?, most: LOOKED_AT })
    }

    /// Looks at so many rules of a chain at the most. One that has more is left alone.
    #[must_use]
    pub fn reading(self, most: usize) -> Self {
        Self { most, ..self }
    }

    /// Lets untracked DNS to and from these addresses through all chains of input and output that drop anything. What
    /// is there already stays.
    ///
    /// # Errors
    /// [`Refusal`]; of a chain that cannot be changed it is in what is returned.
    pub fn open_for(&self, addresses: &[SocketAddr]) -> Result<Opened, Refusal> {
        let mut done = Opened::default();
        for table in self.tables()? {
            if wanted(table.family, addresses).next().is_some() {
                self.open_table(&table, addresses, &mut done)?;
            }
        }
        for family in [Family::Ip, Family::Ip6] {
            done.cannot.extend(iptables::legacy(family, iptables::legacy_tables(family), addresses));
        }
        Ok(done)
    }

    fn open_table(
        &self,
        table: &TableSeen,
        addresses: &[SocketAddr],
        done: &mut Opened,
    ) -> Result<(), Refusal> {
        let mut table_drops = None;
        for chain in table.chains.iter().filter(|chain| is_passed(chain)) {
            let name = format!("{} {} {}", table.family.name(), table.name, chain.name);
            let looked = match self.look(table, chain, addresses) {
                Ok(looked) => looked,
                Err(Refusal::Capability) => return Err(Refusal::Capability),
                Err(refusal) => {
                    done.cannot.push(format!("{name}: {refusal}"));
                    continue;
                }
            };
            let drops = looked.drops || by_policy(chain);
            if iptables::is_of(table, chain) {
                done.cannot.extend(drops.then(|| iptables::help(&name, table, chain, addresses)));
                continue;
            }
            if !drops && !table_drops.map_or_else(|| self.drops(table), Ok)? {
                table_drops = Some(false);
                continue;
            }
            table_drops = Some(true);
            if let Some(owner) = table.owner {
                done.cannot.push(format!(
                    "{name}: the chain drops packets, and only the program with netlink socket {owner} can change its \
                     table: have that accept `ct state untracked`"
                ));
            } else {
                match self.open_chain(table, chain, addresses, &looked.there) {
                    Ok(true) => done.opened.push(name),
                    Ok(false) => {}
                    Err(Refusal::Capability) => return Err(Refusal::Capability),
                    Err(refusal) => done.cannot.push(format!("{name}: {refusal}")),
                }
            }
        }
        Ok(())
    }

    /// Takes our rules away wherever they are that are for addresses that go, and says how many there were.
    ///
    /// # Errors
    /// [`Refusal`], the first; what could go is gone.
    pub fn close(&self, goes: &dyn Fn(SocketAddr) -> bool) -> Result<usize, Refusal> {
        let (mut closed, mut result) = (0, Ok(()));
        for table in self.tables()?.iter().filter(|table| table.owner.is_none()) {
            for chain in table.chains.iter().filter(|chain| is_passed(chain)) {
                let found = self.read(table, chain, |found: &mut Vec<u64>, rule| {
                    found.extend(
                        rule.comment.as_deref().and_then(about).filter(|&at| goes(at)).map(|_| rule.handle),
                    );
                });
                let removed = found.and_then(|found| self.remove(table, chain, &found));
                match removed {
                    Ok(removed) => closed += removed,
                    Err(refusal) => result = result.and(Err(refusal)),
                }
            }
        }
        result.map(|()| closed)
    }

    fn remove(&self, table: &TableSeen, chain: &ChainSeen, handles: &[u64]) -> Result<usize, Refusal> {
        for some in handles.chunks(AT_ONCE) {
            let mut batch = Batch::default();
            for handle in some {
                add(&mut batch, libc::NFT_MSG_DELRULE, table, chain, |packet| {
                    packet.attribute(RULE_HANDLE, &handle.to_be_bytes());
                });
            }
            batch.commit(&self.socket)?;
        }
        Ok(handles.len())
    }

    /// Tables in which packets can meet a firewall, without their rules.
    fn tables(&self) -> Result<Vec<TableSeen>, Refusal> {
        let mut tables = seen::tables_without_rules(&self.socket)?;
        let is_ip = |family| matches!(family, Family::Inet | Family::Ip | Family::Ip6);
        tables.retain(|table| {
            is_ip(table.family) && table.name != KUBE_PROXY && table.chains.iter().any(is_passed)
        });
        Ok(tables)
    }

    /// What all rules of a chain come to, from the first to the last and each once.
    fn read<T: Default>(
        &self,
        table: &TableSeen,
        chain: &ChainSeen,
        take: impl Fn(&mut T, RuleSeen),
    ) -> Result<T, Refusal> {
        for _ in 0..TRIES {
            // Of its own: one that has not read a list to its end cannot ask for another.
            let (socket, mut found) = (open()?, T::default());
            let of = (table.family, table.name.as_str());
            let listed = seen::each_rule(&socket, of, Some(&chain.name), self.most, &mut |rule| {
                take(&mut found, rule);
                ControlFlow::Continue(())
            });
            match listed? {
                Listed::Whole => return Ok(found),
                Listed::Changed => {}
                Listed::Cut => return Err(Refusal::TooMany(self.most)),
            }
        }
        Err(Refusal::Changing)
    }

    fn look(
        &self,
        table: &TableSeen,
        chain: &ChainSeen,
        addresses: &[SocketAddr],
    ) -> Result<Looked, Refusal> {
        let ours: BTreeSet<_> = wanted(table.family, addresses).map(|(comment, _)| comment).collect();
        self.read(table, chain, |looked: &mut Looked, rule| {
            looked.drops |= rule.drops();
            looked.there.extend(rule.comment.filter(|comment| ours.contains(comment)));
        })
    }

    /// Whether anything is dropped in the table: chains lead to each other in many ways. Where that cannot be known, yes.
    fn drops(&self, table: &TableSeen) -> Result<bool, Refusal> {
        if table.chains.iter().any(by_policy) {
            return Ok(true);
        }
        let of = (table.family, table.name.as_str());
        let listed = seen::each_rule(&open()?, of, None, LOOKED_AT, &mut |rule| match rule.drops() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
        Ok(listed? == Listed::Cut)
    }

    /// Whether there was anything to do.
    fn open_chain(
        &self,
        table: &TableSeen,
        chain: &ChainSeen,
        addresses: &[SocketAddr],
        there: &BTreeSet<String>,
    ) -> Result<bool, Refusal> {
        let missing: Vec<_> =
            wanted(table.family, addresses).filter(|(comment, _)| !there.contains(comment)).collect();
        if missing.is_empty() {
            return Ok(false);
        }
        let mut batch = Batch::default();
        for (comment, rule) in missing {
            // Without NLM_F_APPEND it goes to the head.
            add(&mut batch, libc::NFT_MSG_NEWRULE, table, chain, |packet| {
                packet.nest(RULE_EXPRESSIONS, |packet| packet.append(&rule.expressions));
                packet.attribute(RULE_USERDATA, &words::user_data(&comment));
            });
        }
        batch.commit(&self.socket).map(|()| true)
    }
}

/// One message about rules of a chain.
fn add(batch: &mut Batch, kind: i32, table: &TableSeen, chain: &ChainSeen, fill: impl FnOnce(&mut Packet)) {
    let flags = if kind == libc::NFT_MSG_NEWRULE { libc::NLM_F_CREATE } else { 0 };
    batch.add(Step::Rule(chain.name.clone()), kind, flags, table.family.number(), |packet| {
        packet.text(RULE_TABLE, &table.name);
        packet.text(RULE_CHAIN, &chain.name);
        fill(packet);
    });
}

/// The rules for a chain of this family, each with its comment. Both directions are in input and in output: a process
/// of this machine asks and is answered over the loopback link.
fn wanted(family: Family, addresses: &[SocketAddr]) -> impl Iterator<Item = (String, Rule)> {
    let fits = move |at: &&SocketAddr| match at.ip() {
        IpAddr::V4(_) => family != Family::Ip6,
        IpAddr::V6(_) => family != Family::Ip,
    };
    addresses.iter().filter(fits).flat_map(|at| {
        PROTOCOLS.into_iter().flat_map(move |(number, protocol)| {
            let packet = Rule::default();
            let to = packet.clone().destination(at.ip()).protocol(number as u8).destination_port(at.port());
            let from = packet.source(at.ip()).protocol(number as u8).source_port(at.port());
            WAYS.into_iter()
                .zip([to, from])
                .map(|(way, rule)| (comment(protocol, way, *at), rule.untracked().counter().accept()))
        })
    })
}

/// Whether packets for this machine, or from it, come to the chain by themselves and can be dropped there.
fn is_passed(chain: &ChainSeen) -> bool {
    let hooks = [libc::NF_INET_LOCAL_IN, libc::NF_INET_LOCAL_OUT].map(|hook| hook as u32);
    chain.base.as_ref().is_some_and(|Base { kind, hook, .. }| kind == "filter" && hooks.contains(hook))
}

fn by_policy(chain: &ChainSeen) -> bool {
    chain.base.as_ref().is_some_and(|base| base.drops)
}

fn comment(protocol: &str, way: &str, at: SocketAddr) -> String {
    format!("{OPENED} {protocol} {way} {at}")
}

/// The address that a rule of ours is for, by its comment, to the letter.
fn about(text: &str) -> Option<SocketAddr> {
    let at = text.strip_prefix(OPENED)?.split(' ').next_back()?.parse().ok()?;
    let all = PROTOCOLS.iter().flat_map(|(_, protocol)| WAYS.map(|way| comment(protocol, way, at)));
    all.into_iter().any(|ours| ours == text).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_ours_by_its_whole_comment() {
        for at in ["169.254.20.10:53", "[fd00::10]:5353"].map(|at| at.parse().unwrap()) {
            for (comment, _) in wanted(Family::Inet, &[at]) {
                assert_eq!(about(&comment), Some(at), "{comment}");
                for other in [format!("{comment} "), format!("{comment}0 x"), format!("our {comment}")] {
                    assert_eq!(about(&other), None, "{other}");
                }
            }
        }
        for other in
            ["", OPENED, "nodens: untracked DNS udp via 10.0.0.1:53", "nodens: untracked DNS udp to here"]
        {
            assert_eq!(about(other), None, "{other}");
        }
    }
}
