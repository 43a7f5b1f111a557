//! `auto://`: whether TCP or UDP is tried first, and how many connections a server stands. Functions of state and `now`.
//!
//! One query that TCP failed and UDP answered is enough to leave TCP, since the way back is as short: after a second
//! a probe by TCP decides, at no client's expense. If it fails, or if the next query after it is failed again, the
//! pause is long. A server that refuses connections while others of ours work has a limit: fewer of them are better
//! than UDP, which costs an entry in connection tracking for each query.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The first pause. A process that starts opens its sockets one after the other, and a SYN that is lost is repeated
/// after a second (RFC 6298 §2): both are over by then.
const DOUBT: Duration = Duration::from_secs(1);
/// The second pause: pods, rules and quotas that changed have changed within a minute.
const RETRY: Duration = Duration::from_secs(60);
/// Where the doubling ends. A probe costs next to nothing; this is how long a change back goes unnoticed.
const MAX_RETRY: Duration = Duration::from_secs(10 * 60);
/// Connections in a row that were refused or cut off beside working ones, after which the server has a limit. One
/// address may hide several servers, and one of those that is gone refuses every second or third.
const REFUSED: u32 = 3;
/// A query that has waited this long for a connection is asked by UDP as well, while the connection is still being
/// opened: the delay that RFC 8305 §5 recommends before the other address family is tried.
pub const FALLBACK: Duration = Duration::from_millis(250);

/// How long something is not tried, and what has to be known of it for the next time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pause {
    until: Instant,
    long: Duration,
}

impl Pause {
    /// A pause that follows the one before, if that is not long ago.
    fn after(before: Option<Self>, now: Instant) -> Self {
        let recent = before.filter(|pause| now < pause.until + pause.long.max(RETRY));
        let long = recent.map_or(DOUBT, |pause| (pause.long * 2).clamp(RETRY, MAX_RETRY));
        Self { until: now + long, long }
    }
}

/// Whether a server is asked by TCP or by UDP first.
#[derive(Debug, Default)]
pub struct Choice(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    udp: bool,
    /// Until TCP is tried again; by TCP, when it came back.
    pause: Option<Pause>,
    /// A probe by TCP is out.
    probing: bool,
}

impl Choice {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether UDP comes first.
    pub fn is_udp(&self) -> bool {
        self.state().udp
    }

    /// TCP failed where UDP answered. The time until the next try by TCP, if that is news.
    pub fn doubt(&self, now: Instant) -> Option<Duration> {
        let mut state = self.state();
        if state.udp {
            return None;
        }
        let pause = Pause::after(state.pause, now);
        *state = State { udp: true, pause: Some(pause), probing: false };
        Some(pause.long)
    }

    /// Whether TCP is to be probed now; once for each probe.
    pub fn is_due(&self, now: Instant) -> bool {
        let mut state = self.state();
        let due = state.udp && !state.probing && state.pause.is_none_or(|pause| now >= pause.until);
        state.probing |= due;
        due
    }

    /// A probe by TCP was answered. True if it is asked by TCP again from now on.
    pub fn works(&self, now: Instant) -> bool {
        let mut state = self.state();
        let news = std::mem::take(&mut state.udp);
        if news && let Some(pause) = &mut state.pause {
            pause.until = now;
        }
        state.probing = false;
        news
    }

    /// A probe by TCP was not answered. The time until the next one.
    pub fn fails(&self, now: Instant) -> Duration {
        let mut state = self.state();
        let pause = Pause::after(state.pause, now);
        (state.pause, state.probing) = (Some(pause), false);
        pause.long
    }
}

/// How many connections a server stands.
#[derive(Debug, Default)]
pub struct Ceiling {
    most: usize,
    pause: Option<Pause>,
    /// Connections refused or cut off in a row, and the last one of them that had been open.
    refused: u32,
    last: Option<u64>,
}

impl Ceiling {
    /// The bound to use instead of this one.
    pub fn bound(&self, configured: usize, now: Instant) -> usize {
        match self.pause {
            Some(pause) if now < pause.until => configured.min(self.most),
            _ => configured,
        }
    }

    /// A connection was refused, or cut off (`number`) before it answered anything, while so many work. The bound,
    /// and for how long it holds, if that is news.
    pub fn refused(
        &mut self,
        number: Option<u64>,
        working: usize,
        now: Instant,
    ) -> Option<(usize, Duration)> {
        if number.is_some() && number == self.last || self.pause.is_some_and(|pause| now < pause.until) {
            return None; // all queries of one connection tell of its end, and what was under way goes on failing
        }
        (self.refused, self.last) = (self.refused + 1, number);
        if self.refused < REFUSED {
            return None;
        }
        let pause = Pause::after(self.pause, now);
        *self = Self { most: working.max(1), pause: Some(pause), ..Self::default() };
        Some((self.most, pause.long))
    }

    /// A new connection has answered.
    pub fn works(&mut self) {
        self.refused = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_are_a_second_then_a_minute_and_double_to_ten() {
        let (choice, mut now) = (Choice::default(), Instant::now());
        assert!(!choice.is_udp() && !choice.is_due(now));
        let mut pauses = vec![choice.doubt(now).unwrap()];
        assert!(choice.is_udp());
        for _ in 0..6 {
            let long = *pauses.last().unwrap();
            assert!(!choice.is_due(now + long - Duration::from_millis(1)));
            now += long;
            assert!(choice.is_due(now) && !choice.is_due(now), "one probe");
            pauses.push(choice.fails(now));
        }
        assert_eq!(
            pauses.iter().map(Duration::as_secs).collect::<Vec<_>>(),
            [1, 60, 120, 240, 480, 600, 600]
        );
        assert!(choice.is_udp(), "a probe decides, not time");
        assert!(choice.works(now) && !choice.works(now), "said once");
        assert!(!choice.is_udp() && !choice.is_due(now + MAX_RETRY));
    }

    #[test]
    fn a_doubt_is_said_once_and_does_not_put_off_the_probe() {
        let (choice, now) = (Choice::default(), Instant::now());
        assert_eq!(choice.doubt(now), Some(DOUBT));
        assert_eq!(choice.doubt(now + SECOND / 2), None);
        assert!(choice.is_due(now + SECOND));
    }

    #[test]
    fn a_doubt_soon_after_the_return_pauses_longer_and_much_later_does_not() {
        let (choice, start) = (Choice::default(), Instant::now());
        let after = |seconds| start + SECOND * seconds;
        choice.doubt(start);
        choice.works(after(1));
        assert_eq!(choice.doubt(after(60)), Some(RETRY), "within a minute of its return");
        choice.works(after(120));
        assert_eq!(choice.doubt(after(179)), Some(RETRY * 2));
        choice.works(after(300));
        assert_eq!(
            choice.doubt(after(420)),
            Some(DOUBT),
            "TCP has worked for as long as it had been left alone"
        );
    }

    #[test]
    fn a_server_that_works_by_tcp_answers_a_probe_without_news() {
        let (choice, now) = (Choice::default(), Instant::now());
        assert!(!choice.works(now));
        assert_eq!(choice.doubt(now), Some(DOUBT));
    }

    #[test]
    fn three_refused_in_a_row_are_a_limit_for_a_while() {
        let (mut ceiling, now) = (Ceiling::default(), Instant::now());
        assert_eq!(ceiling.refused(None, 4, now), None);
        assert_eq!(ceiling.refused(None, 4, now), None);
        ceiling.works();
        assert_eq!(ceiling.refused(None, 4, now), None, "in a row");
        assert_eq!(ceiling.refused(None, 4, now), None);
        assert_eq!(ceiling.refused(None, 4, now), Some((4, DOUBT)));
        assert_eq!([2, 4, 16].map(|configured| ceiling.bound(configured, now)), [2, 4, 4]);
        assert_eq!(ceiling.refused(None, 1, now), None, "it was under way");
        assert_eq!(ceiling.bound(16, now + DOUBT), 16, "then it is tried again");
        let later = now + DOUBT * 2;
        assert_eq!((0..3).filter_map(|_| ceiling.refused(None, 0, later)).collect::<Vec<_>>(), [(1, RETRY)]);
        assert_eq!(ceiling.bound(16, later), 1, "one in any case");
    }

    #[test]
    fn a_connection_that_was_cut_off_counts_once_however_many_queries_were_on_it() {
        let (mut ceiling, now) = (Ceiling::default(), Instant::now());
        assert!((0..10).all(|_| ceiling.refused(Some(7), 1, now).is_none()));
        assert_eq!(ceiling.refused(Some(8), 1, now), None);
        assert_eq!(ceiling.refused(Some(9), 1, now), Some((1, DOUBT)));
    }
}
