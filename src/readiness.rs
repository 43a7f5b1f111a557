//! Whether the agent can do its work, and what keeps it from it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::counter;
use tokio::sync::watch;

use crate::metrics::SETUP_ERRORS;

/// A worker is seen at least every half second; this many missed ones mean that it hangs.
const SILENT: Duration = Duration::from_secs(3);

/// What has to be done before the agent can answer, and be kept so afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the labels say it")]
pub enum Step {
    Link,
    Address,
    Rules,
    Firewall,
    Route,
    Intercept,
    Listen,
    Admin,
}

impl Step {
    /// Its label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Address => "address",
            Self::Rules => "rules",
            Self::Firewall => "firewall",
            Self::Route => "route",
            Self::Intercept => "intercept",
            Self::Listen => "listen",
            Self::Admin => "admin",
        }
    }
}

/// Whether the agent can do its work.
#[derive(Debug)]
pub struct Readiness {
    pulses: Mutex<Vec<Arc<Pulse>>>,
    /// Why a step is not done, by what it is about.
    missing: Mutex<BTreeMap<(Step, String), String>>,
    /// Set once, when an upstream has answered or enough time has passed.
    latched: AtomicBool,
    draining: AtomicBool,
    changes: watch::Sender<()>,
}

impl Readiness {
    /// Not ready yet.
    pub fn new() -> Self {
        Self {
            pulses: Mutex::default(),
            missing: Mutex::default(),
            latched: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            changes: watch::Sender::new(()),
        }
    }

    /// From now on this thread has to make progress.
    pub fn watch(&self, pulse: Arc<Pulse>) {
        lock(&self.pulses).push(pulse);
    }

    /// An upstream has answered, or enough time has passed.
    pub fn latch(&self) {
        self.latched.store(true, Ordering::Relaxed);
        self.changes.send_replace(());
    }

    /// From now on the agent is leaving.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.changes.send_replace(());
    }

    /// A step has not been done yet, and why. `subject` tells it from others of its kind.
    pub fn awaits(&self, step: Step, subject: &str, why: impl Into<String>) -> bool {
        let why = why.into();
        let is_news = lock(&self.missing).insert((step, subject.to_owned()), why.clone()) != Some(why);
        if is_news {
            self.changes.send_replace(());
        }
        is_news
    }

    /// A try at a step has failed, and why: counted, and logged if it is news.
    pub fn lacks(&self, step: Step, subject: &str, why: impl Into<String>) {
        let why = why.into();
        counter!(SETUP_ERRORS, "step" => step.label()).increment(1);
        if self.awaits(step, subject, why.clone()) {
            tracing::warn!(step = step.label(), "{why}: trying again");
        }
    }

    /// A step is done. True if it was not before.
    pub fn has(&self, step: Step, subject: &str) -> bool {
        let is_news = lock(&self.missing).remove(&(step, subject.to_owned())).is_some();
        if is_news {
            self.changes.send_replace(());
        }
        is_news
    }

    /// Returns when nothing is missing.
    pub async fn ready(&self) {
        let mut changes = self.changes();
        while !self.reasons().is_empty() && changes.changed().await.is_ok() {}
    }

    /// Tells when something has changed that is not a worker's progress.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Whether every worker makes progress.
    pub fn is_healthy(&self) -> bool {
        lock(&self.pulses).iter().all(|pulse| pulse.silence() < SILENT)
    }

    /// Why a step is not done, if it is not.
    pub fn why_not(&self, step: Step) -> Option<String> {
        lock(&self.missing).iter().find(|((missing, _), _)| *missing == step).map(|(_, why)| why.clone())
    }

    /// Whether the agent is leaving.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether it can answer whatever is sent to its sockets: all of them are there and somebody reads them.
    /// Packets are led to it only then.
    pub fn can_answer(&self) -> bool {
        let listens = !lock(&self.missing).keys().any(|(step, _)| *step == Step::Listen);
        listens && self.latched.load(Ordering::Relaxed) && !self.is_draining() && self.is_healthy()
    }

    /// What keeps the agent from being ready; nothing if it is.
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.is_draining() {
            reasons.push("draining".to_owned());
        }
        if !self.is_healthy() {
            reasons.push("a worker makes no progress".to_owned());
        }
        // Without its HTTP the agent answers queries all the same, and nobody can read this there.
        let missing = lock(&self.missing);
        reasons
            .extend(missing.iter().filter(|((step, _), _)| *step != Step::Admin).map(|(_, why)| why.clone()));
        if !self.latched.load(Ordering::Relaxed) {
            reasons.push("no upstream of the first zone has answered yet".to_owned());
        }
        reasons
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread's sign of life.
#[derive(Debug)]
pub struct Pulse {
    started: Instant,
    beat_ms: AtomicU64,
}

impl Pulse {
    /// Beats for the first time now.
    pub fn new() -> Self {
        Self { started: Instant::now(), beat_ms: AtomicU64::new(0) }
    }

    /// Beats.
    pub fn beat(&self, now: Instant) {
        let since = now.saturating_duration_since(self.started);
        self.beat_ms.store(since.as_millis() as u64, Ordering::Relaxed);
    }

    /// Time since the last beat.
    pub fn silence(&self) -> Duration {
        let beat = Duration::from_millis(self.beat_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(beat)
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_until_it_is_there() {
        let readiness = Readiness::new();
        readiness.latch();
        assert!(readiness.reasons().is_empty() && readiness.can_answer());
        assert!(readiness.awaits(Step::Listen, "a", "not yet"));
        assert!(!readiness.awaits(Step::Listen, "a", "not yet"), "known");
        readiness.lacks(Step::Listen, "a", "no a");
        readiness.lacks(Step::Rules, "", "no rules");
        assert_eq!(readiness.reasons(), ["no rules", "no a"]);
        assert!(!readiness.can_answer(), "not all sockets are there");
        assert!(readiness.has(Step::Listen, "a") && !readiness.has(Step::Listen, "a"));
        assert!(readiness.can_answer(), "rules lead to it, and are not needed to answer");
        assert!(readiness.has(Step::Rules, ""));
        readiness.drain();
        assert_eq!(readiness.reasons(), ["draining"]);
        assert!(!readiness.can_answer());
    }

    #[test]
    fn nobody_is_led_to_an_agent_that_is_not_ready_yet() {
        let readiness = Readiness::new();
        assert!(!readiness.can_answer());
        assert_eq!(readiness.reasons(), ["no upstream of the first zone has answered yet"]);
    }

    #[test]
    fn whoever_waits_for_changes_hears_of_each() {
        let readiness = Readiness::new();
        let mut changes = readiness.changes();
        let mut changed = || {
            let has = changes.has_changed().unwrap();
            changes.mark_unchanged();
            has
        };
        assert!(!changed());
        readiness.latch();
        assert!(changed() && !changed());
        readiness.lacks(Step::Link, "", "why");
        assert!(changed());
        readiness.lacks(Step::Link, "", "why");
        assert!(!changed());
        readiness.has(Step::Link, "");
        assert!(changed());
    }
}
