//! What all clients share, and who has how much of it.
//!
//! One rule: a source may take one more while it has fewer than are free. (In switches that share their memory among
//! ports this is the dynamic threshold of Choudhury and Hahne, 1998.) It follows:
//!
//! - While less than half is taken nobody is limited: nobody can have as much as is free.
//! - Of a whole of `max`, one source that takes all it gets has half, and `n` such sources have `max / (n + 1)` each:
//!   as much as they leave free for the next one.
//! - A newcomer finds room as long as anything is free. After its last taking a source has no more than it left
//!   free, and after the last taking of the one before it, that had no more than was free and what this one has now.
//!   So `n` sources, in whatever order they take and give back, leave at least `max / 2^n` free, and nothing of what
//!   they give back goes to those of them that have more than that.
//!
//! A source whose address is forged anew for each query is not found out by this; the whole bounds it.

use std::collections::HashMap;

use crate::upstream::queue::Source;

/// Sources for which a map without any keeps its memory.
const KEPT: usize = 64;

/// What is taken of a whole.
#[derive(Debug, Default)]
pub(super) struct Taken {
    total: usize,
    /// Only of those that have some.
    by_source: HashMap<Source, usize, ahash::RandomState>,
}

/// Why a query has to do without a flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// All flights are taken.
    Flights,
    /// All places to wait are taken.
    Waiters,
    /// There is room, but not for a source that has so much already.
    Share,
}

impl Bound {
    /// Its label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Flights => "flights",
            Self::Waiters => "waiters",
            Self::Share => "share",
        }
    }

    /// The rule: what keeps a source that has `own` from taking one more, where so many are `free` and `self` is the
    /// bound of the whole.
    pub(super) fn refuses(self, own: usize, free: usize) -> Option<Self> {
        match free {
            0 => Some(self),
            free => (own >= free).then_some(Self::Share),
        }
    }
}

impl Taken {
    /// By all together.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// By one source.
    pub(super) fn of(&self, source: Source) -> usize {
        self.by_source.get(&source).copied().unwrap_or_default()
    }

    /// A source takes one more.
    pub(super) fn add(&mut self, source: Source) {
        self.total += 1;
        *self.by_source.entry(source).or_default() += 1;
    }

    /// A source gives one back.
    pub(super) fn remove(&mut self, source: Source) {
        let Some(count) = self.by_source.get_mut(&source) else { return };
        self.total -= 1;
        *count -= 1;
        if *count == 0 {
            self.by_source.remove(&source);
        }
        if self.total == 0 && self.by_source.capacity() > KEPT {
            self.by_source = HashMap::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn source(last: u8) -> Source {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    /// One more for the source, if the rule allows it.
    fn take(taken: &mut Taken, source: Source, max: usize) -> bool {
        let allowed = Bound::Flights.refuses(taken.of(source), max - taken.total()).is_none();
        if allowed {
            taken.add(source);
        }
        allowed
    }

    /// All that the rule allows.
    fn take_all(taken: &mut Taken, source: Source, max: usize) -> usize {
        (0..max).take_while(|_| take(taken, source, max)).count()
    }

    #[test]
    fn below_half_nobody_is_limited_and_one_alone_has_half() {
        let mut taken = Taken::default();
        assert_eq!(take_all(&mut taken, source(1), 4096), 2048);
        assert_eq!(Bound::Flights.refuses(taken.of(source(1)), 2048), Some(Bound::Share));
        assert_eq!(Bound::Flights.refuses(taken.of(source(2)), 2048), None);
        assert_eq!(Bound::Waiters.refuses(0, 0), Some(Bound::Waiters));
    }

    #[test]
    fn sources_that_take_all_they_get_come_to_equal_shares() {
        const MAX: usize = 1200;
        let mut taken = Taken::default();
        // The first has half before the others come; from then on each gives back one after the other.
        take_all(&mut taken, source(0), MAX);
        for _ in 0..MAX {
            for n in 0..5 {
                take_all(&mut taken, source(n), MAX);
            }
            for n in 0..5 {
                taken.remove(source(n));
            }
        }
        for n in 0..5 {
            take_all(&mut taken, source(n), MAX);
            let own = taken.of(source(n));
            assert!((195..=205).contains(&own), "source {n} has {own}, not about a sixth");
        }
        assert!(take_all(&mut taken, source(9), MAX) >= 90, "a newcomer has half of what was left free");
    }

    #[test]
    fn one_without_any_leaves_no_trace() {
        let mut taken = Taken::default();
        let many: Vec<Source> =
            (0..4000u16).map(|n| Some(IpAddr::from([10, 1, (n >> 8) as u8, n as u8]))).collect();
        many.iter().for_each(|&source| taken.add(source));
        taken.remove(source(1));
        assert_eq!((taken.total(), taken.by_source.len()), (4000, 4000), "who has none gives none back");
        many.iter().for_each(|&source| taken.remove(source));
        assert_eq!((taken.total(), taken.by_source.len()), (0, 0));
        assert!(taken.by_source.capacity() <= KEPT);
    }

    proptest! {
        #[test]
        fn whatever_n_sources_do_they_leave_a_newcomer_its_part(
            deeds in prop::collection::vec((0u8..4, any::<bool>(), 1usize..300), 1..200),
        ) {
            const MAX: usize = 512;
            let mut taken = Taken::default();
            for (n, takes, times) in deeds {
                for _ in 0..times {
                    if takes {
                        take(&mut taken, source(n), MAX);
                    } else {
                        taken.remove(source(n));
                    }
                }
                prop_assert!(MAX - taken.total() >= MAX >> 4, "{} are taken", taken.total());
                prop_assert!(Bound::Flights.refuses(taken.of(source(9)), MAX - taken.total()).is_none());
                prop_assert_eq!(taken.total(), (0..4).map(|n| taken.of(source(n))).sum::<usize>());
            }
        }
    }
}
