//! Reading what the kernel writes: attributes, one behind the other, some made of others.
//!
//! Nothing here trusts a length. What is too short to be what it should be is not there.

use std::iter;

use super::ALIGNMENT;

/// Of an attribute's header: its length, and its kind in the lower bits of the second number.
const HEADER: usize = 4;

/// A list of attributes.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Those behind a header of `skip` bytes.
    pub(in super::super) fn behind(skip: usize, message: &'a [u8]) -> Self {
        Self(message.get(skip..).unwrap_or_default())
    }

    /// Each with its kind, up to the first one whose length cannot be.
    pub(in super::super) fn each(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        iter::from_fn(move || {
            let &[first, second, third, fourth] = rest.first_chunk::<HEADER>()?;
            let length = usize::from(u16::from_ne_bytes([first, second]));
            let kind = u16::from_ne_bytes([third, fourth]) & libc::NLA_TYPE_MASK as u16;
            let value = rest.get(HEADER..length)?;
            rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    /// The first one of this kind.
    pub(in super::super) fn find(self, kind: u16) -> Option<&'a [u8]> {
        self.each().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The attributes that one of this kind is made of; none when there is none.
    pub(in super::super) fn nested(self, kind: u16) -> Self {
        Self(self.find(kind).unwrap_or_default())
    }

    /// A text up to its zero. What is not UTF-8 in it is replaced.
    pub(in super::super) fn text(self, kind: u16) -> Option<String> {
        self.find(kind).map(text)
    }

    /// A number of 32 bits in network byte order.
    pub(in super::super) fn word(self, kind: u16) -> Option<u32> {
        self.find(kind)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    /// A number of 64 bits in network byte order.
    pub(in super::super) fn long(self, kind: u16) -> Option<u64> {
        self.find(kind)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }
}

/// The text up to the first zero.
pub(in super::super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Packet;
    use super::*;

    fn sample() -> Packet {
        let mut packet = Packet::default();
        packet.text(1, "nodens");
        packet.nest(2, |packet| packet.attribute(3, &7u32.to_be_bytes()));
        packet.attribute(4, &9u64.to_be_bytes());
        packet
    }

    #[test]
    fn what_was_written_is_read() {
        let packet = sample();
        let attributes = Attributes::behind(0, packet.bytes());
        assert_eq!(attributes.text(1).as_deref(), Some("nodens"));
        assert_eq!(attributes.nested(2).word(3), Some(7));
        assert_eq!(attributes.long(4), Some(9));
        assert_eq!(attributes.word(5), None);
        assert_eq!(attributes.nested(5).word(3), None);
        assert_eq!(attributes.long(1), None, "seven bytes are no number of eight");
    }

    #[test]
    fn any_end_and_any_length_is_survived() {
        let packet = sample();
        let whole = packet.bytes();
        for cut in 0..whole.len() {
            let read = Attributes::behind(0, &whole[..cut]).each().count();
            assert!(read <= 2, "{read} attributes in {cut} of {} bytes", whole.len());
        }
        for at in 0..whole.len() {
            for value in [0, 1, 3, 4, 0x7f, 0xff] {
                let mut broken = whole.to_vec();
                broken[at] = value;
                let read: usize = Attributes::behind(0, &broken).each().map(|(_, value)| value.len()).sum();
                assert!(read < whole.len());
            }
        }
        assert_eq!(Attributes::behind(64, whole).each().count(), 0);
    }
}
