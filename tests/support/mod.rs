//! What the black-box tests share: servers, clients, the agent itself, and waiting.
//!
//! Everything lives in a temporary directory and dies with the value that started it. A program
//! that is not installed fails the test and names its Debian package; nothing is skipped.

mod agent;
mod http;
mod process;
mod servers;
mod tools;
mod upstream;
mod wire;

pub(crate) use agent::{Agent, Demo, Launch, nodens};
pub(crate) use http::Http;
pub(crate) use servers::{Nsd, Unbound};
pub(crate) use tools::{dig, dnsperf, kdig};
pub(crate) use upstream::reply::{address_reply, reply_code};
pub(crate) use upstream::steps::{Step, framed, framed_as, half, pieces};
pub(crate) use upstream::{Accept, Reaction, Transport, Upstream, edit};
pub(crate) use wire::{Tcp, ask, ask_tcp, ask_udp, datagram_reply, message, name, option, query, with_edns};

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Where the system's own client ports begin (`ip_local_port_range`). Ours lie below, so that no
/// client socket takes one between the look and the use.
const FIRST_CLIENT_PORT: u16 = 32_768;
/// Above the ports of well-known services.
const FIRST_PORT: u16 = 15_000;

/// A port that is free for UDP and TCP on every loopback address, and is handed out once.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = FIRST_CLIENT_PORT - FIRST_PORT;
    // Two test processes at once begin at different places.
    let start = (std::process::id().wrapping_mul(7919) % u32::from(span)) as u16;
    for _ in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST_PORT + (start + step % span) % span;
        let free = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
            && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        if free {
            return port;
        }
    }
    panic!("no free port between {FIRST_PORT} and {FIRST_CLIENT_PORT}");
}

/// Waits until `condition` holds, and fails with `what` when it does not within `limit`.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(crate) const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}
