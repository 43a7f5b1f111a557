//! The validated configuration: what the program uses, after [`mod@file`] has parsed what was written.
//!
//! Every value here has been checked; nothing is clamped. Defaults and their reasons stand in
//! `config/reference.yaml`, which a test holds against [`Config::default`].

mod defaults;
mod describe;
pub mod file;

pub use describe::describe;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::rr::Name;
use ipnet::IpNet;

/// Everything the agent is told by its operator.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Addresses to answer on, each by UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Whose queries are answered.
    pub allow_from: AllowFrom,
    /// HTTP address of `/metrics`, `/health` and `/ready`.
    pub admin: SocketAddr,
    /// Unix socket of the subcommands that ask a running agent.
    pub control: PathBuf,
    /// UDP threads, at least 1.
    pub workers: usize,
    /// Whether the configuration file is watched.
    pub reload: Reload,
    /// Largest UDP reply and the size in our own OPT, in bytes.
    pub edns_size: u16,
    /// The one store of all zones.
    pub cache: Cache,
    /// Zones in the order in which they were written.
    pub zones: Vec<Zone>,
    /// Static records.
    pub hosts: Hosts,
    /// How packets pass through the kernel.
    pub network: Network,
    /// What the parent process holds, and how it is replaced.
    pub keep: Keep,
    /// Bounds on what clients can take.
    pub limits: Limits,
    /// What is logged and how.
    pub log: Log,
}

/// Which source addresses get answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowFrom {
    /// Any source on addresses that only this node's pods can reach, private sources elsewhere.
    Auto,
    /// Only sources inside these prefixes.
    Prefixes(Vec<IpNet>),
}

/// When the configuration is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// When the file (or the ConfigMap link it is reached by) changes, and on SIGHUP.
    Auto,
    /// On SIGHUP alone.
    Signal,
}

/// The store's own settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Budget of keys, messages and their overhead, in bytes.
    pub size: u64,
    /// Whether address RRsets are rotated from answer to answer.
    pub rotate: bool,
}

/// A set of suffixes with their upstream and policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Zone {
    /// Suffixes, lower-case and fully qualified. The first one names the zone in metrics.
    pub matches: Vec<Name>,
    /// Who is asked on a miss.
    pub upstream: Upstream,
    /// How long answers live.
    pub policy: Policy,
}

/// A set of servers and how to use them. Zones with an equal value share one pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// At least one.
    pub servers: Vec<Server>,
    /// Who resolves servers given by name: addresses. Empty where there is none.
    pub bootstrap: Vec<Server>,
    /// Connections to each TCP server.
    pub connections: Connections,
    /// Choice among servers.
    pub policy: ServerPolicy,
    /// Deadline of one query, all tries together.
    pub timeout: Duration,
    /// Second queries for answers that are late; `None` is off.
    pub hedge: Option<Hedge>,
    /// PEM file of the certificate authorities of `tls://` servers; `None` is the system's.
    pub ca: Option<PathBuf>,
    /// Whether names are asked for in mixed case by UDP, which the response must repeat.
    pub mixed_case: bool,
}

/// One upstream, as `tcp://10.96.0.10`, `udp://[fd00::a]:5353` or `system`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Server {
    /// DNS over persistent TCP connections (RFC 7766).
    Tcp(SocketAddr),
    /// DNS over UDP, over TCP when the answer was truncated.
    Udp(SocketAddr),
    /// DNS over TLS (RFC 7858), and the name in the server's certificate.
    Tls(SocketAddr, String),
    /// As [`Server::Tcp`], and by UDP as long as the server refuses or limits TCP.
    Auto(SocketAddr),
    /// Every address of a host name, each a server, and their port.
    Named(Scheme, Name, u16),
    /// The servers of `/etc/resolv.conf`, as they are at the time, by UDP.
    System,
}

impl Server {
    /// Where it is, if that was written.
    pub fn addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(addr) | Self::Udp(addr) | Self::Tls(addr, _) | Self::Auto(addr) => Some(*addr),
            Self::Named(..) | Self::System => None,
        }
    }
}

/// How servers that are given by name are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// As [`Server::Tcp`].
    Tcp,
    /// As [`Server::Udp`].
    Udp,
    /// As [`Server::Auto`].
    Auto,
}

/// Second queries for answers that are late.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hedge {
    /// Their share of all queries, in percent.
    pub budget: u8,
    /// How many may go out at once after a quiet time.
    pub burst: u32,
}

/// Bounds of one server's connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Connections {
    /// Kept open while there is demand.
    pub min: usize,
    /// Never more than this.
    pub max: usize,
    /// Queries waiting on one connection.
    pub in_flight: usize,
    /// A connection without queries for this long is closed.
    pub idle: Duration,
    /// A connection of this age (10 % more or less) takes no new query.
    pub max_age: Duration,
}

/// How a server is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerPolicy {
    /// The one with the fewest queries in flight.
    LeastLoaded,
    /// Any.
    Random,
    /// In turn.
    RoundRobin,
    /// The first one that works.
    Sequential,
}

/// Lifetime rules of one zone.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Lower bound of every TTL.
    pub min_ttl: Duration,
    /// Upper bound of every TTL.
    pub max_ttl: Duration,
    /// Upper bound of a negative answer's life.
    pub negative_max_ttl: Duration,
    /// Life of a negative answer without SOA; zero means that it is not stored.
    pub negative_no_soa_ttl: Duration,
    /// Memory of resolution failures (RFC 9520).
    pub failure: Failure,
    /// Answers past their life (RFC 8767); `None` is off.
    pub stale: Option<Stale>,
    /// Refresh ahead of expiry; `None` is off.
    pub prefetch: Option<Prefetch>,
}

/// How long failures are remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// After a timeout or an unreachable server.
    pub transport: Duration,
    /// After a first SERVFAIL, doubling with each that follows.
    pub servfail: Duration,
    /// Where the doubling ends.
    pub servfail_max: Duration,
}

/// When an expired answer may still go out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    /// How long after expiry.
    pub max_age: Duration,
    /// TTL in a stale answer.
    pub answer_ttl: Duration,
    /// How long a client waits for a fresh one first.
    pub client_response: Duration,
    /// After a failed refresh, no new try for this long.
    pub failure_recheck: Duration,
    /// Whether to wait at all.
    pub mode: StaleMode,
}

/// What comes first when an entry has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StaleMode {
    /// Try to refresh, then answer stale when `client_response` has passed.
    Timer,
    /// Answer stale at once and refresh behind it.
    Immediate,
}

/// Which entries are refreshed before they expire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prefetch {
    /// Asked at least this often since it was stored.
    pub hits: u32,
    /// With less than this share (0 to 1) of its life left.
    pub at: f64,
}

/// Names answered without any upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts {
    /// TTL of every record.
    pub ttl: Duration,
    /// Address and its names, for A, AAAA and PTR.
    pub records: Vec<(IpAddr, Vec<Name>)>,
}

/// How packets pass through the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Link that is to hold the listen addresses; `None` leaves that to others.
    pub address_on: Option<String>,
    /// Whether those addresses stay when the agent ends.
    pub keep_address: bool,
    /// Whether queries to the listen addresses, and their answers, are exempt from connection tracking.
    pub notrack: bool,
    /// Whether firewalls are told to let packets in that are not tracked.
    pub accept_untracked: bool,
    /// ClusterIPs that are answered here as well, at [`DNS_PORT`].
    pub intercept: Vec<IpAddr>,
    /// Whether queries to upstreams are exempt from connection tracking.
    pub upstream_notrack: bool,
    /// Marks of packets.
    pub mark: Mark,
}

/// Marks of packets, within the bits that are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Of queries to intercepted ClusterIPs.
    pub intercept: u32,
    /// Of queries to upstreams.
    pub own: u32,
    /// The bits of a mark that are ours.
    pub mask: u32,
}

/// What `nodens keep` does for the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// Unix socket over which the next one receives the sockets.
    pub handover: PathBuf,
    /// An agent that gives no sign of life for this long is replaced.
    pub watchdog: Duration,
    /// Receive buffer of each UDP socket, bytes.
    pub receive_buffer: usize,
    /// Where the cache is written down for the agent's next life.
    pub cache: KeepCache,
}

/// Where the cache is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepCache {
    /// In memory that the parent process holds, if there is one.
    Memory,
    /// In a file.
    Path(PathBuf),
    /// Nowhere.
    Off,
}

/// Bounds on clients and on work in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// TCP clients in all.
    pub tcp_connections: usize,
    /// TCP clients of one source address.
    pub tcp_connections_per_address: usize,
    /// Queries of one TCP client that await their answer.
    pub tcp_in_flight: usize,
    /// A TCP client without queries for this long is closed.
    pub tcp_idle: Duration,
    /// Distinct questions being asked upstream.
    pub flights: usize,
    /// Clients that wait for them.
    pub waiters: usize,
}

/// Log output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// One JSON object a line, or text for people.
    pub format: LogFormat,
    /// Least severity that is written.
    pub level: LogLevel,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For machines.
    Json,
    /// For people.
    Text,
}

/// Severity, most severe first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// RFC 1035 §4.2: where DNS servers listen.
pub const DNS_PORT: u16 = 53;

/// The address that the pods of a node ask (kubernetes.io, NodeLocal DNSCache).
pub const LINK_LOCAL_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10)), 53);
