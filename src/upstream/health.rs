//! Whether a server works, and which server is asked next: functions of state and `now`.
//!
//! A server that fails several times in a row is passed over at once, and probed. Until a probe has failed
//! too it is only under suspicion, and better than nothing; after that it is down. Any answer brings it
//! back, with a share of the queries that grows over as long a time as it was away.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::ServerPolicy;

/// Transport failures in a row after which a server is passed over, if they span some time: all queries of one
/// moment may meet the same hiccup.
const FAILURES: u32 = 3;
/// The longest time in which a server that came back gets less than its share.
const RAMP: Duration = Duration::from_secs(5);
/// Its share at the beginning.
const FIRST_SHARE: f64 = 0.1;

/// A server's recent past.
#[derive(Debug, Default)]
pub struct Health(Mutex<Standing>);

#[derive(Debug, Clone, Copy)]
enum Standing {
    /// Failures since its last answer, since when, and whether that is being looked into; when and after how long it
    /// came back.
    Working { failures: u32, failing: Option<Instant>, checked: bool, back: Option<(Instant, Duration)> },
    /// Passed over since then; down once a probe has failed.
    PassedOver { since: Instant, down: bool },
}

impl Default for Standing {
    fn default() -> Self {
        Self::Working { failures: 0, failing: None, checked: false, back: None }
    }
}

impl Health {
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An answer came, of whatever RCODE. True if it was passed over until now.
    pub fn answered(&self, now: Instant) -> bool {
        let mut standing = self.standing();
        match &mut *standing {
            Standing::Working { failures, failing, checked, .. } => {
                (*failures, *failing, *checked) = (0, None, false);
                false
            }
            Standing::PassedOver { since, .. } => {
                let away = now.saturating_duration_since(*since).min(RAMP);
                *standing =
                    Standing::Working { failures: 0, failing: None, checked: false, back: Some((now, away)) };
                true
            }
        }
    }

    /// A try that began at `since` failed below DNS. True if that is one too many in a row, and they span `silence`.
    pub fn failed(&self, since: Instant, silence: Duration, now: Instant) -> bool {
        let mut standing = self.standing();
        let Standing::Working { failures, failing, .. } = &mut *standing else { return false };
        *failures += 1;
        let first = *failing.get_or_insert(since);
        *failures >= FAILURES && now.saturating_duration_since(first) >= silence
    }

    /// Its failures are looked into from now on, until it answers or is passed over. False if they are already.
    pub fn check(&self) -> bool {
        match &mut *self.standing() {
            Standing::Working { checked, .. } => !std::mem::replace(checked, true),
            Standing::PassedOver { .. } => false,
        }
    }

    /// Whether they are still being looked into: no answer has come since.
    pub fn is_checked(&self) -> bool {
        matches!(*self.standing(), Standing::Working { checked: true, .. })
    }

    /// It is passed over from now on. False if it was already.
    pub fn pass_over(&self, now: Instant) -> bool {
        let mut standing = self.standing();
        let worked = matches!(*standing, Standing::Working { .. });
        if worked {
            *standing = Standing::PassedOver { since: now, down: false };
        }
        worked
    }

    /// A probe failed.
    pub fn probe_failed(&self) {
        if let Standing::PassedOver { down, .. } = &mut *self.standing() {
            *down = true;
        }
    }

    /// Whether it is passed over.
    pub fn is_passed_over(&self) -> bool {
        matches!(*self.standing(), Standing::PassedOver { .. })
    }

    /// Whether it is passed over, and a probe has failed since.
    pub fn is_down(&self) -> bool {
        matches!(*self.standing(), Standing::PassedOver { down: true, .. })
    }

    /// How long it has been passed over, if it is, and whether it is down.
    pub fn away(&self, now: Instant) -> Option<(Duration, bool)> {
        match *self.standing() {
            Standing::PassedOver { since, down } => Some((now.saturating_duration_since(since), down)),
            Standing::Working { .. } => None,
        }
    }

    /// The part of its share of queries that it should get, up to 1.
    pub fn share(&self, now: Instant) -> f64 {
        match *self.standing() {
            Standing::Working { back: Some((at, away)), .. } if !away.is_zero() => {
                let back = now.saturating_duration_since(at).as_secs_f64() / away.as_secs_f64();
                back.clamp(FIRST_SHARE, 1.0)
            }
            _ => 1.0,
        }
    }
}

/// What the choice among servers sees of one of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// It is passed over unless all are.
    pub passed_over: bool,
    /// Times that this flight has asked it.
    pub tries: u32,
    /// Queries that it has not answered.
    pub load: usize,
    /// The part of its share of queries that it should get, up to 1.
    pub share: f64,
}

/// The index of the server to ask: one that this flight has asked least and that works, by policy
/// among equals. `None` when each was asked `max_tries` times. `turn` counts choices, `random` is any number.
pub fn choose(
    policy: ServerPolicy,
    candidates: &[Candidate],
    max_tries: u32,
    turn: usize,
    random: u32,
) -> Option<usize> {
    let rank = |index: usize| (candidates[index].passed_over, candidates[index].tries);
    let open = |&index: &usize| candidates[index].tries < max_tries;
    let best = (0..candidates.len()).filter(open).map(rank).min()?;
    let equals = || (0..candidates.len()).filter(open).filter(|&index| rank(index) == best);
    if policy == ServerPolicy::LeastLoaded {
        let cost = |index: usize| (candidates[index].load + 1) as f64 / candidates[index].share;
        let least = equals().map(cost).min_by(f64::total_cmp)?;
        let idle = || equals().filter(|&index| cost(index) <= least);
        return idle().nth(random as usize % idle().count());
    }
    // One that has just come back is left out as often as its share says.
    let chance = f64::from(random) / f64::from(u32::MAX);
    let full = |&index: &usize| chance < candidates[index].share || candidates[index].share >= 1.0;
    let nth = |n: usize| match equals().filter(full).count() {
        0 => equals().nth(n % equals().count()),
        count => equals().filter(full).nth(n % count),
    };
    match policy {
        ServerPolicy::Sequential | ServerPolicy::LeastLoaded => nth(0),
        ServerPolicy::RoundRobin => nth(turn),
        ServerPolicy::Random => nth(random as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Candidate = Candidate { passed_over: false, tries: 0, load: 0, share: 1.0 };
    const POLICIES: [ServerPolicy; 4] =
        [ServerPolicy::LeastLoaded, ServerPolicy::Random, ServerPolicy::RoundRobin, ServerPolicy::Sequential];

    #[test]
    fn a_server_not_yet_asked_and_not_passed_over_comes_first() {
        let tried = Candidate { tries: 1, ..FRESH };
        let passed_over = Candidate { passed_over: true, ..FRESH };
        for policy in POLICIES {
            for random in 0..5 {
                let choose = |of: &[Candidate]| choose(policy, of, 3, random as usize, random);
                assert_eq!(choose(&[tried, FRESH, passed_over]), Some(1));
                assert_eq!(choose(&[passed_over, tried]), Some(1), "one that works before one that does not");
                assert_eq!(choose(&[passed_over]), Some(0), "all passed over: any is better than none");
                assert_eq!(choose(&[Candidate { tries: 3, ..FRESH }]), None);
                assert_eq!(choose(&[]), None);
            }
        }
    }

    #[test]
    fn policies_choose_among_equals() {
        let load = |load| Candidate { load, ..FRESH };
        let servers = [load(5), load(2), load(2)];
        let all =
            |policy| (0..6).map(|n| choose(policy, &servers, 3, n as usize, n).unwrap()).collect::<Vec<_>>();
        assert_eq!(all(ServerPolicy::Sequential), [0; 6]);
        assert_eq!(all(ServerPolicy::RoundRobin), [0, 1, 2, 0, 1, 2]);
        assert_eq!(all(ServerPolicy::LeastLoaded), [1, 2, 1, 2, 1, 2]);
    }

    #[test]
    fn one_that_came_back_gets_its_share_and_no_more() {
        let back = Candidate { share: 0.25, ..FRESH };
        for policy in [ServerPolicy::Random, ServerPolicy::RoundRobin, ServerPolicy::Sequential] {
            let chosen =
                |n: u32| choose(policy, &[back, FRESH], 3, n as usize, n.wrapping_mul(2_654_435_769));
            let times = (0..1000).filter(|&n| chosen(n) == Some(0)).count();
            let share = if policy == ServerPolicy::Sequential { 250 } else { 125 };
            assert!(times.abs_diff(share) < 40, "{policy:?}: {times}");
            assert_eq!(choose(policy, &[back], 3, 0, u32::MAX), Some(0), "the only one");
        }
        let choose = |load| {
            let busy = Candidate { load, ..FRESH };
            choose(ServerPolicy::LeastLoaded, &[back, busy], 3, 0, 0)
        };
        assert_eq!((choose(2), choose(4)), (Some(1), Some(0)));
    }

    #[test]
    fn three_failures_in_a_row_pass_a_server_over_until_it_answers() {
        let (health, now) = (Health::default(), Instant::now());
        let failed = || health.failed(now, Duration::ZERO, now);
        assert!(!failed() && !failed());
        assert!(!health.answered(now), "in a row");
        assert!(!failed() && !failed() && !health.is_passed_over());
        assert!(failed() && failed());
        assert!(health.check() && !health.check(), "said once");
        assert!(health.is_checked());
        health.answered(now);
        assert!(!health.is_checked(), "that was an answer as well");
        assert!(!failed() && !failed() && failed() && health.check());
        assert!(!health.is_passed_over(), "that is for others to decide");
        assert!(health.pass_over(now) && !health.pass_over(now));
        assert!(health.is_passed_over() && !health.is_down());
        health.probe_failed();
        assert!(health.is_down());
        assert!(health.answered(now));
        assert!(!health.is_passed_over() && !health.is_down());
    }

    #[test]
    fn failures_of_one_moment_do_not_pass_a_server_over() {
        let (health, start) = (Health::default(), Instant::now());
        let failed = |ms| {
            let now = start + Duration::from_millis(ms);
            health.failed(now - Duration::from_millis(10), Duration::from_millis(50), now)
        };
        assert!((0..39).all(|n| !failed(10 + n)));
        assert!(failed(50), "50 ms after the first of them began");
        health.answered(start);
        assert!(!failed(100) && !failed(900), "two are too few");
        assert!(failed(1000));
    }

    #[test]
    fn a_share_grows_for_as_long_as_the_server_was_away() {
        let (health, start) = (Health::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        let fail = |now| health.pass_over(now);
        assert!(fail(start));
        health.answered(after(1000));
        assert_eq!([1000, 1500, 2000, 9000].map(|ms| health.share(after(ms))), [0.1, 0.5, 1.0, 1.0]);
        assert!(fail(after(10_000)));
        health.answered(after(10_000));
        assert_eq!(health.share(after(10_000)), 1.0, "it was never away");
        assert!(fail(after(10_000)));
        health.answered(after(3_600_000));
        assert_eq!(health.share(after(3_602_500)), 0.5, "5 s at most");
    }
}
