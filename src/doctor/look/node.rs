//! The node's network at the moment of the examination: addresses, sockets, rules, and who answers.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::answers::{self, Answer};
use super::iptables::{self, Saved};
use super::processes::{Owners, owners};
use super::sockets::{Bound, bound};
use crate::doctor::finding::{Seen, Unseen};
use crate::doctor::sources::{AS_ROOT, Sources};
use crate::node::link::{Holder, holders};
use crate::node::netfilter::{Refusal, TableSeen, tables};

/// linux/netlink.h: of netfilter, as /proc/net/netlink shows it.
const NETFILTER: &str = "12";

/// What is there.
#[derive(Debug)]
pub struct Node {
    /// Every address of every link.
    pub holders: Seen<Vec<Holder>>,
    /// The names of all links.
    pub links: Seen<Vec<String>>,
    /// Sockets that wait for queries or connections.
    pub sockets: Seen<Vec<Bound>>,
    /// Whose they are.
    pub owners: Seen<Owners>,
    /// Every table of nftables before [`Node::answers`].
    pub before: Seen<Vec<TableSeen>>,
    /// What became of questions to the addresses of the configuration.
    pub answers: Vec<Answer>,
    /// Every table of nftables after them.
    pub tables: Seen<Vec<TableSeen>>,
    /// The rules of iptables-legacy, which are not in there.
    pub legacy: Vec<Saved>,
    /// The numbers of all netlink sockets of netfilter: tables of ours are named by them.
    pub netlink: Seen<BTreeSet<u32>>,
}

/// Looks, and asks these addresses.
pub async fn node(sources: &Sources, ask: &[SocketAddr]) -> Node {
    let before = list_tables();
    let answers = answers::ask(ask).await;
    let sockets = bound(sources);
    let inodes = |sockets: &Vec<Bound>| sockets.iter().map(|socket| socket.inode).collect::<BTreeSet<_>>();
    Node {
        holders: holders().map_err(|problem| Unseen::new(problem.to_string(), "")),
        links: links(sources),
        owners: sockets.as_ref().map(inodes).map_err(Clone::clone).and_then(|all| owners(sources, &all)),
        sockets,
        before,
        answers,
        // Sockets first: one that is there when the tables are listed is nobody that has gone.
        netlink: netlink(sources),
        tables: list_tables(),
        legacy: iptables::legacy(sources),
    }
}

fn list_tables() -> Seen<Vec<TableSeen>> {
    tables().map_err(|refusal| refused(&refusal))
}

/// Why netfilter does not let us look.
pub fn refused(refusal: &Refusal) -> Unseen {
    match refusal {
        Refusal::Capability => Unseen::new(
            "only root may list them (CAP_NET_ADMIN)",
            format!("# in a container, add NET_ADMIN to its securityContext\n{AS_ROOT}"),
        ),
        other => Unseen::new(other.to_string(), ""),
    }
}

/// /proc/net/dev has two lines above.
fn links(sources: &Sources) -> Seen<Vec<String>> {
    let text = sources.read("/proc/self/net/dev")?;
    let name = |line: &str| line.split_once(':').map(|(name, _)| name.trim().to_owned());
    Ok(text.lines().skip(2).filter_map(name).collect())
}

fn netlink(sources: &Sources) -> Seen<BTreeSet<u32>> {
    let text = sources.read("/proc/self/net/netlink")?;
    let port = |line: &str| {
        let mut columns = line.split_whitespace().skip(1);
        (columns.next() == Some(NETFILTER)).then(|| columns.next()?.parse().ok()).flatten()
    };
    Ok(text.lines().filter_map(port).collect())
}
