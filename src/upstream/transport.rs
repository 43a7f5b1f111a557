//! How servers are reached: the one seam between a pool and the network.
//!
//! [`Kernel`] is the real one. Scenario tests put another in its place, whose streams and datagrams are
//! queues in memory, so that all above runs unchanged under a clock that they hold. Whatever carries
//! DNS framing can stand here: TLS is a [`Link`] like any other ([`super::tls`]).

use std::future::{Future, poll_fn};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpSocket, UdpSocket};

/// Unacknowledged data for this long means that the peer is gone (RFC 5482). The kernel needs
/// a little more to notice.
const USER_TIMEOUT: Duration = Duration::from_millis(1000);

/// Room for an answer by UDP: more than we say that we take, for servers that do not listen.
const DATAGRAM: usize = 4096;

/// Something that is being opened.
pub type Opening<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

/// Where servers are.
pub trait Network: Send + Sync {
    /// Opens a stream to a server.
    fn connect(&self, addr: SocketAddr) -> Opening<Link>;

    /// Opens a way for datagrams to a server and back, from an address that no other has at the time.
    fn datagrams(&self, addr: SocketAddr) -> Opening<Box<dyn Datagrams>>;
}

/// Both directions of a stream.
pub struct Link {
    /// What the server says.
    pub reader: Box<dyn Reader>,
    /// What is said to it.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

/// The reading side of a stream whose peer may wait for an acknowledgement.
pub trait Reader: AsyncRead + Send + Unpin {
    /// Acknowledges what was read at once.
    fn acknowledge(&self) {}
}

impl Reader for OwnedReadHalf {
    /// A server that leaves Nagle's algorithm on keeps its second answer until the first one is
    /// acknowledged, which the kernel puts off by up to 40 ms in the hope of data to send along.
    /// The option holds for what has arrived, so it is set each time (tcp(7), TCP_QUICKACK).
    fn acknowledge(&self) {
        let _ = SockRef::from(self.as_ref()).set_tcp_quickack(true);
    }
}

/// A datagram that is awaited.
pub type Receiving<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<u8>>> + Send + 'a>>;

/// A way for datagrams to one server, and from nobody else.
pub trait Datagrams: Send + Sync {
    /// Sends one.
    fn poll_send(&self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>>;

    /// Receives one.
    ///
    /// # Errors
    /// The system's own: that nobody is there, for one.
    fn receive(&self) -> Receiving<'_>;
}

impl dyn Datagrams {
    /// Sends one.
    ///
    /// # Errors
    /// The system's own.
    pub async fn send(&self, datagram: &[u8]) -> io::Result<()> {
        poll_fn(|cx| self.poll_send(cx, datagram)).await
    }
}

impl Datagrams for UdpSocket {
    fn poll_send(&self, cx: &mut Context<'_>, datagram: &[u8]) -> Poll<io::Result<()>> {
        Self::poll_send(self, cx, datagram).map_ok(|_| ())
    }

    /// Only what has come takes memory, so that thousands can wait. `recv` would not do: what ICMP says wakes
    /// nobody who waits for data alone.
    fn receive(&self) -> Receiving<'_> {
        Box::pin(self.async_io(Interest::READABLE | Interest::ERROR, move || {
            let mut space = [0; DATAGRAM];
            let length = (&*SockRef::from(self)).read(&mut space)?;
            Ok(space[..length].to_vec())
        }))
    }
}

/// The sockets of this machine.
#[derive(Debug, Clone, Default)]
pub struct Kernel {
    mark: Option<u32>,
    unmarked: Vec<SocketAddr>,
}

impl Kernel {
    /// Whose packets carry this mark, but for those to the `unmarked` servers. It needs CAP_NET_ADMIN (socket(7)).
    pub fn marked(mark: u32, unmarked: Vec<SocketAddr>) -> Self {
        Self { mark: Some(mark), unmarked }
    }

    /// The mark of what goes to this server.
    fn mark(&self, addr: SocketAddr) -> Option<u32> {
        self.mark.filter(|_| !self.unmarked.contains(&addr))
    }
}

impl Network for Kernel {
    fn connect(&self, addr: SocketAddr) -> Opening<Link> {
        let mark = self.mark(addr);
        Box::pin(async move {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_nodelay(true)?;
            SockRef::from(&socket).set_tcp_user_timeout(Some(USER_TIMEOUT))?;
            if let Some(mark) = mark {
                SockRef::from(&socket).set_mark(mark)?;
            }
            let (reader, writer) = socket.connect(addr).await?.into_split();
            Ok(Link { reader: Box::new(reader), writer: Box::new(writer) })
        })
    }

    /// A socket for each query, so that each has a random source port (RFC 5452 §9.2).
    fn datagrams(&self, addr: SocketAddr) -> Opening<Box<dyn Datagrams>> {
        let mark = self.mark(addr);
        Box::pin(async move {
            let any = match addr {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            let socket = UdpSocket::bind((any, 0)).await?;
            if let Some(mark) = mark {
                SockRef::from(&socket).set_mark(mark)?;
            }
            socket.connect(addr).await?;
            Ok(Box::new(socket) as Box<dyn Datagrams>)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_to_stay_unmarked_has_no_mark() {
        let [server, bootstrap] = ["10.244.0.53:53", "10.96.0.10:53"].map(|text| text.parse().unwrap());
        let kernel = Kernel::marked(0x36, vec![bootstrap]);
        assert_eq!(kernel.mark(server), Some(0x36));
        assert_eq!(kernel.mark(bootstrap), None);
        assert_eq!(Kernel::default().mark(server), None);
    }
}
