//! Rules and routes of agents that were killed.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};

use super::{
    Bits, Changed, Family, LOOPBACK, Problem, done, is_ours, is_plain, marked, messages_of_routes, open,
    rules,
};

/// Takes away what an agent has left that had another mark or answered for other addresses: rules and routes as we make
/// them, and as nobody else would. The caller knows that there is no such agent any more.
///
/// # Errors
/// [`Problem`]
pub fn keep_only(addresses: &[IpAddr], mark: Bits) -> Result<Changed, Problem> {
    let mut socket = open()?;
    let mut changed = Changed::default();
    for family in [Family::V4, Family::V6] {
        let is_wanted = addresses.iter().any(|&address| family.has(address));
        for rule in rules(&mut socket, family)? {
            if !is_from_us(&rule) || (is_wanted && is_ours(&rule, mark)) {
                continue;
            }
            let what = || format!("to remove the {} rule", family.name());
            if done(socket.change(RouteNetlinkMessage::DelRule(rule), 0), family, what)? {
                changed.rules.push(family.name());
            }
        }
        for message in messages_of_routes(&mut socket, family)? {
            let route = family.read(&message);
            if addresses.contains(&route.to) || !route.leads(route.to) || !is_a_route_from_us(&message) {
                continue;
            }
            let what = || format!("to remove the route of {}", route.to);
            if done(socket.change(RouteNetlinkMessage::DelRoute(message), 0), family, what)? {
                changed.routes.push(route.to);
            }
        }
    }
    Ok(changed)
}

/// Whether an agent has made a rule, with whatever mark.
fn is_from_us(rule: &RuleMessage) -> bool {
    let by_us = rule.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Kernel));
    is_plain(rule) && by_us && marked(rule) != (0, 0)
}

/// Whether an agent has made a route of our table.
fn is_a_route_from_us(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::Kernel
        && route.attributes.contains(&RouteAttribute::Oif(LOOPBACK))
}
