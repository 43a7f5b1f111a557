//! What became of queries, and when.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::support::is_strict;

/// Of the slowest answers that are remembered, one for each span of this length.
const SPAN_US: u64 = 20_000;

/// What was sent so long before an event may still be on its way, an answer of the upstream included.
const BEFORE_US: u64 = 100_000;
/// A process takes a while to end, and goes on meanwhile.
const AFTER_US: u64 = 50_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// By UDP, for a name that the agent has.
    Hit,
    /// By UDP, for a name that nobody has asked for.
    Miss,
    /// By TCP, on a connection that is used again and again, three at once.
    Kept,
    /// By TCP, on a connection of its own.
    Fresh,
}

/// A query without a good answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Lost {
    /// When it was sent, since 1970.
    pub(crate) at_us: u64,
    pub(crate) why: String,
}

/// Of one kind.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    pub(crate) lost: Vec<Lost>,
    /// The slowest answer to what was sent in each span, by the span's beginning since 1970.
    slowest_us: BTreeMap<u64, u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) tallies: BTreeMap<Kind, Tally>,
    /// Answers that nobody waited for (any more).
    pub(crate) unasked: u64,
    /// Connections that the agent closed while nothing was awaited.
    pub(crate) closed: u64,
    /// Connections that ended with a reset, whatever was awaited.
    pub(crate) reset: u64,
    /// Answers that the client had no room for, which would be its own fault.
    pub(crate) client_drops: u64,
    /// The slowest turn of the client itself: what it sees is no better than that.
    pub(crate) client_late_us: u64,
}

/// Written by several threads.
#[derive(Clone, Default)]
pub(crate) struct Book(Arc<Mutex<Seen>>);

impl Book {
    pub(crate) fn write<T>(&self, entry: impl FnOnce(&mut Seen) -> T) -> T {
        entry(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn sent(&self, kind: Kind) {
        self.write(|seen| seen.tallies.entry(kind).or_default().sent += 1);
    }

    pub(crate) fn answered(&self, kind: Kind, asked: Instant) {
        let took = asked.elapsed();
        self.write(|seen| {
            let tally = seen.tallies.entry(kind).or_default();
            tally.answered += 1;
            let slowest = tally.slowest_us.entry(since_1970_us(asked) / SPAN_US * SPAN_US).or_default();
            *slowest = (*slowest).max(took.as_micros() as u64);
        });
    }

    pub(crate) fn lost(&self, kind: Kind, asked: Instant, why: &str) {
        let lost = Lost { at_us: since_1970_us(asked), why: why.to_owned() };
        self.write(|seen| seen.tallies.entry(kind).or_default().lost.push(lost));
    }
}

/// Microseconds since 1970.
pub(crate) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_micros() as u64
}

fn since_1970_us(at: Instant) -> u64 {
    now_us() - at.elapsed().as_micros() as u64
}

/// What happened, and when.
#[derive(Default)]
pub(crate) struct Events(Vec<(String, u64)>);

impl Events {
    /// This happens now, or is about to.
    pub(crate) fn happens(&mut self, what: impl Into<String>) {
        self.0.push((what.into(), now_us()));
    }
}

impl Events {
    /// The time from each event to the next one, of those of one name together. What was sent before the first one is the
    /// control: nothing happened then.
    fn spans(&self) -> Vec<(&str, Vec<Range<u64>>)> {
        let named = self.0.iter().map(|(what, at)| (what.as_str(), *at));
        let all: Vec<_> = [("before", 0)].into_iter().chain(named).collect();
        let mut spans: Vec<(&str, Vec<Range<u64>>)> = Vec::new();
        for (at, &(what, from)) in all.iter().enumerate() {
            let span = from..all.get(at + 1).map_or(u64::MAX, |(_, to)| *to);
            match spans.iter_mut().find(|(known, _)| *known == what) {
                Some((_, those)) => those.push(span),
                None => spans.push((what, vec![span])),
            }
        }
        spans
    }

    /// The latest events before that time, and how long before.
    fn latest(&self, at_us: u64) -> String {
        let before: Vec<_> = self.0.iter().filter(|(_, at)| *at <= at_us + SPAN_US).collect();
        let text =
            |(what, at): &&(String, u64)| format!("{what} {:+} ms", (at_us as i64 - *at as i64) / 1_000);
        before.iter().rev().take(3).map(text).collect::<Vec<_>>().join(", ")
    }

    /// Whether what was sent then was on its way when one of these happened.
    fn has_about(&self, sent_us: u64) -> bool {
        self.0.iter().any(|(_, at)| (at.saturating_sub(BEFORE_US)..at + AFTER_US).contains(&sent_us))
    }
}

/// What of a kind was lost, by cause.
fn causes(lost: &[&Lost]) -> String {
    let mut by_cause: BTreeMap<&str, usize> = BTreeMap::new();
    for lost in lost {
        *by_cause.entry(&lost.why).or_default() += 1;
    }
    let texts: Vec<_> = by_cause.into_iter().map(|(why, count)| format!("{count} {why}")).collect();
    if texts.is_empty() { String::new() } else { format!(" ({})", texts.join(", ")) }
}

impl Seen {
    pub(crate) fn of(&self, kind: Kind) -> Tally {
        self.tallies.get(&kind).cloned().unwrap_or_default()
    }

    /// How many of a kind were lost.
    pub(crate) fn lost(&self, kind: Kind) -> usize {
        self.of(kind).lost.len()
    }

    /// Nothing was lost, of any kind.
    #[track_caller]
    pub(crate) fn must_be_whole(&self) {
        assert_eq!(self.client_drops, 0, "answers that the client had no room for");
        for kind in self.tallies.keys() {
            assert_eq!(self.lost(*kind), 0, "{kind:?} lost");
        }
        assert_eq!(self.reset, 0, "connections reset");
    }

    /// Only what was on its way at one of the events that excuse it was lost. A hit is that for some microseconds, if the agent is not
    /// behind with its work: so there is none on a quiet machine.
    #[track_caller]
    pub(crate) fn must_lose_what_was_in_flight_alone(&self, excuses: &Events, events: &Events) {
        assert_eq!(self.client_drops, 0, "answers that the client had no room for");
        assert!(!is_strict() || self.lost(Kind::Hit) == 0, "{} hits lost", self.lost(Kind::Hit));
        for (kind, tally) in &self.tallies {
            let others = tally.lost.iter().filter(|lost| !excuses.has_about(lost.at_us));
            let others: Vec<_> =
                others.map(|lost| format!("{}: {}", lost.why, events.latest(lost.at_us))).collect();
            let few = &others[..others.len().min(10)];
            assert!(others.is_empty(), "{} {kind:?} lost at other times: {few:#?}", others.len());
        }
    }

    /// Something was lost within this time after that event, and nothing else.
    #[track_caller]
    pub(crate) fn must_lose_about_alone(&self, events: &Events, what: &str, within: Duration) {
        let at = events.0.iter().find(|(event, _)| event == what).expect("an event").1;
        let time = at.saturating_sub(BEFORE_US)..at + within.as_micros() as u64;
        for (kind, tally) in &self.tallies {
            let others: Vec<_> = tally.lost.iter().filter(|lost| !time.contains(&lost.at_us)).collect();
            assert!(others.is_empty(), "{kind:?} lost at other times: {others:?}");
        }
    }

    /// The slowest answer to what was sent in that time, since 1970, or was on its way at its beginning.
    fn slowest(&self, kinds: &[Kind], from_us: u64, to_us: u64) -> Duration {
        let of = |kind: &Kind| {
            let tally = self.tallies.get(kind)?;
            tally
                .slowest_us
                .range(from_us.saturating_sub(SPAN_US)..to_us.saturating_sub(SPAN_US))
                .map(|(_, &slowest)| slowest)
                .max()
        };
        Duration::from_micros(kinds.iter().filter_map(of).max().unwrap_or(0))
    }

    /// The slowest answer by UDP, milliseconds.
    pub(crate) fn slowest_ms(&self) -> u64 {
        self.slowest(&[Kind::Hit, Kind::Miss], 0, u64::MAX).as_millis() as u64
    }

    /// One line in all, and one for each event.
    pub(crate) fn report(&self, title: &str, events: &Events) -> String {
        let mut text = format!("{title}: ");
        for (kind, tally) in &self.tallies {
            let lost: Vec<&Lost> = tally.lost.iter().collect();
            let slowest = self.slowest(&[*kind], 0, u64::MAX).as_secs_f64() * 1e3;
            let (sent, causes) = (tally.sent, causes(&lost));
            let _ =
                write!(text, "{kind:?} {sent} sent, {} lost{causes}, slowest {slowest:.1} ms; ", lost.len());
        }
        let _ = writeln!(
            text,
            "{} connections closed when idle, {} reset, {} answers unasked; the client's own latest turn {:.1} ms",
            self.closed,
            self.reset,
            self.unasked,
            self.client_late_us as f64 / 1e3
        );
        for (what, spans) in events.spans() {
            let _ = write!(
                text,
                "  {what}{}:",
                if spans.len() > 1 { format!(" ×{}", spans.len()) } else { String::new() }
            );
            for (kind, tally) in &self.tallies {
                // What was on its way when something happened is that one's loss.
                let here = |lost: &&Lost| spans.iter().any(|span| span.contains(&(lost.at_us + SPAN_US)));
                let lost: Vec<&Lost> = tally.lost.iter().filter(here).collect();
                let slowest = spans.iter().map(|span| self.slowest(&[*kind], span.start, span.end)).max();
                let slowest = slowest.unwrap_or_default().as_secs_f64() * 1e3;
                let _ = write!(text, " {kind:?} {} lost{}, {slowest:.1} ms;", lost.len(), causes(&lost));
            }
            text.push('\n');
        }
        text
    }
}
