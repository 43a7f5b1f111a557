//! A control group with a memory limit, for one process.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Where systemd and others mount both kinds.
const ROOT: &str = "/sys/fs/cgroup";

/// Removed when dropped; its process must have ended by then.
pub(crate) struct Cgroup {
    path: PathBuf,
    version: u8,
}

impl Cgroup {
    /// Makes one with this limit, without swap.
    pub(crate) fn new(name: &str, limit: u64) -> Result<Self> {
        let root = Path::new(ROOT);
        let (parent, version) = if root.join("memory/memory.limit_in_bytes").exists() {
            (root.join("memory"), 1)
        } else if fs::read_to_string(root.join("cgroup.controllers"))
            .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "memory"))
        {
            // Harmless where it is set already.
            let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
            (root.to_owned(), 2)
        } else {
            bail!("no memory controller below {ROOT}");
        };
        let group = Self { path: parent.join(name), version };
        fs::create_dir(&group.path).with_context(|| format!("{}: this needs root", group.path.display()))?;
        group.write(if version == 1 { "memory.limit_in_bytes" } else { "memory.max" }, limit)?;
        if version == 1 {
            group.write("memory.swappiness", 0)?;
            // Not there if the kernel counts no swap.
            let _ = group.write("memory.memsw.limit_in_bytes", limit);
        } else {
            let _ = group.write("memory.swap.max", 0);
        }
        Ok(group)
    }

    fn write(&self, file: &str, value: u64) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value.to_string()).with_context(|| path.display().to_string())
    }

    /// The file that takes the number of a process.
    pub(crate) fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    pub(crate) fn version(&self) -> u8 {
        self.version
    }

    fn number(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.path.join(file)).ok()?.trim().parse().ok()
    }

    fn field(&self, file: &str, name: &str) -> Option<u64> {
        let text = fs::read_to_string(self.path.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Most bytes it has had, file pages included.
    pub(crate) fn peak(&self) -> Option<u64> {
        self.number(if self.version == 1 { "memory.max_usage_in_bytes" } else { "memory.peak" })
    }

    /// Bytes of it that are the kernel's own, sockets among them.
    pub(crate) fn kernel(&self) -> Option<u64> {
        if self.version == 1 {
            self.number("memory.kmem.usage_in_bytes")
        } else {
            Some(self.field("memory.stat", "kernel ")? + self.field("memory.stat", "sock ")?)
        }
    }

    /// How often the limit was hit.
    pub(crate) fn failures(&self) -> Option<u64> {
        if self.version == 1 { self.number("memory.failcnt") } else { self.field("memory.events", "max ") }
    }

    /// Processes killed for want of memory.
    pub(crate) fn kills(&self) -> Option<u64> {
        self.field(if self.version == 1 { "memory.oom_control" } else { "memory.events" }, "oom_kill ")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The kernel needs a moment after the end of the process.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() || !self.path.exists() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} could not be removed", self.path.display());
    }
}
