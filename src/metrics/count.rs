//! Numbers that threads count, and how they are written as Prometheus text.

use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Its value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Buckets of every histogram: 10 µs · 2ⁿ, up to 5.2 s.
const BUCKETS: usize = 20;

/// Durations, counted in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BUCKETS + 1],
    sum_ns: Counter,
}

impl Histogram {
    /// Counts `n` equal durations.
    pub fn observe(&self, duration: Duration, n: u64) {
        let tens_of_us = duration.as_nanos().div_ceil(10_000).max(1);
        let bucket = (u128::BITS - (tens_of_us - 1).leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS)].add(n);
        self.sum_ns.add(n * duration.as_nanos() as u64);
    }
}

/// A family of counters or gauges that is written here and not by the exporter.
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// `counter` or `gauge`.
    pub kind: &'static str,
}

impl Family {
    /// Appends the family as Prometheus text. Labels come ready-made, values escaped.
    pub fn write<V: Display>(&self, out: &mut String, series: impl Iterator<Item = (String, V)>) {
        let Self { name, help, kind } = self;
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in series {
            let _ = writeln!(out, "{name}{{{labels}}} {value}");
        }
    }
}

/// Writes the histograms of one family, each the sum of its parts, as Prometheus text.
pub fn write_histograms<'a>(
    out: &mut String,
    name: &str,
    help: &str,
    series: impl Iterator<Item = (String, Vec<&'a Histogram>)>,
) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
    for (labels, parts) in series {
        let sum = |pick: &dyn Fn(&Histogram) -> &Counter| -> u64 {
            parts.iter().map(|part| pick(part).value()).sum()
        };
        let mut total = 0;
        for bucket in 0..=BUCKETS {
            total += sum(&|part| &part.buckets[bucket]);
            let bound = match bucket {
                BUCKETS => "+Inf".to_owned(),
                n => format!("{}", 1e-5 * f64::from(1u32 << n)),
            };
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
        }
        let seconds = Duration::from_nanos(sum(&|part| &part.sum_ns)).as_secs_f64();
        let _ = writeln!(out, "{name}_sum{{{labels}}} {seconds}\n{name}_count{{{labels}}} {total}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_first_bucket_that_holds_them() {
        let histogram = Histogram::default();
        for us in [0, 1, 10, 11, 20, 21, 10_000_000] {
            histogram.observe(Duration::from_micros(us), 1);
        }
        let mut out = String::new();
        write_histograms(
            &mut out,
            "h",
            "help",
            [("a=\"b\"".to_owned(), vec![&histogram, &histogram])].into_iter(),
        );
        assert!(out.contains("h_bucket{a=\"b\",le=\"0.00001\"} 6\n"), "{out}");
        assert!(out.contains("h_bucket{a=\"b\",le=\"0.00002\"} 10\n"), "{out}");
        assert!(out.contains("le=\"0.00004\"} 12\n"), "{out}");
        assert!(out.contains("le=\"5.24288\"} 12\n"), "{out}");
        assert!(out.contains("le=\"+Inf\"} 14\nh_sum{a=\"b\"} 20.000126\nh_count{a=\"b\"} 14\n"), "{out}");
    }
}
