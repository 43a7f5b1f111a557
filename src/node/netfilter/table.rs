//! A table of our own: what it says is replaced as a whole, and it ends with the process.

use std::fs;
use std::io;

use super::super::netlink::{Attributes, Packet, Reply, Socket};
use super::numbers::{CHAIN_NAME, CHAIN_TABLE, CHAIN_USE};
use super::rule::Chain;
use super::seen;
use super::transaction::{Batch, Message, Taken, replacement};
use super::{FAMILY, Family, Refusal, family, nftables, refusal};

/// A table's name begins like this; the number of its netlink socket comes next.
const PREFIX: &str = "nodens-";
/// linux/netlink.h: of netfilter, as /proc/net/netlink shows it.
const NETFILTER: &str = "12";

/// Who removes the table when the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// The kernel, however the process ends; nobody else can change the table.
    Kernel,
    /// We do, when we can: kernels before Linux 5.12 know no owners. It stays behind a process that is killed.
    Ourselves,
}

/// A table of family `inet`, in force while this lives. Its name is `nodens-` and the number under which the kernel
/// knows its socket: the process's own, or another where that is taken.
#[derive(Debug)]
pub struct Table {
    name: String,
    socket: Socket,
    ownership: Ownership,
    taken: Taken,
}

impl Table {
    /// A socket and a name; there is nothing in the kernel yet, and nothing left of another process with this name.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn open() -> Result<Self, Refusal> {
        let mut table = Self::open_as(Ownership::Kernel)?;
        // Asked for now, so that it is known before anything depends on it.
        match table.commit(&[Message::add_table(Ownership::Kernel), Message::DeleteTable]) {
            Err(Refusal::NoOwners) => table.ownership = Ownership::Ourselves,
            tried => tried?,
        }
        Ok(table)
    }

    /// As [`Table::open`], with what is wanted instead of what the kernel can do.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn open_as(ownership: Ownership) -> Result<Self, Refusal> {
        let socket = open()?;
        let name = format!("{PREFIX}{}", port(&socket)?);
        let table = Self { name, socket, ownership, taken: Taken::default() };
        // Who had this number before us may have left a table without an owner.
        table.commit(&[Message::add_table(Ownership::Ourselves), Message::DeleteTable])?;
        Ok(table)
    }

    /// Has the kernel take these chains instead of those before, all or none; without chains there is no table. A
    /// chain that stays keeps its place, and a packet finds either its old rules in there or its new ones. Connections
    /// that were kept in mind are so as long as a rule looks for them.
    ///
    /// # Errors
    /// [`Refusal`]; what was there is as it was.
    pub fn replace(&mut self, chains: &[Chain]) -> Result<(), Refusal> {
        if chains.is_empty() {
            return self.remove();
        }
        let messages = replacement(self.ownership, &self.taken, chains);
        self.commit(&messages)?;
        self.taken = Taken::of(chains);
        Ok(())
    }

    /// Takes the table away, if there is one.
    ///
    /// # Errors
    /// [`Refusal`]; it is as it was.
    pub fn remove(&mut self) -> Result<(), Refusal> {
        self.commit(&[Message::add_table(self.ownership), Message::DeleteTable])?;
        self.taken = Taken::default();
        Ok(())
    }

    /// Who removes the table when the process ends.
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// Its name, as `nft list ruleset` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the kernel still has every chain that it was given, with as many rules. Counted are references to a
    /// chain; nobody else refers to these. A set of connections cannot go while a rule looks into it.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn is_there(&self) -> Result<bool, Refusal> {
        let mut packet = Packet::default();
        for (at, (chain, _)) in self.taken.chains.iter().enumerate() {
            packet.message(nftables(libc::NFT_MSG_GETCHAIN), 0, at as u32 + 1, |packet| {
                packet.raw(&family(libc::NFPROTO_INET, 0));
                packet.text(CHAIN_TABLE, &self.name);
                packet.text(CHAIN_NAME, chain);
            });
        }
        if self.taken.chains.is_empty() {
            return Ok(true);
        }
        let explain = |error| refusal(None, error);
        let mut found = 0;
        for Reply { sequence, error, body, .. } in self.socket.ask(&packet).map_err(explain)? {
            match error {
                Some(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
                Some(error) => return Err(explain(error)),
                None => {}
            }
            let wanted = self.taken.chains.get((sequence as usize).wrapping_sub(1));
            let rules = Attributes::behind(FAMILY, &body).word(CHAIN_USE).map(|rules| rules as usize);
            found += usize::from(wanted.is_some_and(|(_, wanted)| rules == Some(*wanted)));
        }
        Ok(found == self.taken.chains.len())
    }

    fn commit(&self, messages: &[Message<'_>]) -> Result<(), Refusal> {
        let mut batch = Batch::default();
        for message in messages {
            message.add(&self.name, &mut batch);
        }
        batch.commit(&self.socket)
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // The kernel does it for a table that it owns, as soon as the socket closes.
        if self.ownership == Ownership::Ourselves && !self.taken.chains.is_empty() {
            let _ = self.remove();
        }
    }
}

/// Removes tables that processes without an owner's rights have left behind, and names them: no netfilter socket of
/// this network namespace has their number any more.
///
/// # Errors
/// [`Refusal`]; those that went before are gone.
pub fn remove_orphans() -> Result<Vec<String>, Refusal> {
    // In this order: a table whose socket is there when the tables are listed is not taken for an orphan.
    let mut left = seen::names()?;
    left.retain(|table| {
        table.family == Family::Inet && table.owner.is_none() && number(&table.name).is_some()
    });
    if left.is_empty() {
        return Ok(Vec::new());
    }
    let alive = alive()?;
    let socket = open()?;
    let mut removed = Vec::new();
    for table in left {
        if number(&table.name).is_some_and(|number| alive.contains(&number)) {
            continue;
        }
        let mut batch = Batch::default();
        Message::DeleteTable.add(&table.name, &mut batch);
        batch.commit(&socket)?;
        removed.push(table.name);
    }
    Ok(removed)
}

/// Whether another agent than the one with this table has rules here.
///
/// # Errors
/// [`Refusal`]
pub fn other_agents(own: Option<&str>) -> Result<bool, Refusal> {
    let mut others = seen::names()?;
    others.retain(|table| {
        let is_an_agents = table.family == Family::Inet && number(&table.name).is_some();
        is_an_agents && own != Some(&*table.name)
    });
    if others.is_empty() || others.iter().any(|table| table.owner.is_some()) {
        return Ok(!others.is_empty());
    }
    let alive = alive()?;
    Ok(others.iter().any(|table| number(&table.name).is_some_and(|number| alive.contains(&number))))
}

/// The number in a table's name, when it is one of ours.
fn number(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// The numbers of all netfilter sockets of this network namespace.
fn alive() -> Result<Vec<u32>, Refusal> {
    let what = || "a look at /proc/net/netlink".to_owned();
    let sockets = fs::read_to_string("/proc/net/netlink").map_err(|error| Refusal::Other(what(), error))?;
    Ok(netfilter_ports(&sockets))
}

/// The numbers of all netfilter sockets in /proc/net/netlink.
fn netfilter_ports(text: &str) -> Vec<u32> {
    let port = |line: &str| {
        let mut columns = line.split_whitespace().skip(1);
        (columns.next() == Some(NETFILTER)).then(|| columns.next()?.parse().ok()).flatten()
    };
    text.lines().filter_map(port).collect()
}

pub(super) fn open() -> Result<Socket, Refusal> {
    Socket::open(libc::NETLINK_NETFILTER).map_err(|error| match error.raw_os_error() {
        Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => Refusal::NoNftables,
        _ => Refusal::Other("a netlink socket".to_owned(), error),
    })
}

/// The number of the socket, which no other netfilter socket of this network namespace has at the time.
fn port(socket: &Socket) -> Result<u32, Refusal> {
    let mut packet = Packet::default();
    let generation = nftables(libc::NFT_MSG_GETGEN);
    packet.message(generation, 0, 0, |packet| packet.raw(&family(libc::AF_UNSPEC, 0)));
    let explain = |error| refusal(None, error);
    let replies = socket.ask(&packet).map_err(explain)?;
    let first = replies.into_iter().next();
    let first = first.ok_or_else(|| explain(io::Error::other("the kernel says nothing")))?;
    first.error.map_or(Ok(first.port), |error| Err(explain(error)))
}
