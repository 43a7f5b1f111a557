//! The agent as a child process: `nodens run` with the sockets that are held.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

use super::{Held, Plan};
use crate::parent::{self, CHANNEL};
use crate::sys;

/// The program that runs, even after another one has taken its place in the file system (proc(5)).
pub(super) const OURSELVES: &str = "/proc/self/exe";

/// A running agent.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    channel: UnixDatagram,
    born: Instant,
}

impl Child {
    /// Starts it, and tells it how often that was done and how many queries were passed on without it.
    pub(super) fn start(
        arguments: &[OsString],
        held: &[Held],
        plan: &Plan,
        counts: (u64, u64),
    ) -> io::Result<Self> {
        let (channel, theirs) = UnixDatagram::pair()?;
        let mut descriptors: Vec<BorrowedFd<'_>> = held.iter().map(|held| held.descriptor.as_fd()).collect();
        descriptors.push(theirs.as_fd());
        let mut names: Vec<&str> = held.iter().map(|held| held.name.as_str()).collect();
        names.push(CHANNEL);
        let mut command = Command::new(OURSELVES);
        command
            .arg0("nodens")
            .arg("run")
            .args(arguments)
            .stdin(Stdio::null())
            .env("LISTEN_PID", std::process::id().to_string())
            .env("LISTEN_FDS", descriptors.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .env("WATCHDOG_USEC", plan.watchdog.as_micros().to_string())
            .env(parent::RESTARTS, counts.0.to_string())
            .env(parent::RELAYED, counts.1.to_string())
            .env_remove("WATCHDOG_PID")
            .env_remove("NOTIFY_SOCKET");
        let child = sys::spawn_with(&mut command, &descriptors)?;
        let pid = Pid::from_child(&child);
        Ok(Self { pid, channel, born: Instant::now() })
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    pub(super) fn age(&self) -> Duration {
        self.born.elapsed()
    }

    /// Where it speaks, and hears.
    pub(super) fn channel(&self) -> &UnixDatagram {
        &self.channel
    }

    pub(super) fn tell(&self, words: &str) -> io::Result<()> {
        parent::send(&self.channel, words, &[])
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It has ended, at worst, and we are about to hear of it.
        let _ = kill_process(self.pid, signal);
    }
}

/// A process that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) pid: Pid,
    status: ExitStatus,
}

impl Ended {
    pub(super) fn exit_code(&self) -> ExitCode {
        exit_code(self.status)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => write!(f, "ended with the exit code {code}"),
            (None, Some(signal)) => write!(f, "was ended by the signal {signal}"),
            (None, None) => f.write_str("ended"),
        }
    }
}

/// As a shell has it: 128 and the number of a signal.
pub(super) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(code as u8)
}

/// Those who have ended since, ours and everybody's who has been left to us.
pub(super) fn reap() -> Vec<Ended> {
    let mut ended = Vec::new();
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        ended.push(Ended { pid, status: ExitStatus::from_raw(status.as_raw()) });
    }
    ended
}
