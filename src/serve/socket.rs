//! Listening sockets and their options.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::sys;

/// A worker looks at its stop flag at least this often.
pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// Each direction of a TCP client in the kernel, which takes it twice for its own bookkeeping (socket(7)). The
/// kernel would let a client that does not read have megabytes (tcp(7), `tcp_wmem`), and cgroup v2 counts them as
/// the agent's memory: so a whole address, with 64 clients, has 4 MiB at the most.
const CLIENT_BUFFER: usize = 16 << 10;
/// TCP clients that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Where queries are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Address and port; port 0 lets the system choose.
    pub addr: SocketAddr,
    /// Whether no link of this machine holds the address: packets are led here by rules (ip(7), IP_TRANSPARENT,
    /// which needs CAP_NET_ADMIN).
    pub intercepted: bool,
}

/// The sockets of one place.
pub struct Listeners {
    /// One for each worker.
    pub udp: Vec<UdpSocket>,
    /// For the runtime, not blocking.
    pub tcp: TcpListener,
    /// The place, with the port that the system chose if it was 0.
    pub place: Place,
}

/// How sockets are opened.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// UDP sockets of a place, one for each worker.
    pub workers: usize,
    /// Receive buffer of each, bytes: datagrams that wait while a worker is busy, or is not there. The kernel's default of
    /// 208 KiB holds only 256 small ones.
    pub buffer: usize,
    /// Even before a link has the address (ip(7), IP_FREEBIND).
    pub early: bool,
}

/// Opens the sockets of a place: a UDP socket for each worker, and TCP on the same port. Nothing that others have there is
/// touched before all is bound: what came to a socket that closes again would be lost to them.
///
/// # Errors
/// The system's own, with the address.
pub fn open(place: Place, manner: Manner) -> io::Result<Listeners> {
    let addr = place.addr;
    let explain = |error: io::Error, what: &str| {
        io::Error::new(error.kind(), format!("cannot listen on {addr} ({what}): {error}{}", hint(&error)))
    };
    let tcp = stream(place, manner.early).map_err(|error| explain(error, "TCP"))?;
    let place = Place { addr: tcp.local_addr()?.as_socket().unwrap_or(addr), ..place };
    let group: io::Result<Vec<UdpSocket>> = (0..manner.workers.max(1)).map(|_| udp(place, manner)).collect();
    let group = group.map_err(|error| explain(error, "UDP"))?;
    tcp.listen(BACKLOG).map_err(|error| explain(error, "TCP"))?;
    if manner.workers > 1 {
        let workers = manner.workers as u32;
        sys::spread(&group[0], workers).map_err(|error| explain(error, "spreading over workers"))?;
    }
    Ok(Listeners { udp: group, tcp: tcp.into(), place })
}

/// The sockets of a place as whoever holds them has opened them; TCP is opened where only UDP was.
///
/// # Errors
/// The system's own, with the address.
pub fn take(place: Place, udp: Vec<OwnedFd>, tcp: Option<OwnedFd>) -> io::Result<Listeners> {
    let explain = |error: io::Error| {
        let at = place.addr;
        io::Error::new(error.kind(), format!("cannot listen on {at} with the sockets of the parent: {error}"))
    };
    let udp: Vec<UdpSocket> = udp.into_iter().map(UdpSocket::from).collect();
    for socket in &udp {
        socket.set_nonblocking(false).map_err(explain)?;
        socket.set_read_timeout(Some(HEARTBEAT)).map_err(explain)?;
    }
    let tcp = match tcp {
        Some(socket) => TcpListener::from(socket),
        None => {
            let socket = stream(place, false).map_err(explain)?;
            socket.listen(BACKLOG).map_err(explain)?;
            socket.into()
        }
    };
    tcp.set_nonblocking(true).map_err(explain)?;
    Ok(Listeners { udp, tcp, place })
}

/// What helps.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            ": no link has this address: set network.address_on, or add it (ip address add)"
        }
        io::ErrorKind::AddrInUse => {
            ": another process has this port and shares it with nobody: `ss -lnup` and `ss -lntp` name it"
        }
        _ => "",
    }
}

fn udp(place: Place, Manner { buffer, early, .. }: Manner) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(place.addr), Type::DGRAM, Some(Protocol::UDP))?;
    // Best effort. Whoever may not go beyond the system's own bound (net.core.rmem_max) gets as much as that.
    if sys::force_receive_buffer(&socket, buffer).is_err() {
        let _ = socket.set_recv_buffer_size(buffer);
    }
    socket.set_read_timeout(Some(HEARTBEAT))?;
    bind(&socket, place, early)?;
    Ok(socket.into())
}

/// A TCP listener that shares its port with those of other processes.
///
/// # Errors
/// The system's own.
pub fn tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = stream(Place { addr, intercepted: false }, false)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Bound, and not listening yet.
fn stream(place: Place, early: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(place.addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Inherited by what is accepted.
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(CLIENT_BUFFER)?;
    socket.set_recv_buffer_size(CLIENT_BUFFER)?;
    bind(&socket, place, early)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn bind(socket: &Socket, Place { addr, intercepted }: Place, early: bool) -> io::Result<()> {
    socket.set_reuse_port(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if early {
        match addr {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
    }
    if intercepted {
        match addr {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => sys::set_transparent_v6(socket)?,
        }
    }
    socket.bind(&addr.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::SockRef;
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    const MANNER: Manner = Manner { workers: 2, buffer: 1 << 20, early: false };

    #[test]
    fn an_accepted_client_has_small_buffers_in_the_kernel() {
        let listener = tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert_eq!(accepted.send_buffer_size().unwrap(), 2 * CLIENT_BUFFER);
        assert_eq!(accepted.recv_buffer_size().unwrap(), 2 * CLIENT_BUFFER);
        assert!(accepted.tcp_nodelay().unwrap());
    }

    /// Who has the port by TCP alone goes on answering by UDP, whoever tries to get it.
    #[test]
    fn a_port_that_cannot_be_had_by_tcp_loses_no_datagram() {
        let others = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        others.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        others.listen(1).unwrap();
        let addr = others.local_addr().unwrap().as_socket().unwrap();
        let place = Place { addr, intercepted: false };
        let shared = udp(place, MANNER).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let tries = scope.spawn(|| {
                let mut tries = 0;
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(
                        open(place, MANNER).err().map(|error| error.kind()),
                        Some(io::ErrorKind::AddrInUse)
                    );
                    tries += 1;
                }
                tries
            });
            let mut lost = 0;
            let mut space = [0; 8];
            for number in 0..2_000_u32 {
                // Of a client of its own each: the kernel chooses the socket by both addresses.
                let client = UdpSocket::bind("127.0.0.1:0").unwrap();
                client.send_to(&number.to_be_bytes(), addr).unwrap();
                lost += u32::from(shared.recv(&mut space).is_err());
                if lost > 3 {
                    break; // each takes as long as a worker's heartbeat
                }
            }
            done.store(true, Ordering::Relaxed);
            let tries = tries.join().unwrap();
            assert_eq!(lost, 0, "in {tries} tries");
            assert!(tries > 100, "{tries}");
        });
    }
}
