//! What the kernel is asked to do at once.

use std::io;

use super::super::netlink::{Packet, Socket};
use super::connections::Connections;
use super::numbers::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_TABLE, CHAIN_TYPE, HOOK_NUMBER, HOOK_PRIORITY, RULE_CHAIN,
    RULE_EXPRESSIONS, RULE_TABLE, SET_NAME, SET_TABLE, TABLE_F_OWNER, TABLE_FLAGS, TABLE_NAME,
};
use super::rule::{Chain, Rule};
use super::table::Ownership;
use super::{Refusal, family, nftables, refusal};

/// What one message is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Table,
    Connections(&'static str),
    Chain(String),
    Rule(String),
}

/// Messages that the kernel carries out all or none.
#[derive(Debug)]
pub(super) struct Batch {
    packet: Packet,
    steps: Vec<Step>,
    /// Where the last message begins.
    last: usize,
}

impl Default for Batch {
    fn default() -> Self {
        let (mut packet, steps) = (Packet::default(), Vec::new());
        let last = packet.message(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, 0, |packet| packet.raw(&BATCH));
        Self { packet, steps, last }
    }
}

/// What stands in the header of the first and the last message: for which part of netfilter the batch is.
const BATCH: [u8; 4] = family(libc::AF_UNSPEC, libc::NFNL_SUBSYS_NFTABLES as u16);

impl Batch {
    /// One more message. The first one has the sequence number 1.
    pub(super) fn add(&mut self, step: Step, kind: i32, flags: i32, of: i32, fill: impl FnOnce(&mut Packet)) {
        self.steps.push(step);
        let sequence = self.steps.len() as u32;
        self.last = self.packet.message(nftables(kind), flags as u16, sequence, |packet| {
            packet.raw(&family(of, 0));
            fill(packet);
        });
    }

    /// Has the kernel carry them out.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed.
    pub(super) fn commit(mut self, socket: &Socket) -> Result<(), Refusal> {
        // One acknowledgement says that all is well, and as many as there are messages could be more than the socket
        // has room for. What is refused is told in any case.
        self.packet.acknowledge(self.last);
        self.packet.message(libc::NFNL_MSG_BATCH_END as u16, 0, 0, |packet| packet.raw(&BATCH));
        let replies = socket.ask(&self.packet).map_err(|error| refusal(None, error))?;
        let mut acknowledged = false;
        for reply in replies {
            let at = (reply.sequence as usize).wrapping_sub(1);
            if let Some(error) = reply.error {
                return Err(refusal(self.steps.get(at), error));
            }
            acknowledged |= at + 1 == self.steps.len();
        }
        let error = || refusal(None, io::Error::other("it has not acknowledged them"));
        if acknowledged { Ok(()) } else { Err(error()) }
    }
}

/// One step of a transaction on a table.
pub(super) enum Message<'a> {
    /// What is there already stays.
    AddTable {
        flags: u32,
    },
    /// With all that is in it.
    DeleteTable,
    /// What is there already stays, with the connections in it.
    AddConnections(Connections),
    /// Only when no rule looks into it any more.
    DeleteConnections(Connections),
    /// What is there already stays.
    AddChain(&'a Chain),
    /// A chain of this name, whatever it is.
    AddName(&'static str),
    /// With its rules.
    DeleteChain(&'static str),
    /// All rules of a chain.
    Flush(&'static str),
    AddRule(&'static str, &'a Rule),
}

impl Message<'_> {
    /// A table with this owner.
    pub(super) fn add_table(ownership: Ownership) -> Self {
        Self::AddTable { flags: if ownership == Ownership::Kernel { TABLE_F_OWNER } else { 0 } }
    }

    fn step(&self) -> Step {
        match self {
            Self::AddTable { .. } | Self::DeleteTable => Step::Table,
            Self::AddConnections(set) | Self::DeleteConnections(set) => Step::Connections(set.name),
            Self::AddChain(Chain { name, .. }) | Self::AddName(name) | Self::DeleteChain(name) => {
                Step::Chain((*name).to_owned())
            }
            Self::Flush(name) | Self::AddRule(name, _) => Step::Rule((*name).to_owned()),
        }
    }

    /// Adds what it takes for the table of this name.
    pub(super) fn add(&self, table: &str, batch: &mut Batch) {
        let family = libc::NFPROTO_INET;
        let (create, none) = (libc::NLM_F_CREATE, 0);
        match self {
            Self::AddTable { flags } => {
                batch.add(self.step(), libc::NFT_MSG_NEWTABLE, create, family, |packet| {
                    packet.text(TABLE_NAME, table);
                    packet.attribute(TABLE_FLAGS, &flags.to_be_bytes());
                })
            }
            Self::DeleteTable => batch.add(self.step(), libc::NFT_MSG_DELTABLE, none, family, |packet| {
                packet.text(TABLE_NAME, table);
            }),
            Self::AddConnections(set) => {
                // Each message has a number of its own.
                let number = batch.steps.len() as u32 + 1;
                batch.add(self.step(), libc::NFT_MSG_NEWSET, create, family, |packet| {
                    set.define(table, number, packet);
                });
            }
            Self::DeleteConnections(set) => {
                batch.add(self.step(), libc::NFT_MSG_DELSET, none, family, |packet| {
                    packet.text(SET_TABLE, table);
                    packet.text(SET_NAME, set.name);
                });
            }
            Self::AddChain(Chain { name, kind, hook, priority, .. }) => {
                batch.add(self.step(), libc::NFT_MSG_NEWCHAIN, create, family, |packet| {
                    packet.text(CHAIN_TABLE, table);
                    packet.text(CHAIN_NAME, name);
                    packet.nest(CHAIN_HOOK, |packet| {
                        packet.attribute(HOOK_NUMBER, &hook.number().to_be_bytes());
                        packet.attribute(HOOK_PRIORITY, &priority.to_be_bytes());
                    });
                    packet.text(CHAIN_TYPE, kind.name());
                });
            }
            Self::AddName(name) => batch.add(self.step(), libc::NFT_MSG_NEWCHAIN, create, family, |packet| {
                packet.text(CHAIN_TABLE, table);
                packet.text(CHAIN_NAME, name);
            }),
            Self::DeleteChain(name) => {
                batch.add(self.step(), libc::NFT_MSG_DELCHAIN, none, family, |packet| {
                    packet.text(CHAIN_TABLE, table);
                    packet.text(CHAIN_NAME, name);
                })
            }
            Self::Flush(name) => batch.add(self.step(), libc::NFT_MSG_DELRULE, none, family, |packet| {
                packet.text(RULE_TABLE, table);
                packet.text(RULE_CHAIN, name);
            }),
            Self::AddRule(name, rule) => {
                let flags = create | libc::NLM_F_APPEND;
                batch.add(self.step(), libc::NFT_MSG_NEWRULE, flags, family, |packet| {
                    packet.text(RULE_TABLE, table);
                    packet.text(RULE_CHAIN, name);
                    packet.nest(RULE_EXPRESSIONS, |packet| packet.append(&rule.expressions));
                });
            }
        }
    }
}

/// What the kernel has taken.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The chains, with how many rules each.
    pub(super) chains: Vec<(&'static str, usize)>,
    /// What their rules look into.
    pub(super) connections: Vec<Connections>,
}

impl Taken {
    /// What of these chains there is when the kernel has taken them.
    pub(super) fn of(chains: &[Chain]) -> Self {
        let mut taken = Self::default();
        for chain in chains {
            taken.chains.push((chain.name, chain.rules.len()));
            for set in chain.rules.iter().filter_map(|rule| rule.connections) {
                if !taken.connections.contains(&set) {
                    taken.connections.push(set);
                }
            }
        }
        taken
    }
}

/// The steps from what is there to `wanted`, whatever others have taken away meanwhile: a chain of before that is no
/// longer wanted is added before it is deleted. Connections that are still looked for stay kept in mind.
pub(super) fn replacement<'a>(ownership: Ownership, before: &Taken, wanted: &'a [Chain]) -> Vec<Message<'a>> {
    let mut messages = vec![Message::add_table(ownership)];
    let connections = Taken::of(wanted).connections;
    messages.extend(connections.iter().copied().map(Message::AddConnections));
    for chain in wanted {
        messages.push(Message::AddChain(chain));
        messages.push(Message::Flush(chain.name));
        messages.extend(chain.rules.iter().map(|rule| Message::AddRule(chain.name, rule)));
    }
    let gone = before.chains.iter().filter(|(name, _)| wanted.iter().all(|chain| chain.name != *name));
    messages.extend(gone.flat_map(|(name, _)| [Message::AddName(name), Message::DeleteChain(name)]));
    let gone = before.connections.iter().filter(|set| !connections.contains(set));
    messages.extend(gone.flat_map(|&set| [Message::AddConnections(set), Message::DeleteConnections(set)]));
    messages
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::connections::Addresses;
    use super::super::rule::{Hook, Kind, RAW};
    use super::*;

    fn set(name: &'static str) -> Connections {
        Connections { name, addresses: Addresses::V6, most: 9, silence: Duration::from_secs(1) }
    }

    fn chain(name: &'static str) -> Chain {
        let rules = vec![Rule::default().protocol(17).notrack(), Rule::default().known(set("kept"))];
        Chain { name, kind: Kind::Filter, hook: Hook::Output, priority: RAW, rules }
    }

    #[test]
    fn every_message_of_a_transaction_is_known_by_its_number() {
        let chains = [chain("output"), chain("prerouting")];
        let mut batch = Batch::default();
        let before =
            Taken { chains: vec![("old", 3), ("output", 1)], connections: vec![set("gone"), set("kept")] };
        for message in replacement(Ownership::Kernel, &before, &chains) {
            message.add("t", &mut batch);
        }
        let chain = |name: &str| Step::Chain(name.to_owned());
        let rule = |name: &str| Step::Rule(name.to_owned());
        let (output, prerouting) = (rule("output"), rule("prerouting"));
        let wanted = [
            [Step::Table, Step::Connections("kept"), chain("output")].to_vec(),
            vec![output; 3],
            vec![chain("prerouting")],
            vec![prerouting; 3],
            vec![chain("old"), chain("old")],
            vec![Step::Connections("gone"); 2],
        ];
        assert_eq!(batch.steps, wanted.concat());
    }
}
