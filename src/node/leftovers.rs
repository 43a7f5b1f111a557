//! What agents leave behind that are killed: rules in the firewalls of others, and the way of intercepted queries.
//! Neither is any agent's for certain while another one runs, so it goes when there is none.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::netfilter::{Firewall, Refusal, Table, other_agents};
use super::{LOOK_AT_ALL, Node, route};

/// Why it is tried again.
#[derive(Debug, thiserror::Error)]
enum Unclean {
    #[error(transparent)]
    Rules(#[from] Refusal),
    #[error(transparent)]
    Routes(#[from] route::Problem),
}

impl Node {
    /// Takes away what nobody wants any more, as soon as there is no other agent.
    pub(super) async fn clean_up(self: Arc<Self>) {
        while !self.is_leaving() {
            match self.apart(Self::take_leftovers).await {
                Some(Ok(true)) => return,
                Some(Err(error)) => tracing::debug!(%error, "leftovers of other agents"),
                Some(Ok(false)) | None => {}
            }
            tokio::time::sleep(LOOK_AT_ALL).await;
        }
    }

    /// Whether nothing is left. What we want ourselves is left as it is.
    fn take_leftovers(&self) -> Result<bool, Unclean> {
        {
            let state = self.state();
            match other_agents(state.table.as_ref().map(Table::name)) {
                Ok(true) => return Ok(false),
                Ok(false) | Err(Refusal::NoNftables) => {}
                Err(refusal) => return Err(refusal.into()),
            }
            if self.left.load(Ordering::Relaxed) {
                return Ok(true);
            }
            let gone = route::keep_only(&self.network.intercept, self.mark())?;
            if !gone.is_empty() {
                tracing::info!(?gone, "took away what an agent before us has left");
            }
        }
        let _opening = self.opening();
        if self.left.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let wanted = if self.network.accept_untracked { self.untracked() } else { Vec::new() };
        let closed = match Firewall::find().and_then(|firewall| firewall.close(&|at| !wanted.contains(&at))) {
            Err(Refusal::NoNftables) => 0,
            closed => closed?,
        };
        if closed > 0 {
            tracing::info!(
                rules = closed,
                "took rules out of firewalls that an agent before us has left there"
            );
        }
        Ok(true)
    }
}
