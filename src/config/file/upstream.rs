//! Who is asked on a miss, and how.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::problem::{Fault, shown};
use super::raw;
use super::reader::{Item, Reader};
use super::zone::{filled, refuse_pair, section};
use super::{server, value};
use crate::config::{Connections, Hedge, Server, ServerPolicy, Upstream};

/// A stub resolver gives up long before 30 s (resolv.conf(5): `timeout` is capped there).
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(30);

/// Ours: one node asking one server over more connections than this takes the server from the others.
const CONNECTIONS: RangeInclusive<usize> = 1..=1024;

/// Connections that are kept open may be none.
const KEPT_CONNECTIONS: RangeInclusive<usize> = 0..=1024;

/// Ours: what a server will read ahead of its answers; far below the 65536 message IDs of one connection.
const IN_FLIGHT: RangeInclusive<usize> = 1..=1024;

/// A connection's idle time and age: a day is as good as for ever.
const CONNECTION_TIME: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(24 * 3600);

/// None at all is `hedge: off`. A question has at most two queries out at a time, so more than one second query
/// for each could not be spent. 5 % is what a second query for the slowest twentieth costs (Dean and Barroso, The
/// Tail at Scale, CACM 56(2), 2013).
const HEDGE_BUDGET: RangeInclusive<u8> = 1..=100;

/// Below 1 nothing could be asked again; above, more than the message IDs of a connection (RFC 1035 §4.1.1).
const HEDGE_BURST: RangeInclusive<u32> = 1..=65_536;

/// The servers of a zone that begins in `line`. `listen` are our own addresses, which no zone may ask.
pub(super) fn upstream(
    key: &str,
    raw: &raw::Upstream,
    line: u64,
    listen: &[SocketAddr],
    reader: &mut Reader<'_>,
) -> Upstream {
    let (servers, bootstrap) = servers(key, raw, line, listen, reader);
    let default = Upstream::new(servers);
    Upstream {
        connections: connections(&format!("{key}.connections"), &raw.connections, reader),
        policy: reader.value(&format!("{key}.policy"), &raw.policy, default.policy, |text| {
            value::word(
                text,
                &[
                    ("least_loaded", ServerPolicy::LeastLoaded),
                    ("random", ServerPolicy::Random),
                    ("round_robin", ServerPolicy::RoundRobin),
                    ("sequential", ServerPolicy::Sequential),
                ],
            )
        }),
        timeout: reader.value(&format!("{key}.timeout"), &raw.timeout, default.timeout, |text| {
            value::duration(text, &TIMEOUT)
        }),
        hedge: section(&format!("{key}.hedge"), &raw.hedge, default.hedge, reader, hedge),
        ca: reader.value(&format!("{key}.ca"), &raw.ca, default.ca, |text| match text {
            "system" => Ok(None),
            path if path.starts_with('/') && !path.contains('\0') => Ok(Some(PathBuf::from(path))),
            other => Err(Fault::new(
                format!("{} is neither system nor an absolute path", shown(other)),
                "write system, or a PEM file such as /etc/nodens/ca.pem",
            )),
        }),
        mixed_case: reader.value(
            &format!("{key}.mixed_case"),
            &raw.mixed_case,
            default.mixed_case,
            value::flag,
        ),
        servers: default.servers,
        bootstrap,
    }
}

/// Who is asked, and who resolves those of them that are given by name.
fn servers(
    key: &str,
    raw: &raw::Upstream,
    line: u64,
    listen: &[SocketAddr],
    reader: &mut Reader<'_>,
) -> (Vec<Server>, Vec<Server>) {
    let servers_key = format!("{key}.servers");
    let servers = filled(&servers_key, &raw.servers, line, "[\"tcp://10.96.0.10\"] or [system]", reader);
    let servers = reader.items(&servers_key, servers, server::server);
    let bootstrap = raw.bootstrap.0.as_ref().map_or([].as_slice(), |items| items.value.as_slice());
    let is_written = !bootstrap.is_empty();
    let bootstrap = reader.items(&format!("{key}.bootstrap"), bootstrap, server::bootstrap);
    for items in [&servers, &bootstrap] {
        reader.refuse_repeats(items, PartialEq::eq);
        refuse_loops(items, listen, reader);
    }
    for item in &servers {
        if let Server::Named(_, name, _) = &item.value
            && !is_written
        {
            let what = format!("nobody is named who resolves {name}");
            let fix = format!("write {key}.bootstrap, such as [\"tcp://10.96.0.10\"]");
            reader.refuse(&item.key, item.line, Fault::new(what, fix));
        }
    }
    let values = |items: Vec<Item<Server>>| items.into_iter().map(|item| item.value).collect();
    (values(servers), values(bootstrap))
}

/// A query to ourselves would come back as a miss and go round until its deadline.
fn refuse_loops(servers: &[Item<Server>], listen: &[SocketAddr], reader: &mut Reader<'_>) {
    for item in servers {
        if let Server::Tcp(address) | Server::Udp(address) | Server::Tls(address, _) | Server::Auto(address) =
            &item.value
            && listen.contains(address)
        {
            let what = format!("{address} is one of our own listen addresses, a loop");
            reader.refuse(&item.key, item.line, Fault::new(what, "name the cluster's DNS service"));
        }
    }
}

fn hedge(key: &str, raw: &raw::Hedge, default: Option<Hedge>, reader: &mut Reader<'_>) -> Option<Hedge> {
    let default = default?;
    Some(Hedge {
        budget: reader.value(&format!("{key}.budget"), &raw.budget, default.budget, |text| {
            value::percent(text, &HEDGE_BUDGET)
        }),
        burst: reader.value(&format!("{key}.burst"), &raw.burst, default.burst, |text| {
            value::number(text, &HEDGE_BURST)
        }),
    })
}

fn connections(key: &str, raw: &raw::Connections, reader: &mut Reader<'_>) -> Connections {
    let default = Connections::default();
    let time = |text: &str| value::duration(text, &CONNECTION_TIME);
    let connections = Connections {
        min: reader.value(&format!("{key}.min"), &raw.min, default.min, |text| {
            value::number(text, &KEPT_CONNECTIONS)
        }),
        max: reader
            .value(&format!("{key}.max"), &raw.max, default.max, |text| value::number(text, &CONNECTIONS)),
        in_flight: reader.value(&format!("{key}.in_flight"), &raw.in_flight, default.in_flight, |text| {
            value::number(text, &IN_FLIGHT)
        }),
        idle: reader.value(&format!("{key}.idle"), &raw.idle, default.idle, time),
        max_age: reader.value(&format!("{key}.max_age"), &raw.max_age, default.max_age, time),
    };
    let Connections { min, max, .. } = connections;
    if min > max {
        let (what, fix) =
            (format!("{min} is more than max, {max}"), format!("write at most {max}, or raise max"));
        refuse_pair(key, ("min", &raw.min), ("max", &raw.max), Fault::new(what, fix), reader);
    }
    connections
}
