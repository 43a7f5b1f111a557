//! What to say of the chains of iptables, which only iptables can change.

use std::fs;
use std::io;
use std::net::SocketAddr;

use super::{ChainSeen, Family, PROTOCOLS, TableSeen, wanted};

/// iptables(8): its tables and its own chains in them, which nft(8) shows under the same names.
const TABLES: [&str; 5] = ["filter", "raw", "mangle", "nat", "security"];
const CHAINS: [&str; 2] = ["INPUT", "OUTPUT"];
/// Those of iptables-legacy in which both chains are and packets can be dropped for not being tracked. `nat` cannot drop,
/// and in `raw` nothing is tracked yet.
const LEGACY: [&str; 3] = ["filter", "mangle", "security"];

pub(super) fn is_of(table: &TableSeen, chain: &ChainSeen) -> bool {
    table.family != Family::Inet
        && TABLES.contains(&table.name.as_str())
        && CHAINS.contains(&chain.name.as_str())
}

/// What to say of a chain of iptables.
pub(super) fn help(name: &str, table: &TableSeen, chain: &ChainSeen, addresses: &[SocketAddr]) -> String {
    // What is in nftables is that of iptables-nft, whichever `iptables` is.
    let program = if table.family == Family::Ip6 { "ip6tables-nft" } else { "iptables-nft" };
    let commands = commands(program, table.family, &table.name, &[&chain.name], addresses).join("; ");
    format!("{name}: a chain of iptables drops packets, and only iptables can change it: {commands}")
}

/// What iptables is to be told, to let untracked DNS through these chains, and nothing else.
fn commands(
    program: &str,
    family: Family,
    table: &str,
    chains: &[&str],
    addresses: &[SocketAddr],
) -> Vec<String> {
    let mut commands = Vec::new();
    for at in addresses.iter().filter(|at| at.is_ipv6() == (family == Family::Ip6)) {
        let (ip, port) = (at.ip(), at.port());
        for chain in chains {
            for (_, protocol) in PROTOCOLS {
                for packets in
                    [format!("-d {ip} -p {protocol} --dport"), format!("-s {ip} -p {protocol} --sport")]
                {
                    commands.push(format!(
                        "{program} -w -t {table} -I {chain} {packets} {port} -m conntrack --ctstate UNTRACKED -j ACCEPT"
                    ));
                }
            }
        }
    }
    commands
}

/// The tables that iptables-legacy has in this network namespace: Linux names them (net/netfilter/x_tables.c), to the
/// user who owns the namespace alone.
pub(super) fn legacy_tables(family: Family) -> io::Result<Vec<String>> {
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
pub(super) fn legacy(
    family: Family,
    tables: io::Result<Vec<String>>,
    addresses: &[SocketAddr],
) -> Vec<String> {
    if wanted(family, addresses).next().is_none() {
        return Vec::new();
    }
    let program = if family == Family::Ip6 { "ip6tables-legacy" } else { "iptables-legacy" };
    let help = |table: &str| {
        let commands = commands(program, family, table, &CHAINS, addresses).join("; ");
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
        legacy(family, tables, &addresses)
    }

    #[test]
    fn tables_of_iptables_legacy_that_can_drop_are_named_for_the_addresses_of_their_family() {
        let there = ["nat", "raw", "mangle", "filter"].map(str::to_owned).to_vec();
        let both = ["169.254.20.10:53", "[fd00::10]:53"];
        let lines = said(Family::Ip, Ok(there.clone()), &both);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("iptables-legacy has a table filter, "), "{lines:?}");
        assert!(lines[1].starts_with("iptables-legacy has a table mangle, "), "{lines:?}");
        let command = "iptables-legacy -w -t mangle -I OUTPUT -s 169.254.20.10 -p tcp --sport 53 -m conntrack --ctstate \
                       UNTRACKED -j ACCEPT";
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
            "iptables-legacy -w -t filter -I INPUT -d 169.254.20.10 ",
        ] {
            assert!(lines[0].contains(part), "{lines:?}");
        }
        assert_eq!(said(Family::Ip, denied(), &["[fd00::10]:53"]), [] as [&str; 0]);
    }
}
