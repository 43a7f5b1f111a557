//! What became of the queries of a stretch of time.

use std::ops::Range;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::load::{Pace, Reply, Source, drive, quantile};
use crate::net;
use crate::report::Report;

/// How long answers are waited for after the last query: longer than the agent's deadline for one question (4 s).
pub(crate) const DRAIN: Duration = Duration::from_secs(6);
/// What was asked so shortly before a fault may be under way when it comes, and counts to it.
pub(crate) const IN_FLIGHT_NS: u64 = 10_000_000;
/// The bounds of a window are moments of [`net::now_ns`].
pub(crate) type Span = Range<u64>;

/// Queries that were planned within a span. Latency counts from the planned time.
#[derive(Default)]
pub(crate) struct Window {
    pub(crate) sent: u64,
    /// Never answered.
    pub(crate) lost: u64,
    /// Answered with records, from the upstream or the cache.
    pub(crate) good: u64,
    /// Of the good ones, those past their life (EDE 3).
    pub(crate) stale: u64,
    /// Answered, but not well.
    pub(crate) failed: u64,
    /// Of the failed ones, SERVFAIL with EDE 22.
    pub(crate) no_authority: u64,
    /// In order. A lost query has the whole time of waiting.
    latencies_us: Vec<u32>,
}

/// Whether it has records.
pub(crate) fn is_good(reply: &Reply) -> bool {
    reply.verdict.rcode == 0 && reply.verdict.answers
}

fn is_stale(reply: &Reply) -> bool {
    reply.verdict.error == Some(3)
}

/// When a query was planned.
pub(crate) fn planned_ns(source: &Source<'_>, pace: &Pace, number: u64) -> u64 {
    pace.start_ns + source.tick(number) * 1_000_000
}

/// When it was answered.
fn arrived_ns(source: &Source<'_>, pace: &Pace, reply: &Reply) -> u64 {
    planned_ns(source, pace, reply.number) + u64::from(reply.late_us + reply.took_us) * 1000
}

impl Window {
    pub(crate) fn new(source: &Source<'_>, pace: &Pace, span: &Span) -> Self {
        let is_within = |number: u64| span.contains(&planned_ns(source, pace, number));
        let sent = (0..source.planned(pace.ticks)).filter(|&number| is_within(number)).count() as u64;
        let replies = source.tally.replies.iter().filter(|reply| is_within(reply.number));
        let mut window = Self { sent, ..Self::default() };
        for reply in replies {
            let good = is_good(reply);
            window.good += u64::from(good);
            window.stale += u64::from(good && is_stale(reply));
            window.failed += u64::from(!good);
            window.no_authority += u64::from(reply.verdict.rcode == 2 && reply.verdict.error == Some(22));
            window.latencies_us.push(reply.late_us + reply.took_us);
        }
        window.lost = sent - window.latencies_us.len() as u64;
        window.latencies_us.resize(sent as usize, DRAIN.as_micros() as u32);
        window.latencies_us.sort_unstable();
        window
    }

    /// Of a whole run.
    pub(crate) fn whole(source: &Source<'_>, pace: &Pace) -> Self {
        Self::new(source, pace, &(0..u64::MAX))
    }

    /// Of several sources together.
    pub(crate) fn all<'a>(sources: impl IntoIterator<Item = &'a Source<'a>>, pace: &Pace) -> Self {
        let mut all = Self::default();
        for source in sources {
            let window = Self::whole(source, pace);
            all.sent += window.sent;
            all.lost += window.lost;
            all.good += window.good;
            all.stale += window.stale;
            all.failed += window.failed;
            all.no_authority += window.no_authority;
            all.latencies_us.extend(window.latencies_us);
        }
        all.latencies_us.sort_unstable();
        all
    }

    /// What so many of a hundred queries waited at most.
    pub(crate) fn ms(&self, percent: f64) -> f64 {
        quantile(&self.latencies_us, percent).map_or(f64::NAN, |us| f64::from(us) / 1000.0)
    }

    /// Those that waited longer, lost ones among them.
    pub(crate) fn later_than(&self, ms: u32) -> usize {
        self.latencies_us.iter().filter(|&&us| us > ms * 1000).count()
    }

    pub(crate) fn good_percent(&self) -> f64 {
        self.good as f64 * 100.0 / self.sent.max(1) as f64
    }
}

/// A table with a column for each window.
pub(crate) fn table(title: &str, windows: &[(&str, &Window)]) -> Report {
    let columns = [""].into_iter().chain(windows.iter().map(|(name, _)| *name));
    let mut report = Report::with_columns(title, &columns.collect::<Vec<_>>());
    let mut line = |what: &str, of: &dyn Fn(&Window) -> String| {
        report.line(
            [what.to_owned()].into_iter().chain(windows.iter().map(|(_, window)| of(window))).collect(),
        );
    };
    line("sent", &|window| window.sent.to_string());
    line("answered with records", &|window| format!("{} ({:.2} %)", window.good, window.good_percent()));
    line("of these stale", &|window| window.stale.to_string());
    line("failed, with EDE 22", &|window| format!("{}, {}", window.failed, window.no_authority));
    line("lost", &|window| window.lost.to_string());
    line("later than 100 ms", &|window| window.later_than(100).to_string());
    for (what, percent) in [("p50 ms", 50.0), ("p99 ms", 99.0), ("p99.5 ms", 99.5), ("max ms", 100.0)] {
        line(what, &|window| format!("{:.2}", window.ms(percent)));
    }
    report
}

/// Drives the load for `time` while `meanwhile` does something on a thread of its own.
pub(crate) fn run<T: Send>(
    sources: &mut [Source<'_>],
    time: Duration,
    meanwhile: impl FnOnce() -> Result<T> + Send,
) -> Result<(Pace, T)> {
    let (end, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let other = scope.spawn(move || {
            let done = meanwhile();
            // A process dies with the thread that started it.
            let _ = ended.recv();
            done
        });
        let pace = drive(sources, time, DRAIN);
        drop(end);
        let done = other.join().ok().context("what happened meanwhile")??;
        Ok((pace, done))
    })
}

/// From the moment `back` until the first answer with records that are not stale.
pub(crate) fn first_good_ms(source: &Source<'_>, pace: &Pace, back: u64) -> f64 {
    let good = source.tally.replies.iter().filter(|reply| is_good(reply) && !is_stale(reply));
    let arrivals = good.map(|reply| arrived_ns(source, pace, reply)).filter(|&arrived| arrived >= back);
    arrivals.min().map_or(f64::NAN, |first| (first - back) as f64 / 1e6)
}

/// From the moment `back` until the last query that did not get records. Below zero if it was asked before.
pub(crate) fn last_bad_ms(source: &Source<'_>, pace: &Pace, back: u64) -> f64 {
    let mut good = vec![false; source.planned(pace.ticks) as usize];
    for reply in source.tally.replies.iter().filter(|reply| is_good(reply)) {
        good[reply.number as usize] = true;
    }
    let last = good.iter().rposition(|&good| !good);
    last.map_or(f64::NEG_INFINITY, |number| {
        (planned_ns(source, pace, number as u64) as f64 - back as f64) / 1e6
    })
}

/// A moment so many milliseconds after another one.
pub(crate) fn after(moment: u64, ms: u64) -> u64 {
    moment + ms * 1_000_000
}

/// Waits, and says when that was.
pub(crate) fn sleep(time: Duration) -> u64 {
    thread::sleep(time);
    net::now_ns()
}
