//! Rules in the kernel's nftables that end with the process that made them.
//!
//! A table with an owner goes the moment the owner's socket closes, however the process ends, and nobody else can
//! change it; `nft flush ruleset` passes it over (Linux 5.12, nft(8) `flags owner`). Tables, chains and rules are
//! written as nft(8) writes them, by hand: these few messages are all that is needed, the crate that knows all of
//! netlink has 227,000 lines, and `nft` itself, a process of its own, could not be the owner.

use std::io;

use super::netlink::{Packet, Socket};

// linux/netfilter/nf_tables.h, which has no place in the libc crate.
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFT_TABLE_F_OWNER: u32 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_SOCKET_KEY: u16 = 1;
const NFTA_SOCKET_DREG: u16 = 2;
const NFT_SOCKET_MARK: i32 = 1;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_DATA_VALUE: u16 = 1;

/// The one register that these rules use: each value is compared as soon as it is loaded.
const REGISTER: i32 = libc::NFT_REG_1;

/// Why the kernel does not take the rules.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The process may not.
    #[error("the capability CAP_NET_ADMIN is missing")]
    Capability,
    /// There is no nftables at all.
    #[error("this kernel has no nftables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)")]
    NoNftables,
    /// Tables have no owners.
    #[error("this kernel has no nftables tables that end with their owner, as Linux 5.12 and later have")]
    NoOwners,
    /// An expression is missing.
    #[error(
        "this kernel cannot do what the rules of chain {0} need (CONFIG_NFT_CT, CONFIG_NFT_SOCKET, modules nft_ct, nft_socket)"
    )]
    NoExpression(&'static str),
    /// Anything else.
    #[error("the kernel refused {0}: {1}")]
    Other(String, io::Error),
}

/// Which packets a chain sees.
#[derive(Debug, Clone, Copy)]
pub enum Hook {
    /// Those that come from a link, before they are routed.
    Prerouting,
    /// Those that this machine sends.
    Output,
}

impl Hook {
    fn number(self) -> i32 {
        match self {
            Self::Prerouting => libc::NF_INET_PRE_ROUTING,
            Self::Output => libc::NF_INET_LOCAL_OUT,
        }
    }
}

/// A value of a packet's mark, within these bits.
#[derive(Debug, Clone, Copy)]
pub struct Bits {
    /// What these bits are.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

/// What a packet has to be, and what happens to it then: expressions, from left to right.
#[derive(Debug, Default)]
pub struct Rule {
    expressions: Packet,
}

impl Rule {
    /// The packet's mark is this.
    #[must_use]
    pub fn mark(self, bits: Bits) -> Self {
        self.meta(libc::NFT_META_MARK).bits(bits)
    }

    /// The packet is for a socket whose mark is this.
    #[must_use]
    pub fn socket_mark(self, bits: Bits) -> Self {
        let load = |packet: &mut Packet| {
            packet.attribute(NFTA_SOCKET_KEY, &NFT_SOCKET_MARK.to_be_bytes());
            packet.attribute(NFTA_SOCKET_DREG, &REGISTER.to_be_bytes());
        };
        self.expression("socket", load).bits(bits)
    }

    /// The transport protocol is this, `IPPROTO_UDP` for one.
    #[must_use]
    pub fn protocol(self, number: u8) -> Self {
        self.meta(libc::NFT_META_L4PROTO).equals(&[number])
    }

    /// It comes from this port; only behind [`Rule::protocol`].
    #[must_use]
    pub fn source_port(self, port: u16) -> Self {
        self.transport(0, 2).equals(&port.to_be_bytes())
    }

    /// It goes to this port; only behind [`Rule::protocol`].
    #[must_use]
    pub fn destination_port(self, port: u16) -> Self {
        self.transport(2, 2).equals(&port.to_be_bytes())
    }

    /// Connection tracking does not see the packet.
    #[must_use]
    pub fn notrack(self) -> Self {
        self.expression("notrack", |_| {})
    }

    fn meta(self, key: i32) -> Self {
        self.expression("meta", |packet| {
            packet.attribute(NFTA_META_KEY, &key.to_be_bytes());
            packet.attribute(NFTA_META_DREG, &REGISTER.to_be_bytes());
        })
    }

    fn transport(self, offset: u32, length: u32) -> Self {
        self.expression("payload", |packet| {
            packet.attribute(NFTA_PAYLOAD_DREG, &REGISTER.to_be_bytes());
            packet.attribute(NFTA_PAYLOAD_BASE, &libc::NFT_PAYLOAD_TRANSPORT_HEADER.to_be_bytes());
            packet.attribute(NFTA_PAYLOAD_OFFSET, &offset.to_be_bytes());
            packet.attribute(NFTA_PAYLOAD_LEN, &length.to_be_bytes());
        })
    }

    /// Marks are numbers of the machine: they are the only values here in its byte order.
    fn bits(self, Bits { value, mask }: Bits) -> Self {
        let and = |packet: &mut Packet| {
            packet.attribute(NFTA_BITWISE_SREG, &REGISTER.to_be_bytes());
            packet.attribute(NFTA_BITWISE_DREG, &REGISTER.to_be_bytes());
            packet.attribute(NFTA_BITWISE_LEN, &4u32.to_be_bytes());
            packet.nest(NFTA_BITWISE_MASK, |data| data.attribute(NFTA_DATA_VALUE, &mask.to_ne_bytes()));
            packet.nest(NFTA_BITWISE_XOR, |data| data.attribute(NFTA_DATA_VALUE, &[0; 4]));
        };
        self.expression("bitwise", and).equals(&value.to_ne_bytes())
    }

    fn equals(self, value: &[u8]) -> Self {
        self.expression("cmp", |packet| {
            packet.attribute(NFTA_CMP_SREG, &REGISTER.to_be_bytes());
            packet.attribute(NFTA_CMP_OP, &libc::NFT_CMP_EQ.to_be_bytes());
            packet.nest(NFTA_CMP_DATA, |data| data.attribute(NFTA_DATA_VALUE, value));
        })
    }

    fn expression(mut self, name: &str, fill: impl FnOnce(&mut Packet)) -> Self {
        self.expressions.nest(NFTA_LIST_ELEM, |packet| {
            packet.text(NFTA_EXPR_NAME, name);
            packet.nest(NFTA_EXPR_DATA, fill);
        });
        self
    }
}

/// Rules of one hook.
#[derive(Debug)]
pub struct Chain {
    /// Its name within the table.
    pub name: &'static str,
    /// Which packets pass it.
    pub hook: Hook,
    /// Its place among all chains of the hook.
    pub priority: i32,
    /// From the first to the last. What none of them decides about goes on.
    pub rules: Vec<Rule>,
}

/// Before connection tracking (nft(8): `raw`).
pub const RAW: i32 = libc::NF_IP_PRI_RAW;

/// A table that is in force for as long as this value lives.
#[derive(Debug)]
pub struct Table {
    name: String,
    _owner: Socket,
}

impl Table {
    /// Has the kernel take these chains, all or none, in a table of family `inet`. Its name is `nodens-` and the
    /// number under which the kernel knows the owner: the process's own, or another where that is taken.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn install(chains: &[Chain]) -> Result<Self, Refusal> {
        let other = |what: &'static str| move |error| Refusal::Other(what.to_owned(), error);
        let owner = Socket::open(libc::NETLINK_NETFILTER).map_err(|error| match error.raw_os_error() {
            Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => Refusal::NoNftables,
            _ => other("a netlink socket")(error),
        })?;
        let name = format!("nodens-{}", port(&owner)?);
        let (packet, steps) = transaction(&name, chains);
        let replies = owner.ask(&packet).map_err(other("the rules"))?;
        let mut taken = 0;
        for reply in replies {
            let step = steps.get((reply.sequence as usize).wrapping_sub(1)).copied();
            match reply.error {
                Some(error) => return Err(refusal(step, error)),
                None => taken += usize::from(step.is_some()),
            }
        }
        if taken != steps.len() {
            return Err(other("the rules")(io::Error::other("it has not acknowledged all of them")));
        }
        Ok(Self { name, _owner: owner })
    }

    /// Its name, as `nft list ruleset` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The number of the socket, which no other netfilter socket of this network namespace has at the time.
fn port(owner: &Socket) -> Result<u32, Refusal> {
    let mut packet = Packet::default();
    let generation = nftables(libc::NFT_MSG_GETGEN);
    packet.message(generation, 0, 0, |packet| packet.raw(&family(libc::AF_UNSPEC, 0)));
    let explain = |error| refusal(None, error);
    let replies = owner.ask(&packet).map_err(explain)?;
    let first = replies.into_iter().next();
    let first = first.ok_or_else(|| explain(io::Error::other("the kernel says nothing")))?;
    first.error.map_or(Ok(first.port), |error| Err(explain(error)))
}

/// What one message of a transaction is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Table,
    Chain(&'static str),
    Rule(&'static str),
}

/// The messages that make a table, and what each is about: the first has the sequence number 1.
fn transaction(table: &str, chains: &[Chain]) -> (Packet, Vec<Step>) {
    let (mut packet, mut steps) = (Packet::default(), Vec::new());
    let batch = family(libc::AF_UNSPEC, libc::NFNL_SUBSYS_NFTABLES as u16);
    packet.message(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, 0, |packet| packet.raw(&batch));
    let mut add = |step: Step, kind: i32, fill: &dyn Fn(&mut Packet)| {
        steps.push(step);
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        packet.message(nftables(kind), flags as u16, steps.len() as u32, |packet| {
            packet.raw(&family(libc::NFPROTO_INET, 0));
            fill(packet);
        });
    };
    add(Step::Table, libc::NFT_MSG_NEWTABLE, &|packet| {
        packet.text(NFTA_TABLE_NAME, table);
        packet.attribute(NFTA_TABLE_FLAGS, &NFT_TABLE_F_OWNER.to_be_bytes());
    });
    for Chain { name, hook, priority, rules } in chains {
        add(Step::Chain(name), libc::NFT_MSG_NEWCHAIN, &|packet| {
            packet.text(NFTA_CHAIN_TABLE, table);
            packet.text(NFTA_CHAIN_NAME, name);
            packet.nest(NFTA_CHAIN_HOOK, |packet| {
                packet.attribute(NFTA_HOOK_HOOKNUM, &hook.number().to_be_bytes());
                packet.attribute(NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
            });
            packet.text(NFTA_CHAIN_TYPE, "filter");
        });
        for rule in rules {
            add(Step::Rule(name), libc::NFT_MSG_NEWRULE, &|packet| {
                packet.text(NFTA_RULE_TABLE, table);
                packet.text(NFTA_RULE_CHAIN, name);
                packet.nest(NFTA_RULE_EXPRESSIONS, |packet| packet.append(&rule.expressions));
            });
        }
    }
    packet.message(libc::NFNL_MSG_BATCH_END as u16, 0, 0, |packet| packet.raw(&batch));
    (packet, steps)
}

/// The type of an nftables message.
fn nftables(kind: i32) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16
}

/// linux/netfilter/nfnetlink.h, `nfgenmsg`: family, version, and what the message is about, in network byte order.
fn family(number: i32, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [number as u8, libc::NFNETLINK_V0 as u8, high, low]
}

/// What an error means, by what it was said to; `None` is all of it.
fn refusal(step: Option<Step>, error: io::Error) -> Refusal {
    match (step, error.raw_os_error()) {
        (_, Some(libc::EPERM | libc::EACCES)) => Refusal::Capability,
        (None, Some(libc::EINVAL | libc::EOPNOTSUPP)) => Refusal::NoNftables,
        (Some(Step::Table), Some(libc::EAFNOSUPPORT)) => Refusal::NoNftables,
        (Some(Step::Table), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Refusal::NoOwners,
        (Some(Step::Rule(chain)), Some(libc::ENOENT | libc::EOPNOTSUPP)) => Refusal::NoExpression(chain),
        (None, _) => Refusal::Other("the rules".to_owned(), error),
        (Some(Step::Table), _) => Refusal::Other("the table".to_owned(), error),
        (Some(Step::Chain(name)), _) => Refusal::Other(format!("chain {name}"), error),
        (Some(Step::Rule(chain)), _) => Refusal::Other(format!("a rule of chain {chain}"), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_told_from_one_without_nftables_and_from_a_missing_capability() {
        let said = |step, code| refusal(step, io::Error::from_raw_os_error(code)).to_string();
        let table = Some(Step::Table);
        assert!(said(None, libc::EPERM).contains("CAP_NET_ADMIN"));
        assert!(said(None, libc::EINVAL).contains("no nftables ("));
        assert!(said(table, libc::EAFNOSUPPORT).contains("no nftables ("));
        assert!(said(table, libc::EINVAL).contains("Linux 5.12"));
        assert!(said(table, libc::EOPNOTSUPP).contains("Linux 5.12"));
        let rule = said(Some(Step::Rule("prerouting")), libc::ENOENT);
        assert!(rule.contains("chain prerouting") && rule.contains("nft_socket"), "{rule}");
        assert!(said(Some(Step::Chain("output")), libc::ENOMEM).contains("chain output: "));
    }

    #[test]
    fn every_message_of_a_transaction_is_known_by_its_number() {
        let chain = |name, hook| Chain {
            name,
            hook,
            priority: RAW,
            rules: vec![Rule::default().protocol(17).notrack(), Rule::default().notrack()],
        };
        let (_, steps) =
            transaction("t", &[chain("output", Hook::Output), chain("prerouting", Hook::Prerouting)]);
        let (output, prerouting) = (Step::Rule("output"), Step::Rule("prerouting"));
        let chains = [Step::Chain("output"), Step::Chain("prerouting")];
        assert_eq!(steps, [Step::Table, chains[0], output, output, chains[1], prerouting, prerouting]);
    }
}
