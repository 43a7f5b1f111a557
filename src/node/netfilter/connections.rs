//! Connections that a table keeps in mind: a set to which its own rules add, and in which they look.

use std::time::Duration;

use super::super::netlink::Packet;
use super::numbers::{
    DYNSET_DELETE, DYNSET_OP, DYNSET_SET, DYNSET_SREG, LOOKUP_SET, LOOKUP_SREG, SET_DESC, SET_DESC_SIZE,
    SET_FLAGS, SET_ID, SET_KEY_LEN, SET_KEY_TYPE, SET_NAME, SET_TABLE, SET_TIMEOUT,
};
use super::rule::{REGISTER, Rule};

/// RFC 9293 §3.1: where the flags are in the header of TCP.
const FLAGS: u32 = 13;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// nft(8) numbers the types of values, six bits each, and shows a set by them: an address, a port, an address.
const fn key_type(address: u32) -> u32 {
    const PORT: u32 = 13;
    address << 12 | PORT << 6 | address
}

/// The family of a set's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addresses {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A set of connections of TCP: by who began them, from which port, and with whom. The other port is the rule's
/// affair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// Its name within the table.
    pub name: &'static str,
    /// Which connections it is for.
    pub addresses: Addresses,
    /// How many it holds at the most.
    pub most: u32,
    /// One that says nothing for so long is forgotten.
    pub silence: Duration,
}

impl Connections {
    /// The length of an address.
    fn length(self) -> u32 {
        match self.addresses {
            Addresses::V4 => 4,
            Addresses::V6 => 16,
        }
    }

    /// Writes what a message that adds the set to a table says about it; `number` is its own within the transaction.
    pub(super) fn define(self, table: &str, number: u32, packet: &mut Packet) {
        let flags = (libc::NFT_SET_TIMEOUT | libc::NFT_SET_EVAL) as u32;
        let kind = key_type(if self.addresses == Addresses::V4 { 7 } else { 8 });
        let timeout_ms = u64::try_from(self.silence.as_millis()).unwrap_or(u64::MAX);
        packet.text(SET_TABLE, table);
        packet.text(SET_NAME, self.name);
        packet.attribute(SET_FLAGS, &flags.to_be_bytes());
        packet.attribute(SET_KEY_TYPE, &kind.to_be_bytes());
        // A port takes a register of four bytes.
        packet.attribute(SET_KEY_LEN, &(2 * self.length() + 4).to_be_bytes());
        packet.attribute(SET_ID, &number.to_be_bytes());
        packet.nest(SET_DESC, |packet| packet.attribute(SET_DESC_SIZE, &self.most.to_be_bytes()));
        packet.attribute(SET_TIMEOUT, &timeout_ms.to_be_bytes());
    }
}

impl Rule {
    /// The packet begins a connection; only behind [`Rule::protocol`], of TCP.
    #[must_use]
    pub fn begins(self) -> Self {
        self.flags(libc::NFT_CMP_EQ)
    }

    /// It does not; only behind [`Rule::protocol`], of TCP.
    #[must_use]
    pub fn goes_on(self) -> Self {
        self.flags(libc::NFT_CMP_NEQ)
    }

    /// Its connection is kept in mind.
    #[must_use]
    pub fn known(self, of: Connections) -> Self {
        self.key(of).expression("lookup", |packet| {
            packet.text(LOOKUP_SET, of.name);
            packet.attribute(LOOKUP_SREG, &REGISTER.to_be_bytes());
        })
    }

    /// Its connection is kept in mind from now on. Where there is no room for it the rule does not apply, and the packet
    /// goes on as if there were none.
    #[must_use]
    pub fn remember(self, of: Connections) -> Self {
        self.change(of, libc::NFT_DYNSET_OP_UPDATE)
    }

    /// Its connection is not kept in mind any more, whether it was or not.
    #[must_use]
    pub fn forget(self, of: Connections) -> Self {
        self.change(of, DYNSET_DELETE)
    }

    fn change(self, of: Connections, operation: i32) -> Self {
        self.key(of).expression("dynset", |packet| {
            packet.text(DYNSET_SET, of.name);
            packet.attribute(DYNSET_OP, &operation.to_be_bytes());
            packet.attribute(DYNSET_SREG, &REGISTER.to_be_bytes());
        })
    }

    /// What the set knows the packet's connection by, in the registers from the first one on.
    fn key(mut self, of: Connections) -> Self {
        self.connections = Some(of);
        let (length, network) = (of.length(), libc::NFT_PAYLOAD_NETWORK_HEADER);
        // RFC 791 §3.1, RFC 8200 §3
        let [source, destination] = if of.addresses == Addresses::V4 { [12, 16] } else { [8, 24] };
        // The first register has 16 bytes and is the first four of the small ones as well.
        let small = |bytes: u32| libc::NFT_REG32_00 + (bytes / 4) as i32;
        self.load_payload(network, source, length, REGISTER)
            .load_payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2, small(length))
            .load_payload(network, destination, length, small(length + 4))
    }

    /// Compares the flags that say what a packet does to its connection with those of its first one.
    fn flags(self, operation: i32) -> Self {
        self.load_payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, FLAGS, 1, REGISTER)
            .bitwise([FIN | SYN | RST | ACK], [0])
            .compare(operation, &[SYN])
    }
}
