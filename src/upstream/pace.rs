//! How long a server usually takes, and what follows from it: when an answer is late, and when a connection
//! that brings none counts as silent. The budget of hedges stands here as well. All of it is arithmetic.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::config;

/// Buckets of the times that were seen, four to each doubling.
const BUCKETS: usize = 64;
/// Upper bound of the first bucket; the last one begins at 5.6 s.
const FIRST: Duration = Duration::from_micros(100);
/// Answers after which all that was seen counts half: the last few hundred say what is usual.
const MEMORY: u32 = 1024;
/// Answers before which a server is a stranger.
const ACQUAINTED: u32 = 16;
/// The quantiles are looked up again after so many answers.
const EACH: u32 = 16;

/// An answer that takes longer than this from a server that is still a stranger is late, whatever it is later on.
pub const PATIENCE: Duration = Duration::from_millis(1000);
/// Nothing is late before: a busy node keeps its own processes waiting for so long.
const LATE_MIN: Duration = Duration::from_millis(10);
/// Everything is late after: half the time after which the first stub resolvers ask again (musl: 2.5 s), with
/// room for the second query.
const LATE_MAX: Duration = Duration::from_millis(500);
/// A connection on which nothing comes for this many times what is late is silent.
const SILENCE: u32 = 4;
/// It is not silent before: a server may collect garbage.
const SILENT_MIN: Duration = Duration::from_millis(50);

/// The times of one server's answers.
#[derive(Debug)]
pub struct Pace {
    seen: Mutex<Seen>,
    late_ns: AtomicU64,
}

#[derive(Debug)]
struct Seen {
    buckets: [u32; BUCKETS],
    total: u32,
    fresh: u32,
}

impl Default for Pace {
    fn default() -> Self {
        let seen = Seen { buckets: [0; BUCKETS], total: 0, fresh: 0 };
        Self { seen: Mutex::new(seen), late_ns: AtomicU64::new(PATIENCE.as_nanos() as u64) }
    }
}

impl Pace {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An answer took so long, or was overtaken after so long.
    pub fn observe(&self, took: Duration) {
        let mut seen = self.seen();
        seen.buckets[bucket(took)] += 1;
        seen.total += 1;
        seen.fresh += 1;
        if seen.total >= MEMORY {
            seen.buckets.iter_mut().for_each(|count| *count /= 2);
            seen.total = seen.buckets.iter().sum();
        }
        if seen.fresh >= EACH && seen.total >= ACQUAINTED {
            seen.fresh = 0;
            let late = seen.late().as_nanos() as u64;
            self.late_ns.store(late, Ordering::Relaxed);
        }
    }

    /// An answer that takes longer is late: the 99th percentile. Where the slow ones are just about one in a hundred
    /// that is now with the usual ones and now with the slow, so twice the 95th is an upper bound.
    pub fn late_after(&self) -> Duration {
        Duration::from_nanos(self.late_ns.load(Ordering::Relaxed))
    }

    /// A connection that has brought nothing for so long, while it should, is silent.
    pub fn silent_after(&self) -> Duration {
        let late = self.late_after();
        if late >= PATIENCE { PATIENCE } else { (late * SILENCE).clamp(SILENT_MIN, LATE_MAX) }
    }
}

impl Seen {
    fn late(&self) -> Duration {
        self.quantile(99).min(self.quantile(95) * 2).clamp(LATE_MIN, LATE_MAX)
    }

    fn quantile(&self, percent: u32) -> Duration {
        let rank = (self.total * percent).div_ceil(100);
        let mut below = 0;
        let at = self.buckets.iter().position(|count| {
            below += count;
            below >= rank
        });
        FIRST.mul_f64(2f64.powf(at.unwrap_or(BUCKETS - 1) as f64 / 4.0))
    }
}

/// The bucket of a time: the first whose upper bound is not less.
fn bucket(took: Duration) -> usize {
    let ratio = took.as_secs_f64() / FIRST.as_secs_f64();
    if ratio <= 1.0 { 0 } else { ((ratio.log2() * 4.0).ceil() as usize).min(BUCKETS - 1) }
}

/// How many queries may be asked again because their connection has gone silent, in the same terms. At 2,000 misses a second
/// half a server's connections hold some 50 when they die; the burst has room for ten times that load.
pub const MOVES: config::Hedge = config::Hedge { budget: 5, burst: 512 };

/// How many hedges may go out: so many for each hundred queries, and not more at once than the burst.
#[derive(Debug)]
pub struct Budget {
    /// In hundredths of a hedge.
    left: AtomicU64,
    earned: u64,
    most: u64,
}

impl Budget {
    /// A full budget; `None` is always empty.
    pub fn new(hedge: Option<&config::Hedge>) -> Self {
        let (earned, most) =
            hedge.map_or((0, 0), |hedge| (hedge.budget.into(), u64::from(hedge.burst) * 100));
        Self { left: AtomicU64::new(most), earned, most }
    }

    /// A query went out.
    pub fn earn(&self) {
        let left = self.left.load(Ordering::Relaxed);
        self.left.store((left + self.earned).min(self.most), Ordering::Relaxed);
    }

    /// Takes a hedge, if there is one left.
    pub fn spend(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(100)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_stranger_has_a_second() {
        let pace = Pace::default();
        (1..ACQUAINTED).for_each(|_| pace.observe(ms(2)));
        assert_eq!((pace.late_after(), pace.silent_after()), (PATIENCE, PATIENCE));
        pace.observe(ms(2));
        assert_eq!((pace.late_after(), pace.silent_after()), (LATE_MIN, SILENT_MIN));
    }

    #[test]
    fn late_is_what_is_unusual_of_this_server() {
        for (usual, late) in [(1, 10..=10), (30, 30..=40), (200, 200..=240), (3000, 500..=500)] {
            let pace = Pace::default();
            (0..500).for_each(|_| pace.observe(ms(usual)));
            assert!(late.contains(&(pace.late_after().as_millis() as u64)), "{usual}: {pace:?}");
        }
    }

    #[test]
    fn one_slow_answer_in_a_hundred_does_not_make_slow_usual() {
        let pace = Pace::default();
        for n in 0..2000 {
            pace.observe(if n % 100 == 7 { ms(500) } else { ms(5) });
            assert!(n < 64 || pace.late_after() <= ms(12), "{n}: {:?}", pace.late_after());
        }
    }

    #[test]
    fn what_is_usual_is_learned_anew() {
        let pace = Pace::default();
        (0..5000).for_each(|_| pace.observe(ms(2)));
        (0..2000).for_each(|_| pace.observe(ms(100)));
        assert!(pace.late_after() >= ms(100), "{:?}", pace.late_after());
        (0..5000).for_each(|_| pace.observe(ms(2)));
        assert_eq!(pace.late_after(), LATE_MIN);
    }

    #[test]
    fn every_time_has_a_bucket_that_holds_it() {
        for us in [0, 1, 99, 100, 101, 119, 120, 5000, 10_000_000, u64::from(u32::MAX)] {
            let took = Duration::from_micros(us);
            let mut seen = Seen { buckets: [0; BUCKETS], total: 1, fresh: 0 };
            seen.buckets[bucket(took)] = 1;
            let bound = seen.quantile(99);
            assert!(bound >= took.min(ms(5000)), "{us} µs: {bound:?}");
        }
    }

    #[test]
    fn hedges_are_a_share_of_the_queries_and_not_more_at_once_than_the_burst() {
        let budget = Budget::new(Some(&config::Hedge { budget: 5, burst: 3 }));
        assert_eq!((0..9).filter(|_| budget.spend()).count(), 3);
        (0..19).for_each(|_| budget.earn());
        assert!(!budget.spend());
        budget.earn();
        assert!(budget.spend() && !budget.spend());
        (0..1000).for_each(|_| budget.earn());
        assert_eq!((0..9).filter(|_| budget.spend()).count(), 3);
        let none = Budget::new(None);
        none.earn();
        assert!(!none.spend());
    }
}
