//! Rules that agents have put into firewalls of others (`network.accept_untracked`). They do not end with an agent that is
//! killed: the next one takes them over if it wants the same, and nobody looks after them if not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::doctor::Patient;
use crate::doctor::finding::Finding;
use crate::doctor::words::nft;
use crate::node::netfilter::{OPENED, TableSeen};

/// They are told beside the agent's own.
const CHECK: &str = "rules";

/// What the agent's configuration makes of such a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    /// It is about an address of this configuration, which does not ask for it.
    Unasked,
    /// Nobody listens at its address.
    Nobodys,
    /// Whether somebody does cannot be seen.
    Unknown,
}

/// Looks, and judges.
pub(super) fn check(patient: &Patient, tables: &[TableSeen]) -> Vec<Finding> {
    let config = &patient.config;
    let ours: Vec<SocketAddr> = config.listen.iter().copied().chain(patient.cluster_ips()).collect();
    let kept = if config.network.accept_untracked { patient.untracked() } else { Vec::new() };
    let sockets = patient.node.sockets.as_ref().ok();
    let whose = |at: SocketAddr| {
        if kept.contains(&at) {
            return None;
        }
        if ours.contains(&at) {
            return Some(Whose::Unasked);
        }
        match sockets.map(|sockets| sockets.iter().any(|socket| socket.addr == at)) {
            Some(true) => None, // another agent's
            Some(false) => Some(Whose::Nobodys),
            None => Some(Whose::Unknown),
        }
    };
    judge(tables, whose)
}

/// Rules of one chain that are the same people's.
#[derive(Debug, Default)]
struct Left {
    addresses: BTreeSet<SocketAddr>,
    /// What deletes each.
    commands: Vec<String>,
}

fn judge(tables: &[TableSeen], whose: impl Fn(SocketAddr) -> Option<Whose>) -> Vec<Finding> {
    let mut all: BTreeMap<(String, Whose), Left> = BTreeMap::new();
    for table in tables.iter().filter(|table| table.owner.is_none()) {
        for chain in &table.chains {
            let name = format!("{} {} {}", table.family.name(), table.name, chain.name);
            let opened = chain.rules.iter().filter_map(|rule| {
                let at = rule.comment.as_ref()?.strip_prefix(OPENED)?.rsplit(' ').next()?;
                Some((rule.handle, at.parse().ok()?))
            });
            for (handle, at) in opened {
                let Some(whose) = whose(at) else { continue };
                let delete =
                    nft(&[&table.name, &chain.name], || format!("nft delete rule {name} handle {handle}"));
                let left = all.entry((name.clone(), whose)).or_default();
                left.addresses.insert(at);
                left.commands.push(delete);
            }
        }
    }
    all.into_iter().map(|((chain, whose), left)| finding(&chain, whose, &left)).collect()
}

/// Some addresses, and how many more.
fn listed(addresses: &BTreeSet<SocketAddr>) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<String> = addresses.iter().take(SHOWN).map(ToString::to_string).collect();
    match addresses.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn finding(chain: &str, whose: Whose, Left { addresses, commands }: &Left) -> Finding {
    let addresses = listed(addresses);
    let count = match commands.len() {
        1 => "a rule".to_owned(),
        several => format!("{several} rules"),
    };
    let behind = |commands: &[String]| {
        let lines = commands.iter().flat_map(|command| command.lines()).map(|line| format!("#   {line}"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let why = "They let queries through that connection tracking does not see, and go neither with an agent that is killed \
               nor with the next one.";
    match whose {
        Whose::Nobodys => Finding::warning(
            CHECK,
            format!("an agent has left {count} in chain {chain} for {addresses}, where nobody listens"),
            why,
            commands.join("\n"),
        ),
        Whose::Unasked => Finding::warning(
            CHECK,
            format!(
                "an agent has left {count} in chain {chain} for {addresses}, and network.accept_untracked does not ask for them"
            ),
            why,
            format!(
                "# network: {{ accept_untracked: true }} has the agent look after them; if its clients get through without \
                 them:\n{}",
                behind(commands)
            ),
        ),
        Whose::Unknown => Finding::warning(
            CHECK,
            format!("an agent has put {count} into chain {chain} for {addresses}, which is not this one's"),
            why,
            format!(
                "ss -tulnp 'sport = :53'\n# where nobody listens at their addresses:\n{}",
                behind(commands)
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::netfilter::{ChainSeen, Family, RuleSeen};

    fn table(name: &str, comments: &[&str]) -> TableSeen {
        let rule = |(handle, comment): (u64, &&str)| RuleSeen {
            handle,
            comment: Some((*comment).to_owned()),
            ..RuleSeen::default()
        };
        let rules = (1..).zip(comments).map(rule).collect();
        let chains = vec![ChainSeen { name: "input".into(), base: None, rules }];
        TableSeen { family: Family::Inet, name: name.into(), owner: None, chains, left_out: 0 }
    }

    #[test]
    fn what_nobody_needs_is_deleted_and_the_rest_is_told() {
        let fw = table(
            "fw",
            &[
                "nodens: untracked DNS udp to 192.0.2.1:53",
                "nodens: untracked DNS tcp from 192.0.2.1:53",
                "nodens: untracked DNS udp to [fd00::2]:53",
                "nodens: untracked DNS udp to 192.0.2.3:53",
                "nodens: untracked DNS of somebody",
                "of somebody else",
            ],
        );
        let whose = |at: SocketAddr| match at.to_string().as_str() {
            "192.0.2.1:53" => Some(Whose::Nobodys),
            "[fd00::2]:53" => Some(Whose::Unasked),
            _ => None,
        };
        let found = judge(&[fw], whose);
        assert_eq!(found.len(), 2, "{found:#?}");
        let unasked = &found[0];
        assert!(unasked.mend.lines().all(|line| line.starts_with('#')), "{unasked:#?}");
        assert!(unasked.mend.ends_with("#   nft delete rule inet fw input handle 3"), "{unasked:#?}");
        let commands = "nft delete rule inet fw input handle 1\nnft delete rule inet fw input handle 2";
        assert_eq!(found[1].mend, commands);
        let odd = judge(&[table("a;b", &["nodens: untracked DNS udp to 192.0.2.1:53"])], whose);
        assert!(odd[0].mend.starts_with("# nft takes no name such as 'a;b'"), "{odd:#?}");
        let unseen =
            judge(&[table("fw", &["nodens: untracked DNS udp to 192.0.2.1:53"])], |_| Some(Whose::Unknown));
        assert!(unseen[0].mend.lines().skip(1).all(|line| line.starts_with('#')), "{unseen:#?}");
    }
}
