//! What holds where the operator has said nothing. `config/reference.yaml` says why, and a test holds it
//! against this.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use hickory_proto::rr::Name;

use super::{
    AllowFrom, Cache, Config, Connections, Failure, Hedge, Hosts, Keep, KeepCache, LINK_LOCAL_LISTEN, Limits,
    Log, LogFormat, LogLevel, Mark, Network, Policy, Prefetch, Reload, Server, ServerPolicy, Stale,
    StaleMode, Upstream, Zone,
};

/// UDP threads where the node has as many cores; the other cores are for its pods.
const DEFAULT_WORKERS: usize = 2;

/// RFC 8767 §5: 1.8 s is recommended for the client response timer. Kept for `.`, whose answers come from far
/// away.
const CLIENT_RESPONSE_ROOT: Duration = Duration::from_millis(1800);

/// Elsewhere the upstream is the cluster's own DNS, and half a second without an answer means that it is in
/// trouble.
const CLIENT_RESPONSE: Duration = Duration::from_millis(500);

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![LINK_LOCAL_LISTEN],
            allow_from: AllowFrom::Auto,
            admin: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9253),
            control: PathBuf::from("/run/nodens/control.sock"),
            workers: thread::available_parallelism().map_or(1, |cores| cores.get().min(DEFAULT_WORKERS)),
            reload: Reload::Auto,
            // DNS flag day 2020: fits any link without fragments.
            edns_size: 1232,
            cache: Cache::default(),
            zones: vec![Zone::new(vec![Name::root()], vec![Server::System])],
            hosts: Hosts::default(),
            network: Network::default(),
            keep: Keep::default(),
            limits: Limits::default(),
            log: Log::default(),
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { size: 16 * 1024 * 1024, rotate: true }
    }
}

impl Zone {
    /// A zone of these suffixes and servers, with every other value at the default that such a zone has.
    #[must_use]
    pub fn new(matches: Vec<Name>, servers: Vec<Server>) -> Self {
        let policy = Policy::of(&matches);
        Self { matches, upstream: Upstream::new(servers), policy }
    }
}

impl Upstream {
    /// These servers, used in the default way.
    #[must_use]
    pub fn new(servers: Vec<Server>) -> Self {
        Self {
            servers,
            bootstrap: Vec::new(),
            connections: Connections::default(),
            policy: ServerPolicy::LeastLoaded,
            timeout: Duration::from_secs(4),
            hedge: Some(Hedge::default()),
            ca: None,
            mixed_case: false,
        }
    }
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            min: 1,
            max: 16,
            in_flight: 16,
            idle: Duration::from_secs(8),
            max_age: Duration::from_secs(5 * 60),
        }
    }
}

impl Policy {
    /// The default of a zone with these suffixes: the one with `.` waits longer before it answers stale.
    #[must_use]
    pub fn of(matches: &[Name]) -> Self {
        let client_response =
            if matches.iter().any(Name::is_root) { CLIENT_RESPONSE_ROOT } else { CLIENT_RESPONSE };
        Self {
            min_ttl: Duration::ZERO,
            max_ttl: Duration::from_secs(3600),
            negative_max_ttl: Duration::from_secs(30),
            negative_no_soa_ttl: Duration::ZERO,
            failure: Failure::default(),
            stale: Some(Stale {
                max_age: Duration::from_secs(3600),
                answer_ttl: Duration::from_secs(30),
                client_response,
                failure_recheck: Duration::from_secs(5),
                mode: StaleMode::Timer,
            }),
            prefetch: Some(Prefetch::default()),
        }
    }
}

impl Default for Failure {
    fn default() -> Self {
        Self {
            transport: Duration::from_secs(1),
            servfail: Duration::from_secs(1),
            servfail_max: Duration::from_secs(10),
        }
    }
}

impl Default for Prefetch {
    fn default() -> Self {
        Self { hits: 2, at: 0.1 }
    }
}

impl Default for Hosts {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(30), records: Vec::new() }
    }
}

impl Default for Hedge {
    fn default() -> Self {
        Self { budget: 5, burst: 128 }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            address_on: None,
            keep_address: true,
            notrack: false,
            accept_untracked: false,
            intercept: Vec::new(),
            upstream_notrack: false,
            mark: Mark { intercept: 0x35, own: 0x36, mask: 0xff },
        }
    }
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            handover: "/run/nodens/handover.sock".into(),
            watchdog: Duration::from_secs(3),
            receive_buffer: 4 << 20,
            cache: KeepCache::Memory,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tcp_connections: 1024,
            tcp_connections_per_address: 64,
            tcp_in_flight: 64,
            tcp_idle: Duration::from_secs(10),
            flights: 4096,
            waiters: 32_768,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, level: LogLevel::Info }
    }
}
