//! One query and its reply in a datagram.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};

/// Longer than any deadline of the agent (4 s), so that silence means silence.
pub(super) const PATIENCE: Duration = Duration::from_secs(6);

/// A name as the client writes it, letter case kept.
pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A query with RD=1, an ID of its own, no OPT.
pub(crate) fn query(owner: &str, record_type: &str) -> Message {
    static ID: AtomicU16 = AtomicU16::new(0x4100);
    let record_type = match record_type.strip_prefix("TYPE") {
        Some(number) => RecordType::from(number.parse::<u16>().expect("type number")),
        None => RecordType::from_str(record_type).expect("type"),
    };
    let id = ID.fetch_add(1, Ordering::Relaxed);
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(owner), record_type));
    message
}

/// Bytes of a message.
pub(crate) fn message(message: &Message) -> Vec<u8> {
    message.to_vec().expect("a message that fits")
}

/// Asks by UDP; `None` when no reply comes.
pub(crate) fn ask_udp(server: SocketAddr, query: &Message) -> Option<Message> {
    let bytes = datagram_reply(server, &message(query), PATIENCE)?;
    let reply = Message::from_vec(&bytes).expect("a reply that can be read");
    assert_eq!(reply.metadata.id, query.metadata.id, "ID of the reply");
    Some(reply)
}

/// Sends bytes as one datagram and returns the reply's, `None` after `limit` without one.
pub(crate) fn datagram_reply(server: SocketAddr, bytes: &[u8], limit: Duration) -> Option<Vec<u8>> {
    let socket = match server.ip() {
        IpAddr::V4(_) => UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)),
        IpAddr::V6(_) => UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)),
    }
    .expect("client socket");
    socket.connect(server).expect("connect");
    socket.set_read_timeout(Some(limit)).expect("timeout");
    socket.send(bytes).ok()?;
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer).ok()?;
    buffer.truncate(length);
    Some(buffer)
}
