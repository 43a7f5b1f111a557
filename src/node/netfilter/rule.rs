//! Chains and rules, written as nft(8) writes them, so that it can show them.

use std::net::IpAddr;

use super::super::netlink::Packet;
use super::connections::Connections;
use super::numbers::{
    BITWISE_DREG, BITWISE_LEN, BITWISE_MASK, BITWISE_SREG, BITWISE_XOR, CMP_DATA, CMP_OP, CMP_SREG, CT_DREG,
    CT_KEY, DATA_VALUE, DATA_VERDICT, EXPR_DATA, EXPR_NAME, IMMEDIATE_DATA, IMMEDIATE_DREG, LIST_ELEM,
    META_DREG, META_KEY, META_SREG, PAYLOAD_BASE, PAYLOAD_DREG, PAYLOAD_LEN, PAYLOAD_OFFSET, SOCKET_DREG,
    SOCKET_KEY, SOCKET_MARK, VERDICT_CODE,
};

/// The one register that these rules use, since each value is compared as soon as it is loaded. What a set knows a
/// connection by begins there and takes more.
pub(super) const REGISTER: i32 = libc::NFT_REG_1;
/// linux/netfilter/nf_conntrack_common.h, `NF_CT_STATE_UNTRACKED_BIT`.
pub(super) const UNTRACKED: u32 = 1 << 6;

/// Before connection tracking (nft(8): `raw`).
pub const RAW: i32 = libc::NF_IP_PRI_RAW;
/// Behind connection tracking, before the address is translated (nft(8): `mangle`).
pub const MANGLE: i32 = libc::NF_IP_PRI_MANGLE;

/// Which packets a chain sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Those that come from a link, before they are routed.
    Prerouting,
    /// Those that are for this machine, once they are routed.
    Input,
    /// Those that this machine sends.
    Output,
}

impl Hook {
    pub(super) fn number(self) -> i32 {
        match self {
            Self::Prerouting => libc::NF_INET_PRE_ROUTING,
            Self::Input => libc::NF_INET_LOCAL_IN,
            Self::Output => libc::NF_INET_LOCAL_OUT,
        }
    }
}

/// What a chain can do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Let it pass or not, and mark it.
    Filter,
    /// The same, and have it routed again when its mark has changed; only behind [`Hook::Output`].
    Route,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Route => "route",
        }
    }
}

/// Rules of one hook.
#[derive(Debug)]
pub struct Chain {
    /// Its name within the table.
    pub name: &'static str,
    /// What it can do.
    pub kind: Kind,
    /// Which packets pass it.
    pub hook: Hook,
    /// Its place among all chains of the hook.
    pub priority: i32,
    /// From the first to the last. What none of them decides about goes on.
    pub rules: Vec<Rule>,
}

/// A value of a packet's mark, within these bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bits {
    /// What these bits are.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

/// What a packet has to be, and what happens to it then: expressions, from left to right.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Rule {
    pub(super) expressions: Packet,
    /// What it looks into and changes.
    pub(super) connections: Option<Connections>,
}

impl Rule {
    /// The packet's mark is this.
    #[must_use]
    pub fn mark(self, bits: Bits) -> Self {
        self.load_meta(libc::NFT_META_MARK).bits(bits)
    }

    /// The packet is for a socket whose mark is this.
    #[must_use]
    pub fn socket_mark(self, bits: Bits) -> Self {
        let load = |packet: &mut Packet| {
            packet.attribute(SOCKET_KEY, &SOCKET_MARK.to_be_bytes());
            packet.attribute(SOCKET_DREG, &REGISTER.to_be_bytes());
        };
        self.expression("socket", load).bits(bits)
    }

    /// Connection tracking has not seen the packet; only behind it, so not at [`RAW`].
    #[must_use]
    pub fn untracked(self) -> Self {
        let load = |packet: &mut Packet| {
            packet.attribute(CT_KEY, &libc::NFT_CT_STATE.to_be_bytes());
            packet.attribute(CT_DREG, &REGISTER.to_be_bytes());
        };
        self.expression("ct", load)
            .bitwise(UNTRACKED.to_ne_bytes(), [0; 4])
            .compare(libc::NFT_CMP_NEQ, &[0; 4])
    }

    /// The transport protocol is this, `IPPROTO_UDP` for one.
    #[must_use]
    pub fn protocol(self, number: u8) -> Self {
        self.load_meta(libc::NFT_META_L4PROTO).equals(&[number])
    }

    /// It comes from this port; only behind [`Rule::protocol`].
    #[must_use]
    pub fn source_port(self, port: u16) -> Self {
        self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, &port.to_be_bytes())
    }

    /// It goes to this port; only behind [`Rule::protocol`].
    #[must_use]
    pub fn destination_port(self, port: u16) -> Self {
        self.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, &port.to_be_bytes())
    }

    /// It comes from this address (RFC 791 §3.1, RFC 8200 §3).
    #[must_use]
    pub fn source(self, address: IpAddr) -> Self {
        self.address(address, [12, 8])
    }

    /// It goes to this address (RFC 791 §3.1, RFC 8200 §3).
    #[must_use]
    pub fn destination(self, address: IpAddr) -> Self {
        self.address(address, [16, 24])
    }

    /// The packet is counted: `nft list ruleset` shows how many came as far as here.
    #[must_use]
    pub fn counter(self) -> Self {
        self.expression("counter", |_| {})
    }

    /// Connection tracking does not see the packet.
    #[must_use]
    pub fn notrack(self) -> Self {
        self.expression("notrack", |_| {})
    }

    /// The packet leaves the chain, and goes on to the next one.
    #[must_use]
    pub fn accept(self) -> Self {
        self.expression("immediate", |packet| {
            packet.attribute(IMMEDIATE_DREG, &libc::NFT_REG_VERDICT.to_be_bytes());
            packet.nest(IMMEDIATE_DATA, |data| {
                data.nest(DATA_VERDICT, |verdict| {
                    verdict.attribute(VERDICT_CODE, &libc::NF_ACCEPT.to_be_bytes());
                });
            });
        })
    }

    /// The packet's mark becomes this. Bits outside of the mask stay as they are.
    #[must_use]
    pub fn set_mark(self, Bits { value, mask }: Bits) -> Self {
        let store = |packet: &mut Packet| {
            packet.attribute(META_KEY, &libc::NFT_META_MARK.to_be_bytes());
            packet.attribute(META_SREG, &REGISTER.to_be_bytes());
        };
        self.load_meta(libc::NFT_META_MARK)
            .bitwise((!mask).to_ne_bytes(), (value & mask).to_ne_bytes())
            .expression("meta", store)
    }

    /// In a table of both families the family has to be known before the header can be read.
    fn address(self, address: IpAddr, [v4, v6]: [u32; 2]) -> Self {
        let (family, offset) = match address {
            IpAddr::V4(_) => (libc::NFPROTO_IPV4, v4),
            IpAddr::V6(_) => (libc::NFPROTO_IPV6, v6),
        };
        let rule = self.load_meta(libc::NFT_META_NFPROTO).equals(&[family as u8]);
        let network = libc::NFT_PAYLOAD_NETWORK_HEADER;
        match address {
            IpAddr::V4(address) => rule.payload(network, offset, &address.octets()),
            IpAddr::V6(address) => rule.payload(network, offset, &address.octets()),
        }
    }

    fn load_meta(self, key: i32) -> Self {
        self.expression("meta", |packet| {
            packet.attribute(META_KEY, &key.to_be_bytes());
            packet.attribute(META_DREG, &REGISTER.to_be_bytes());
        })
    }

    /// What stands there in a header is this.
    fn payload(self, header: i32, offset: u32, value: &[u8]) -> Self {
        self.load_payload(header, offset, value.len() as u32, REGISTER).equals(value)
    }

    /// So many bytes of a header go into a register.
    pub(super) fn load_payload(self, header: i32, offset: u32, length: u32, register: i32) -> Self {
        self.expression("payload", |packet| {
            packet.attribute(PAYLOAD_DREG, &register.to_be_bytes());
            packet.attribute(PAYLOAD_BASE, &header.to_be_bytes());
            packet.attribute(PAYLOAD_OFFSET, &offset.to_be_bytes());
            packet.attribute(PAYLOAD_LEN, &length.to_be_bytes());
        })
    }

    /// Marks and states are numbers of the machine: they are the only values here in its byte order.
    fn bits(self, Bits { value, mask }: Bits) -> Self {
        self.bitwise(mask.to_ne_bytes(), [0; 4]).equals(&value.to_ne_bytes())
    }

    /// What is in the register becomes what both have of it, and then what just one has of it and of the other.
    pub(super) fn bitwise<const N: usize>(self, and: [u8; N], xor: [u8; N]) -> Self {
        self.expression("bitwise", |packet| {
            packet.attribute(BITWISE_SREG, &REGISTER.to_be_bytes());
            packet.attribute(BITWISE_DREG, &REGISTER.to_be_bytes());
            packet.attribute(BITWISE_LEN, &(N as u32).to_be_bytes());
            packet.nest(BITWISE_MASK, |data| data.attribute(DATA_VALUE, &and));
            packet.nest(BITWISE_XOR, |data| data.attribute(DATA_VALUE, &xor));
        })
    }

    fn equals(self, value: &[u8]) -> Self {
        self.compare(libc::NFT_CMP_EQ, value)
    }

    pub(super) fn compare(self, operation: i32, value: &[u8]) -> Self {
        self.expression("cmp", |packet| {
            packet.attribute(CMP_SREG, &REGISTER.to_be_bytes());
            packet.attribute(CMP_OP, &operation.to_be_bytes());
            packet.nest(CMP_DATA, |data| data.attribute(DATA_VALUE, value));
        })
    }

    pub(super) fn expression(mut self, name: &str, fill: impl FnOnce(&mut Packet)) -> Self {
        self.expressions.nest(LIST_ELEM, |packet| {
            packet.text(EXPR_NAME, name);
            packet.nest(EXPR_DATA, fill);
        });
        self
    }
}
