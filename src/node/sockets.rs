//! Who else listens where we do, as /proc shows it (proc(5), proc_pid_net(5)).

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Whether a process beside this one has a socket bound to this address and port, by UDP or listening by TCP. Where that
/// cannot be known it is taken for granted.
pub fn others_listen(at: SocketAddr) -> bool {
    others_have([(Family::of(at), written(at))].into_iter())
}

/// As [`others_listen`]; also by a socket that is bound to the port at all addresses.
pub fn others_are_reached(at: SocketAddr) -> bool {
    others_have(every(at))
}

/// The address, and all addresses by which it is reached.
fn every(at: SocketAddr) -> impl Iterator<Item = (Family, String)> {
    let all = |ip: IpAddr| SocketAddr::new(ip, at.port());
    let v4 = at.is_ipv4().then(|| all(Ipv4Addr::UNSPECIFIED.into()));
    // One of IPv6 has IPv4 as well, unless it says otherwise, which cannot be seen.
    let all = [Some(at), v4, Some(all(Ipv6Addr::UNSPECIFIED.into()))];
    all.into_iter().flatten().map(|at| (Family::of(at), written(at)))
}

#[derive(Debug, Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(at: SocketAddr) -> Self {
        if at.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn files(self) -> [&'static str; 2] {
        match self {
            Self::V4 => ["/proc/self/net/udp", "/proc/self/net/tcp"],
            Self::V6 => ["/proc/self/net/udp6", "/proc/self/net/tcp6"],
        }
    }
}

fn others_have(mut places: impl Iterator<Item = (Family, String)>) -> bool {
    let Some(own) = own_sockets() else { return true };
    places.any(|(family, wanted)| {
        family.files().into_iter().any(|file| match fs::read_to_string(file) {
            Ok(text) => bound(&text, &wanted).any(|inode| !own.contains(&inode)),
            // Without IPv6 nobody listens by it.
            Err(error) => error.kind() != ErrorKind::NotFound,
        })
    })
}

/// The inodes of this process's sockets.
fn own_sockets() -> Option<BTreeSet<u64>> {
    let descriptors = fs::read_dir("/proc/self/fd").ok()?;
    let targets = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let inode = |target: std::path::PathBuf| {
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    Some(targets.filter_map(inode).collect())
}

/// Unconnected sockets at the address: those that wait for whoever comes.
fn bound<'a>(text: &'a str, at: &'a str) -> impl Iterator<Item = u64> + 'a {
    text.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, remote) = (words.next()?, words.next()?);
        let waits = local == at && remote.ends_with(":0000");
        // Behind both: state, queues, timer, retransmits, user, timeout.
        if waits { words.nth(6)?.parse().ok() } else { None }
    })
}

/// An address as the kernel writes it there: 32-bit words in the machine's byte order, and the port.
fn written(at: SocketAddr) -> String {
    let octets = match at.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let word = |bytes: &[u8]| {
        let word = bytes.first_chunk().copied().map_or(0, u32::from_ne_bytes);
        format!("{word:08X}")
    };
    let words: String = octets.chunks(4).map(word).collect();
    format!("{words}:{:04X}", at.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn our_own_sockets_are_not_others() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let udp = UdpSocket::bind(address).unwrap();
            let tcp = TcpListener::bind(udp.local_addr().unwrap());
            assert!(!others_listen(udp.local_addr().unwrap()));
            drop(tcp);
        }
    }

    /// Whoever is bound to all addresses would lose one of them as well.
    #[test]
    fn a_socket_for_all_addresses_is_reached_at_each() {
        let port = |text: &str| text.parse::<SocketAddr>().unwrap().port();
        let files = |name: &str| fs::read_to_string(format!("/proc/self/net/{name}")).unwrap();
        for (address, at) in [("0.0.0.0:0", "127.0.0.9"), ("[::]:0", "127.0.0.9"), ("[::]:0", "::1")] {
            let udp = UdpSocket::bind(address).unwrap();
            let at = SocketAddr::new(at.parse().unwrap(), port(&udp.local_addr().unwrap().to_string()));
            let found = every(at).any(|(family, wanted)| {
                let name = family.files()[0].rsplit('/').next().unwrap();
                bound(&files(name), &wanted).any(|inode| own_sockets().unwrap().contains(&inode))
            });
            assert!(found, "{address} {at}");
            assert!(!others_are_reached(at), "our own");
            let exact =
                bound(&files("udp"), &written(at)).count() + bound(&files("udp6"), &written(at)).count();
            assert_eq!(exact, 0);
        }
    }

    #[test]
    fn every_kind_of_socket_is_found_and_connections_are_not() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (table, of) = if address.starts_with('1') { ("", 4) } else { ("6", 6) };
            let udp = UdpSocket::bind(address).unwrap();
            let tcp = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
            let found = |file: &str, at: SocketAddr| {
                let text = fs::read_to_string(format!("/proc/self/net/{file}{table}")).unwrap();
                bound(&text, &written(at)).collect::<Vec<_>>()
            };
            let own = own_sockets().unwrap();
            for inodes in [found("udp", udp.local_addr().unwrap()), found("tcp", tcp.local_addr().unwrap())] {
                assert!(inodes.len() == 1 && own.contains(&inodes[0]), "IPv{of}: {inodes:?}");
            }
            assert!(found("tcp", client.local_addr().unwrap()).is_empty(), "IPv{of}");
        }
    }
}
