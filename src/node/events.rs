//! What the kernel says of its own accord when links, addresses, rules or routes change (rtnetlink(7)), as far as it
//! concerns the agent: pods come and go on a node all day.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::IpAddr;

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};

use super::link::{LOOPBACK, address};
use super::route::{TABLE, is_of_our_table, table};
use super::rtnetlink::messages;

/// linux/rtnetlink.h: links; addresses, routes and rules of IPv4; addresses, routes and rules of IPv6.
const GROUPS: [u32; 7] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
];
/// Room for a burst; the system's own limit, `net.core.rmem_max`, may allow less.
const BUFFER: libc::c_int = 1 << 20;
/// As much as the kernel says at once.
const DATAGRAM: usize = 32 << 10;
/// So many datagrams are read before others have their turn.
const BATCH: usize = 256;

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// One of our addresses was taken off a link, or given to one.
    Address(IpAddr),
    /// Our link, or `lo`, is gone or down.
    Link,
    /// A rule that looks up our table is gone.
    Rule,
    /// A route of our table is gone.
    Route,
    /// There were more events than the socket could hold, so anything may have changed.
    Lost,
}

/// A subscription to changes. What happens from its opening on is told, so open it before looking at what is there.
pub struct Events {
    socket: TokioSocket,
    link: String,
    addresses: BTreeSet<IpAddr>,
}

impl Events {
    /// Subscribes to what concerns the link `on`, these addresses and our table, in the network namespace of this
    /// thread. Needs no capability, but a tokio runtime.
    ///
    /// # Errors
    /// The system's own.
    pub fn open(on: &str, addresses: &[IpAddr]) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let ours = socket.socket_mut();
        ours.set_rx_buf_sz(BUFFER)?;
        // What the kernel says to all goes to sockets with a number of their own.
        ours.bind_auto()?;
        for group in GROUPS {
            ours.add_membership(group)?;
        }
        Ok(Self { socket, link: on.to_owned(), addresses: addresses.iter().copied().collect() })
    }

    /// Waits for changes, and returns all that are known then. An address that the caller itself adds is one of them, an
    /// IPv6 address twice, the second time as it comes into use: whoever then finds nothing to do is not woken again. May be dropped at any time; nothing is lost by it.
    ///
    /// # Errors
    /// The system's own.
    pub async fn next(&mut self) -> io::Result<BTreeSet<Change>> {
        let mut space = Vec::with_capacity(DATAGRAM);
        loop {
            space.clear();
            let mut datagram = self.socket.recv(&mut space).await;
            let mut changes = BTreeSet::new();
            // Nothing is waited for from here on, so that what was read is not lost with the future.
            for read in 1.. {
                match datagram {
                    Ok(()) => changes.extend(self.changes(&space)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        changes.insert(Change::Lost);
                    }
                    Err(error) => return Err(error),
                }
                // After a loss the kernel says nothing more, not even of further losses, until all is read.
                if read >= BATCH && !changes.contains(&Change::Lost) {
                    break;
                }
                space.clear();
                datagram = self.socket.socket_ref().recv(&mut space, 0).map(|_| ());
            }
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }

    fn changes(&self, datagram: &[u8]) -> Vec<Change> {
        let read = messages(datagram).into_iter().filter_map(|message| match message.payload {
            NetlinkPayload::InnerMessage(message) => self.change(&message),
            NetlinkPayload::Overrun(_) => Some(Change::Lost),
            _ => None,
        });
        read.collect()
    }

    /// What a message means for us.
    fn change(&self, message: &RouteNetlinkMessage) -> Option<Change> {
        match message {
            RouteNetlinkMessage::DelAddress(message) | RouteNetlinkMessage::NewAddress(message) => {
                address(message).filter(|address| self.addresses.contains(address)).map(Change::Address)
            }
            RouteNetlinkMessage::DelLink(message) => {
                // A bridge says so of each link that leaves it.
                let whole = message.header.interface_family == netlink_packet_route::AddressFamily::Unspec;
                (whole && self.is_ours(message)).then_some(Change::Link)
            }
            RouteNetlinkMessage::NewLink(message) => {
                let down = !message.header.flags.contains(LinkFlags::Up);
                (down && self.is_ours(message)).then_some(Change::Link)
            }
            RouteNetlinkMessage::DelRule(message) => (table(message) == TABLE).then_some(Change::Rule),
            RouteNetlinkMessage::DelRoute(message) => is_of_our_table(message).then_some(Change::Route),
            _ => None,
        }
    }

    fn is_ours(&self, message: &LinkMessage) -> bool {
        message.attributes.iter().any(|attribute| {
            matches!(attribute, LinkAttribute::IfName(name) if *name == self.link || name == LOOPBACK)
        })
    }
}
