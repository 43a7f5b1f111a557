//! Queries that wait for room on a server's connections, fair between those who ask.
//!
//! Sources take turns: each pop gives the oldest query of the source whose turn it is. So whoever asks much waits
//! behind itself, and a newcomer waits for one query of each other source at most.
//!
//! A source is a client's whole address, by IPv6 as well. Kubernetes gives the pods of a node addresses out of one
//! /64 (`--node-cidr-mask-size-ipv6` is 64 by default), so by /64 all of them would be one source. The agent's own
//! questions, which no client waits for, are one source more.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// Who asks: a client's address, or `None` for the agent itself.
pub type Source = Option<IpAddr>;

/// Queries that wait, first in, first out for each source, and the sources in turn.
#[derive(Debug)]
pub struct Queue<T> {
    /// The sources that have something waiting, and no others.
    lines: HashMap<Source, Line<T>, ahash::RandomState>,
    /// Whose turn comes when: lowest first.
    turns: BTreeMap<u64, Source>,
    /// Queries in all lines.
    waiting: usize,
    /// The next number of a ticket or a turn.
    next: u64,
}

/// What one source has waiting. Never empty.
#[derive(Debug)]
struct Line<T> {
    turn: u64,
    /// By the numbers of their tickets, oldest first.
    items: BTreeMap<u64, T>,
}

/// A place in the queue, to leave it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    source: Source,
    number: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { lines: HashMap::default(), turns: BTreeMap::new(), waiting: 0, next: 0 }
    }
}

impl<T> Queue<T> {
    /// Puts a query behind those of its source. A source that had none waiting comes last in turn.
    pub fn push(&mut self, source: Source, item: T) -> Ticket {
        let number = self.number();
        let turns = &mut self.turns;
        let line = self.lines.entry(source).or_insert_with(|| {
            turns.insert(number, source);
            Line { turn: number, items: BTreeMap::new() }
        });
        line.items.insert(number, item);
        self.waiting += 1;
        Ticket { source, number }
    }

    /// Takes the oldest query of the source whose turn it is; that source then comes last.
    pub fn pop(&mut self) -> Option<T> {
        let (_, source) = self.turns.pop_first()?;
        let turn = self.number();
        let line = self.lines.get_mut(&source)?;
        let (_, item) = line.items.pop_first()?;
        if line.items.is_empty() {
            self.lines.remove(&source);
        } else {
            line.turn = turn;
            self.turns.insert(turn, source);
        }
        self.waiting -= 1;
        Some(item)
    }

    /// Takes out a query that need not be sent any more. `None` if it has left already.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let line = self.lines.get_mut(&ticket.source)?;
        let item = line.items.remove(&ticket.number)?;
        if line.items.is_empty() {
            self.turns.remove(&line.turn);
            self.lines.remove(&ticket.source);
        }
        self.waiting -= 1;
        Some(item)
    }

    /// Queries that wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// How many would leave before a query that this source pushed now, if no other came. Who has nothing waiting
    /// comes after one of each source; otherwise it takes a look at each source that waits.
    pub fn waiting_before(&self, source: Source) -> usize {
        let Some(own) = self.lines.get(&source) else { return self.lines.len() };
        let turns = own.items.len();
        // Who is before us in turn is so once more than the turns that our own queries take.
        let others = |line: &Line<T>| line.items.len().min(turns + usize::from(line.turn < own.turn));
        self.lines.values().map(others).sum()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// Whether a query that finds so many before it leaves in time, at the pace at which queries leave now. At no pace
/// nothing does.
pub fn fits(waiting_before: usize, departures_per_second: f64, time_left: Duration) -> bool {
    (waiting_before as f64 + 1.0) <= departures_per_second * time_left.as_secs_f64()
}

/// How fast queries leave the queue.
#[derive(Debug, Default)]
pub struct Rate {
    since: Option<Instant>,
    departed: u32,
    last: Option<f64>,
}

impl Rate {
    /// As long as it is counted before it counts.
    const WINDOW: Duration = Duration::from_millis(500);

    /// One has left.
    pub fn departed(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let window = now.saturating_duration_since(since);
        if window >= Self::WINDOW {
            self.last = Some(f64::from(self.departed) / window.as_secs_f64());
            (self.since, self.departed) = (Some(now), 0);
        }
        self.departed += 1;
    }

    /// `None` while nothing is known: for the first half second, and when nothing has left for long.
    pub fn per_second(&self, now: Instant) -> Option<f64> {
        let since = self.since?;
        let stalled = now.saturating_duration_since(since) > Self::WINDOW * 4;
        if stalled { None } else { self.last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(last: u8) -> Source {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    fn drain(queue: &mut Queue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).take(1000).collect()
    }

    #[test]
    fn sources_take_turns_and_each_is_first_in_first_out() {
        let mut queue = Queue::default();
        for (from, item) in [(1, 10), (1, 11), (1, 12), (2, 20), (3, 30), (2, 21)] {
            queue.push(source(from), item);
        }
        queue.push(None, 40);
        assert_eq!(drain(&mut queue), [10, 20, 30, 40, 11, 21, 12]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_newcomer_waits_for_one_query_of_each_other_source() {
        let mut queue = Queue::default();
        for item in 0..600 {
            queue.push(if item < 500 { source(1) } else { None }, item);
        }
        assert_eq!(queue.waiting_before(source(2)), 2);
        queue.push(source(2), 1000);
        assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some(0), Some(500), Some(1000)));
    }

    #[test]
    fn a_source_that_comes_back_comes_last() {
        let mut queue = Queue::default();
        queue.push(source(1), 10);
        queue.push(source(2), 20);
        queue.push(source(2), 21);
        assert_eq!(queue.pop(), Some(10));
        queue.push(source(1), 11);
        assert_eq!(drain(&mut queue), [20, 11, 21]);
    }

    #[test]
    fn who_is_gone_leaves_no_trace() {
        let mut queue = Queue::default();
        let tickets: Vec<Ticket> = (0u8..200).map(|n| queue.push(source(n % 100), u32::from(n))).collect();
        assert_eq!(queue.pop(), Some(0));
        assert_eq!(queue.remove(tickets[0]), None, "it has left");
        for (n, &ticket) in tickets.iter().enumerate().skip(1) {
            assert_eq!(queue.remove(ticket), Some(n as u32));
            assert_eq!(queue.remove(ticket), None, "only once");
        }
        assert_eq!((queue.len(), queue.lines.len(), queue.turns.len()), (0, 0, 0));
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn what_leaves_the_middle_of_a_line_costs_its_source_no_turn() {
        let mut queue = Queue::default();
        queue.push(source(1), 10);
        let gone = queue.push(source(2), 20);
        queue.push(source(2), 21);
        queue.push(source(3), 30);
        queue.remove(gone);
        assert_eq!(drain(&mut queue), [10, 21, 30]);
    }

    #[test]
    fn what_cannot_leave_in_time_does_not_fit() {
        let second = Duration::from_secs(1);
        assert!(fits(0, 1.0, second));
        assert!(fits(99, 100.0, second));
        assert!(!fits(100, 100.0, second));
        assert!(fits(100, 100.0, 2 * second));
        assert!(fits(4095, 1e6, Duration::from_millis(5)));
        for (pace, left) in [(0.0, second), (1e6, Duration::ZERO), (f64::NAN, second), (-1.0, second)] {
            assert!(!fits(0, pace, left), "{pace} {left:?}");
        }
    }

    #[test]
    fn the_pace_is_known_after_half_a_second_and_forgotten_when_nothing_leaves() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(rate.per_second(start), None);
        (0..=5).for_each(|n| rate.departed(after(n * 100)));
        assert_eq!(rate.per_second(after(500)), Some(10.0));
        (6..=10).for_each(|n| rate.departed(after(n * 100)));
        assert_eq!(rate.per_second(after(1000)), Some(10.0));
        assert_eq!(rate.per_second(after(3001)), None);
    }

    #[derive(Debug, Clone)]
    enum Deed {
        Push(u8),
        Pop,
        /// Removes one of the tickets given so far, whether it still waits or not.
        Remove(prop::sample::Index),
    }

    fn deeds() -> impl Strategy<Value = Vec<Deed>> {
        let deed = prop_oneof![
            3 => (0u8..6).prop_map(Deed::Push),
            2 => Just(Deed::Pop),
            1 => any::<prop::sample::Index>().prop_map(Deed::Remove),
        ];
        prop::collection::vec(deed, 0..120)
    }

    /// The same, as simply as it can be said: lines in the order of their turns.
    #[derive(Default)]
    struct Model(Vec<(Source, Vec<u32>)>);

    impl Model {
        fn push(&mut self, source: Source, item: u32) {
            match self.0.iter_mut().find(|line| line.0 == source) {
                Some(line) => line.1.push(item),
                None => self.0.push((source, vec![item])),
            }
        }

        fn pop(&mut self) -> Option<u32> {
            if self.0.is_empty() {
                return None;
            }
            let (source, mut items) = self.0.remove(0);
            let item = items.remove(0);
            if !items.is_empty() {
                self.0.push((source, items));
            }
            Some(item)
        }

        fn remove(&mut self, item: u32) -> Option<u32> {
            let known = self.0.iter().any(|line| line.1.contains(&item));
            self.0.iter_mut().for_each(|line| line.1.retain(|&other| other != item));
            self.0.retain(|line| !line.1.is_empty());
            known.then_some(item)
        }

        /// Pops of a copy until what is pushed now comes out.
        fn waiting_before(&self, source: Source) -> usize {
            let mut copy = Self(self.0.clone());
            copy.push(source, u32::MAX);
            std::iter::from_fn(|| copy.pop()).position(|item| item == u32::MAX).expect("it comes out")
        }
    }

    proptest! {
        #[test]
        fn the_queue_does_what_lines_in_turn_do(deeds in deeds()) {
            let (mut queue, mut model) = (Queue::default(), Model::default());
            let mut tickets = Vec::new();
            let of = |n: u8| if n == 0 { None } else { source(n) };
            for deed in deeds {
                match deed {
                    Deed::Push(n) => {
                        let item = tickets.len() as u32;
                        tickets.push(queue.push(of(n), item));
                        model.push(of(n), item);
                    }
                    Deed::Pop => prop_assert_eq!(queue.pop(), model.pop()),
                    Deed::Remove(_) if tickets.is_empty() => {}
                    Deed::Remove(which) => {
                        let item = which.index(tickets.len());
                        prop_assert_eq!(queue.remove(tickets[item]), model.remove(item as u32));
                    }
                }
                prop_assert_eq!(queue.len(), model.0.iter().map(|line| line.1.len()).sum::<usize>());
                prop_assert_eq!(queue.lines.len(), model.0.len());
                prop_assert_eq!(queue.turns.len(), model.0.len());
                for n in 0..7 {
                    prop_assert_eq!(queue.waiting_before(of(n)), model.waiting_before(of(n)));
                }
            }
            let rest: Vec<u32> = std::iter::from_fn(|| queue.pop()).collect();
            prop_assert_eq!(rest, std::iter::from_fn(|| model.pop()).collect::<Vec<u32>>());
        }
    }
}
