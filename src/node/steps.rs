//! The steps of [`Node::settle`], but for the rules themselves: each looks at what is there and adds what is missing.

use std::collections::BTreeSet;

use super::netfilter::{Bits, Ownership};
use super::{Node, Phase, State, link, repaired, route};
use crate::readiness::Step;

impl Node {
    /// The listen addresses are on a link.
    pub(super) fn hold(&self, state: &mut State) -> bool {
        let Some(on) = &self.network.address_on else { return true };
        let held = match link::hold(on, &self.addresses()) {
            Ok(held) => held,
            Err(problem) => {
                self.readiness.lacks(Step::Link, on, format!("network.address_on: {problem}"));
                return false;
            }
        };
        self.readiness.has(Step::Link, on);
        state.added.extend(held.added.iter().cloned());
        for place in held.added.iter().chain(&held.adopted) {
            self.readiness.has(Step::Address, &place.address.to_string());
        }
        for (address, problem) in &held.missing {
            let why = format!("network.address_on: {address} is not there: {problem}");
            self.readiness.lacks(Step::Address, &address.to_string(), why);
        }
        if held.changed() {
            let added: Vec<String> =
                held.added.iter().map(|place| format!("{} on {}", place.address, place.link)).collect();
            if state.held {
                let step = if held.created || held.raised { Step::Link } else { Step::Address };
                repaired(step, &if added.is_empty() { on.clone() } else { added.join(", ") });
            } else {
                tracing::info!(?added, link_made = held.created, "holding the listen addresses");
            }
        }
        state.held |= held.missing.is_empty();
        held.missing.is_empty()
    }

    /// Whether queries to the ClusterIPs are led here now. False if they should be and cannot.
    pub(super) fn decide(&self, state: &mut State, all: bool) -> bool {
        if self.network.intercept.is_empty() || self.readiness.is_draining() {
            return true;
        }
        if !self.readiness.can_answer() {
            state.phase = state.phase.without_new();
            let why = "queries to the ClusterIPs of network.intercept are not led here";
            self.readiness.awaits(Step::Intercept, "", why);
            return true;
        }
        if state.phase == Phase::Intercepting && !all {
            return true;
        }
        let leads = self.may_intercept(state) && self.lead(state);
        state.phase = if leads { Phase::Intercepting } else { state.phase.without_new() };
        leads
    }

    /// Whether the kernel takes the rules away if we cannot, and nobody holds the ClusterIPs.
    fn may_intercept(&self, state: &mut State) -> bool {
        let refuse = |why: String| {
            self.readiness.lacks(Step::Intercept, "", format!("network.intercept: {why}"));
            false
        };
        // Why there is none is told where it is opened; then we come back.
        let Some(table) = &state.table else { return false };
        if table.ownership() != Ownership::Kernel {
            return refuse(
                "rules would outlive this process, which only Linux 5.12 and later prevent".to_owned(),
            );
        }
        let holders = match link::holders() {
            Ok(holders) => holders,
            Err(problem) => return refuse(problem.to_string()),
        };
        let held = holders.into_iter().filter(|holder| self.network.intercept.contains(&holder.address));
        let held: BTreeSet<_> =
            held.map(|link::Holder { address, link, .. }| link::Place { address, link }).collect();
        let before = std::mem::replace(&mut state.held_by, held);
        for place in &state.held_by {
            let link::Place { address, link } = place;
            if link == link::IPVS {
                return refuse(format!(
                    "{address} is held by the link {link} (kube-proxy in IPVS mode), so that queries would not come \
                     back to the cluster's DNS if this process ended: leave it out, and set clusterDNS of kubelet's \
                     configuration to an address of `listen`"
                ));
            }
            if !before.contains(place) {
                tracing::warn!(
                    "{address} is held by the link {link}: while it is, nobody answers there when this process ends: \
                     `ip address del {address} dev {link}`"
                );
            }
        }
        true
    }

    /// Marked packets are routed here.
    fn lead(&self, state: &mut State) -> bool {
        match route::lead_here(&self.network.intercept, self.mark()) {
            Ok(changed) => {
                self.readiness.has(Step::Route, "");
                if !changed.is_empty() && state.led {
                    repaired(Step::Route, &format!("{changed:?}"));
                }
                state.led = true;
                true
            }
            Err(problem) => {
                self.readiness.lacks(Step::Route, "", format!("network.intercept: {problem}"));
                false
            }
        }
    }

    pub(super) fn mark(&self) -> Bits {
        Bits { value: self.network.mark.intercept, mask: self.network.mark.mask }
    }
}
