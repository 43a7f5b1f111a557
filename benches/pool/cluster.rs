//! A ClusterIP as kube-proxy makes it, in the network namespace of this process: a rule that sends each new connection
//! to one of its endpoints at random, and rules for endpoints that are gone.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::authority::program;

/// How kube-proxy rejects connections to a service without endpoints.
#[derive(Clone, Copy)]
pub(crate) enum Reject {
    /// New connections by ICMP port unreachable, as its modes iptables and nftables do it. What is connected runs into
    /// silence: the rule looks at new connections only, and the pod is gone.
    Icmp,
    /// Every packet by RST.
    Reset,
}

impl Reject {
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Icmp => "kube-proxy rejects new connections by ICMP (old ones run into silence)",
            Self::Reset => "everything is rejected by RST",
        }
    }
}

/// Rules and addresses live as long as the namespace, which ends with its last process.
pub(crate) struct Cluster;

/// The way to the ClusterIP leads out of the node, as a cluster's default route does. Nothing gets there: its packets
/// are sent elsewhere or rejected before. On a route over `lo` the kernel would send no ICMP errors.
const LINKS: &str = "link set lo up
link add node0 type veth peer name node1
link set node0 up
link set node1 up
address add 10.0.0.1/24 dev node0
route add default via 10.0.0.2
neighbour add 10.0.0.2 lladdr 02:00:00:00:00:01 dev node0
";
/// Priorities: kube-proxy rejects before it forwards, and both come after connection tracking.
const RULES: &str = "table ip pool {
    chain rejected { type filter hook output priority -110; }
    chain forwarded { type nat hook output priority -100; }
    chain silenced { type filter hook input priority 0; }
}
";

impl Cluster {
    pub(crate) const IP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53);
    const ENDPOINTS: u8 = 4;

    /// Sets everything up. The namespace must be new.
    pub(crate) fn here() -> Result<Self> {
        let endpoint = |n: u8| format!("address add {}/32 dev lo\n", Self::endpoint(n).ip());
        let addresses: String = (0..Self::ENDPOINTS).map(endpoint).collect();
        feed(program("ip").args(["-batch", "-"]), &format!("{LINKS}{addresses}")).context("iproute2")?;
        feed(program("nft").args(["-f", "-"]), RULES).context("nftables")?;
        Ok(Self)
    }

    fn endpoint(n: u8) -> SocketAddr {
        (Ipv4Addr::new(10, 244, n + 1, 10), 53).into()
    }

    /// Where endpoints listen.
    pub(crate) fn addresses(count: u8) -> Vec<SocketAddr> {
        (0..count).map(Self::endpoint).collect()
    }

    /// Each new connection goes to one of the first `count` endpoints at random.
    pub(crate) fn forward(&self, count: u8) -> Result<()> {
        let map: Vec<_> = (0..count).map(|n| format!("{n} : {}", Self::endpoint(n).ip())).collect();
        let to = format!("dnat to numgen random mod {count} map {{ {} }}", map.join(", "));
        let ip = Self::IP.ip();
        rules(&format!(
            "flush chain ip pool forwarded
             add rule ip pool forwarded ip daddr {ip} tcp dport 53 {to}
             add rule ip pool forwarded ip daddr {ip} udp dport 53 {to}"
        ))
    }

    /// From now on these endpoints get no packets, and the service is rejected.
    pub(crate) fn go(&self, reject: Option<Reject>, silent: &[u8]) -> Result<()> {
        let mut text = "flush chain ip pool silenced\nflush chain ip pool rejected\n".to_owned();
        for &n in silent {
            text.push_str(&format!("add rule ip pool silenced ip daddr {} drop\n", Self::endpoint(n).ip()));
        }
        let ip = Self::IP.ip();
        match reject {
            Some(Reject::Icmp) => text.push_str(&format!(
                "add rule ip pool rejected ip daddr {ip} ct state new reject with icmp type port-unreachable\n"
            )),
            Some(Reject::Reset) => text.push_str(&format!(
                "add rule ip pool rejected ip daddr {ip} meta l4proto tcp reject with tcp reset\n"
            )),
            None => {}
        }
        rules(&text)
    }
}

/// All at once, or nothing.
fn rules(text: &str) -> Result<()> {
    feed(program("nft").args(["-f", "-"]), text)
}

fn feed(command: &mut Command, text: &str) -> Result<()> {
    let name = command.get_program().display().to_string();
    let started = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut child = started.with_context(|| format!("cannot start {name}"))?;
    let written = child.stdin.take().context("no input")?.write_all(text.as_bytes());
    let status = child.wait()?;
    ensure!(status.success() && written.is_ok(), "{name} ended with {status} on:\n{text}");
    Ok(())
}
