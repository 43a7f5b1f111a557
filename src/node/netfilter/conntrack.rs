//! What connection tracking holds, counted while the kernel lists it; no entry is kept.

use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;

use super::super::netlink::{Attributes, Listed, Packet};
use super::table::open;
use super::{FAMILY, Refusal, family};

// linux/netfilter/nfnetlink_conntrack.h, which has no place in the libc crate.
const GET: i32 = 1;
const TUPLE_ORIG: u16 = 1;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_DST: u16 = 2;
const IP_V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_DST_PORT: u16 = 3;

/// Entries that are looked at. A kernel holds up to some 100 times 65,536 by its defaults on the largest machines.
const LOOKED_AT: usize = 8_000_000;
/// RFC 1035 §4.2
const DNS: u16 = 53;

/// Entries of connection tracking by the packet that made them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tracked {
    /// All of them.
    pub entries: usize,
    /// To port 53 by UDP.
    pub dns_udp: usize,
    /// To port 53 by TCP.
    pub dns_tcp: usize,
    /// To port 53 of each address that was asked about, by UDP and TCP.
    pub dns_to: Vec<(IpAddr, usize)>,
    /// There are more than were looked at.
    pub cut: bool,
}

/// Counts the entries of this network namespace, and those for DNS that lead to these addresses.
///
/// # Errors
/// [`Refusal`]
pub fn conntrack(addresses: &[IpAddr]) -> Result<Tracked, Refusal> {
    let socket = open()?;
    let mut packet = Packet::default();
    let kind = (libc::NFNL_SUBSYS_CTNETLINK << 8 | GET) as u16;
    let every = family(libc::AF_UNSPEC, 0);
    packet.message(kind, libc::NLM_F_DUMP as u16, 1, |packet| packet.raw(&every));
    let mut tracked = Tracked::of(addresses);
    // The list is read while it changes; a share of it is as good then as before.
    let listed = socket.list(&packet, LOOKED_AT, &mut |body| {
        tracked.count(Attributes::behind(FAMILY, body));
        ControlFlow::Continue(())
    });
    match listed {
        Ok(listed) => tracked.cut = listed == Listed::Cut,
        Err(error) => return Err(explain(error)),
    }
    Ok(tracked)
}

impl Tracked {
    fn of(addresses: &[IpAddr]) -> Self {
        Self { dns_to: addresses.iter().map(|&address| (address, 0)).collect(), ..Self::default() }
    }

    fn count(&mut self, entry: Attributes<'_>) {
        self.entries += 1;
        let tuple = entry.nested(TUPLE_ORIG);
        let (ip, transport) = (tuple.nested(TUPLE_IP), tuple.nested(TUPLE_PROTO));
        let port = transport.find(PROTO_DST_PORT).and_then(|bytes| bytes.first_chunk());
        if port.is_none_or(|port| u16::from_be_bytes(*port) != DNS) {
            return;
        }
        let protocol = transport.find(PROTO_NUM).and_then(|bytes| bytes.first());
        match protocol.map(|&number| i32::from(number)) {
            Some(libc::IPPROTO_UDP) => self.dns_udp += 1,
            Some(libc::IPPROTO_TCP) => self.dns_tcp += 1,
            _ => return,
        }
        let v4 = ip.find(IP_V4_DST).and_then(|bytes| bytes.first_chunk::<4>()).map(|bytes| (*bytes).into());
        let v6 =
            || ip.find(IP_V6_DST).and_then(|bytes| bytes.first_chunk::<16>()).map(|bytes| (*bytes).into());
        let to: Option<IpAddr> = v4.or_else(v6);
        for (_, count) in self.dns_to.iter_mut().filter(|(address, _)| Some(*address) == to) {
            *count += 1;
        }
    }
}

fn explain(error: io::Error) -> Refusal {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Refusal::Capability,
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT) => Refusal::NoConntrackList,
        _ => Refusal::Other("a list of tracked connections".to_owned(), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(to: IpAddr, protocol: i32, port: u16) -> Packet {
        let mut packet = Packet::default();
        packet.nest(TUPLE_ORIG, |tuple| {
            tuple.nest(TUPLE_IP, |ip| match to {
                IpAddr::V4(to) => ip.attribute(IP_V4_DST, &to.octets()),
                IpAddr::V6(to) => ip.attribute(IP_V6_DST, &to.octets()),
            });
            tuple.nest(TUPLE_PROTO, |transport| {
                transport.attribute(PROTO_NUM, &[protocol as u8]);
                transport.attribute(PROTO_DST_PORT, &port.to_be_bytes());
            });
        });
        packet
    }

    #[test]
    fn entries_are_counted_by_where_their_first_packet_went() {
        let addresses = ["10.96.0.10", "fd00:96::10"].map(|text| text.parse().unwrap());
        let other = "10.0.0.1".parse().unwrap();
        let mut tracked = Tracked::of(&addresses);
        for (to, protocol, port) in [
            (addresses[0], libc::IPPROTO_UDP, 53),
            (addresses[0], libc::IPPROTO_TCP, 53),
            (addresses[1], libc::IPPROTO_TCP, 53),
            (addresses[1], libc::IPPROTO_TCP, 443),
            (other, libc::IPPROTO_UDP, 53),
            (other, libc::IPPROTO_SCTP, 53),
        ] {
            tracked.count(Attributes::behind(0, entry(to, protocol, port).bytes()));
        }
        let dns_to = vec![(addresses[0], 2), (addresses[1], 1)];
        assert_eq!(tracked, Tracked { entries: 6, dns_udp: 2, dns_tcp: 2, dns_to, cut: false });
    }

    #[test]
    fn a_broken_entry_is_an_entry_and_nothing_more() {
        let whole = entry("10.96.0.10".parse().unwrap(), libc::IPPROTO_UDP, 53);
        let mut tracked = Tracked::of(&[]);
        for cut in 0..whole.bytes().len() {
            tracked.count(Attributes::behind(0, &whole.bytes()[..cut]));
        }
        assert_eq!((tracked.entries, tracked.dns_udp), (whole.bytes().len(), 0));
    }
}
