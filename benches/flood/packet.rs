//! The few messages that this bench needs, without a DNS library: it must not cost more than its subject.

/// Answers carry our OPT, the extended error among them (RFC 8914), if the query has one.
const OPT: [u8; 11] = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
const HEADER: usize = 12;

/// The wire form of a name of these labels.
pub(crate) fn name(labels: &[&str]) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in labels {
        wire.push(label.len() as u8);
        wire.extend(label.as_bytes());
    }
    wire.push(0);
    wire
}

/// A query for an address. Without `recurse` it is answered from the cache, or refused.
pub(crate) fn query(id: u16, name: &[u8], recurse: bool) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([u8::from(recurse), 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    packet.extend(name);
    packet.extend([0, 1, 0, 1]);
    packet.extend(OPT);
    packet
}

/// The same with its length in front, for a stream.
pub(crate) fn framed(packet: &[u8]) -> Vec<u8> {
    [&(packet.len() as u16).to_be_bytes(), packet].concat()
}

/// The name in a query, and where its question ends.
fn question(packet: &[u8]) -> Option<(&[u8], usize)> {
    let mut at = HEADER;
    loop {
        let length = *packet.get(at)? as usize;
        at += 1 + length;
        if length == 0 {
            break;
        }
    }
    (at + 4 <= packet.len()).then(|| (&packet[HEADER..at], at + 4))
}

/// The reply to a query: as many addresses as here, with this TTL; none to other types.
pub(crate) fn reply(query: &[u8], ttl: u32, addresses: u16) -> Option<Vec<u8>> {
    let (_, end) = question(query)?;
    let count = if query[end - 4..end] == [0, 1, 0, 1] { addresses } else { 0 };
    let mut reply = query[..end].to_vec();
    reply[2] = 0x81;
    reply[3] = 0x80;
    reply[6..8].copy_from_slice(&count.to_be_bytes());
    reply[10..12].copy_from_slice(&[0, 0]);
    for n in 0..count {
        reply.extend([0xc0, 0x0c, 0, 1, 0, 1]);
        reply.extend(ttl.to_be_bytes());
        reply.extend([0, 4, 10, 9]);
        reply.extend(n.to_be_bytes());
    }
    Some(reply)
}

/// Whether a query asks for a name that begins so.
pub(crate) fn begins(query: &[u8], label: &[u8]) -> bool {
    question(query).is_some_and(|(name, _)| name[1..].starts_with(label))
}

/// What a reply says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Verdict {
    pub(crate) rcode: u8,
    pub(crate) answers: bool,
    /// The extended error. The agent's OPT stands last, and the error last in it.
    pub(crate) error: Option<u8>,
}

impl Verdict {
    pub(crate) fn of(reply: &[u8]) -> Option<Self> {
        let header = reply.get(..HEADER)?;
        let error = match *reply {
            [.., 0, 15, 0, 2, 0, error] if header[11] > 0 => Some(error),
            _ => None,
        };
        Some(Self { rcode: header[3] & 15, answers: header[6..8] != [0, 0], error })
    }

    pub(crate) fn label(self) -> String {
        let rcode = match (self.rcode, self.answers) {
            (0, true) => "NOERROR".to_owned(),
            (0, false) => "NODATA".to_owned(),
            (1, _) => "FORMERR".to_owned(),
            (2, _) => "SERVFAIL".to_owned(),
            (3, _) => "NXDOMAIN".to_owned(),
            (4, _) => "NOTIMP".to_owned(),
            (5, _) => "REFUSED".to_owned(),
            (other, _) => format!("RCODE {other}"),
        };
        self.error.map_or(rcode.clone(), |error| format!("{rcode}, EDE {error}"))
    }
}
