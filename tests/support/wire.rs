//! Queries by TCP, and what is put into and read out of messages.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};

use super::datagram::{PATIENCE, ask_udp, message, query};
use super::upstream::steps::framed;

/// The same with an OPT of this payload size.
pub(crate) fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    message
}

/// Bytes of one option in the OPT of a message.
pub(crate) fn option(message: &Message, code: u16) -> Option<Vec<u8>> {
    let options = message.edns.as_ref()?.options();
    match options.get(EdnsCode::from(code))? {
        EdnsOption::Unknown(_, bytes) => Some(bytes.clone()),
        other => Some(Vec::<u8>::try_from(other).expect("option bytes")),
    }
}

/// Asks by UDP; the reply must come.
#[track_caller]
pub(crate) fn ask(server: SocketAddr, owner: &str, record_type: &str) -> Message {
    ask_udp(server, &query(owner, record_type)).unwrap_or_else(|| panic!("no reply to {owner} {record_type}"))
}

/// Asks by TCP on a connection of its own; the reply must come.
#[track_caller]
pub(crate) fn ask_tcp(server: SocketAddr, query: &Message) -> Message {
    let mut connection = Tcp::connect(server);
    connection.send(query);
    let reply = connection.receive().expect("a reply by TCP");
    assert_eq!(reply.metadata.id, query.metadata.id, "ID of the reply");
    reply
}

/// One client connection.
pub(crate) struct Tcp {
    stream: TcpStream,
}

impl From<TcpStream> for Tcp {
    fn from(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Self { stream }
    }
}

impl Tcp {
    #[track_caller]
    pub(crate) fn connect(server: SocketAddr) -> Self {
        Self::try_connect(server).expect("TCP connection")
    }

    pub(crate) fn try_connect(server: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// Sends one framed query; an error shows at the next read.
    pub(crate) fn send(&mut self, query: &Message) {
        self.send_all(std::slice::from_ref(query));
    }

    /// Sends framed queries in one write.
    pub(crate) fn send_all(&mut self, queries: &[Message]) {
        let mut bytes = Vec::new();
        for query in queries {
            bytes.extend(framed(&message(query)));
        }
        self.send_bytes(&bytes);
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        // A peer that has closed shows at the next read, which the caller checks.
        let _ = self.stream.write_all(bytes);
    }

    /// Says that no more queries come.
    pub(crate) fn finish(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("half-close");
    }

    /// The next reply, `None` when the connection was closed.
    pub(crate) fn receive(&mut self) -> Option<Message> {
        let bytes = self.receive_bytes()?;
        Some(Message::from_vec(&bytes).expect("a reply that can be read"))
    }

    /// As [`Tcp::receive`], unread.
    pub(crate) fn receive_bytes(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 2];
        self.stream.read_exact(&mut length).ok()?;
        let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
        self.stream.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Waits for the other side to close, and says whether it did within `limit`.
    pub(crate) fn is_closed_within(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut byte = [0; 1];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.stream.set_read_timeout(Some(left)).expect("timeout");
            match self.stream.read(&mut byte) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return false;
                }
                Err(_) => return true,
            }
        }
    }
}
