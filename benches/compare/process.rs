//! Child processes: started on given CPUs, ended for certain, and their use of CPU and memory.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::sys;

/// A port that is free for both UDP and TCP, until someone else takes it.
pub(crate) fn free_address() -> Result<SocketAddr> {
    for _ in 0..100 {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no free port")
}

/// A child process and those that it forks. They end when this is dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command on `cpus`. What it prints goes to `log`.
    pub(crate) fn start(mut command: Command, cpus: &[usize], log: PathBuf) -> Result<Self> {
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        sys::confine(&mut command, cpus);
        let child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self { child, log })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// An error, with the last lines it printed, if the process has ended.
    pub(crate) fn must_live(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("it ended ({status}): {}", self.last_words()),
            None => Ok(()),
        }
    }

    /// Waits for the end, or kills the process when `limit` has passed.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("it did not end within {limit:?}: {}", self.last_words())
    }

    /// Lets the process end by itself, so that it can wait for its own children.
    pub(crate) fn terminate(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            sys::signal(self.child.id(), libc::SIGTERM);
            let _ = self.wait(Duration::from_secs(1));
        }
    }

    pub(crate) fn output(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).into_owned())
    }

    pub(crate) fn last_words(&self) -> String {
        let output = self.output().unwrap_or_default();
        let lines: Vec<_> = output.lines().rev().take(4).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.id())
    }

    /// Resident memory in MiB.
    pub(crate) fn resident_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }

    /// CPU time of each thread that lives.
    pub(crate) fn threads(&self) -> Result<HashMap<String, Duration>> {
        let mut threads = HashMap::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            let path = task?.path();
            // A thread may end meanwhile.
            if let Ok(text) = fs::read_to_string(path.join("schedstat")) {
                let nanoseconds = text.split(' ').next().unwrap_or_default().parse()?;
                let thread = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                threads.insert(thread, Duration::from_nanos(nanoseconds));
            }
        }
        Ok(threads)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Once waited for, its number may be another's.
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            sys::kill_group(self.child.id());
            let _ = self.child.wait();
        }
    }
}

/// CPU time used so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    /// From the scheduler, precise.
    pub(crate) total: Duration,
    /// From the clock tick: a sample, good for shares of long runs only.
    user: Duration,
    system: Duration,
}

impl Usage {
    /// Of a process, those of its group that live, and its children that ended (dnsmasq forks for each TCP
    /// connection, NSD for its servers).
    fn of(leader: u32) -> Result<Self> {
        let mut usage = Self::default();
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let Some(pid) = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()) else {
                continue;
            };
            // Any process may end meanwhile.
            let Some(stat) = Stat::read(&path) else { continue };
            if stat.group != leader {
                continue;
            }
            if pid == leader {
                usage.total += sys::tick() * (stat.ended_user + stat.ended_system);
                usage.user += sys::tick() * stat.ended_user;
                usage.system += sys::tick() * stat.ended_system;
            }
            usage.total += sys::process_cpu(pid).unwrap_or_default();
            usage.user += sys::tick() * stat.user;
            usage.system += sys::tick() * stat.system;
        }
        Ok(usage)
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            total: self.total.saturating_sub(before.total),
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
        }
    }

    /// The user part of the total, split as the ticks are.
    pub(crate) fn user(self) -> Duration {
        let ticks = (self.user + self.system).as_secs_f64();
        if ticks == 0.0 { Duration::ZERO } else { self.total.mul_f64(self.user.as_secs_f64() / ticks) }
    }
}

/// The fields of `/proc/PID/stat` that count here, times in ticks.
struct Stat {
    group: u32,
    user: u32,
    system: u32,
    ended_user: u32,
    ended_system: u32,
}

impl Stat {
    fn read(process: &Path) -> Option<Self> {
        let text = fs::read_to_string(process.join("stat")).ok()?;
        // The second field, the command, is in parentheses and may hold anything.
        let fields: Vec<_> = text.rsplit_once(") ")?.1.split(' ').collect();
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        Some(Self {
            group: field(5)?,
            user: field(14)?,
            system: field(15)?,
            ended_user: field(16)?,
            ended_system: field(17)?,
        })
    }
}
