//! The way of intercepted packets to the agent: a rule that looks up marked packets in a table of our own, and local routes
//! there. Both are harmless when they are left behind: nothing has the mark once the rules of nftables are gone.

mod leftovers;

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netfilter::Bits;
use super::rtnetlink::Socket;
pub use leftovers::keep_only;

/// The table of our routes. Tables below 256 are often somebody's.
pub const TABLE: u32 = 10053;
/// Where our rule stands among the others: behind that of the local table, before those that networks of pods add.
pub const PREFERENCE: u32 = 100;
/// linux/rtnetlink.h, `RT_TABLE_COMPAT`: in a header, the number stands in an attribute.
const RT_TABLE_COMPAT: u8 = 252;
/// The loopback link of every network namespace.
const LOOPBACK: u32 = 1;

/// Why packets are not led here, and what helps.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The process may not.
    #[error(
        "the capability CAP_NET_ADMIN is missing: add NET_ADMIN to the capabilities in the container's securityContext \
         (for systemd: AmbientCapabilities=CAP_NET_ADMIN)"
    )]
    Capability,
    /// The kernel has no rules.
    #[error("this kernel has no ip rules for {0} (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)")]
    NoRules(&'static str),
    /// Somebody else has a route in our table.
    #[error("table {TABLE} has another route to {0}: `ip route del {0} table {TABLE}` takes it away")]
    Taken(IpAddr),
    /// Anything else.
    #[error("the kernel refused {0}: {1}")]
    Other(String, io::Error),
}

/// What was missing and is there now, or was there and is gone.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Our rule of these families, `IPv4` and `IPv6`.
    pub rules: Vec<&'static str>,
    /// The routes of these addresses.
    pub routes: Vec<IpAddr>,
}

impl Changed {
    /// Whether nothing was to do.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.routes.is_empty()
    }
}

/// A rule that looks up our table, or one of others that looks at bits of our mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// Its place among the others.
    pub preference: u32,
    /// The mark, and the bits that count.
    pub mark: (u32, u32),
    /// The table that it looks up.
    pub table: u32,
    /// It is the one that we make: it has no other condition.
    pub ours: bool,
}

/// A route of our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to; the unspecified address for all.
    pub to: IpAddr,
    /// The length of its prefix in bits.
    pub prefix: u8,
    /// It delivers to this machine.
    pub local: bool,
}

/// Leads packets with this mark that are for these addresses here. What is there already is left as it is.
///
/// # Errors
/// [`Problem`]
pub fn lead_here(addresses: &[IpAddr], mark: Bits) -> Result<Changed, Problem> {
    let mut socket = open()?;
    let mut changed = Changed::default();
    for family in Family::of(addresses) {
        let ours = addresses.iter().copied().filter(|&address| family.has(address));
        let routes = routes(&mut socket, family)?;
        for address in ours {
            if routes.iter().any(|route| route.leads(address)) {
                continue;
            }
            if routes.iter().any(|route| !route.local && route.is_whole(address)) {
                return Err(Problem::Taken(address));
            }
            let what = || format!("the route of {address}");
            if done(socket.change(RouteNetlinkMessage::NewRoute(family.route(address)), NEW), family, what)? {
                changed.routes.push(address);
            }
        }
        if !rules(&mut socket, family)?.iter().any(|rule| is_ours(rule, mark)) {
            let what = || format!("the {} rule", family.name());
            if done(socket.change(RouteNetlinkMessage::NewRule(family.rule(mark)), NEW), family, what)? {
                changed.rules.push(family.name());
            }
        }
    }
    Ok(changed)
}

/// Only what is not there is made, so that two who make it at once do not make two.
const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// Takes the routes of these addresses away, and the rule with the last of the table.
///
/// # Errors
/// [`Problem`]
pub fn let_go(addresses: &[IpAddr], mark: Bits) -> Result<Changed, Problem> {
    let mut socket = open()?;
    let mut changed = Changed::default();
    for family in [Family::V4, Family::V6] {
        let (going, staying): (Vec<Route>, _) = routes(&mut socket, family)?
            .into_iter()
            .filter(|route| route.local)
            .partition(|route| addresses.contains(&route.to) && route.leads(route.to));
        if staying.is_empty() && rules(&mut socket, family)?.iter().any(|rule| is_ours(rule, mark)) {
            let what = || format!("to remove the {} rule", family.name());
            let mut rule = family.rule(mark);
            // Whoever made it.
            rule.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
            if done(socket.change(RouteNetlinkMessage::DelRule(rule), 0), family, what)? {
                changed.rules.push(family.name());
            }
        }
        for Route { to, .. } in going {
            let what = || format!("to remove the route of {to}");
            if done(socket.change(RouteNetlinkMessage::DelRoute(family.route(to)), 0), family, what)? {
                changed.routes.push(to);
            }
        }
    }
    Ok(changed)
}

/// What is there: rules that look up our table or look at bits of our mark, and the table's routes.
///
/// # Errors
/// [`Problem`]
pub fn seen(mark: Bits) -> Result<(Vec<Rule>, Vec<Route>), Problem> {
    let mut socket = open()?;
    let (mut all, mut to) = (Vec::new(), Vec::new());
    for family in [Family::V4, Family::V6] {
        for message in rules(&mut socket, family)? {
            let rule = Rule {
                family: family.name(),
                preference: number(&message, |attribute| match attribute {
                    RuleAttribute::Priority(preference) => Some(*preference),
                    _ => None,
                }),
                mark: marked(&message),
                table: table(&message),
                ours: is_ours(&message, mark),
            };
            if rule.table == TABLE || rule.mark.1 & mark.mask != 0 {
                all.push(rule);
            }
        }
        to.extend(routes(&mut socket, family)?);
    }
    Ok((all, to))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(addresses: &[IpAddr]) -> impl Iterator<Item = Self> {
        let wanted = |family: &Self| addresses.iter().any(|&address| family.has(address));
        [Self::V4, Self::V6].into_iter().filter(wanted)
    }

    fn has(self, address: IpAddr) -> bool {
        (self == Self::V4) == address.is_ipv4()
    }

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn number(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }

    /// As the kernel's own: systemd-networkd removes rules and routes of others when it starts, and passes those over.
    fn rule(self, mark: Bits) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = self.number();
        message.header.table = RT_TABLE_COMPAT;
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::FwMark(mark.value),
            RuleAttribute::FwMask(mark.mask),
            RuleAttribute::Table(TABLE),
            RuleAttribute::Priority(PREFERENCE),
            RuleAttribute::Protocol(RouteProtocol::Kernel),
        ];
        message
    }

    fn route(self, address: IpAddr) -> RouteMessage {
        let mut message = self.table();
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message.header.protocol = RouteProtocol::Kernel;
        message.header.kind = RouteType::Local;
        message.header.scope = if address.is_ipv4() { RouteScope::Host } else { RouteScope::Universe };
        message.attributes.push(RouteAttribute::Destination(address.into()));
        message.attributes.push(RouteAttribute::Oif(LOOPBACK));
        message
    }

    fn read(self, message: &RouteMessage) -> Route {
        let to = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
            _ => None,
        });
        let all = match self {
            Self::V4 => IpAddr::from([0; 4]),
            Self::V6 => IpAddr::from([0; 16]),
        };
        Route {
            to: to.unwrap_or(all),
            prefix: message.header.destination_prefix_length,
            local: message.header.kind == RouteType::Local,
        }
    }

    /// All that says only which table is meant.
    fn table(self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = self.number();
        message.attributes.push(RouteAttribute::Table(TABLE));
        message
    }
}

impl Route {
    fn leads(&self, address: IpAddr) -> bool {
        self.local && self.is_whole(address)
    }

    /// It is to this address alone.
    fn is_whole(&self, address: IpAddr) -> bool {
        self.to == address && self.prefix == if address.is_ipv4() { 32 } else { 128 }
    }
}

fn open() -> Result<Socket, Problem> {
    Socket::open().map_err(|error| Problem::Other("a netlink socket".to_owned(), error))
}

/// Whether it is done now, and not before.
fn done(result: io::Result<()>, family: Family, what: impl FnOnce() -> String) -> Result<bool, Problem> {
    match result.map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) => Ok(true),
        Err((Some(libc::EEXIST | libc::ENOENT | libc::ESRCH), _)) => Ok(false),
        Err((Some(libc::EPERM), _)) => Err(Problem::Capability),
        Err((Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP), _)) => Err(Problem::NoRules(family.name())),
        Err((_, error)) => Err(Problem::Other(what(), error)),
    }
}

/// All rules of a family; none where the kernel has no such family.
fn rules(socket: &mut Socket, family: Family) -> Result<Vec<RuleMessage>, Problem> {
    let mut message = RuleMessage::default();
    message.header.family = family.number();
    let list = list(socket, RouteNetlinkMessage::GetRule(message), "rules")?;
    let rules = list.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewRule(rule) => Some(rule),
        _ => None,
    });
    Ok(rules.filter(|rule| rule.header.family == family.number()).collect())
}

/// The routes of our table.
fn routes(socket: &mut Socket, family: Family) -> Result<Vec<Route>, Problem> {
    Ok(messages_of_routes(socket, family)?.iter().map(|message| family.read(message)).collect())
}

fn messages_of_routes(socket: &mut Socket, family: Family) -> Result<Vec<RouteMessage>, Problem> {
    let list = list(socket, RouteNetlinkMessage::GetRoute(family.table()), "routes")?;
    let routes = list.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route) if is_of_our_table(&route) => Some(route),
        _ => None,
    });
    Ok(routes.filter(|route| route.header.address_family == family.number()).collect())
}

fn list(
    socket: &mut Socket,
    message: RouteNetlinkMessage,
    what: &str,
) -> Result<Vec<RouteNetlinkMessage>, Problem> {
    match socket.list(message).map_err(|error| (error.raw_os_error(), error)) {
        Ok(list) => Ok(list),
        // No table with this number yet, or no such family.
        Err((Some(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP), _)) => Ok(Vec::new()),
        Err((_, error)) => Err(Problem::Other(format!("a list of {what}"), error)),
    }
}

pub(super) fn is_of_our_table(route: &RouteMessage) -> bool {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table == Some(TABLE)
}

/// Whether a rule is the one that we make, who ever made it: it has no other condition and does nothing else.
fn is_ours(rule: &RuleMessage, mark: Bits) -> bool {
    is_plain(rule) && marked(rule) == (mark.value, mark.mask)
}

/// Whether a rule stands where ours do, asks for a mark alone, and leads to our table.
fn is_plain(rule: &RuleMessage) -> bool {
    let header = &rule.header;
    let plain = header.action == RuleAction::ToTable
        && header.flags.is_empty()
        && (header.dst_len, header.src_len, header.tos) == (0, 0, 0);
    let known = rule.attributes.iter().all(|attribute| match attribute {
        RuleAttribute::FwMark(_) | RuleAttribute::FwMask(_) | RuleAttribute::Protocol(_) => true,
        RuleAttribute::Table(table) => *table == TABLE,
        RuleAttribute::Priority(preference) => *preference == PREFERENCE,
        // What the kernel says of a rule without it.
        RuleAttribute::SuppressPrefixLen(length) => *length == u32::MAX,
        _ => false,
    });
    plain && known && table(rule) == TABLE
}

pub(super) fn table(rule: &RuleMessage) -> u32 {
    let wide = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    wide.unwrap_or_else(|| rule.header.table.into())
}

fn marked(rule: &RuleMessage) -> (u32, u32) {
    let value = number(rule, |attribute| match attribute {
        RuleAttribute::FwMark(value) => Some(*value),
        _ => None,
    });
    let mask = number(rule, |attribute| match attribute {
        RuleAttribute::FwMask(mask) => Some(*mask),
        _ => None,
    });
    (value, mask)
}

/// An attribute that the kernel leaves out when it is 0.
fn number(rule: &RuleMessage, of: impl Fn(&RuleAttribute) -> Option<u32>) -> u32 {
    rule.attributes.iter().find_map(of).unwrap_or_default()
}
