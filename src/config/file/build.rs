//! From the keys as written to a [`Config`], key by key in the order of `config/reference.yaml`.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::problem::{Fault, shown};
use super::raw::{self, Key, Text, WordOr};
use super::reader::{Item, Reader};
use super::{network, value, zone};
use crate::config::{
    AllowFrom, Cache, Config, Hosts, Keep, KeepCache, Limits, Log, LogFormat, LogLevel, Reload,
};

/// More UDP threads than this are a slip: the kernel spreads clients over them by a hash of their addresses.
const WORKERS: RangeInclusive<usize> = 1..=64;

/// RFC 1035 §4.2.1 gives every client 512 bytes; above 4096, the size of most buffers, nothing is gained.
const EDNS_SIZE: RangeInclusive<u16> = 512..=4096;

/// 1 MiB holds some thousand answers. 64 GiB is more than a node could fill, and so a slip of the unit.
const CACHE_SIZE: RangeInclusive<u64> = 1024 * 1024..=64 * 1024 * 1024 * 1024;

/// Sockets and what stands for one: a process cannot have more of them (Linux, `fs.nr_open`).
const LIMIT: RangeInclusive<usize> = 1..=1_048_576;

/// RFC 7766 §6.2.3 asks for seconds and leaves the rest to servers; a day is as good as for ever.
const TCP_IDLE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(24 * 3600);

/// A child is asked once a second; who takes longer than ten minutes is not replaced but forgotten.
const WATCHDOG: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(600);

/// The kernel's own bounds: SOCK_MIN_RCVBUF is about 2 KiB, and twice the value must be an int (net/core/sock.c).
const RECEIVE_BUFFER: RangeInclusive<u64> = 4096..=1 << 30;

/// What `raw` means. Values that are wrong are told to `reader` and stand at their defaults.
pub(super) fn config(raw: &raw::File, reader: &mut Reader<'_>) -> Config {
    let default = Config::default();
    let listen = listen(&raw.listen, &default.listen, reader);
    let admin = admin(&raw.admin, default.admin, &listen, reader);
    let listen: Vec<SocketAddr> = listen.into_iter().map(|item| item.value).collect();
    let config = Config {
        allow_from: allow_from(&raw.allow_from, reader),
        admin,
        control: reader.value("control", &raw.control, default.control, value::socket_path),
        workers: reader.value("workers", &raw.workers, default.workers, |text| value::number(text, &WORKERS)),
        reload: reader.value("reload", &raw.reload, default.reload, |text| {
            value::word(text, &[("auto", Reload::Auto), ("signal", Reload::Signal)])
        }),
        edns_size: reader
            .value("edns_size", &raw.edns_size, default.edns_size, |text| value::number(text, &EDNS_SIZE)),
        cache: cache(&raw.cache, reader),
        zones: zone::zones(&raw.zones, &listen, reader).unwrap_or(default.zones),
        hosts: hosts(&raw.hosts, reader),
        network: network::network(&raw.network, &listen, reader),
        keep: keep(&raw.keep, reader),
        limits: limits(&raw.limits, reader),
        log: log(&raw.log, reader),
        listen,
    };
    reader.only("coredns_names", &raw.coredns_names, false, value::flag);
    config
}

/// The addresses as written, or the default ones, which stand in no line.
fn listen(raw: &Key<Vec<Text>>, default: &[SocketAddr], reader: &mut Reader<'_>) -> Vec<Item<SocketAddr>> {
    let Some(items) = &raw.0 else {
        let item = |address: &SocketAddr| Item { key: "listen".to_owned(), line: 0, value: *address };
        return default.iter().map(item).collect();
    };
    if items.value.is_empty() {
        let fault = Fault::new("is empty", "name at least one address, such as 169.254.20.10:53");
        reader.refuse("listen", items.referenced.line(), fault);
    }
    let addresses = reader.items("listen", &items.value, value::listen_address);
    // Port 0 is another port each time.
    reader.refuse_repeats(&addresses, |one, other| one == other && one.port() != 0);
    addresses
}

fn allow_from(raw: &Key<WordOr<Vec<Text>>>, reader: &mut Reader<'_>) -> AllowFrom {
    let Some(written) = &raw.0 else {
        return AllowFrom::Auto;
    };
    let line = written.referenced.line();
    match &written.value {
        WordOr::Word(word) if word == "auto" => AllowFrom::Auto,
        WordOr::Word(word) => {
            let what = format!("{} is neither auto nor a list", shown(word));
            reader.refuse("allow_from", line, Fault::new(what, "write auto or [10.0.0.0/8]"));
            AllowFrom::Auto
        }
        WordOr::Value(prefixes) => {
            if prefixes.is_empty() {
                let fault =
                    Fault::new("is empty, and nobody would be answered", "write auto or [10.0.0.0/8]");
                reader.refuse("allow_from", line, fault);
            }
            let prefixes = reader.items("allow_from", prefixes, value::prefix);
            AllowFrom::Prefixes(prefixes.into_iter().map(|item| item.value).collect())
        }
    }
}

fn admin(
    raw: &Key<String>,
    default: SocketAddr,
    listen: &[Item<SocketAddr>],
    reader: &mut Reader<'_>,
) -> SocketAddr {
    let admin = reader.value("admin", raw, default, value::address);
    if let Some(taken) = listen.iter().find(|item| is_same_socket(admin, item.value)) {
        match raw.line() {
            Some(line) => {
                let what = format!("{admin} takes the port of {}, {}", taken.key, taken.value);
                reader.refuse(
                    "admin",
                    line,
                    Fault::new(what, format!("write another port, such as {default}")),
                );
            }
            None => {
                let what = format!("{} is where admin listens unless it says otherwise", taken.value);
                reader.refuse(
                    &taken.key,
                    taken.line,
                    Fault::new(what, "write another port, or set admin as well"),
                );
            }
        }
    }
    admin
}

/// Whether both cannot be bound by TCP: `admin` may be a wildcard, which takes its port of every address.
fn is_same_socket(admin: SocketAddr, listen: SocketAddr) -> bool {
    let takes_all = match admin.ip() {
        IpAddr::V4(ip) => ip.is_unspecified() && listen.is_ipv4(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    admin.port() != 0 && admin.port() == listen.port() && (takes_all || admin.ip() == listen.ip())
}

fn cache(raw: &raw::Cache, reader: &mut Reader<'_>) -> Cache {
    let default = Cache::default();
    Cache {
        size: reader.value("cache.size", &raw.size, default.size, |text| value::size(text, &CACHE_SIZE)),
        rotate: reader.value("cache.rotate", &raw.rotate, default.rotate, value::flag),
    }
}

fn hosts(raw: &raw::Hosts, reader: &mut Reader<'_>) -> Hosts {
    let default = Hosts::default();
    let ttl = reader.value("hosts.ttl", &raw.ttl, default.ttl, |text| value::ttl(text, &zone::TTL));
    let mut records = Vec::new();
    for (address, names) in &raw.records.0 {
        let key = format!("hosts.records.{}", address.value.escape_debug());
        if names.value.is_empty() {
            let fault = Fault::new("has no name", "write a list of names, such as [db.example.internal]");
            reader.refuse(&key, names.referenced.line(), fault);
        }
        let parsed = reader.items(&key, &names.value, value::name);
        reader.refuse_repeats(&parsed, PartialEq::eq);
        let Some(ip) = reader.text(&key, address, value::ip) else {
            continue;
        };
        if records.iter().any(|(earlier, _)| *earlier == ip) {
            let fault = Fault::new(format!("repeats the address {ip}"), "put all its names into one list");
            reader.refuse(&key, address.referenced.line(), fault);
        }
        records.push((ip, parsed.into_iter().map(|item| item.value).collect()));
    }
    Hosts { ttl, records }
}

fn limits(raw: &raw::Limits, reader: &mut Reader<'_>) -> Limits {
    let default = Limits::default();
    let count = |text: &str| value::number(text, &LIMIT);
    Limits {
        tcp_connections: reader.value(
            "limits.tcp_connections",
            &raw.tcp_connections,
            default.tcp_connections,
            count,
        ),
        tcp_connections_per_address: reader.value(
            "limits.tcp_connections_per_address",
            &raw.tcp_connections_per_address,
            default.tcp_connections_per_address,
            count,
        ),
        tcp_in_flight: reader.value("limits.tcp_in_flight", &raw.tcp_in_flight, default.tcp_in_flight, count),
        tcp_idle: reader.value("limits.tcp_idle", &raw.tcp_idle, default.tcp_idle, |text| {
            value::duration(text, &TCP_IDLE)
        }),
        flights: reader.value("limits.flights", &raw.flights, default.flights, count),
        waiters: reader.value("limits.waiters", &raw.waiters, default.waiters, count),
    }
}

fn log(raw: &raw::Log, reader: &mut Reader<'_>) -> Log {
    let default = Log::default();
    reader.only("log.queries", &raw.queries, "off".to_owned(), |text| Ok(text.to_owned()));
    Log {
        format: reader.value("log.format", &raw.format, default.format, |text| {
            value::word(text, &[("json", LogFormat::Json), ("text", LogFormat::Text)])
        }),
        level: reader.value("log.level", &raw.level, default.level, |text| {
            value::word(
                text,
                &[
                    ("error", LogLevel::Error),
                    ("warn", LogLevel::Warn),
                    ("info", LogLevel::Info),
                    ("debug", LogLevel::Debug),
                    ("trace", LogLevel::Trace),
                ],
            )
        }),
    }
}

fn keep(raw: &raw::Keep, reader: &mut Reader<'_>) -> Keep {
    let default = Keep::default();
    let patience = |text: &str| value::duration(text, &WATCHDOG);
    let buffer = |text: &str| value::size(text, &RECEIVE_BUFFER).map(|size| size as usize);
    let cache = |text: &str| match text {
        "memory" => Ok(KeepCache::Memory),
        "off" => Ok(KeepCache::Off),
        path if path.starts_with('/') => Ok(KeepCache::Path(path.into())),
        _ => Err(Fault::new(
            format!("{} is no place for the cache", shown(text)),
            "write memory, off, or the path of a file such as /var/lib/nodens/cache",
        )),
    };
    Keep {
        handover: reader.value("keep.handover", &raw.handover, default.handover, value::socket_path),
        watchdog: reader.value("keep.watchdog", &raw.watchdog, default.watchdog, patience),
        receive_buffer: reader.value(
            "keep.receive_buffer",
            &raw.receive_buffer,
            default.receive_buffer,
            buffer,
        ),
        cache: reader.value("keep.cache", &raw.cache, default.cache, cache),
    }
}
