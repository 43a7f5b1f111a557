//! The memory of resolution failures (RFC 9520), apart from the answers so that it never hides one.

use std::time::{Duration, Instant};

use quick_cache::UnitWeighter;
use quick_cache::sync::DefaultLifecycle;

use crate::wire::key::{Key, KeyBuf};
use crate::wire::rcode;

/// Failures remembered at once. Beyond it the oldest go first; each lasts seconds only.
pub const CAPACITY: u64 = 8192;

/// Why a question could not be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// No server could be reached, or none answered in time.
    Transport,
    /// A server answered with this RCODE.
    Rcode(u16),
}

impl Cause {
    /// The RCODE that clients get.
    pub fn rcode(self) -> u16 {
        match self {
            Self::Rcode(rcode::REFUSED) => rcode::REFUSED,
            Self::Transport | Self::Rcode(_) => rcode::SERVFAIL,
        }
    }
}

/// A failure that is remembered.
#[derive(Debug, Clone, Copy)]
pub struct Failed {
    /// Why.
    pub cause: Cause,
    until: Instant,
    /// Where a stale answer bridges the gap, the next try is due then (RFC 8767 §5).
    recheck_at: Instant,
    /// Failures of this kind in a row, for the back-off.
    in_a_row: u32,
    /// The pool's generation when it failed. A recovery voids transport failures and recheck timers.
    generation: u64,
}

/// How long failures last.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// A transport failure's memory.
    pub transport: Duration,
    /// A first failure RCODE's.
    pub servfail: Duration,
    /// Where its doubling ends.
    pub servfail_max: Duration,
    /// The least pause between tries while a stale answer bridges the gap.
    pub recheck: Duration,
}

/// RFC 9520 §3.2: no failure counts for longer; a later one is a first one again.
const FORGET: Duration = Duration::from_secs(300);

/// The memory.
pub struct Failures(quick_cache::sync::Cache<Key, Failed, UnitWeighter, ahash::RandomState>);

impl Failures {
    /// An empty memory.
    pub fn new() -> Self {
        Self(quick_cache::sync::Cache::with(
            0,
            CAPACITY,
            UnitWeighter,
            ahash::RandomState::new(),
            DefaultLifecycle::default(),
        ))
    }

    /// The failure that still counts for this question; longer where a stale answer bridges the gap.
    pub fn lookup(&self, key: &KeyBuf, bridged: bool, generation: u64, now: Instant) -> Option<Cause> {
        let failed = self.0.get(key.as_bytes())?;
        failed.counts(bridged, generation, now).then_some(failed.cause)
    }

    /// Remembers a failure at `now`; `generation` is the pool's.
    pub fn store(&self, key: &Key, cause: Cause, generation: u64, times: &Times, now: Instant) {
        let before = self.0.get(key).filter(|before| now < before.until + FORGET);
        self.0.insert(key.clone(), Failed::after(before, cause, generation, times, now));
    }

    /// Forgets the failure of a question that was answered.
    pub fn clear(&self, key: &Key) {
        self.0.remove(key);
    }

    /// Forgets the failures of those questions for which `chosen` holds, and says how many they were.
    pub fn flush(&self, chosen: impl Fn(&Key) -> bool) -> usize {
        let before = self.0.len();
        self.0.retain(|key, _| !chosen(key));
        before.saturating_sub(self.0.len())
    }

    /// Failures remembered, those that no longer count included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for Failures {
    fn default() -> Self {
        Self::new()
    }
}

impl Failed {
    fn counts(&self, bridged: bool, generation: u64, now: Instant) -> bool {
        let recovered = self.generation != generation;
        let remembered = now < self.until && !(recovered && self.cause == Cause::Transport);
        remembered || (bridged && now < self.recheck_at && !recovered)
    }

    /// The failure that follows `before`. Only failure RCODEs back off.
    fn after(before: Option<Self>, cause: Cause, generation: u64, times: &Times, now: Instant) -> Self {
        let in_a_row = match before {
            Some(before) if before.cause == cause => before.in_a_row.saturating_add(1),
            _ => 0,
        };
        let lasts = match cause {
            Cause::Transport => times.transport,
            Cause::Rcode(rcode::SERVFAIL) => {
                (times.servfail * 2u32.saturating_pow(in_a_row.min(16))).min(times.servfail_max)
            }
            Cause::Rcode(_) => times.servfail,
        };
        Self { cause, until: now + lasts, recheck_at: now + times.recheck, in_a_row, generation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times {
        transport: Duration::from_secs(1),
        servfail: Duration::from_secs(1),
        servfail_max: Duration::from_secs(10),
        recheck: Duration::from_secs(5),
    };

    #[test]
    fn servfail_backs_off_to_its_bound_and_transport_failures_do_not() {
        let now = Instant::now();
        let lasts = |cause: Cause| {
            let mut failed = None;
            let mut lasts = Vec::new();
            for _ in 0..6 {
                let next = Failed::after(failed, cause, 0, &TIMES, now);
                lasts.push((next.until - now).as_secs());
                failed = Some(next);
            }
            lasts
        };
        assert_eq!(lasts(Cause::Rcode(2)), [1, 2, 4, 8, 10, 10]);
        assert_eq!(lasts(Cause::Transport), [1; 6]);
        assert_eq!(lasts(Cause::Rcode(5)), [1; 6]);
    }

    #[test]
    fn a_good_answer_of_the_pool_voids_transport_failures_and_rechecks_only() {
        let now = Instant::now();
        let transport = Failed::after(None, Cause::Transport, 7, &TIMES, now);
        assert!(transport.counts(false, 7, now) && !transport.counts(false, 8, now));
        let servfail = Failed::after(None, Cause::Rcode(2), 7, &TIMES, now);
        assert!(servfail.counts(false, 8, now) && servfail.counts(true, 8, now));
        let later = now + Duration::from_secs(1);
        assert!(!servfail.counts(false, 7, later), "with nothing stale to give it lasts no longer");
        assert!(servfail.counts(true, 7, later) && !servfail.counts(true, 8, later));
        assert!(!servfail.counts(true, 7, now + Duration::from_secs(5)));
    }
}
