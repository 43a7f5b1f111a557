//! Rules in the kernel's nftables: our own, which end with the process, and what others have there.
//!
//! A table with an owner goes the moment the owner's socket closes, however the process ends, and nobody else can
//! change it; `nft flush ruleset` passes it over (Linux 5.12, nft(8) `flags owner`). Tables, chains and rules are
//! written as nft(8) writes them, by hand: these few messages are all that is needed, the crate that knows all of
//! netlink has 227,000 lines, and `nft` itself, a process of its own, could not be the owner.

mod connections;
mod conntrack;
mod firewall;
mod numbers;
mod rule;
mod seen;
mod table;
mod transaction;
mod words;

use std::io;

pub use connections::{Addresses, Connections};
pub use conntrack::{Tracked, conntrack};
pub use firewall::{Firewall, OPENED, Opened};
pub use rule::{Bits, Chain, Hook, Kind, MANGLE, RAW, Rule};
pub use seen::{Base, ChainSeen, Family, RuleSeen, TableSeen, tables};
pub use table::{Ownership, Table, other_agents, remove_orphans};

use transaction::Step;

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
    NoExpression(String),
    /// Connection tracking is not there, or cannot be listed.
    #[error(
        "this kernel does not list tracked connections (CONFIG_NF_CT_NETLINK, module nf_conntrack_netlink)"
    )]
    NoConntrackList,
    /// Rules of ours may be among those that are not looked at.
    #[error(
        "it has more than {0} rules, and ours might be among those behind: have it accept `ct state untracked` by hand"
    )]
    TooMany(usize),
    /// Each time it was read.
    #[error("it changes all the time")]
    Changing,
    /// Anything else.
    #[error("the kernel refused {0}: {1}")]
    Other(String, io::Error),
}

/// Of the header that messages of netfilter have behind netlink's own (linux/netfilter/nfnetlink.h, `nfgenmsg`).
const FAMILY: usize = 4;

/// The type of an nftables message.
const fn nftables(kind: i32) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16
}

/// linux/netfilter/nfnetlink.h, `nfgenmsg`: family, version, and what the message is about, in network byte order.
const fn family(number: i32, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [number as u8, libc::NFNETLINK_V0 as u8, high, low]
}

/// What an error means, by what it was said to; `None` is all of it.
fn refusal(step: Option<&Step>, error: io::Error) -> Refusal {
    match (step, error.raw_os_error()) {
        (_, Some(libc::EPERM | libc::EACCES)) => Refusal::Capability,
        (None, Some(libc::EINVAL | libc::EOPNOTSUPP)) => Refusal::NoNftables,
        (Some(Step::Table), Some(libc::EAFNOSUPPORT)) => Refusal::NoNftables,
        (Some(Step::Table), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Refusal::NoOwners,
        (Some(Step::Connections(name)), _) => Refusal::Other(format!("set {name}"), error),
        (Some(Step::Rule(chain)), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
            Refusal::NoExpression(chain.clone())
        }
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
        let said = |step: Option<&Step>, code| refusal(step, io::Error::from_raw_os_error(code)).to_string();
        let table = Some(Step::Table);
        assert!(said(None, libc::EPERM).contains("CAP_NET_ADMIN"));
        assert!(said(None, libc::EINVAL).contains("no nftables ("));
        assert!(said(table.as_ref(), libc::EAFNOSUPPORT).contains("no nftables ("));
        assert!(said(table.as_ref(), libc::EINVAL).contains("Linux 5.12"));
        assert!(said(table.as_ref(), libc::EOPNOTSUPP).contains("Linux 5.12"));
        let rule = said(Some(&Step::Rule("prerouting".to_owned())), libc::ENOENT);
        assert!(rule.contains("chain prerouting") && rule.contains("nft_socket"), "{rule}");
        assert!(said(Some(&Step::Chain("output".to_owned())), libc::ENOMEM).contains("chain output: "));
    }
}
