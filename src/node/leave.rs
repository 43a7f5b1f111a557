//! The end of [`Node`]: what goes first, what goes last, and what stays.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::netfilter::{Firewall, Table};
use super::{Node, Phase, link, route, sockets};
use crate::config::DNS_PORT;

/// Whose the node is when the agent has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// That of whoever listens where the agent did, if anybody does.
    Open,
    /// Nobody's: the sockets that others have are the agent's own, held by its parent, which ends as well.
    Last,
    /// Another agent's, which has the same sockets: all but the rules is its affair.
    Replaced,
}

/// A node that is left again unless it is kept: the agent has not started yet, and may fail to.
#[derive(Debug)]
pub struct Tentative {
    node: Arc<Node>,
    kept: bool,
    end: Left,
}

impl Tentative {
    /// To be kept later, or to end so.
    pub fn new(node: Arc<Node>, end: Left) -> Self {
        Self { node, kept: false, end }
    }

    /// The agent has started.
    pub fn keep(mut self) -> Arc<Node> {
        self.kept = true;
        Arc::clone(&self.node)
    }
}

impl Drop for Tentative {
    fn drop(&mut self) {
        if !self.kept {
            self.node.leave(self.end);
        }
    }
}

impl Node {
    /// Leads no more queries here but on connections that are open; answers still get out as they are. The agent is
    /// draining. Returns when it is so.
    pub async fn withdraw(self: &Arc<Self>) {
        self.apart(Self::lead_no_more).await;
    }

    fn lead_no_more(&self) {
        let mut state = self.state();
        if state.phase != Phase::Intercepting {
            return;
        }
        state.phase = state.phase.without_new();
        if !self.enforce(&mut state) {
            // Nobody answers here soon. The kernel takes away what it keeps for a socket, whatever it refuses.
            tracing::warn!(
                "connections to the ClusterIPs end now: the rules that let them end are not to be had"
            );
            (state.table, state.in_force) = (None, None);
        }
    }

    /// Leaves the node as it should be left, after the last socket has closed.
    pub fn leave(&self, end: Left) {
        // Whoever sets something up now is waited for, and nobody does afterwards.
        self.left.store(true, Ordering::Relaxed);
        let (mut state, _opening) = (self.state(), self.opening());
        if let Some(Err(error)) = state.table.as_mut().map(Table::remove) {
            tracing::warn!(%error, "rules stay behind");
        }
        if end == Left::Replaced {
            return;
        }
        let others_listen = |at: SocketAddr| end == Left::Open && sockets::others_listen(at);
        let others_are_reached = |at: SocketAddr| end == Left::Open && sockets::others_are_reached(at);
        let network = &self.network;
        if network.accept_untracked {
            let mut mine = self.untracked();
            mine.retain(|at| !others_listen(*at));
            if let Err(error) = Firewall::find().and_then(|firewall| firewall.close(&|at| mine.contains(&at)))
            {
                tracing::warn!(%error, "rules of ours stay behind in firewalls");
            }
        }
        let alone = |ip: &&IpAddr| !others_listen(SocketAddr::new(**ip, DNS_PORT));
        let free: Vec<IpAddr> = network.intercept.iter().filter(alone).copied().collect();
        if !free.is_empty()
            && let Err(error) = route::let_go(&free, self.mark())
        {
            tracing::warn!(%error, "routes stay behind, which lead nobody anywhere");
        }
        if let Some(on) = network.address_on.as_ref().filter(|_| !network.keep_address) {
            let free = self.listen.iter().filter(|at| !others_are_reached(**at)).map(SocketAddr::ip);
            match link::release(on, &free.collect::<Vec<_>>(), &state.added) {
                Ok(released) => tracing::info!(?released, "what we have added is taken away"),
                Err(error) => tracing::warn!(%error, "the listen addresses stay behind"),
            }
        }
    }
}
