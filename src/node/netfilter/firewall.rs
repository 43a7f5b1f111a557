//! Firewalls of others that drop what connection tracking has not seen.
//!
//! A packet has to be accepted by every chain that it passes, so nothing in a table of our own saves it from a chain
//! that drops (nft(8), verdict statements). Where it is asked for, and only then, rules of ours go to the head of
//! chains of others. Not into those of iptables: it could not show its own tables any more, and kube-proxy would fail.
//! Those of iptables-legacy are not in nftables at all: all that can be seen is that they are there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::super::netlink::{Packet, Socket};
use super::numbers::{RULE_CHAIN, RULE_EXPRESSIONS, RULE_HANDLE, RULE_TABLE, RULE_USERDATA};
use super::rule::Rule;
use super::seen::{self, Base, ChainSeen, Family, TableSeen};
use super::table::open;
use super::transaction::{Batch, Step};
use super::{Refusal, words};

/// The comments of our rules in the chains of others begin like this.
pub const OPENED: &str = "nodens: untracked DNS";

/// Both protocols of DNS.
const PROTOCOLS: [(i32, &str); 2] = [(libc::IPPROTO_UDP, "udp"), (libc::IPPROTO_TCP, "tcp")];
/// iptables(8): its tables and its own chains in them, which nft(8) shows under the same names.
const IPTABLES: [&str; 5] = ["filter", "raw", "mangle", "nat", "security"];
const IPTABLES_CHAINS: [&str; 2] = ["INPUT", "OUTPUT"];
/// Those of iptables-legacy in which both chains are and packets can be dropped for not being tracked. `nat` cannot drop,
/// and in `raw` nothing is tracked yet.
const LEGACY: [&str; 3] = ["filter", "mangle", "security"];
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
}

impl Firewall {
    /// Nothing has changed yet.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn find() -> Result<Self, Refusal> {
        Ok(Self { socket: open()? })
    }

    /// Lets untracked DNS to and from these addresses through all chains of input and output that drop anything. What
    /// is there already stays.
    ///
    /// # Errors
    /// [`Refusal`]; of a chain that cannot be changed it is in what is returned.
    pub fn open_for(&self, addresses: &[SocketAddr]) -> Result<Opened, Refusal> {
        let mut done = Opened::default();
        for table in self.tables()? {
            if wanted(table.family, addresses).next().is_none() {
                continue;
            }
            let table_drops = drops(&table);
            for chain in table.chains.iter().filter(|chain| is_passed(chain)) {
                let name = format!("{} {} {}", table.family.name(), table.name, chain.name);
                if is_of_iptables(&table, chain) {
                    done.cannot
                        .extend(chain_drops(chain).then(|| by_iptables(&name, &table, chain, addresses)));
                } else if !table_drops {
                    continue;
                } else if let Some(owner) = table.owner {
                    done.cannot.push(format!(
                        "{name}: the chain drops packets, and only the program with netlink socket {owner} can \
                         change its table: have that accept `ct state untracked`"
                    ));
                } else {
                    match self.open_chain(&table, chain, addresses) {
                        Ok(true) => done.opened.push(name),
                        Ok(false) => {}
                        Err(Refusal::Capability) => return Err(Refusal::Capability),
                        Err(refusal) => done.cannot.push(format!("{name}: {refusal}")),
                    }
                }
            }
        }
        for family in [Family::Ip, Family::Ip6] {
            done.cannot.extend(by_iptables_legacy(family, legacy_tables(family), addresses));
        }
        Ok(done)
    }

    /// Takes the rules for these addresses away wherever they are, and says how many there were.
    ///
    /// # Errors
    /// [`Refusal`]; those that went before are gone.
    pub fn close(&self, addresses: &[SocketAddr]) -> Result<usize, Refusal> {
        let mut closed = 0;
        for table in self.tables()?.iter().filter(|table| table.owner.is_none()) {
            for chain in table.chains.iter().filter(|chain| is_passed(chain)) {
                let ours: BTreeSet<_> = wanted(table.family, addresses).map(|(comment, _)| comment).collect();
                let ours = chain
                    .rules
                    .iter()
                    .filter(|rule| rule.comment.as_ref().is_some_and(|text| ours.contains(text)));
                let mut batch = Batch::default();
                let before = closed;
                for rule in ours {
                    closed += 1;
                    add(&mut batch, libc::NFT_MSG_DELRULE, table, chain, |packet| {
                        packet.attribute(RULE_HANDLE, &rule.handle.to_be_bytes());
                    });
                }
                if closed > before {
                    batch.commit(&self.socket)?;
                }
            }
        }
        Ok(closed)
    }

    /// Tables in which packets can meet a firewall, with their rules.
    fn tables(&self) -> Result<Vec<TableSeen>, Refusal> {
        let mut tables = seen::tables_without_rules(&self.socket)?;
        let is_ip = |family| matches!(family, Family::Inet | Family::Ip | Family::Ip6);
        tables.retain(|table| {
            is_ip(table.family) && table.name != KUBE_PROXY && table.chains.iter().any(is_passed)
        });
        for table in &mut tables {
            let of = (table.family, table.name.clone());
            seen::rules_into(std::slice::from_mut(table), &self.socket, Some((of.0, &of.1)))?;
        }
        Ok(tables)
    }

    /// Whether there was anything to do.
    fn open_chain(
        &self,
        table: &TableSeen,
        chain: &ChainSeen,
        addresses: &[SocketAddr],
    ) -> Result<bool, Refusal> {
        let there: BTreeSet<&str> = chain.rules.iter().filter_map(|rule| rule.comment.as_deref()).collect();
        let missing: Vec<_> = wanted(table.family, addresses)
            .filter(|(comment, _)| !there.contains(comment.as_str()))
            .collect();
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
            [("to", to), ("from", from)].map(|(way, rule)| {
                (format!("{OPENED} {protocol} {way} {at}"), rule.untracked().counter().accept())
            })
        })
    })
}

/// Whether packets for this machine, or from it, come to the chain by themselves and can be dropped there.
fn is_passed(chain: &ChainSeen) -> bool {
    let hooks = [libc::NF_INET_LOCAL_IN, libc::NF_INET_LOCAL_OUT].map(|hook| hook as u32);
    chain.base.as_ref().is_some_and(|Base { kind, hook, .. }| kind == "filter" && hooks.contains(hook))
}

/// Whether anything is dropped in the table: chains lead to each other in many ways.
fn drops(table: &TableSeen) -> bool {
    table.left_out > 0 || table.chains.iter().any(chain_drops)
}

fn chain_drops(chain: &ChainSeen) -> bool {
    chain.base.as_ref().is_some_and(|base| base.drops) || chain.rules.iter().any(seen::RuleSeen::drops)
}

fn is_of_iptables(table: &TableSeen, chain: &ChainSeen) -> bool {
    table.family != Family::Inet
        && IPTABLES.contains(&table.name.as_str())
        && IPTABLES_CHAINS.contains(&chain.name.as_str())
}

/// What to say of a chain of iptables.
fn by_iptables(name: &str, table: &TableSeen, chain: &ChainSeen, addresses: &[SocketAddr]) -> String {
    let program = if table.family == Family::Ip6 { "ip6tables" } else { "iptables" };
    let commands = commands(program, table.family, &table.name, &[&chain.name], addresses).join("; ");
    format!("{name}: a chain of iptables drops packets, and only iptables can change it: {commands}")
}

/// What iptables is to be told, to let untracked DNS through these chains.
fn commands(
    program: &str,
    family: Family,
    table: &str,
    chains: &[&str],
    addresses: &[SocketAddr],
) -> Vec<String> {
    let own = addresses.iter().filter(|at| at.is_ipv6() == (family == Family::Ip6));
    let command = |chain: &&str, at: &SocketAddr, way: &str| {
        let packets = format!("{way} {} -m conntrack --ctstate UNTRACKED", at.ip());
        format!("{program} -t {table} -I {chain} {packets} -j ACCEPT")
    };
    own.flat_map(|at| chains.iter().flat_map(move |chain| ["-d", "-s"].map(|way| command(chain, at, way))))
        .collect()
}

/// The tables that iptables-legacy has in this network namespace: Linux names them (net/netfilter/x_tables.c), to the
/// user who owns the namespace alone.
fn legacy_tables(family: Family) -> io::Result<Vec<String>> {
    match fs::read_to_string(legacy_file(family)) {
        // The kernel, or what of it is loaded, does not know them.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        text => Ok(text?.lines().map(str::to_owned).collect()),
    }
}

fn legacy_file(family: Family) -> &'static str {
    if family == Family::Ip6 { "/proc/net/ip6_tables_names" } else { "/proc/net/ip_tables_names" }
}

/// What to say of the tables of iptables-legacy, whatever is in them.
fn by_iptables_legacy(
    family: Family,
    tables: io::Result<Vec<String>>,
    addresses: &[SocketAddr],
) -> Vec<String> {
    if wanted(family, addresses).next().is_none() {
        return Vec::new();
    }
    let program = if family == Family::Ip6 { "ip6tables-legacy" } else { "iptables-legacy" };
    let help = |table: &str| {
        let commands = commands(program, family, table, &IPTABLES_CHAINS, addresses).join("; ");
        format!(
            "if a rule there drops packets that are not tracked, only {program} can change it: {commands}"
        )
    };
    match tables {
        Ok(tables) => LEGACY
            .into_iter()
            .filter(|table| tables.iter().any(|there| there == table))
            .map(|table| {
                format!(
                    "{program} has a table {table}, whose rules cannot be seen from here (`{program} -t {table} -S`): {}",
                    help(table)
                )
            })
            .collect(),
        Err(error) => vec![format!(
            "whether {program} has tables cannot be seen ({}: {error}): {}",
            legacy_file(family),
            help(LEGACY[0])
        )],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(family: Family, tables: io::Result<Vec<String>>, addresses: &[&str]) -> Vec<String> {
        let addresses: Vec<SocketAddr> = addresses.iter().map(|at| at.parse().expect("address")).collect();
        by_iptables_legacy(family, tables, &addresses)
    }

    #[test]
    fn tables_of_iptables_legacy_that_can_drop_are_named_for_the_addresses_of_their_family() {
        let there = ["nat", "raw", "mangle", "filter"].map(str::to_owned).to_vec();
        let both = ["169.254.20.10:53", "[fd00::10]:53"];
        let lines = said(Family::Ip, Ok(there.clone()), &both);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("iptables-legacy has a table filter, "), "{lines:?}");
        assert!(lines[1].starts_with("iptables-legacy has a table mangle, "), "{lines:?}");
        let command =
            "iptables-legacy -t mangle -I OUTPUT -s 169.254.20.10 -m conntrack --ctstate UNTRACKED -j ACCEPT";
        assert!(lines[1].ends_with(command) && !lines[1].contains("fd00"), "{lines:?}");
        assert!(said(Family::Ip6, Ok(there.clone()), &both)[0].contains(" -d fd00::10 "));
        assert_eq!(said(Family::Ip6, Ok(there), &both[..1]), [] as [&str; 0]);
        assert_eq!(said(Family::Ip, Ok(vec!["nat".to_owned()]), &both), [] as [&str; 0]);
    }

    #[test]
    fn tables_of_iptables_legacy_that_may_not_be_listed_are_said_to_be_unknown() {
        let denied = || Err(io::ErrorKind::PermissionDenied.into());
        let lines = said(Family::Ip, denied(), &["169.254.20.10:53"]);
        assert_eq!(lines.len(), 1);
        for part in [
            "/proc/net/ip_tables_names: permission denied",
            "iptables-legacy -t filter -I INPUT -d 169.254.20.10 ",
        ] {
            assert!(lines[0].contains(part), "{lines:?}");
        }
        assert_eq!(said(Family::Ip, denied(), &["[fd00::10]:53"]), [] as [&str; 0]);
    }
}
