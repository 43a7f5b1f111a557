//! What all CPUs of the machine do together, for work that no process is charged with.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::sys;

/// How long the machine is watched before a run, to see what else it does.
const WATCH: Duration = Duration::from_millis(300);

/// Readings of `/proc/stat`, summed over all CPUs.
pub(crate) struct Machine {
    at: Instant,
    cpus: u32,
    /// Not a sample as the other figures are: the kernel notes when a CPU becomes idle, and when it wakes.
    idle: Duration,
    stolen: Duration,
    /// A sample at each clock tick.
    softirq: Duration,
}

/// CPU time of all CPUs together.
pub(crate) struct Work {
    pub(crate) busy: Duration,
    pub(crate) softirq: Duration,
}

impl Machine {
    pub(crate) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let at = Instant::now();
        let fields: Vec<u32> = text
            .lines()
            .find_map(|line| line.strip_prefix("cpu "))
            .context("no line cpu in /proc/stat")?
            .split_whitespace()
            .map(|field| field.parse::<u64>().map(|ticks| ticks as u32))
            .collect::<Result<_, _>>()?;
        let [_, _, _, idle, waiting, _, softirq, stolen, ..] = fields[..] else {
            anyhow::bail!("too few fields in /proc/stat")
        };
        let cpus = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
        Ok(Self {
            at,
            cpus: cpus.count() as u32,
            idle: sys::tick() * idle.wrapping_add(waiting),
            stolen: sys::tick() * stolen,
            softirq: sys::tick() * softirq,
        })
    }

    /// What has been done since: the time of all CPUs in which they were not idle, nor another machine's.
    pub(crate) fn work(&self) -> Result<Work> {
        let now = Self::now()?;
        let passed = (now.at - self.at) * self.cpus;
        let idle = now.idle.saturating_sub(self.idle) + now.stolen.saturating_sub(self.stolen);
        Ok(Work { busy: passed.saturating_sub(idle), softirq: now.softirq.saturating_sub(self.softirq) })
    }

    /// What the machine does while the bench does nothing, in percent of one CPU.
    pub(crate) fn others_percent() -> Result<f64> {
        let start = Self::now()?;
        thread::sleep(WATCH);
        Ok(100.0 * start.work()?.busy.as_secs_f64() / start.at.elapsed().as_secs_f64())
    }
}
