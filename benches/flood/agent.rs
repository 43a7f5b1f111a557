//! The agent as it is shipped, with two workers.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::packet;
use crate::process::{Process, free_address};
use crate::sys;

/// How long it may take to its first answer.
const START_LIMIT: Duration = Duration::from_secs(10);
/// The admin port's time for an answer; it may have other things to do.
const ADMIN_LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct Agent {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    admin: SocketAddr,
    /// Its configuration, and the lines of it that do not change.
    file: PathBuf,
    head: String,
}

impl Agent {
    /// Starts it with these lines of configuration beside its addresses, in the control group that has the file
    /// `procs`.
    pub(crate) fn start(config: &str, procs: Option<&Path>, cpus: &[usize], dir: &Path) -> Result<Self> {
        let (address, admin) = (free_address()?, free_address()?);
        let head = format!(
            "listen: [\"{address}\"]\nadmin: \"{admin}\"\ncontrol: {}/control.sock\nworkers: 2\n",
            dir.display()
        );
        let file = dir.join("nodens.yaml");
        fs::write(&file, format!("{head}{config}"))?;
        let mut command = Command::new("sh");
        // The shell puts itself into the group, so that all that the agent ever takes counts.
        command.args(["-c", "echo $$ > \"$1\" && exec \"$2\" run --config \"$3\"", "sh"]);
        command.arg(procs.unwrap_or(Path::new("/dev/null"))).arg(env!("CARGO_BIN_EXE_nodens")).arg(&file);
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
        Ok(Self { process, address, admin, file, head })
    }

    /// Gives it other lines of configuration.
    pub(crate) fn reload(&self, config: &str) -> Result<()> {
        // Renamed, so that nobody reads the half of it.
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{}{config}", self.head))?;
        fs::rename(&new, &self.file)?;
        sys::signal(self.process.id(), libc::SIGHUP);
        Ok(())
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
