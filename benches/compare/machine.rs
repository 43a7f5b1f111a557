//! What the kernel counts for all processes together: CPU time of the machine, connections of this namespace.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::sys;

/// Readings, of which differences count.
pub(crate) struct Machine {
    at: Instant,
    cpus: u32,
    /// Of all CPUs, with what another virtual machine had. Not a sample: the kernel notes when a CPU becomes idle, and
    /// when it wakes.
    idle: Duration,
    /// A sample at each clock tick.
    softirq: Duration,
    /// In the table of connections.
    entries: u64,
    /// Given up because the table was full, and packets that were dropped because it was.
    overflows: u64,
}

/// How many connections the table takes.
pub(crate) fn most_entries() -> Result<u64> {
    Ok(fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max")?.trim().parse()?)
}

/// What has been done between two readings.
pub(crate) struct Work {
    /// CPU time of all CPUs together.
    pub(crate) busy: Duration,
    pub(crate) softirq: Duration,
    /// More of them.
    pub(crate) entries: f64,
    pub(crate) overflows: u64,
}

impl Machine {
    pub(crate) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let at = Instant::now();
        let all = text.lines().find_map(|line| line.strip_prefix("cpu ")).context("no line cpu")?;
        let ticks: Vec<u64> = all.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [_, _, _, idle, waiting, _, softirq, stolen, ..] = ticks[..] else { bail!("too few fields") };
        let time = |ticks: u64| sys::tick().mul_f64(ticks as f64);
        // Missing while the kernel has no connection tracking at all.
        let entries = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
        Ok(Self {
            at,
            cpus: text.lines().filter(|line| line.starts_with("cpu")).count() as u32 - 1,
            idle: time(idle + waiting + stolen),
            softirq: time(softirq),
            entries: entries.map_or(Ok(0), |text| text.trim().parse())?,
            overflows: overflows()?,
        })
    }

    /// What has been done since.
    pub(crate) fn work(&self) -> Result<Work> {
        let now = Self::now()?;
        Ok(Work {
            busy: ((now.at - self.at) * self.cpus).saturating_sub(now.idle.saturating_sub(self.idle)),
            softirq: now.softirq.saturating_sub(self.softirq),
            entries: now.entries as f64 - self.entries as f64,
            overflows: now.overflows.saturating_sub(self.overflows),
        })
    }
}

/// A line of titles, then one of hexadecimal numbers for each CPU.
fn overflows() -> Result<u64> {
    let statistics = fs::read_to_string("/proc/net/stat/nf_conntrack").unwrap_or_default();
    let mut lines = statistics.lines();
    let titles: Vec<_> = lines.next().unwrap_or_default().split_whitespace().collect();
    let mut sum = 0;
    for line in lines {
        for (title, value) in titles.iter().zip(line.split_whitespace()) {
            if ["drop", "early_drop"].contains(title) {
                sum += u64::from_str_radix(value, 16)?;
            }
        }
    }
    Ok(sum)
}
