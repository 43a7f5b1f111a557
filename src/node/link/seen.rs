//! The links of this machine and their addresses, as the kernel lists them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkHeader, LinkInfo, LinkMessage};

use super::super::rtnetlink::Socket;
use super::{ALIAS, IPVS, PROTOCOL, Place, Problem};

/// An address that a link holds.
#[derive(Debug, Clone)]
pub struct Holder {
    /// The address.
    pub address: IpAddr,
    /// The length of its prefix in bits.
    pub prefix: u8,
    /// The link's name.
    pub link: String,
    /// What `ip link` calls its kind: `dummy`, `veth`; `None` for `lo` and hardware.
    pub kind: Option<String>,
    /// The link is up.
    pub up: bool,
    /// `global`, `link`, `host`, as `ip address` says it.
    pub scope: &'static str,
    /// Whether the kernel answers for it, and we can rely on its staying there.
    pub answers: bool,
    /// An agent has added it, as kernels from Linux 5.18 on know.
    pub ours: bool,
    pub(super) message: AddressMessage,
}

#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) kind: Option<String>,
    pub(super) up: bool,
    /// An agent has made it.
    pub(super) ours: bool,
    carrier: bool,
}

/// The links and their addresses at one moment.
pub(super) struct Node {
    links: BTreeMap<u32, Link>,
    pub(super) holders: Vec<Holder>,
}

impl Node {
    pub(super) fn read(socket: &mut Socket) -> Result<Self, Problem> {
        let other = |what: &str| {
            let what = format!("a list of {what}");
            |error| Problem::Other(what, error)
        };
        let links = socket.list(RouteNetlinkMessage::GetLink(LinkMessage::default()));
        let links = links.map_err(other("links"))?.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(message) => Link::of(message),
            _ => None,
        });
        let links: BTreeMap<u32, Link> = links.map(|link| (link.index, link)).collect();
        let holders = socket.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        let holders = holders.map_err(other("addresses"))?.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => Holder::of(message, &links),
            _ => None,
        });
        let holders = holders.collect();
        Ok(Self { links, holders })
    }

    pub(super) fn link(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    pub(super) fn answers(&self, address: IpAddr) -> bool {
        self.place(address).is_some()
    }

    pub(super) fn on(&self, link: &str, address: IpAddr) -> Option<&Holder> {
        self.holders.iter().find(|holder| holder.link == link && holder.address == address)
    }

    /// Where it answers.
    pub(super) fn place(&self, address: IpAddr) -> Option<Place> {
        let holder = self.holders.iter().find(|holder| holder.address == address && holder.answers)?;
        Some(holder.place())
    }
}

impl Link {
    fn of(message: LinkMessage) -> Option<Self> {
        let (mut name, mut kind, mut ours) = (None, None, false);
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Some(text),
                LinkAttribute::IfAlias(text) => ours = text == ALIAS,
                LinkAttribute::LinkInfo(infos) => {
                    kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        let LinkHeader { index, flags, .. } = message.header;
        let (up, carrier) = (flags.contains(LinkFlags::Up), flags.contains(LinkFlags::LowerUp));
        name.map(|name| Self { name, index, kind, up, ours, carrier })
    }
}

impl Holder {
    fn of(message: AddressMessage, links: &BTreeMap<u32, Link>) -> Option<Self> {
        let address = address(&message)?;
        let number = message.header.index;
        let unknown = || Link {
            name: format!("#{number}"),
            index: number,
            kind: None,
            up: true,
            ours: false,
            carrier: true,
        };
        let Link { name: link, kind, up, carrier, .. } = links.get(&number).cloned().unwrap_or_else(unknown);
        let ours = message.attributes.contains(&AddressAttribute::Protocol(PROTOCOL));
        let flags = flags(&message);
        // With a carrier it is a matter of a second.
        let waits = flags.contains(AddressFlags::Tentative) && !carrier;
        let scope = match message.header.scope {
            AddressScope::Host => "host",
            AddressScope::Link => "link",
            _ => "global",
        };
        let answers = !waits && !flags.contains(AddressFlags::Dadfailed) && link != IPVS;
        let prefix = message.header.prefix_len;
        Some(Self { address, prefix, kind, up, scope, answers, ours, link, message })
    }

    pub(super) fn place(&self) -> Place {
        Place { address: self.address, link: self.link.clone() }
    }

    /// Why it does not answer.
    pub(super) fn silence(&self) -> Problem {
        let why = if flags(&self.message).contains(AddressFlags::Dadfailed) {
            "as a duplicate of another machine's (dadfailed): take it away there"
        } else if self.link == IPVS {
            "where kube-proxy takes away what is no service's: let network.address_on be another link"
        } else {
            "which has no carrier, so that it stays tentative: set up the link's other end, or let network.address_on \
             be another link"
        };
        Problem::Silent(self.link.clone(), why)
    }

    pub(super) fn is_as_we_add_it(&self) -> bool {
        match self.address {
            IpAddr::V4(_) => self.prefix == 32 && self.scope == "host",
            IpAddr::V6(_) => self.prefix == 128 && flags(&self.message).contains(AddressFlags::Nodad),
        }
    }
}

/// The address that a message is about: on links from point to point, `Address` is the other end's.
pub(in crate::node) fn address(message: &AddressMessage) -> Option<IpAddr> {
    let mut end = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => return Some(*local),
            AddressAttribute::Address(address) => end = Some(*address),
            _ => {}
        }
    }
    end
}

/// All flags; the header has room for eight.
fn flags(message: &AddressMessage) -> AddressFlags {
    let all = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    all.unwrap_or_else(|| AddressFlags::from_bits_retain(message.header.flags.bits().into()))
}
