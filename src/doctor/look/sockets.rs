//! Sockets that wait for queries: `/proc/net/{udp,tcp}{,6}`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::doctor::finding::Seen;
use crate::doctor::sources::Sources;

/// By which protocol a socket is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// Datagrams.
    Udp,
    /// Streams.
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        })
    }
}

/// A socket that takes what comes to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Its protocol.
    pub protocol: Protocol,
    /// Where; the unspecified address is every one.
    pub addr: SocketAddr,
    /// What `/proc/PID/fd` calls it.
    pub inode: u64,
    /// Datagrams lost because its buffer was full.
    pub drops: u64,
}

impl Bound {
    /// Whether it would take, or keep others from taking, what comes to this address. A socket of `[::]` may be one
    /// for IPv4 as well; the kernel does not say.
    pub fn covers(&self, addr: SocketAddr) -> bool {
        let any = self.addr.ip().is_unspecified() && (self.addr.is_ipv6() || addr.is_ipv4());
        self.addr.port() == addr.port() && (self.addr.ip() == addr.ip() || any)
    }
}

/// All of them.
///
/// # Errors
/// Why they cannot be seen.
pub fn bound(sources: &Sources) -> Seen<Vec<Bound>> {
    let mut all = Vec::new();
    for (file, protocol) in [("udp", Protocol::Udp), ("tcp", Protocol::Tcp)] {
        let text = sources.read(format!("/proc/self/net/{file}"))?;
        all.extend(text.lines().filter_map(|line| parse(line, protocol)));
        // A kernel without IPv6 has no such file.
        let text = sources.read_if_there(format!("/proc/self/net/{file}6"))?.unwrap_or_default();
        all.extend(text.lines().filter_map(|line| parse(line, protocol)));
    }
    Ok(all)
}

/// Of `enum tcp_state` (net/tcp_states.h): a TCP listener, and a UDP socket that has no peer.
const LISTEN: &str = "0A";
const CLOSE: &str = "07";

/// One line; `None` for the head and for sockets that have a peer.
fn parse(line: &str, protocol: Protocol) -> Option<Bound> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let state = *words.get(3)?;
    let waits = match protocol {
        Protocol::Udp => state == CLOSE,
        Protocol::Tcp => state == LISTEN,
    };
    if !waits {
        return None;
    }
    let drops = match protocol {
        Protocol::Udp => words.get(12).and_then(|drops| drops.parse().ok()).unwrap_or(0),
        Protocol::Tcp => 0,
    };
    Some(Bound { protocol, addr: address(words.get(1)?)?, inode: words.get(9)?.parse().ok()?, drops })
}

/// An address as the kernel writes it: words of 32 bits in the machine's byte order, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Vec<[u8; 4]> = (0..address.len() / 8)
        .map(|at| u32::from_str_radix(address.get(8 * at..8 * at + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<_>>()?;
    let ip = match words.as_slice() {
        [word] => IpAddr::V4(Ipv4Addr::from(*word)),
        [..] if words.len() == 4 => {
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    #[test]
    #[cfg(target_endian = "little")]
    fn sockets_that_wait_are_read_and_those_with_a_peer_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let net = dir.path().join("proc/self/net");
        fs::create_dir_all(&net).unwrap();
        let udp = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops            \n\
                   12: 0A14FEA9:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 17        \n\
                   13: 0100007F:9C40 0A14FEA9:0035 01 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 0         \n";
        let tcp6 = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                    0: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0 100\n\
                    1: 000000FD0000000000000000 0A\n";
        fs::write(net.join("udp"), udp).unwrap();
        fs::write(net.join("tcp"), "").unwrap();
        fs::write(net.join("tcp6"), tcp6).unwrap();
        let sources = Sources { root: dir.path().to_owned(), kubelet: PathBuf::new() };
        let all = bound(&sources).unwrap();
        let listen = "169.254.20.10:53".parse().unwrap();
        assert_eq!(all.len(), 2, "{all:?}");
        assert_eq!(all[0], Bound { protocol: Protocol::Udp, addr: listen, inode: 4711, drops: 17 });
        assert_eq!(all[1].addr, "[::]:53".parse().unwrap());
        assert!(all.iter().all(|socket| socket.covers(listen)));
    }

    #[test]
    fn a_wildcard_covers_its_own_family_and_that_of_ipv6_both() {
        let covers = |holder: &str, addr: &str| {
            let addr_of_holder = holder.parse().unwrap();
            Bound { protocol: Protocol::Tcp, addr: addr_of_holder, inode: 1, drops: 0 }
                .covers(addr.parse().unwrap())
        };
        assert!(covers("0.0.0.0:53", "169.254.20.10:53"));
        assert!(covers("[::]:53", "169.254.20.10:53"));
        assert!(!covers("0.0.0.0:53", "[fd00::a]:53"));
        assert!(!covers("0.0.0.0:5353", "169.254.20.10:53"));
        assert!(!covers("127.0.0.53:53", "169.254.20.10:53"));
    }
}
