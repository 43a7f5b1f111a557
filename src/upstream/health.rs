//! Whether a server has been failing, and which server is asked next: functions of state and `now`.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::config::ServerPolicy;

/// Transport failures in a row after which a server is passed over.
const FAILURES: u32 = 3;
/// How long it is passed over before one query tries it again.
const EJECTED: Duration = Duration::from_secs(1);

/// A server's recent past.
#[derive(Debug, Default)]
pub struct Health(Mutex<State>);

#[derive(Debug, Default, Clone, Copy)]
struct State {
    failures: u32,
    ejected_until: Option<Instant>,
}

impl Health {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// An answer came, of whatever RCODE.
    pub fn answered(&self) {
        *self.state() = State::default();
    }

    /// A try failed below DNS.
    pub fn failed(&self, now: Instant) {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        if state.failures >= FAILURES {
            state.ejected_until = Some(now + EJECTED);
        }
    }

    /// The server is about to be asked. If it was passed over until now, this is the one query that
    /// tries it again: the others go on passing it over until that one has ended. True if it is.
    pub fn tried(&self, now: Instant) -> bool {
        let mut state = self.state();
        let again = state.ejected_until.is_some_and(|until| until <= now);
        if again {
            state.ejected_until = Some(now + EJECTED);
        }
        again
    }

    /// Whether the server is passed over at `now`.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.state().ejected_until.is_some_and(|until| now < until)
    }
}

/// What the choice among servers sees of one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// It is passed over unless all are.
    pub ejected: bool,
    /// Times that this flight has asked it.
    pub tries: u32,
    /// Queries in flight to it.
    pub in_flight: usize,
}

/// The index of the server to ask: one that this flight has asked least and that works, by policy
/// among equals. `None` when each was asked `max_tries` times. `turn` counts choices, `random` is any number.
pub fn choose(
    policy: ServerPolicy,
    candidates: &[Candidate],
    max_tries: u32,
    turn: usize,
    random: usize,
) -> Option<usize> {
    let rank = |index: usize| (candidates[index].ejected, candidates[index].tries);
    let open = |&index: &usize| candidates[index].tries < max_tries;
    let best = (0..candidates.len()).filter(open).map(rank).min()?;
    let equals = || (0..candidates.len()).filter(open).filter(|&index| rank(index) == best);
    let nth = |n: usize| equals().nth(n % equals().count());
    match policy {
        ServerPolicy::Sequential => nth(0),
        ServerPolicy::RoundRobin => nth(turn),
        ServerPolicy::Random => nth(random),
        ServerPolicy::LeastLoaded => {
            let least = equals().map(|index| candidates[index].in_flight).min()?;
            let mut idle = equals().filter(|&index| candidates[index].in_flight == least);
            let count = idle.clone().count();
            idle.nth(random % count)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Candidate = Candidate { ejected: false, tries: 0, in_flight: 0 };

    #[test]
    fn a_server_not_yet_asked_and_not_ejected_comes_first() {
        let tried = Candidate { tries: 1, ..FRESH };
        let ejected = Candidate { ejected: true, ..FRESH };
        for policy in [
            ServerPolicy::LeastLoaded,
            ServerPolicy::Random,
            ServerPolicy::RoundRobin,
            ServerPolicy::Sequential,
        ] {
            for random in 0..5 {
                let choose = |of: &[Candidate]| choose(policy, of, 3, random, random);
                assert_eq!(choose(&[tried, FRESH, ejected]), Some(1));
                assert_eq!(choose(&[ejected, tried]), Some(1), "one that works before one that does not");
                assert_eq!(choose(&[ejected]), Some(0), "all ejected: any is better than none");
                assert_eq!(choose(&[Candidate { tries: 3, ..FRESH }]), None);
                assert_eq!(choose(&[]), None);
            }
        }
    }

    #[test]
    fn policies_choose_among_equals() {
        let load = |in_flight| Candidate { in_flight, ..FRESH };
        let servers = [load(5), load(2), load(2)];
        let all = |policy| (0..6).map(|n| choose(policy, &servers, 3, n, n).unwrap()).collect::<Vec<_>>();
        assert_eq!(all(ServerPolicy::Sequential), [0; 6]);
        assert_eq!(all(ServerPolicy::RoundRobin), [0, 1, 2, 0, 1, 2]);
        assert_eq!(all(ServerPolicy::LeastLoaded), [1, 2, 1, 2, 1, 2]);
    }

    #[test]
    fn three_failures_in_a_row_eject_for_a_second() {
        let (health, now) = (Health::default(), Instant::now());
        health.failed(now);
        health.failed(now);
        assert!(!health.is_ejected(now));
        health.failed(now);
        assert!(health.is_ejected(now));
        let later = now + EJECTED;
        assert!(!health.is_ejected(later));
        assert!(health.tried(later) && !health.tried(later));
        assert!(health.is_ejected(later), "one query tries it again, not all");
        health.answered();
        assert!(!health.is_ejected(later));
        health.failed(now);
        assert!(!health.is_ejected(now));
    }
}
