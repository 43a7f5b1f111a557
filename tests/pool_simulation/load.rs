//! Queries that come whether or not those before them were answered, and the figures of them.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use nodens::upstream::Cause;

/// One query that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    /// From the start of the world.
    pub(crate) began: Duration,
    pub(crate) took: Duration,
    pub(crate) failed: Option<Cause>,
    /// It was asked at once with others, or on a name of its own: not part of the load.
    pub(crate) apart: bool,
}

/// What is said of the queries that began in some time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    /// Of all, those that failed too, in order.
    took: Vec<Duration>,
    pub(crate) failed: usize,
    causes: Vec<(&'static str, usize)>,
}

impl Figures {
    pub(crate) fn of<'a>(records: impl Iterator<Item = &'a Record>) -> Self {
        let mut figures = Self::default();
        for record in records {
            figures.took.push(record.took);
            if let Some(cause) = record.failed {
                figures.failed += 1;
                match figures.causes.iter_mut().find(|(label, _)| *label == cause.label()) {
                    Some((_, count)) => *count += 1,
                    None => figures.causes.push((cause.label(), 1)),
                }
            }
        }
        figures.took.sort_unstable();
        figures
    }

    pub(crate) fn count(&self) -> usize {
        self.took.len()
    }

    /// The duration that this share of the queries does not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let rank = (self.took.len() as f64 * share).ceil() as usize;
        self.took.get(rank.max(1) - 1).copied().unwrap_or_default()
    }

    pub(crate) fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    /// How many took longer than this.
    pub(crate) fn over(&self, bound: Duration) -> usize {
        self.took.iter().filter(|took| **took > bound).count()
    }

    pub(crate) fn max(&self) -> Duration {
        self.took.last().copied().unwrap_or_default()
    }
}

/// Milliseconds.
pub(crate) fn ms(of: Duration) -> f64 {
    of.as_secs_f64() * 1000.0
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, p995] = [0.5, 0.99, 0.995].map(|share| ms(self.quantile(share)));
        let (count, max) = (self.count(), ms(self.max()));
        write!(f, "{count:6} queries, p50 {p50:.0} p99 {p99:.0} p99.5 {p995:.0} max {max:.0} ms")?;
        write!(f, ", {} over 100 ms, {} failed", self.over(Duration::from_millis(100)), self.failed)?;
        for (cause, count) in &self.causes {
            write!(f, " {cause}:{count}")?;
        }
        Ok(())
    }
}

/// The figures of each second, for whoever wants to know what went on.
pub(crate) fn by_second(records: &[Record], seconds: Range<u64>) -> String {
    let mut text = String::new();
    for second in seconds {
        let begin = Duration::from_secs(second);
        let is_in = |record: &&Record| (begin..begin + Duration::from_secs(1)).contains(&record.began);
        let figures = Figures::of(records.iter().filter(|record| !record.apart).filter(is_in));
        if figures.count() > 0 {
            text += &format!("      second {second:3}: {figures}\n");
        }
    }
    text
}
