//! Real servers as upstreams: NSD and Unbound from Debian.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::authority::{self, program};
use crate::names::{Kind, ZONE, zone};
use crate::packet;
use crate::process::Process;
use crate::sys;

const START_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
pub(crate) enum Program {
    Nsd,
    Unbound,
}

/// One of them, which can be ended and started again.
pub(crate) struct Upstream<'a> {
    program: Program,
    pub(crate) address: SocketAddr,
    directory: PathBuf,
    cpus: &'a [usize],
    process: Option<Process>,
}

impl<'a> Upstream<'a> {
    pub(crate) fn start(
        program: Program,
        address: SocketAddr,
        directory: &Path,
        cpus: &'a [usize],
    ) -> Result<Self> {
        let directory = directory.join(format!("upstream-{}", address.ip()));
        fs::create_dir_all(&directory)?;
        let mut upstream = Self { program, address, directory, cpus, process: None };
        upstream.go_on()?;
        Ok(upstream)
    }

    /// Starts it, and returns when it has answered.
    pub(crate) fn go_on(&mut self) -> Result<()> {
        let command = match self.program {
            Program::Nsd => authority::nsd(self.address, &self.directory, &[(ZONE, zone())])?,
            Program::Unbound => unbound(self.address, &self.directory)?,
        };
        let process = self.process.insert(Process::start(command, self.cpus, self.directory.join("log"))?);
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        client.connect(self.address)?;
        client.set_read_timeout(Some(Duration::from_millis(20)))?;
        let query = packet::query(1, &packet::name(&["up", Kind::Lasting.label(), "pool", "test"]), true);
        let start = Instant::now();
        let mut reply = [0; 512];
        loop {
            if client.send(&query).is_ok()
                && let Ok(length) = client.recv(&mut reply)
                && packet::Verdict::of(&reply[..length]).is_some_and(|verdict| verdict.answers)
            {
                return Ok(());
            }
            process.must_live()?;
            if start.elapsed() > START_LIMIT {
                bail!("no answer within {START_LIMIT:?}: {}", process.last_words());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it.
    pub(crate) fn end(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate();
        }
    }

    /// Has it stand still, or go on. Its kernel goes on acknowledging.
    pub(crate) fn freeze(&self, still: bool) -> Result<()> {
        let process = self.process.as_ref().context("it does not run")?;
        sys::signal(process.id(), if still { libc::SIGSTOP } else { libc::SIGCONT });
        Ok(())
    }
}

impl Drop for Upstream<'_> {
    fn drop(&mut self) {
        if self.freeze(false).is_ok() {
            self.end();
        }
    }
}

/// With local data only: it answers out of its own, at once. Connections as many as clients open, and open for as long
/// as CoreDNS leaves them.
fn unbound(address: SocketAddr, directory: &Path) -> Result<Command> {
    let mut data = String::new();
    for kind in [Kind::Lasting, Kind::Short] {
        let name = format!("{}.{ZONE}", kind.label());
        data.push_str(&format!(
            "    local-zone: \"{name}\" redirect\n    local-data: \"{name} {} A 10.9.0.1\"\n",
            kind.ttl()
        ));
    }
    let config = format!(
        "server:
    interface: {}@{}
    access-control: 127.0.0.0/8 allow
    incoming-num-tcp: 100
    tcp-idle-timeout: 10000
    module-config: \"iterator\"
    use-syslog: no
    logfile: \"\"
    username: \"\"
    chroot: \"\"
    directory: \"{}\"
    pidfile: \"\"
{data}remote-control:
    control-enable: no
",
        address.ip(),
        address.port(),
        directory.display(),
    );
    let file = directory.join("unbound.conf");
    fs::write(&file, config)?;
    let mut command = program("unbound");
    command.arg("-d").arg("-c").arg(file);
    Ok(command)
}
