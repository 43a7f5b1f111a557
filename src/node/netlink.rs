//! Messages to the kernel and what it says to them (netlink(7), RFC 3549).
//!
//! Whatever stands in a header is in the machine's byte order; what an attribute holds is up to its kind.

use std::io::{self, ErrorKind, Read};

use socket2::{Domain, Protocol, Type};

/// netlink(7): headers, messages and attributes begin at multiples of this.
const ALIGNMENT: usize = 4;
/// Of a message's header: length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// Room for what the kernel says at once: an error repeats the message that it is about.
const REPLIES: usize = 16 << 10;

/// Messages that go out together.
#[derive(Debug, Default)]
pub(super) struct Packet {
    bytes: Vec<u8>,
}

impl Packet {
    /// One message; `fill` writes what stands behind its header.
    pub(super) fn message(&mut self, kind: u16, flags: u16, sequence: u32, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.raw(&[0; 4]);
        self.raw(&kind.to_ne_bytes());
        self.raw(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.raw(&sequence.to_ne_bytes());
        self.raw(&[0; 4]);
        fill(self);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Bytes as they are: a family's own header.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What another packet has, attributes that were written before their place was known.
    pub(super) fn append(&mut self, other: &Self) {
        self.raw(&other.bytes);
    }

    /// An attribute with this value.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.open(kind, |packet| packet.raw(value));
    }

    /// An attribute whose value is a text, which ends with a zero.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        self.open(kind, |packet| {
            packet.raw(text.as_bytes());
            packet.raw(&[0]);
        });
    }

    /// An attribute that is made of others.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.open(kind | libc::NLA_F_NESTED as u16, fill);
    }

    fn open(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.raw(&[0; 2]);
        self.raw(&kind.to_ne_bytes());
        fill(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

/// What the kernel says to one message.
#[derive(Debug)]
pub(super) struct Reply {
    /// The sequence number of that message.
    pub(super) sequence: u32,
    /// The port of the socket that has asked.
    pub(super) port: u32,
    /// Why it was refused.
    pub(super) error: Option<io::Error>,
}

/// A socket to one family of the kernel. No program that this process starts gets a copy of it.
#[derive(Debug)]
pub(super) struct Socket(socket2::Socket);

impl Socket {
    /// Opens one, `NETLINK_NETFILTER` for one.
    ///
    /// # Errors
    /// The system's own.
    pub(super) fn open(family: i32) -> io::Result<Self> {
        let socket =
            socket2::Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(family)))?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Sends a packet, and returns everything that the kernel says to it: it has when the call that sends returns.
    ///
    /// # Errors
    /// The system's own. What the kernel refuses is no error here.
    pub(super) fn ask(&self, packet: &Packet) -> io::Result<Vec<Reply>> {
        self.0.send(&packet.bytes)?;
        let mut replies = Vec::new();
        let mut space = vec![0; REPLIES];
        loop {
            match (&self.0).read(&mut space) {
                Ok(length) => read_replies(&space[..length], &mut replies),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(replies),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Reads the messages of one datagram, as far as they are whole.
fn read_replies(mut rest: &[u8], replies: &mut Vec<Reply>) {
    while let Some((header, body)) = rest.split_first_chunk::<HEADER>() {
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let mut error = None;
        if u16::from_ne_bytes([header[4], header[5]]) == libc::NLMSG_ERROR as u16 {
            let Some(code) = body.first_chunk().map(|code| i32::from_ne_bytes(*code)) else { return };
            // An acknowledgement is the error 0; the others are negative.
            error = (code != 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()));
        }
        replies.push(Reply { sequence: word(8), port: word(12), error });
        let length = (word(0) as usize).max(HEADER).next_multiple_of(ALIGNMENT);
        rest = rest.get(length..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_the_header_and_not_the_padding() {
        let mut packet = Packet::default();
        packet.message(0x0a03, 4, 7, |packet| {
            packet.raw(&[1, 0, 0, 0]);
            packet.text(1, "ab");
            packet.nest(4, |packet| packet.attribute(2, &[9; 5]));
        });
        let bytes = packet.bytes;
        assert_eq!(bytes.len(), 16 + 4 + 8 + 4 + 12);
        assert_eq!(bytes[..4], 44u32.to_ne_bytes());
        assert_eq!(bytes[4..6], 0x0a03u16.to_ne_bytes());
        assert_eq!(bytes[6..8], 5u16.to_ne_bytes(), "a request besides its own flags");
        assert_eq!(bytes[8..12], 7u32.to_ne_bytes());
        assert_eq!(bytes[20..22], 7u16.to_ne_bytes());
        assert_eq!(&bytes[24..28], b"ab\0\0");
        assert_eq!(bytes[28..30], 16u16.to_ne_bytes());
        assert_eq!(bytes[30..32], 0x8004u16.to_ne_bytes());
        assert_eq!(bytes[32..34], 9u16.to_ne_bytes());
        assert_eq!(bytes[36..], [9, 9, 9, 9, 9, 0, 0, 0]);
    }

    /// A status message of the kernel, as netlink(7) has it.
    fn status(sequence: u32, code: i32) -> Vec<u8> {
        let mut packet = Packet::default();
        packet.message(libc::NLMSG_ERROR as u16, 0, sequence, |packet| packet.raw(&code.to_ne_bytes()));
        packet.bytes
    }

    #[test]
    fn every_reply_of_a_datagram_is_read_and_a_broken_end_harms_none() {
        let datagram = [status(1, 0), status(2, -libc::EPERM), status(3, 0)].concat();
        for cut in [datagram.len(), datagram.len() - 1, 40, 39, 21, 17, 16, 3, 0] {
            let mut replies = Vec::new();
            read_replies(&datagram[..cut], &mut replies);
            let read: Vec<u32> = replies.iter().map(|reply| reply.sequence).collect();
            assert_eq!(read, [1, 2, 3][..cut / 20], "{cut} bytes");
            if let Some(second) = replies.get(1) {
                assert_eq!(second.error.as_ref().unwrap().kind(), ErrorKind::PermissionDenied);
            }
        }
        // A length of nothing must not be read for ever.
        let mut replies = Vec::new();
        read_replies(&[0; 64], &mut replies);
        assert_eq!(replies.len(), 4);
    }
}
