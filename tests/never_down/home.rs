//! The program under test, with what it needs on a node, and a process that keeps it.

use std::cell::Cell;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{Http, Process, program, seconds, wait_until};
use crate::upstream::Upstream;

/// Where the agent answers, an address that a link of the node is to hold.
pub(crate) const LISTEN: &str = "169.254.20.10:53";
const ADMIN: &str = "127.0.0.1:9253";

/// Ahead of what else runs on the machine, as an agent is on a node: it has its share of the CPU.
pub(crate) const AHEAD: [&str; 3] = ["nice", "-n", "-10"];

/// What all agents of a node share: a directory, an upstream, addresses.
pub(crate) struct Home {
    pub(crate) upstream: Upstream,
    pub(crate) admin: Http,
    keep: String,
    keeps: Cell<u32>,
    dir: TempDir,
}

impl Home {
    /// With these settings below `keep`.
    pub(crate) fn new(keep: &str) -> Self {
        let (upstream, dir) = (Upstream::start(), tempfile::tempdir().expect("temporary directory"));
        let admin = Http { address: ADMIN.parse().expect("an address") };
        let home = Self { upstream, admin, keep: keep.to_owned(), keeps: Cell::new(0), dir };
        home.configure("");
        home
    }

    /// Writes the configuration, with these further lines at its end: zones, or what the only zone has.
    pub(crate) fn configure(&self, more: &str) {
        let (server, keep) = (self.upstream.address, &self.keep);
        self.configure_as(&format!(
            "listen: [\"{LISTEN}\"]\nnetwork: {{ address_on: nodelocaldns, notrack: true }}\n\
             keep: {{ {keep}{comma}handover: {handover} }}\n\
             zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"tcp://{server}\"] }}\n{more}",
            comma = if keep.is_empty() { "" } else { ", " },
            handover = self.handover().display(),
        ));
    }

    /// Writes a configuration below the head that all have.
    pub(crate) fn configure_as(&self, body: &str) {
        let head =
            format!("admin: \"{ADMIN}\"\ncontrol: {}\nreload: signal\n", self.path("control.sock").display());
        let new = self.path("nodens.yaml.new");
        fs::write(&new, format!("{head}{body}")).expect("config");
        fs::rename(new, self.config()).expect("config");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("nodens.yaml")
    }

    pub(crate) fn handover(&self) -> PathBuf {
        self.path("handover.sock")
    }

    /// Starts `nodens keep`, and waits for nothing.
    pub(crate) fn keep(&self) -> Keep {
        let mut command = Command::new(AHEAD[0]);
        command.args(&AHEAD[1..]).arg(program()).arg("keep").arg("--config").arg(self.config());
        self.start(command, |_| {})
    }

    /// Starts what becomes a `keep`, with more arguments.
    pub(crate) fn start(&self, mut command: Command, more: impl FnOnce(&mut Command)) -> Keep {
        more(&mut command);
        let number = self.keeps.replace(self.keeps.get() + 1);
        let process = Process::start(command, "coreutils", &self.path(&format!("output-{number}")));
        Keep { pid: process.id(), process }
    }

    /// Waits until an agent of this node is ready.
    #[track_caller]
    pub(crate) fn wait_until_ready(&self, keep: &mut Keep) {
        wait_until("the agent is ready", seconds(20), || {
            assert!(keep.process.ended().is_none(), "it has ended:\n{}", keep.process.output());
            self.admin.get("/ready").is_some_and(|(code, _)| code == 200)
        });
    }

    /// As [`Home::wait_until_ready`], of an agent that follows this one.
    #[track_caller]
    pub(crate) fn wait_for_the_next(&self, keep: &mut Keep, old: u32) -> u32 {
        let new = keep.agent_after(old);
        self.wait_until_ready(keep);
        new
    }

    /// A configuration that `nodens plan` finds good, and `nodens run` ends with.
    pub(crate) fn spoil(&self) {
        let nothing = self.path("nothing.pem");
        self.configure(&format!(
            "  - match: [\"spoiled.test\"]\n    upstream: {{ servers: [\"tls://127.0.0.1#spoiled.test\"], ca: {} }}\n",
            nothing.display()
        ));
    }

    pub(crate) fn listen(&self) -> SocketAddr {
        LISTEN.parse().expect("an address")
    }
}

/// A `nodens keep`.
pub(crate) struct Keep {
    pub(crate) process: Process,
    /// Its own, where the process has only started it.
    pub(crate) pid: u32,
}

impl Keep {
    pub(crate) fn signal(&self, signal: Signal) {
        send(self.pid, signal);
    }

    /// The agent that it runs now.
    pub(crate) fn agent(&self) -> Option<u32> {
        children(self.pid).into_iter().find(|&pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.split(|&byte| byte == 0).nth(1) == Some(b"run"))
        })
    }

    /// Waits for one that is not this.
    #[track_caller]
    pub(crate) fn agent_after(&self, old: u32) -> u32 {
        let mut found = None;
        wait_until("there is another agent", seconds(15), || {
            found = self.agent().filter(|&pid| pid != old);
            found.is_some()
        });
        found.expect("just found")
    }

    /// Waits until its log has this.
    #[track_caller]
    pub(crate) fn must_say(&self, what: &str, limit: Duration) {
        let end = Instant::now() + limit;
        while !self.process.output().contains(what) {
            assert!(Instant::now() < end, "it does not say {what:?}:\n{}", self.process.output());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it has ended, in the tidy way.
    #[track_caller]
    pub(crate) fn must_end(&mut self, limit: Duration) {
        let status = self.process.wait(limit);
        assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", self.process.output());
    }

    /// Descriptors that it has open.
    pub(crate) fn descriptors(&self) -> usize {
        Self::descriptors_of(self.pid)
    }

    pub(crate) fn descriptors_of(pid: u32) -> usize {
        fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
    }

    /// `VmRSS` and `RssAnon`, KiB.
    pub(crate) fn memory(&self) -> [u64; 2] {
        Self::memory_of(self.pid)
    }

    pub(crate) fn memory_of(pid: u32) -> [u64; 2] {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
            rest.split_whitespace().next()?.parse().ok()
        };
        ["VmRSS:", "RssAnon:"].map(|name| field(name).unwrap_or(0))
    }
}

pub(crate) fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process");
    kill_process(pid, signal).unwrap_or_else(|error| panic!("{signal:?} to {pid:?}: {error}"));
}

/// The processes that this one has started, and those left to it.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}
