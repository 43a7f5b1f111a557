//! A configuration in plain words, for `nodens check`.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use bytesize::ByteSize;

use super::{
    AllowFrom, Config, Hedge, LogFormat, LogLevel, Mark, Network, Policy, Reload, Scheme, Server,
    ServerPolicy, StaleMode, Zone,
};

/// What `config` means: a line for each thing that it decides, for people to read.
#[must_use]
pub fn describe(config: &Config) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(config, &mut out);
    out
}

fn write_all(config: &Config, out: &mut String) -> fmt::Result {
    writeln!(out, "listens on {} by UDP and TCP", list(&config.listen))?;
    match &config.allow_from {
        AllowFrom::Auto => {
            writeln!(out, "answers this node's pods, and private sources on other addresses")?;
        }
        AllowFrom::Prefixes(prefixes) => writeln!(out, "answers sources in {}", list(prefixes))?,
    }
    writeln!(out, "{}, UDP replies of up to {} bytes", count(config.workers, "worker"), config.edns_size)?;
    writeln!(
        out,
        "caches up to {} for all zones, address records {}",
        ByteSize(config.cache.size),
        if config.cache.rotate { "rotated" } else { "in the order of the upstream" },
    )?;
    for zone in &config.zones {
        write_zone(zone, out)?;
    }
    if !config.zones.iter().any(|zone| zone.matches.iter().any(hickory_proto::rr::Name::is_root)) {
        writeln!(out, "names in no zone are refused")?;
    }
    if !config.hosts.records.is_empty() {
        let names = config.hosts.records.iter().map(|(_, names)| names.len()).sum();
        let addresses = config.hosts.records.len();
        writeln!(
            out,
            "answers {} of {} itself, TTL {}",
            count(names, "name"),
            count(addresses, "static address"),
            spoken(config.hosts.ttl),
        )?;
    }
    network(&config.network, out)?;
    let limits = &config.limits;
    writeln!(
        out,
        "admits {} TCP clients ({} per address, {} queries each, {} idle), {} questions upstream with {} waiting",
        limits.tcp_connections,
        limits.tcp_connections_per_address,
        limits.tcp_in_flight,
        spoken(limits.tcp_idle),
        limits.flights,
        limits.waiters,
    )?;
    writeln!(
        out,
        "serves metrics and health on http://{}, control on {}",
        config.admin,
        config.control.display()
    )?;
    let reload = match config.reload {
        Reload::Auto => "when the file changes and on SIGHUP",
        Reload::Signal => "on SIGHUP",
    };
    writeln!(out, "reads this file again {reload}")?;
    let format = match config.log.format {
        LogFormat::Json => "JSON",
        LogFormat::Text => "text",
    };
    writeln!(out, "logs {format}, {} and more severe", config.log.level)
}

fn write_zone(zone: &Zone, out: &mut String) -> fmt::Result {
    let upstream = &zone.upstream;
    write!(out, "zone {}: asks {}", list(&zone.matches), list(&upstream.servers))?;
    if upstream.servers.len() > 1 {
        write!(out, ", {}", upstream.policy)?;
    }
    write!(out, ", within {}", spoken(upstream.timeout))?;
    if upstream.servers.iter().any(|server| matches!(server, Server::Named(..))) {
        write!(out, ", names resolved by {}", list(&upstream.bootstrap))?;
    }
    if upstream.servers.iter().any(Server::has_connections) {
        let connections = &upstream.connections;
        write!(
            out,
            ", over {} to {} connections each with up to {}",
            connections.min,
            connections.max,
            count(connections.in_flight, "query"),
        )?;
        match &upstream.hedge {
            Some(Hedge { budget, burst }) => {
                write!(out, ", a second query for up to {budget}% of them ({burst} in a burst)")?;
            }
            None => write!(out, ", never a second query for a late answer")?,
        }
    }
    if upstream.servers.iter().any(|server| matches!(server, Server::Tls(..))) {
        match &upstream.ca {
            Some(ca) => write!(out, ", certificates by the authorities in {}", ca.display())?,
            None => write!(out, ", certificates by the system's authorities")?,
        }
    }
    if upstream.mixed_case {
        write!(out, ", by UDP in mixed case")?;
    }
    out.push('\n');
    write_policy(&zone.policy, out)
}

fn write_policy(policy: &Policy, out: &mut String) -> fmt::Result {
    writeln!(
        out,
        "  keeps answers {} to {}, negative ones up to {}, failures {} (SERVFAIL {} to {})",
        spoken(policy.min_ttl),
        spoken(policy.max_ttl),
        spoken(policy.negative_max_ttl),
        spoken(policy.failure.transport),
        spoken(policy.failure.servfail),
        spoken(policy.failure.servfail_max),
    )?;
    match &policy.stale {
        None => writeln!(out, "  never answers stale")?,
        Some(stale) => {
            write!(out, "  answers stale for {} past expiry, ", spoken(stale.max_age))?;
            match stale.mode {
                StaleMode::Timer => {
                    writeln!(out, "after {} without a fresh answer", spoken(stale.client_response))?;
                }
                StaleMode::Immediate => writeln!(out, "at once")?,
            }
        }
    }
    match policy.prefetch {
        None => writeln!(out, "  never refreshes ahead"),
        Some(prefetch) => writeln!(
            out,
            "  refreshes ahead what was asked {} in the last {:.0}% of its life",
            count(prefetch.hits as usize, "time"),
            prefetch.at * 100.0,
        ),
    }
}

impl Server {
    /// Whether it is asked over connections, first or at any time.
    fn has_connections(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Tls(..) | Self::Auto(_) | Self::Named(Scheme::Tcp | Scheme::Auto, ..) => {
                true
            }
            Self::Udp(_) | Self::Named(Scheme::Udp, ..) | Self::System => false,
        }
    }
}

impl Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Udp(address) => write!(f, "udp://{address}"),
            Self::Tls(address, name) => write!(f, "tls://{address}#{name}"),
            Self::Auto(address) => write!(f, "auto://{address}"),
            Self::Named(scheme, name, port) => write!(f, "{scheme}://{name}:{port}"),
            Self::System => f.write_str("system"),
        }
    }
}

impl Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Auto => "auto",
        })
    }
}

impl Display for ServerPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeastLoaded => "least_loaded",
            Self::Random => "random",
            Self::RoundRobin => "round_robin",
            Self::Sequential => "sequential",
        })
    }
}

impl Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

fn list<T: Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn count(number: usize, what: &str) -> String {
    match (number, what) {
        (1, _) => format!("1 {what}"),
        (_, "query") => format!("{number} queries"),
        (_, "static address") => format!("{number} static addresses"),
        _ => format!("{number} {what}s"),
    }
}

fn spoken(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(duration)
}

fn network(network: &Network, out: &mut String) -> fmt::Result {
    let Mark { intercept, own, mask } = network.mark;
    if let Some(link) = &network.address_on {
        let end = if network.keep_address { "leaves them there" } else { "takes away what it has added" };
        writeln!(out, "holds its addresses on the link {link}, and {end} at the end")?;
    }
    if network.notrack {
        writeln!(out, "exempts its clients' queries and their answers from connection tracking")?;
    }
    if !network.intercept.is_empty() {
        let addresses = list(&network.intercept);
        writeln!(
            out,
            "answers for the ClusterIPs {addresses} while it can, by the mark {intercept:#x}/{mask:#x}"
        )?;
    }
    if network.accept_untracked {
        writeln!(out, "has firewalls let in queries that are not tracked")?;
    }
    if network.upstream_notrack {
        writeln!(
            out,
            "exempts queries to upstreams from connection tracking, by the mark {own:#x}/{mask:#x}"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::file::parse;
    use super::*;

    #[test]
    fn default_is_described_line_by_line() {
        let config = Config { workers: 2, ..Config::default() };
        let expected = "\
listens on 169.254.20.10:53 by UDP and TCP
answers this node's pods, and private sources on other addresses
2 workers, UDP replies of up to 1232 bytes
caches up to 16.0 MiB for all zones, address records rotated
zone .: asks system, within 4s
  keeps answers 0s to 1h, negative ones up to 30s, failures 1s (SERVFAIL 1s to 10s)
  answers stale for 1h past expiry, after 1s 800ms without a fresh answer
  refreshes ahead what was asked 2 times in the last 10% of its life
admits 1024 TCP clients (64 per address, 64 queries each, 10s idle), 4096 questions upstream with 32768 waiting
serves metrics and health on http://127.0.0.1:9253, control on /run/nodens/control.sock
reads this file again when the file changes and on SIGHUP
logs JSON, info and more severe
";
        assert_eq!(describe(&config), expected);
    }

    #[test]
    fn what_was_chosen_is_said() {
        let text = r#"
listen: ["127.0.0.1:5353", "[::1]:5353"]
allow_from: [10.0.0.0/8, fd00::/8]
workers: 1
reload: signal
cache: { rotate: false }
zones:
  - match: [cluster.local, in-addr.arpa]
    upstream: { servers: ["tcp://10.96.0.10", "udp://[fd00::a]:5353"], policy: random }
    cache: { stale: { mode: immediate }, prefetch: off }
  - match: [internal]
    upstream: { servers: ["udp://10.0.0.2"], mixed_case: true }
    cache: { stale: off }
  - match: [example]
    upstream: { servers: ["tls://9.9.9.9#dns.quad9.net"], ca: /etc/ca.pem, hedge: off }
  - match: [svc]
    upstream: { servers: ["tcp://dns.svc"], bootstrap: ["udp://10.96.0.10"], hedge: { budget: 2% } }
network:
  address_on: nodelocaldns
  keep_address: false
  notrack: true
  accept_untracked: true
  intercept: [10.96.0.10, "fd00:96::a"]
  upstream_notrack: true
  mark: { intercept: 0x3500, own: 0x3600, mask: 0xff00 }
hosts: { records: { "10.0.0.7": [a.internal, b.internal] } }
log: { format: text, level: debug }
"#;
        let description = describe(&parse(text, "test.yaml").expect("a valid config"));
        for line in [
            "listens on 127.0.0.1:5353, [::1]:5353 by UDP and TCP",
            "answers sources in 10.0.0.0/8, fd00::/8",
            "1 worker, UDP replies of up to 1232 bytes",
            "caches up to 16.0 MiB for all zones, address records in the order of the upstream",
            "zone cluster.local., in-addr.arpa.: asks tcp://10.96.0.10:53, udp://[fd00::a]:5353, random, within 4s, \
             over 1 to 16 connections each with up to 16 queries, a second query for up to 5% of them (128 in a burst)",
            "  answers stale for 1h past expiry, at once",
            "  never refreshes ahead",
            "zone internal.: asks udp://10.0.0.2:53, within 4s, by UDP in mixed case",
            "  never answers stale",
            "zone example.: asks tls://9.9.9.9:853#dns.quad9.net, within 4s, over 1 to 16 connections each with up to \
             16 queries, never a second query for a late answer, certificates by the authorities in /etc/ca.pem",
            "zone svc.: asks tcp://dns.svc.:53, within 4s, names resolved by udp://10.96.0.10:53, over 1 to 16 \
             connections each with up to 16 queries, a second query for up to 2% of them (128 in a burst)",
            "holds its addresses on the link nodelocaldns, and takes away what it has added at the end",
            "exempts its clients' queries and their answers from connection tracking",
            "answers for the ClusterIPs 10.96.0.10, fd00:96::a while it can, by the mark 0x3500/0xff00",
            "has firewalls let in queries that are not tracked",
            "exempts queries to upstreams from connection tracking, by the mark 0x3600/0xff00",
            "names in no zone are refused",
            "answers 2 names of 1 static address itself, TTL 30s",
            "reads this file again on SIGHUP",
            "logs text, debug and more severe",
        ] {
            assert!(description.lines().any(|found| found == line), "{line:?} is not in\n{description}");
        }
    }
}
