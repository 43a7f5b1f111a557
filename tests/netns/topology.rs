//! A node with two pods, host processes, and the cluster's DNS behind a ClusterIP.

use std::cell::Cell;
use std::env;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::{PoisonError, RwLock};

use crate::cluster_dns::ClusterDns;
use crate::kernel::forget_connections;
use crate::kube_proxy;
use crate::support::stubs::{self, programs};
use crate::support::{Namespace, inside};
use crate::topology_links::{self as links, DNS, POD1, POD2};

/// Where the cluster's DNS can be dialled directly, as pods can: its endpoints. A second one counts only where a
/// topology has two.
pub(crate) const ENDPOINTS: [&str; 2] = ["10.244.0.53", "10.244.0.54"];
/// The same by IPv6.
pub(crate) const ENDPOINTS6: [&str; 2] = ["fd00:244::53", "fd00:244::54"];
/// What its Service has, which no link has.
pub(crate) const CLUSTER_IP: &str = "10.96.0.10";
/// The same by IPv6.
pub(crate) const CLUSTER_IP6: &str = "fd00:96::a";
/// What pods have.
pub(crate) const POD_RANGES: [&str; 2] = ["10.244.0.0/16", "fd00:244::/64"];

/// Names the node's namespace inside of it.
const NODE: &str = "NODENS_TEST_NODE";

/// Who translates the ClusterIP, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proxy {
    IptablesLegacy,
    IptablesNft,
    Nftables,
}

/// What guards the node itself. It is written in what the proxy uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Firewall {
    /// Everything is let in.
    Open,
    /// Drops what it does not know: port 53 is open to pods, tracked or not.
    Drops,
    /// As [`Firewall::Drops`], but port 53 is open only to packets that begin a tracked connection.
    DropsUntracked,
}

/// Which families pods, the node and Services have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Families {
    V4,
    V6,
    Dual,
}

impl Families {
    pub(crate) fn has(self, v6: bool) -> bool {
        match self {
            Self::V4 => !v6,
            Self::V6 => v6,
            Self::Dual => true,
        }
    }

    /// Those of this pair, IPv4 and IPv6, that there are.
    pub(crate) fn of<T>(self, [v4, v6]: [T; 2]) -> Vec<T> {
        let both = [(false, v4), (true, v6)].into_iter();
        both.filter(|(v6, _)| self.has(*v6)).map(|(_, value)| value).collect()
    }
}

/// What there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Topology {
    pub(crate) proxy: Proxy,
    pub(crate) firewall: Firewall,
    pub(crate) families: Families,
    /// Of the cluster's DNS: 0, 1 or 2.
    pub(crate) endpoints: usize,
    /// Whether the test sends at a high rate, and runs while no other does.
    pub(crate) alone: bool,
    /// Whether pods run real stub resolvers.
    pub(crate) stubs: bool,
}

impl Topology {
    /// Dual stack, one endpoint, no firewall.
    pub(crate) const fn new(proxy: Proxy) -> Self {
        let (firewall, families) = (Firewall::Open, Families::Dual);
        Self { proxy, firewall, families, endpoints: 1, alone: false, stubs: false }
    }

    pub(crate) const fn guarded(self, firewall: Firewall) -> Self {
        Self { firewall, ..self }
    }

    pub(crate) const fn only(self, families: Families) -> Self {
        Self { families, ..self }
    }

    pub(crate) const fn endpoints(self, endpoints: usize) -> Self {
        Self { endpoints, ..self }
    }

    pub(crate) const fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    pub(crate) const fn with_stubs(self) -> Self {
        Self { stubs: true, ..self }
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {:?}, {:?}, {} endpoints", self.proxy, self.firewall, self.families, self.endpoints)
    }
}

/// A test at a high rate holds it alone; the others hold it together.
static RATE: RwLock<()> = RwLock::new(());

thread_local! {
    /// What the test that runs inside of the node has asked for.
    static ASKED_FOR: Cell<Option<Topology>> = const { Cell::new(None) };
}

/// Runs `body`, a closure written in the calling test, as that test on a node of its own. It begins with
/// [`Node::start`].
#[track_caller]
pub(crate) fn on_a_node<F: Fn()>(topology: Topology, body: F) {
    ASKED_FOR.set(Some(topology));
    let (_alone, _together);
    if topology.alone {
        _alone = RATE.write().unwrap_or_else(PoisonError::into_inner);
    } else {
        _together = RATE.read().unwrap_or_else(PoisonError::into_inner);
    }
    let prepare = |node: &Namespace, command: &mut Command| {
        command.env(NODE, &node.name);
        if topology.stubs {
            let libc = |target: &str| ["glibc", "musl"].contains(&target);
            command.env(programs::DIRECTORY, programs::built(libc));
        }
        links::make(node, topology.families)
    };
    inside(prepare, body);
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Pod1,
    Pod2,
    Host,
}

/// All of them.
pub(crate) const PLACES: [Place; 3] = [Place::Pod1, Place::Pod2, Place::Host];

/// The node, from inside.
pub(crate) struct Node {
    topology: Topology,
    pub(crate) dns: ClusterDns,
}

impl Node {
    /// Sets up what the links alone are not: forwarding, the cluster's DNS, kube-proxy's rules, the firewall.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let topology = ASKED_FOR.get().expect("`on_a_node` is around this");
        let mut dns = ClusterDns::new(&name(DNS), topology.families);
        dns.start();
        kube_proxy::install(topology);
        forget_connections();
        Self { topology, dns }
    }

    /// A program that will run there.
    pub(crate) fn command(place: Place, program: &str) -> Command {
        let namespace = match place {
            Place::Pod1 => name(POD1),
            Place::Pod2 => name(POD2),
            Place::Host => return Command::new(program),
        };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace, program]);
        command
    }

    /// Has the pods ask these servers, as kubelet writes it into their resolv.conf when they start.
    #[track_caller]
    pub(crate) fn set_cluster_dns(&self, servers: &[SocketAddr]) {
        let servers: Vec<_> = servers.iter().map(SocketAddr::ip).collect();
        [POD1, POD2].iter().for_each(|pod| stubs::write_files(&name(pod), &servers));
    }

    /// Changes how many endpoints the cluster's DNS has, as kube-proxy does when pods come and go.
    #[track_caller]
    pub(crate) fn set_endpoints(&mut self, endpoints: usize) {
        self.topology.endpoints = endpoints;
        kube_proxy::update(self.topology);
    }

    /// The ClusterIPs of the DNS, with the port.
    pub(crate) fn cluster_ips(&self) -> Vec<SocketAddr> {
        self.sockets([CLUSTER_IP, CLUSTER_IP6])
    }

    /// These two addresses, as far as there is their family, with the port.
    pub(crate) fn sockets(&self, addresses: [&str; 2]) -> Vec<SocketAddr> {
        self.topology.families.of(addresses).into_iter().map(dns_at).collect()
    }
}

/// The port of DNS at an address.
pub(crate) fn dns_at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse::<IpAddr>().expect("an address"), 53)
}

/// The namespace beside this node.
fn name(which: &str) -> String {
    format!("{}-{which}", env::var(NODE).expect("a test that runs on a node"))
}
