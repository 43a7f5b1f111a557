//! The step of [`Node`] that is about the firewalls of others. It has a clock of its own: they have no event that we hear,
//! and a look at them reads their rules.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::netfilter::Firewall;
use super::{FIRST_PAUSE, LONGEST_PAUSE, LOOK, Node, repaired};
use crate::config::DNS_PORT;
use crate::readiness::Step;

/// A look may take a fiftieth of the time until the next (20,000 rules take 0.1 s).
const LOOKING: u32 = 50;

/// What is known of firewalls.
#[derive(Debug, Default)]
pub(super) struct Opening {
    /// They were opened once: what is missing later was taken away.
    opened: bool,
    /// What could not be opened at the last look, so that it is said once.
    said: BTreeSet<String>,
}

impl Node {
    /// Opens firewalls again and again, for as long as the agent runs.
    pub(super) async fn keep_open(self: Arc<Self>, mut opened: bool) {
        let (mut took, mut failed) = (Duration::ZERO, FIRST_PAUSE);
        loop {
            let retry = if opened { Duration::ZERO } else { failed };
            tokio::time::sleep((LOOKING * took).max(LOOK).max(retry)).await;
            if self.is_leaving() {
                return;
            }
            failed = if opened { FIRST_PAUSE } else { (2 * failed).min(LONGEST_PAUSE) };
            let began = Instant::now();
            opened = self.apart(Self::open_firewalls).await.unwrap_or(false);
            took = began.elapsed();
        }
    }

    pub(super) fn opening(&self) -> MutexGuard<'_, Opening> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Firewalls let in what is not tracked. False if it is to be tried again soon.
    pub(super) fn open_firewalls(&self) -> bool {
        let mut opening = self.opening();
        if self.left.load(Ordering::Relaxed) {
            return true;
        }
        match Firewall::find().and_then(|firewall| firewall.open_for(&self.untracked())) {
            Ok(opened) => {
                self.readiness.has(Step::Firewall, "");
                for why in opening.news(&opened.cannot) {
                    tracing::warn!("network.accept_untracked: {why}");
                }
                if !opened.opened.is_empty() && opening.opened {
                    repaired(Step::Firewall, &opened.opened.join(", "));
                }
                opening.opened = true;
                true
            }
            Err(refusal) => {
                self.readiness.lacks(Step::Firewall, "", format!("network.accept_untracked: {refusal}"));
                false
            }
        }
    }

    /// Where queries come that are not tracked.
    pub(super) fn untracked(&self) -> Vec<SocketAddr> {
        let network = &self.network;
        let listen = if network.notrack { &self.listen[..] } else { &[] };
        let cluster_ips = network.intercept.iter().map(|&ip| SocketAddr::new(ip, DNS_PORT));
        listen.iter().copied().chain(cluster_ips).collect()
    }
}

impl Opening {
    /// Which of these were not said at the last look. Of one chain it is the same whatever is said: a table that its owner
    /// makes anew has another number each time.
    fn news<'a>(&mut self, cannot: &'a [String]) -> Vec<&'a str> {
        let chain = |why: &str| why.split(": ").next().unwrap_or_default().to_owned();
        let now: BTreeSet<String> = cannot.iter().map(|why| chain(why)).collect();
        let before = std::mem::replace(&mut self.said, now);
        cannot.iter().map(String::as_str).filter(|why| !before.contains(&chain(why))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_opened_is_said_once_and_what_has_gone_is_forgotten() {
        let mut opening = Opening::default();
        let said =
            |socket: u32| vec![format!("inet theirs input: only socket {socket} can"), "ip a b: why".into()];
        assert_eq!(opening.news(&said(1)), said(1));
        assert_eq!(opening.news(&said(2)), [] as [&str; 0], "the same table, made anew");
        assert_eq!(opening.news(&said(3)[..1]), [] as [&str; 0]);
        assert_eq!(opening.news(&said(4)), ["ip a b: why"], "there again");
        assert_eq!(opening.said.len(), 2);
    }
}
