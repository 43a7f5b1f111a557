//! Messages to the kernel and what it says to them (netlink(7), RFC 3549).
//!
//! Whatever stands in a header is in the machine's byte order; what an attribute holds is up to its kind.

mod attributes;

use std::io::{self, ErrorKind, Read};
use std::iter;
use std::ops::ControlFlow;

use socket2::{Domain, Protocol, Type};

pub(super) use attributes::{Attributes, text};

/// netlink(7): headers, messages and attributes begin at multiples of this.
const ALIGNMENT: usize = 4;
/// Of a message's header: length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// Room for what the kernel says at once: it writes up to 32 KiB of a list (net/netlink/af_netlink.c, `netlink_dump`),
/// and an error repeats the message that it is about.
const DATAGRAM: usize = 64 << 10;
/// Datagrams that may lie unread from before: a socket's receive buffer holds no more (208 KiB, 768 bytes each at least).
const FORGOTTEN: usize = 512;

/// Messages that go out together.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    bytes: Vec<u8>,
}

impl Packet {
    /// One message; `fill` writes what stands behind its header. It begins where the number says.
    pub(super) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        fill: impl FnOnce(&mut Self),
    ) -> usize {
        let start = self.bytes.len();
        self.raw(&[0; 4]);
        self.raw(&kind.to_ne_bytes());
        self.raw(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.raw(&sequence.to_ne_bytes());
        self.raw(&[0; 4]);
        fill(self);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        start
    }

    /// Has the kernel say what became of the message that begins there, and not only if it is refused.
    pub(super) fn acknowledge(&mut self, start: usize) {
        let flags = &mut self.bytes[start + 6..start + 8];
        let with = u16::from_ne_bytes([flags[0], flags[1]]) | libc::NLM_F_ACK as u16;
        flags.copy_from_slice(&with.to_ne_bytes());
    }

    /// Bytes as they are: a family's own header.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What another packet has, attributes that were written before their place was known.
    pub(super) fn append(&mut self, other: &Self) {
        self.raw(&other.bytes);
    }

    /// All of it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
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
    /// What stands behind the header: of an answer, its family's own header and attributes.
    pub(super) body: Vec<u8>,
}

/// How a list was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listed {
    /// To its end.
    Whole,
    /// It changed meanwhile, so that parts may be missing or twice (`NLM_F_DUMP_INTR`).
    Changed,
    /// It was longer than the bound, or than the reader wanted.
    Cut,
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
        let mut space = vec![0; DATAGRAM];
        self.forget(&mut space);
        self.0.send(packet.bytes())?;
        let mut replies = Vec::new();
        while let Some(length) = self.receive(&mut space)? {
            replies.extend(messages(&space[..length]).filter_map(|message| {
                let error = message.error()?;
                Some(Reply {
                    sequence: message.sequence,
                    port: message.port,
                    error,
                    body: message.body.to_vec(),
                })
            }));
        }
        Ok(replies)
    }

    /// Sends a message that asks for a list (`NLM_F_DUMP`), and hands every entry to `each`: what stands behind the
    /// header. No more than `bound` entries are read, nor any after `each` breaks off.
    ///
    /// # Errors
    /// The system's own, and the kernel's refusal, also of the rest of a list.
    pub(super) fn list(
        &self,
        packet: &Packet,
        bound: usize,
        each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> io::Result<Listed> {
        let mut space = vec![0; DATAGRAM];
        self.forget(&mut space);
        self.0.send(packet.bytes())?;
        let (mut read, mut listed) = (0, Listed::Whole);
        // The kernel writes the next part while the one before it is read, so there is always one until the end.
        while let Some(length) = self.receive(&mut space)? {
            for message in messages(&space[..length]) {
                if message.flags & libc::NLM_F_DUMP_INTR as u16 != 0 {
                    listed = Listed::Changed;
                }
                match message.error() {
                    Some(Some(error)) => return Err(error),
                    _ if message.kind == libc::NLMSG_DONE as u16 => return Ok(listed),
                    Some(None) if message.kind != libc::NLMSG_ERROR as u16 => {
                        read += 1;
                        if read > bound || each(message.body).is_break() {
                            return Ok(Listed::Cut);
                        }
                    }
                    _ => {}
                }
            }
        }
        Err(io::Error::other("a list of the kernel has no end"))
    }

    /// Reads what was never asked for any more: the rest of a list, or the answers behind an overrun.
    fn forget(&self, space: &mut [u8]) {
        for _ in 0..FORGOTTEN {
            if matches!(self.receive(space), Ok(None)) {
                return;
            }
        }
    }

    /// The length of the next datagram; `None` when there is none.
    fn receive(&self, space: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match (&self.0).read(space) {
                Ok(0) => return Ok(None),
                Ok(length) => return Ok(Some(length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// One message of a datagram.
#[derive(Debug, Clone, Copy)]
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    body: &'a [u8],
}

impl Message<'_> {
    /// What a status message says, `Some(None)` for success and for messages that are no status; `None` when it is
    /// broken. An acknowledgement is the error 0; the others are negative. The end of a list has a number as well: an
    /// error that came when a part of it had been told.
    fn error(&self) -> Option<Option<io::Error>> {
        let is_end = self.kind == libc::NLMSG_DONE as u16;
        if self.kind != libc::NLMSG_ERROR as u16 && !is_end {
            return Some(None);
        }
        let code = i32::from_ne_bytes(*self.body.first_chunk()?);
        Some(
            (if is_end { code < 0 } else { code != 0 })
                .then(|| io::Error::from_raw_os_error(code.saturating_neg())),
        )
    }
}

/// The messages of one datagram, as far as they are whole.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    iter::from_fn(move || {
        let (header, _) = rest.split_first_chunk::<HEADER>()?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let body = rest.get(HEADER..word(0) as usize)?;
        let message = Message { kind: half(4), flags: half(6), sequence: word(8), port: word(12), body };
        let next = (word(0) as usize).checked_next_multiple_of(ALIGNMENT)?;
        rest = rest.get(next..).unwrap_or_default();
        Some(message)
    })
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
            let read: Vec<_> = messages(&datagram[..cut]).collect();
            let numbers: Vec<u32> = read.iter().map(|message| message.sequence).collect();
            assert_eq!(numbers, [1, 2, 3][..cut / 20], "{cut} bytes");
            if let Some(second) = read.get(1) {
                assert_eq!(second.error().unwrap().unwrap().kind(), ErrorKind::PermissionDenied);
            }
        }
        // The end of a list that is not whole, of one that is, and one without a number.
        for (code, whole) in [(-libc::ENOMEM, false), (0, true), (7, true)] {
            let mut end = Packet::default();
            end.message(libc::NLMSG_DONE as u16, 0, 1, |packet| packet.raw(&code.to_ne_bytes()));
            let read: Vec<_> = messages(&end.bytes).map(|message| message.error().unwrap()).collect();
            assert!(read.len() == 1 && read[0].is_none() == whole, "{code}: {read:?}");
        }
        // A length of nothing must not be read for ever, nor one of everything.
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(messages(&[0xff; 64]).count(), 0);
        // A status without its code.
        let mut short = Packet::default();
        short.message(libc::NLMSG_ERROR as u16, 0, 1, |packet| packet.raw(&[0; 2]));
        assert!(messages(&short.bytes).all(|message| message.error().is_none()));
    }
}
