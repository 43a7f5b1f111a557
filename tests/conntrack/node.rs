//! A node and the cluster's DNS beside it, each in a namespace of its own, and what the node's kernel knows.

use std::env;
use std::fs;
use std::net::UdpSocket;
use std::process::Command;

use tempfile::TempDir;

use crate::support::{Namespace, Process, inside, message, missing, query, run, seconds, wait_until};

/// Where the cluster's DNS can be dialled directly, as a pod can.
pub(crate) const DIRECT: &str = "10.244.0.53";
/// The same by IPv6.
pub(crate) const DIRECT6: &str = "fd00:244::53";
/// What its Service has, which no link has: DNAT leads from here to [`DIRECT`].
pub(crate) const CLUSTER_IP: &str = "10.96.0.10";
/// It listens here as well as on 53.
pub(crate) const SECOND_PORT: u16 = 5353;

/// Names the namespace of the cluster's DNS inside of the node's.
const DNS: &str = "NODENS_TEST_DNS";

/// The rules of a node: kube-proxy's DNAT for host processes, and a firewall that looks at the state of
/// connections in both families, so that the kernel tracks them.
const RULES: &str = "
table ip kube-proxy {
  chain services {
    type nat hook output priority -100
    ip daddr 10.96.0.10 udp dport 53 dnat to 10.244.0.53:53
    ip daddr 10.96.0.10 tcp dport 53 dnat to 10.244.0.53:53
  }
}
table inet firewall {
  chain input {
    type filter hook input priority 0
    ct state established accept
  }
}
";

/// Runs `body`, a closure written in the calling test, as that test on a node of its own.
#[track_caller]
pub(crate) fn on_a_node<F: Fn()>(body: F) {
    let prepare = |node: &Namespace, command: &mut Command| {
        let dns = Namespace::add(format!("{}-dns", node.name));
        node.ip(&["link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", &dns.name]);
        for (namespace, link, last) in [(node, "pod0", "1"), (&dns, "eth0", "53")] {
            namespace.ip(&["address", "add", &format!("10.244.0.{last}/24"), "dev", link]);
            namespace.ip(&["address", "add", &format!("fd00:244::{last}/64"), "dev", link, "nodad"]);
            namespace.ip(&["link", "set", link, "up"]);
        }
        // A ClusterIP needs a route before it is translated.
        node.ip(&["route", "add", "default", "via", DIRECT]);
        command.env(DNS, &dns.name);
        dns
    };
    inside(prepare, body);
}

/// The cluster's DNS, with conntrack on the node: every name below `load.test` has an address.
pub(crate) struct ClusterDns {
    process: Process,
    // After the process: fields are dropped in this order.
    _dir: TempDir,
}

impl ClusterDns {
    pub(crate) fn start() -> Self {
        nft(RULES);
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().display();
        let config = format!(
            "server:\n  server-count: 1\n  ip-address: {DIRECT}@53\n  ip-address: {DIRECT6}@53\n  \
             ip-address: {DIRECT}@{SECOND_PORT}\n  username: \"\"\n  zonesdir: \"{path}\"\n  database: \"\"\n  \
             pidfile: \"{path}/nsd.pid\"\n  xfrdfile: \"{path}/xfrd.state\"\n  \
             zonelistfile: \"{path}/zone.list\"\n  xfrdir: \"{path}\"\n  tcp-count: 500\n  tcp-query-count: 0\n  \
             rrl-ratelimit: 0\n  rrl-whitelist-ratelimit: 0\n\
             remote-control:\n  control-enable: no\nzone:\n  name: \"test\"\n  zonefile: \"test.zone\"\n"
        );
        let zone = "$ORIGIN test.\n@ 30 IN SOA ns host 1 3600 600 86400 5\n@ 30 IN NS ns\nns 30 IN A 10.244.0.53\n\
                    *.load 30 IN A 10.9.9.9\n";
        fs::write(dir.path().join("nsd.conf"), config).expect("nsd.conf");
        fs::write(dir.path().join("test.zone"), zone).expect("zone file");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &env::var(DNS).expect("the namespace of the cluster's DNS")]);
        command.args(["/usr/sbin/nsd", "-d", "-c"]).arg(dir.path().join("nsd.conf"));
        let mut process = Process::start(command, "iproute2", &dir.path().join("nsd.log"));
        wait_until("NSD answers", seconds(10), || {
            if let Some(status) = process.ended() {
                let output = process.output();
                panic!("NSD ended ({status}), or is not there (Debian package nsd):\n{output}");
            }
            is_answered((DIRECT, 53))
        });
        // Those of the question above.
        program("conntrack", "conntrack", &["-F"]);
        Self { process, _dir: dir }
    }
}

impl Drop for ClusterDns {
    fn drop(&mut self) {
        // NSD's own children end only with a tidy stop of the first process.
        if self.process.ended().is_none() {
            self.process.signal("TERM");
            self.process.wait(seconds(5));
        }
    }
}

/// Whether an answer comes to a query by UDP. One by TCP would close its connection later on, when the entries are
/// forgotten already.
fn is_answered(server: (&str, u16)) -> bool {
    let query = message(&query("probe.load.test.", "A"));
    let socket = UdpSocket::bind("0.0.0.0:0").expect("socket");
    socket.set_read_timeout(Some(seconds(5))).expect("timeout");
    socket.connect(server).expect("a route");
    socket.send(&query).is_ok() && socket.recv(&mut [0; 512]).is_ok()
}

/// Has `nft` carry out what it is given.
#[track_caller]
pub(crate) fn nft(rules: &str) {
    let (done, text) = program("nft", "nftables", &[rules]);
    assert!(done, "nft: {text}");
}

/// Whether `nft` could carry out what it was given.
pub(crate) fn try_nft(rules: &str) -> bool {
    program("nft", "nftables", &[rules]).0
}

/// The tables that agents have made.
pub(crate) fn tables() -> Vec<String> {
    let (_, text) = program("nft", "nftables", &["list", "tables"]);
    let ours = text.lines().filter_map(|line| line.strip_prefix("table inet nodens-"));
    ours.map(|rest| format!("nodens-{rest}")).collect()
}

/// Tracked connections of `protocol` (`tcp`, `udp`) from or to the cluster's DNS, by whatever address.
#[track_caller]
pub(crate) fn entries(protocol: &str) -> usize {
    ["ipv4", "ipv6"].map(|family| entries_of(family, protocol).len()).iter().sum()
}

/// Tracked connections to an address of the cluster's DNS.
#[track_caller]
pub(crate) fn entries_to(address: &str, protocol: &str) -> usize {
    // The first one is of the packet as its sender wrote it.
    let to = format!("dst={address}");
    let all = entries_of("ipv4", protocol);
    all.iter()
        .filter(|line| line.split_whitespace().find(|word| word.starts_with("dst=")) == Some(&to))
        .count()
}

#[track_caller]
fn entries_of(family: &str, protocol: &str) -> Vec<String> {
    let (done, text) = program("conntrack", "conntrack", &["-L", "-f", family, "-p", protocol]);
    assert!(done, "conntrack: {text}");
    let about = |line: &&str| {
        let is_dns = |word: &str| {
            let address = word.split_once('=').map(|(_, address)| address);
            address.is_some_and(|address| [DIRECT, DIRECT6, CLUSTER_IP].contains(&address))
        };
        line.split_whitespace().any(is_dns)
    };
    text.lines().filter(about).map(str::to_owned).collect()
}

/// Whether a program ended well, and what it printed.
#[track_caller]
fn program(name: &str, package: &str, arguments: &[&str]) -> (bool, String) {
    let output = run(Command::new(name).args(arguments))
        .unwrap_or_else(|error| panic!("{}", missing(name, package, &error)));
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        text.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    (output.status.success(), text)
}
