//! NSD as the cluster's DNS, Unbound as the resolver outside it.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use hickory_proto::op::ResponseCode;
use tempfile::TempDir;

use super::process::Process;
use super::zones::{CLUSTER_ZONE, OUTSIDE, REVERSE_ZONE};
use super::{ask_udp, free_port, query, seconds, wait_until};

/// An authoritative server with the zones it was given.
pub(crate) struct Nsd {
    dir: TempDir,
    pub(crate) address: SocketAddr,
    process: Option<Process>,
}

impl Nsd {
    /// Serves `zones` (name, file content) on a fresh port of 127.0.0.1.
    pub(crate) fn start(zones: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let path = dir.path().display();
        let mut config = format!(
            "server:\n  server-count: 1\n  ip-address: 127.0.0.1@{port}\n  username: \"\"\n  \
             zonesdir: \"{path}\"\n  database: \"\"\n  pidfile: \"{path}/nsd.pid\"\n  \
             xfrdfile: \"{path}/xfrd.state\"\n  zonelistfile: \"{path}/zone.list\"\n  \
             xfrdir: \"{path}\"\n  \
             tcp-count: 500\n  tcp-query-count: 0\n  rrl-ratelimit: 0\n  \
             rrl-whitelist-ratelimit: 0\n  verbosity: 1\n\
             remote-control:\n  control-enable: no\n",
            port = address.port(),
        );
        for (zone, content) in zones {
            fs::write(dir.path().join(format!("{zone}.zone")), content).expect("zone file");
            let _ = write!(config, "zone:\n  name: \"{zone}\"\n  zonefile: \"{zone}.zone\"\n");
        }
        fs::write(dir.path().join("nsd.conf"), config).expect("nsd.conf");
        let mut server = Self { dir, address, process: None };
        server.resume();
        server
    }

    /// The cluster's DNS as the tests know it.
    pub(crate) fn cluster() -> Self {
        Self::cluster_and(&[])
    }

    /// The cluster's DNS with further zones (name, file content).
    pub(crate) fn cluster_and(zones: &[(&str, &str)]) -> Self {
        Self::start(&[&[CLUSTER_ZONE, REVERSE_ZONE], zones].concat())
    }

    /// Ends the server; its port answers nothing until [`Nsd::resume`].
    pub(crate) fn stop(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        // NSD's own children end only with a tidy stop of the first process.
        process.signal("TERM");
        assert!(process.wait(seconds(10)).is_some(), "nsd does not end");
    }

    /// Starts it on the same port.
    pub(crate) fn resume(&mut self) {
        let mut command = Command::new("/usr/sbin/nsd");
        command.args(["-d", "-c"]).arg(self.dir.path().join("nsd.conf"));
        let process = Process::start(command, "nsd", &self.dir.path().join("nsd.log"));
        self.process = Some(process);
        answers(self.address, "probe.cluster.local.", "nsd");
    }
}

impl Drop for Nsd {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process
            && process.ended().is_none()
        {
            process.signal("TERM");
            process.wait(seconds(5));
        }
    }
}

/// A resolver that knows only what it was given; it never leaves this machine.
pub(crate) struct Unbound {
    pub(crate) address: SocketAddr,
    _process: Process,
    // After the process: fields are dropped in this order.
    _dir: TempDir,
}

impl Unbound {
    /// Serves `records` (one zone-file line each). Any other name is NXDOMAIN with an SOA.
    pub(crate) fn start(records: &[&str]) -> Self {
        Self::configured(records, "")
    }

    /// As [`Unbound::start`], with these further lines below `server:`.
    pub(crate) fn configured(records: &[&str], more: &str) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let path = dir.path().display();
        let mut config = format!(
            "server:\n  interface: 127.0.0.1\n  port: {port}\n  username: \"\"\n  chroot: \"\"\n  \
             directory: \"{path}\"\n  pidfile: \"{path}/unbound.pid\"\n  use-syslog: no\n  \
             do-daemonize: no\n  num-threads: 1\n  module-config: \"iterator\"\n  \
             do-not-query-localhost: no\n  minimal-responses: yes\n  \
             local-zone: \".\" static\n  \
             local-data: \". 60 IN SOA root.invalid. host.invalid. 1 3600 600 86400 60\"\n{more}",
            port = address.port(),
        );
        for record in records {
            let _ = writeln!(config, "  local-data: '{record}'");
        }
        config.push_str("remote-control:\n  control-enable: no\n");
        let file = dir.path().join("unbound.conf");
        fs::write(&file, config).expect("unbound.conf");
        let mut command = Command::new("/usr/sbin/unbound");
        command.args(["-d", "-p", "-c"]).arg(&file);
        let process = Process::start(command, "unbound", &dir.path().join("unbound.log"));
        answers(address, "probe.example.com.", "unbound");
        Self { address, _process: process, _dir: dir }
    }

    /// Serves [`OUTSIDE`].
    pub(crate) fn outside() -> Self {
        Self::start(&OUTSIDE)
    }
}

/// Waits until a server answers anything but failure.
fn answers(address: SocketAddr, probe: &str, what: &str) {
    wait_until(&format!("{what} on {address} answers"), seconds(10), || {
        ask_udp(address, &query(probe, "A"))
            .is_some_and(|reply| reply.metadata.response_code != ResponseCode::ServFail)
    });
}
