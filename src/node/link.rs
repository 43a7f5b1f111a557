//! The listen addresses, and the link that holds them.
//!
//! A dummy link is what NodeLocal DNSCache uses, and one that it has left is used as it is. A kernel without dummies has
//! `lo`. What is ours is marked so in the kernel, where it outlives the process, and nothing else is ever taken away: an
//! address by its protocol, a link by its alias. What Linux makes of an address is told here once, measured in network namespaces:
//! an address answers on every link that holds it, also on one that is down: that is how kube-proxy's IPVS mode holds
//! ClusterIPs. IPv6 addresses go when their link goes down. One that is tentative does not answer, and stays so for as
//! long as the link has no carrier.

mod seen;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope,
};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::rtnetlink::Socket;
pub use seen::Holder;
pub(super) use seen::address;
use seen::{Link, Node};

/// Takes the place of a dummy link where the kernel has none.
pub const LOOPBACK: &str = "lo";
/// Where kube-proxy's IPVS mode holds ClusterIPs; it takes away what is no service's.
pub const IPVS: &str = "kube-ipvs0";
/// The alias of a link that we have made, as `ip link` shows it.
pub const ALIAS: &str = "nodens";
/// Who has added an address (linux/if_addr.h, `IFA_PROTO`; `ip address` calls it `proto`), as of Linux 5.18; kernels before
/// pass it over. 1 to 3 are the kernel's.
const PROTOCOL: AddressProtocol = AddressProtocol::Other(53);
/// linux/if.h, `IFNAMSIZ`, less the zero at the end.
const NAME_MAX: usize = 15;

/// Why an address is not held, and what helps.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The process may not.
    #[error(
        "the capability CAP_NET_ADMIN is missing: add NET_ADMIN to the capabilities in the container's securityContext \
         (for systemd: AmbientCapabilities=CAP_NET_ADMIN)"
    )]
    Capability,
    /// The link takes no IPv6 addresses.
    #[error("IPv6 is off on link {0}: `sysctl -w net.ipv6.conf.{name}.disable_ipv6=0` turns it on", name = sysctl(.0))]
    Ipv6Off(String),
    /// Nor does any other.
    #[error(
        "this kernel has IPv6 switched off (boot option ipv6.disable=1): leave IPv6 addresses out, or switch it on"
    )]
    NoIpv6,
    /// It is there and does not answer.
    #[error("it is on link {0}, {1}")]
    Silent(String, &'static str),
    /// The kernel could not give a link this name.
    #[error("`{0}` cannot be the name of a link: {1}")]
    Name(String, &'static str),
    /// Anything else.
    #[error("the kernel refused {0}: {1}")]
    Other(String, io::Error),
}

/// sysctl(8): a dot in a link's name is written as a slash.
fn sysctl(link: &str) -> String {
    link.replace('.', "/")
}

/// An address, and a link that holds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The address.
    pub address: IpAddr,
    /// The link's name.
    pub link: String,
}

/// What was done to hold addresses.
#[derive(Debug, Default)]
pub struct Held {
    /// A dummy link was made.
    pub created: bool,
    /// The link was down and is up now.
    pub raised: bool,
    /// Addresses that were added, and to which link: `lo` where the kernel has no dummies.
    pub added: Vec<Place>,
    /// Addresses that a link had before.
    pub adopted: Vec<Place>,
    /// Addresses that no link holds, and why.
    pub missing: Vec<(IpAddr, Problem)>,
}

impl Held {
    /// Whether anything had to be done.
    pub fn changed(&self) -> bool {
        self.created || self.raised || !self.added.is_empty()
    }
}

/// What was taken away.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// These addresses.
    pub removed: Vec<Place>,
    /// And the link.
    pub link: bool,
}

/// Has the kernel hold these addresses: those that no link holds yet are added to the link `on`, which is made if it is
/// not there. Loopback and unspecified addresses need no link. What is there already is left as it is.
///
/// # Errors
/// What concerns all addresses; what concerns one is in [`Held::missing`].
pub fn hold(on: &str, addresses: &[IpAddr]) -> Result<Held, Problem> {
    check(on)?;
    let mut socket = open()?;
    let mut node = Node::read(&mut socket)?;
    let mut held = Held::default();
    let wanted: BTreeSet<IpAddr> = addresses.iter().copied().filter(needs_a_link).collect();
    let missing =
        |node: &Node| wanted.iter().copied().filter(|&address| !node.answers(address)).collect::<Vec<_>>();
    let mut lost = missing(&node);
    let mut target = node.link(on).cloned();
    if target.is_none() && !lost.is_empty() {
        (target, held.created) = make(&mut socket, on)?;
    }
    if let Some(link) = &target {
        let ours = !lost.is_empty() || wanted.iter().any(|&address| node.on(&link.name, address).is_some());
        if !link.up && ours {
            raise(&mut socket, link)?;
            held.raised = true;
        }
        if held.raised || held.created {
            node = Node::read(&mut socket)?;
            lost = missing(&node);
        }
    }
    held.adopted = wanted.iter().filter_map(|&address| node.place(address)).collect();
    for address in lost {
        let Some(link) = &target else { break };
        let place = Place { address, link: link.name.clone() };
        match add(&mut socket, link, address) {
            Ok(()) => held.added.push(place),
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                held.missing.push((address, problem(error, &link.name, || format!("address {address}"))));
            }
            Err(_) => match node.on(&link.name, address) {
                Some(holder) => held.missing.push((address, holder.silence())),
                None => held.adopted.push(place), // another agent was faster
            },
        }
    }
    Ok(held)
}

/// Takes those of these addresses that an agent has added off the link `on` and off `lo`, which has its place where the
/// kernel has no dummies; and the link away if an agent has made it and it holds no other address. What was there before,
/// or came from anybody else, stays, however it looks. `added` are those of this process: a kernel before Linux 5.18
/// does not tell whose an address is, so that those of an agent before us stay there.
///
/// # Errors
/// [`Problem`]
pub fn release(on: &str, addresses: &[IpAddr], added: &BTreeSet<Place>) -> Result<Released, Problem> {
    let mut socket = open()?;
    let node = Node::read(&mut socket)?;
    let leaves = |holder: &Holder| {
        let is_meant = addresses.contains(&holder.address) && [on, LOOPBACK].contains(&&*holder.link);
        is_meant && holder.is_as_we_add_it() && (holder.ours || added.contains(&holder.place()))
    };
    let mut released = Released::default();
    for holder in node.holders.iter().filter(|holder| leaves(holder)) {
        match socket.change(RouteNetlinkMessage::DelAddress(holder.message.clone()), 0) {
            Ok(()) => released.removed.push(holder.place()),
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
            Err(error) => {
                return Err(problem(error, &holder.link, || format!("to remove address {}", holder.address)));
            }
        }
    }
    let stays = |holder: &Holder| {
        !leaves(holder) && !matches!(holder.address, IpAddr::V6(v6) if v6.is_unicast_link_local())
    };
    let is_empty = |link: &Link| !node.holders.iter().any(|holder| holder.link == link.name && stays(holder));
    if let Some(link) = node.link(on).filter(|link| link.ours && is_empty(link)) {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        match socket.change(RouteNetlinkMessage::DelLink(message), 0) {
            Ok(()) => released.link = true,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(problem(error, on, || format!("to remove link {on}"))),
        }
    }
    Ok(released)
}

/// Every address of every link.
///
/// # Errors
/// [`Problem`]
pub fn holders() -> Result<Vec<Holder>, Problem> {
    Ok(Node::read(&mut open()?)?.holders)
}

/// The links that hold this address.
///
/// # Errors
/// [`Problem`]
pub fn holder(address: IpAddr) -> Result<Vec<Holder>, Problem> {
    let mut holders = holders()?;
    holders.retain(|holder| holder.address == address);
    Ok(holders)
}

/// Whether the machine has this address only if a link is given it.
fn needs_a_link(address: &IpAddr) -> bool {
    !address.is_loopback() && !address.is_unspecified()
}

/// net/core/dev.c, `dev_valid_name`; a percent sign would have the kernel number the links.
fn check(name: &str) -> Result<(), Problem> {
    let wrong = |why| Err(Problem::Name(name.to_owned(), why));
    match name {
        "" => wrong("it is empty"),
        "." | ".." => wrong("it names a folder"),
        _ if name.len() > NAME_MAX => wrong("it has more than 15 bytes"),
        _ if name.contains(|letter: char| "/:%".contains(letter) || letter.is_whitespace()) => {
            wrong("a blank, `/`, `:` or `%` is in it")
        }
        _ if name.contains(char::is_control) => wrong("a control character is in it"),
        _ => Ok(()),
    }
}

fn open() -> Result<Socket, Problem> {
    Socket::open().map_err(|error| Problem::Other("a netlink socket".to_owned(), error))
}

fn problem(error: io::Error, link: &str, what: impl FnOnce() -> String) -> Problem {
    match error.raw_os_error() {
        Some(libc::EPERM) => Problem::Capability,
        Some(libc::EACCES) => Problem::Ipv6Off(link.to_owned()),
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => Problem::NoIpv6,
        _ => Problem::Other(what(), error),
    }
}

/// Makes a dummy link, or says which link is there or has to do instead.
fn make(socket: &mut Socket, name: &str) -> Result<(Option<Link>, bool), Problem> {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]),
    ];
    let made = socket.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
    let (name, created) = match made.map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) => (name, true),
        Err((Some(libc::EEXIST), _)) => (name, false),
        Err((Some(libc::EOPNOTSUPP), _)) => (LOOPBACK, false),
        Err((Some(libc::EPERM), _)) => return Err(Problem::Capability),
        Err((_, error)) => return Err(Problem::Other(format!("dummy link {name}"), error)),
    };
    let link = Node::read(socket)?.link(name).cloned();
    if let Some(link) = link.as_ref().filter(|_| created) {
        // Linux takes no alias with a new link. One without stays at the end, which harms nobody.
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.attributes = vec![LinkAttribute::IfAlias(ALIAS.to_owned())];
        if let Err(error) = socket.change(RouteNetlinkMessage::SetLink(message), 0) {
            tracing::debug!(%error, "link {name} has no alias");
        }
    }
    Ok((link, created))
}

fn raise(socket: &mut Socket, link: &Link) -> Result<(), Problem> {
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    socket.change(RouteNetlinkMessage::SetLink(message), 0).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => Problem::Capability,
        _ => Problem::Other(format!("to set link {} up", link.name), error),
    })
}

/// A whole address and no more. Of host scope, so that Linux never picks it as the source of what is sent elsewhere; an
/// IPv6 address is its own scope, and must answer at once rather than after it was looked for on the network.
fn add(socket: &mut Socket, link: &Link, address: IpAddr) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.index = link.index;
    message.attributes = vec![
        AddressAttribute::Address(address),
        AddressAttribute::Local(address),
        AddressAttribute::Protocol(PROTOCOL),
    ];
    match address {
        IpAddr::V4(_) => {
            message.header.family = AddressFamily::Inet;
            message.header.prefix_len = 32;
            message.header.scope = AddressScope::Host;
        }
        IpAddr::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            message.header.prefix_len = 128;
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    socket.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}
