//! NSD as the cluster's DNS, in a pod of its own.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;

use tempfile::TempDir;

use crate::client_ways::question;
use crate::support::stubs::records;
use crate::support::{CLUSTER_ZONE, Process, REVERSE_ZONE, seconds, wait_until};
use crate::topology::{ENDPOINTS, ENDPOINTS6, Families, dns_at};

/// What the cluster's DNS gives for every name below `load.test`, and how long it may be kept. Agents under test
/// shorten that, so that an answer says who gave it.
pub(crate) const TTL: u32 = 30;
/// It listens here as well as on 53.
pub(crate) const SECOND_PORT: u16 = 5353;
/// Names `n0.names.test` and so on.
const NAMES: usize = 3_000;

pub(crate) struct ClusterDns {
    namespace: String,
    process: Option<Process>,
    probes: Vec<&'static str>,
    // After the process: fields are dropped in this order.
    dir: TempDir,
}

impl ClusterDns {
    /// Not running yet.
    pub(crate) fn new(namespace: &str, families: Families) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().display();
        let mut config = String::from("server:\n  server-count: 1\n");
        for address in families.of([ENDPOINTS, ENDPOINTS6]).into_iter().flatten() {
            let _ = writeln!(config, "  ip-address: {address}@53\n  ip-address: {address}@{SECOND_PORT}");
        }
        let _ = write!(
            config,
            "  username: \"\"\n  zonesdir: \"{path}\"\n  database: \"\"\n  pidfile: \"{path}/nsd.pid\"\n  \
             xfrdfile: \"{path}/xfrd.state\"\n  zonelistfile: \"{path}/zone.list\"\n  xfrdir: \"{path}\"\n  \
             tcp-count: 2000\n  tcp-query-count: 0\n  tcp-timeout: 30\n  \
             rrl-ratelimit: 0\n  rrl-whitelist-ratelimit: 0\n\
             remote-control:\n  control-enable: no\n"
        );
        let mut zone = format!(
            "$ORIGIN test.\n@ {TTL} IN SOA ns host 1 3600 600 86400 5\n@ {TTL} IN NS ns\nns {TTL} IN A 10.244.0.53\n\
             *.load {TTL} IN A 10.9.9.9\n*.load {TTL} IN AAAA fd00:9::9\n"
        );
        for number in 0..NAMES {
            let _ = writeln!(zone, "n{number}.names {TTL} IN A 10.9.{}.{}", number / 250, number % 250);
        }
        let (root, names_outside) = records::root_zone();
        let zones = [("test", &*zone), CLUSTER_ZONE, REVERSE_ZONE, (root, &*names_outside)];
        for (zone, content) in zones {
            let _ = write!(config, "zone:\n  name: \"{zone}\"\n  zonefile: \"{zone}.zone\"\n");
            fs::write(dir.path().join(format!("{zone}.zone")), content).expect("zone file");
        }
        fs::write(dir.path().join("nsd.conf"), config).expect("nsd.conf");
        let probes = families.of([ENDPOINTS[0], ENDPOINTS6[0]]);
        Self { namespace: namespace.to_owned(), process: None, probes, dir }
    }

    /// Starts it, and waits until it answers in each family.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, "/usr/sbin/nsd", "-d", "-c"]);
        command.arg(self.dir.path().join("nsd.conf"));
        let process = Process::start(command, "iproute2", &self.dir.path().join("nsd.log"));
        let process = self.process.insert(process);
        for probe in &self.probes {
            wait_until("NSD answers", seconds(10), || {
                if let Some(status) = process.ended() {
                    let output = process.output();
                    panic!("NSD ended ({status}), or is not there (Debian package nsd):\n{output}");
                }
                is_answered(dns_at(probe))
            });
        }
    }

    /// Ends it: nobody listens at its endpoints then.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        // NSD's own children end only with a tidy stop of the first process.
        if let Some(mut process) = self.process.take()
            && process.ended().is_none()
        {
            process.signal("TERM");
            process.wait(seconds(5));
        }
    }
}

impl Drop for ClusterDns {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether an answer comes to a query by UDP, from the host and whatever address of it leads there.
fn is_answered(server: SocketAddr) -> bool {
    let socket = match server {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = socket.expect("socket");
    socket.set_read_timeout(Some(seconds(2))).expect("timeout");
    socket.connect(server).expect("a route");
    let query = question("probe", 0);
    socket.send(&query).is_ok() && socket.recv(&mut [0; 512]).is_ok()
}
