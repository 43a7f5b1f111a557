//! Listeners: how packets come in and answers go out. What the answer is, [`crate::resolve`] decides.

mod clients;
pub mod socket;
pub mod tcp;
pub mod udp;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::AllowFrom;

/// Whether `peer` may ask at the address `listen`. By default everybody may where only this
/// node's pods can reach it, and private addresses may elsewhere.
pub fn is_allowed(rule: &AllowFrom, listen: IpAddr, peer: IpAddr) -> bool {
    let peer = peer.to_canonical();
    match rule {
        AllowFrom::Prefixes(prefixes) => prefixes.iter().any(|prefix| prefix.contains(&peer)),
        AllowFrom::Auto => is_node_local(listen) || is_private(peer),
    }
}

fn is_node_local(listen: IpAddr) -> bool {
    match listen {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// RFC 1918, RFC 6598 (100.64/10) and RFC 4193 (fc00::/7), and the node itself.
fn is_private(peer: IpAddr) -> bool {
    match peer {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || v4.is_loopback() || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback(),
    }
}

/// A thread's sign of life.
#[derive(Debug)]
pub struct Pulse {
    started: Instant,
    beat_ms: AtomicU64,
}

impl Pulse {
    /// Beats for the first time now.
    pub fn new() -> Self {
        Self { started: Instant::now(), beat_ms: AtomicU64::new(0) }
    }

    /// Beats.
    pub fn beat(&self, now: Instant) {
        let since = now.saturating_duration_since(self.started);
        self.beat_ms.store(since.as_millis() as u64, Ordering::Relaxed);
    }

    /// Time since the last beat.
    pub fn silence(&self) -> Duration {
        let beat = Duration::from_millis(self.beat_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(beat)
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_default_strangers_get_answers_only_where_pods_alone_can_ask() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (listen, peer, allowed) in [
            ("169.254.20.10", "203.0.113.9", true),
            ("127.0.0.1", "203.0.113.9", true),
            ("fd00::10", "2001:db8::1", true),
            ("192.0.2.1", "203.0.113.9", false),
            ("192.0.2.1", "10.1.2.3", true),
            ("192.0.2.1", "100.64.0.1", true),
            ("192.0.2.1", "100.128.0.1", false),
            ("192.0.2.1", "172.16.0.1", true),
            ("2001:db8::53", "2001:db8::1", false),
            ("2001:db8::53", "fd12::1", true),
        ] {
            assert_eq!(is_allowed(&AllowFrom::Auto, ip(listen), ip(peer)), allowed, "{peer} at {listen}");
        }
        let only = AllowFrom::Prefixes(vec!["10.244.0.0/16".parse().unwrap()]);
        assert!(is_allowed(&only, ip("127.0.0.1"), ip("10.244.3.4")));
        assert!(is_allowed(&only, ip("::1"), ip("::ffff:10.244.3.4")));
        assert!(!is_allowed(&only, ip("127.0.0.1"), ip("127.0.0.1")));
    }
}
