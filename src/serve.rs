//! Listeners: how packets come in and answers go out. What the answer is, [`crate::resolve`] decides.

mod clients;
pub mod socket;
pub mod tcp;
pub mod udp;

use std::net::IpAddr;

pub use clients::BUFFERED;

use crate::config::AllowFrom;
use socket::Place;

/// Whether `peer` may ask at this place. By default everybody may where only this node's pods can reach it and at
/// ClusterIPs, which the cluster's own rules keep from strangers, and private addresses may elsewhere.
pub fn is_allowed(rule: &AllowFrom, place: Place, peer: IpAddr) -> bool {
    let peer = peer.to_canonical();
    match rule {
        AllowFrom::Prefixes(prefixes) => prefixes.iter().any(|prefix| prefix.contains(&peer)),
        AllowFrom::Auto => place.intercepted || is_node_local(place.addr.ip()) || is_private(peer),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    #[test]
    fn by_default_strangers_get_answers_only_where_pods_alone_can_ask() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let at = |text: &str| Place { addr: SocketAddr::new(ip(text), 53), intercepted: false };
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
            assert_eq!(is_allowed(&AllowFrom::Auto, at(listen), ip(peer)), allowed, "{peer} at {listen}");
        }
        let cluster_ip = Place { intercepted: true, ..at("203.0.113.10") };
        assert!(is_allowed(&AllowFrom::Auto, cluster_ip, ip("2001:db8::1")));
        let only = AllowFrom::Prefixes(vec!["10.244.0.0/16".parse().unwrap()]);
        assert!(is_allowed(&only, at("127.0.0.1"), ip("10.244.3.4")));
        assert!(is_allowed(&only, at("::1"), ip("::ffff:10.244.3.4")));
        assert!(!is_allowed(&only, at("127.0.0.1"), ip("127.0.0.1")));
        assert!(!is_allowed(&only, cluster_ip, ip("127.0.0.1")));
    }
}
