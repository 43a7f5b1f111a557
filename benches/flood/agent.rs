//! The agent under a memory limit.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cgroup::Cgroup;
use crate::packet;
use crate::process::{Process, free_address};

/// How long it may take to its first answer.
const START_LIMIT: Duration = Duration::from_secs(10);
/// The admin port's time for an answer; it may have other things to do.
const ADMIN_LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct Agent {
    // Before its group, which can only go when it is empty.
    pub(crate) process: Process,
    pub(crate) group: Cgroup,
    pub(crate) address: SocketAddr,
    admin: SocketAddr,
}

impl Agent {
    /// Starts it as it is shipped, with two workers, in a group of its own; `keys` are further lines of its
    /// configuration.
    pub(crate) fn start(
        upstream: SocketAddr,
        keys: &str,
        limit: u64,
        cpus: &[usize],
        dir: &Path,
    ) -> Result<Self> {
        let (address, admin) = (free_address()?, free_address()?);
        let config = format!(
            "listen: [\"{address}\"]\nadmin: \"{admin}\"\ncontrol: {}/control.sock\nworkers: 2\n{keys}\
             zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"tcp://{upstream}\"] }}\n",
            dir.display()
        );
        let file = dir.join("nodens.yaml");
        fs::write(&file, config)?;
        let group = Cgroup::new(&format!("nodens-flood-{}", std::process::id()), limit)?;
        let mut command = Command::new("sh");
        // The shell puts itself into the group, so that all that the agent ever takes counts.
        command.args(["-c", "echo $$ > \"$1\" && exec \"$2\" run --config \"$3\"", "sh"]);
        command.arg(group.procs()).arg(env!("CARGO_BIN_EXE_nodens")).arg(file);
        let mut process = Process::start(command, cpus, dir.join("log"))?;
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        client.connect(address)?;
        client.set_read_timeout(Some(Duration::from_millis(20)))?;
        let start = Instant::now();
        let query = packet::query(1, &packet::name(&["localhost"]), true);
        while client.send(&query).is_err() || client.recv(&mut [0; 512]).is_err() {
            process.must_live()?;
            if start.elapsed() > START_LIMIT {
                bail!("no answer within {START_LIMIT:?}: {}", process.last_words());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { process, group, address, admin })
    }

    /// The sum of a metric over its labels.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let mut stream = TcpStream::connect_timeout(&self.admin, ADMIN_LIMIT)?;
        stream.set_read_timeout(Some(ADMIN_LIMIT))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("/metrics")?;
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let is_it = rest.starts_with(['{', ' ']);
            is_it.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok()).flatten()
        };
        Ok(text.lines().filter_map(value).sum())
    }

    /// Most resident memory that the process has had, in MiB.
    pub(crate) fn peak_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }

    /// Puts the highest mark of memory where it is now (proc(5), clear_refs).
    pub(crate) fn forget_peak(&self) -> Result<()> {
        Ok(fs::write(format!("/proc/{}/clear_refs", self.process.id()), "5")?)
    }
}
