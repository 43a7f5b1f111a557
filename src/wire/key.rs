//! What is asked, in the one form that the cache, the flights and the upstreams share.
//!
//! Layout: labels of the matched zone suffix (1), DO and CD (1), QTYPE (2), QCLASS (2), then the
//! QNAME, plain and lower-cased. The answering zone follows from the name and the number of labels
//! that matched, so the key says which zone answers without naming it. AD and the client are never
//! part of it.

use std::borrow::Borrow;
use std::fmt;

use smallvec::SmallVec;

use super::edns::Opt;
use super::query::Query;
use super::{HEADER, Malformed, class, flag, name, rtype};

const PREFIX: usize = 6;
const DNSSEC_OK: u8 = 1;
const CHECKING_DISABLED: u8 = 2;

/// A key on the stack, built for each query.
pub struct KeyBuf {
    bytes: [u8; PREFIX + name::MAX_NAME],
    len: usize,
}

impl KeyBuf {
    /// Bytes of a key before its name.
    pub const PREFIX: usize = PREFIX;

    /// All of it but the name.
    pub fn prefix(&self) -> &[u8; PREFIX] {
        self.bytes.first_chunk().unwrap_or(&[0; PREFIX])
    }

    /// The key of a query, not yet bound to a zone.
    pub fn new(query: &Query<'_>) -> Self {
        let mut bytes = [0; PREFIX + name::MAX_NAME];
        let len = PREFIX + query.name.len();
        let dnssec_ok = u8::from(query.dnssec_ok()) * DNSSEC_OK;
        bytes[1] = dnssec_ok | (u8::from(query.checking_disabled()) * CHECKING_DISABLED);
        bytes[2..4].copy_from_slice(&query.qtype.to_be_bytes());
        bytes[4..6].copy_from_slice(&query.qclass.to_be_bytes());
        bytes[PREFIX..len].copy_from_slice(query.name);
        bytes[PREFIX..len].make_ascii_lowercase();
        Self { bytes, len }
    }

    /// Binds it to the zone whose suffix has this many labels.
    pub fn bind(&mut self, suffix_labels: u8) {
        self.bytes[0] = suffix_labels;
    }

    /// The QNAME, plain and lower-cased.
    pub fn name(&self) -> &[u8] {
        &self.bytes[PREFIX..self.len]
    }

    /// The bytes by which it is looked up.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The key to keep.
    pub fn to_key(&self) -> Key {
        Key(SmallVec::from_slice(self.as_bytes()))
    }
}

/// Bytes that a key holds in place: with them it fills one cache line, and a name of the cluster fits.
const INLINE: usize = 56;

/// A key that is kept. Most are held in place, so that a look-up compares it without going elsewhere.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(SmallVec<[u8; INLINE]>);

impl Key {
    /// Bytes it holds on the heap.
    pub fn heap(&self) -> usize {
        if self.0.spilled() { self.0.len() } else { 0 }
    }

    /// Labels of the matched zone suffix.
    pub fn suffix_labels(&self) -> u8 {
        self.0[0]
    }

    /// The QNAME, plain and lower-cased.
    pub fn name(&self) -> &[u8] {
        &self.0[PREFIX..]
    }

    /// What it has beside the question: labels of the matched zone suffix, then DO and CD.
    pub fn binding(&self) -> [u8; 2] {
        [self.0[0], self.0[1]]
    }

    /// The key of a stored answer: its question, with the binding that the key had.
    ///
    /// # Errors
    /// A question that breaks the format, or a binding that no key has.
    pub fn of_answer([suffix_labels, bits]: [u8; 2], message: &[u8]) -> Result<Self, Malformed> {
        if bits & !(DNSSEC_OK | CHECKING_DISABLED) != 0 {
            return Err(Malformed("key with unknown bits"));
        }
        let end = name::skip_plain(message, HEADER)?;
        let question = message.get(end..end + 4).ok_or(Malformed("message ends inside its question"))?;
        let mut key = SmallVec::with_capacity(PREFIX + end - HEADER);
        key.extend_from_slice(&[suffix_labels, bits]);
        key.extend_from_slice(question);
        key.extend_from_slice(&message[HEADER..end]);
        key[PREFIX..].make_ascii_lowercase();
        Ok(Self(key))
    }

    /// QTYPE.
    pub fn qtype(&self) -> u16 {
        u16::from_be_bytes([self.0[2], self.0[3]])
    }

    /// QCLASS.
    pub fn qclass(&self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }

    /// Whether DNSSEC records were asked for.
    pub fn dnssec_ok(&self) -> bool {
        self.0[1] & DNSSEC_OK != 0
    }

    /// Whether unvalidated data was asked for.
    pub fn checking_disabled(&self) -> bool {
        self.0[1] & CHECKING_DISABLED != 0
    }

    /// Writes our own query for it: RD and AD set, CD as the client had it, and our OPT with the
    /// client's DO, unless the server is known to choke on OPT.
    pub fn write_query(&self, id: u16, edns_size: Option<u16>, out: &mut Vec<u8>) {
        let cd = if self.checking_disabled() { flag::CD } else { 0 };
        for part in [id, flag::RD | flag::AD | cd, 1, 0, 0, u16::from(edns_size.is_some())] {
            out.extend(part.to_be_bytes());
        }
        out.extend_from_slice(self.name());
        out.extend_from_slice(&self.0[2..PREFIX]);
        if let Some(size) = edns_size {
            Opt { size, dnssec_ok: self.dnssec_ok(), rcode_high: 0, error: None, keepalive: None }.write(out);
        }
    }

    /// Whether `message` is a response to the question in this key. A failure may come without it.
    pub fn is_answered_by(&self, message: &[u8]) -> bool {
        let Some(header) = message.first_chunk::<HEADER>() else { return false };
        let flags = u16::from_be_bytes([header[2], header[3]]);
        if flags & flag::QR == 0 || flags & flag::OPCODE != 0 {
            return false;
        }
        match u16::from_be_bytes([header[4], header[5]]) {
            0 => flags & flag::RCODE != 0 && flags & flag::RCODE != super::rcode::NXDOMAIN,
            1 => {
                let name_end = HEADER + self.name().len();
                message.get(HEADER..name_end).is_some_and(|name| name.eq_ignore_ascii_case(self.name()))
                    && message.get(name_end..name_end + 4) == Some(&self.0[2..PREFIX])
            }
            _ => false,
        }
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", name::display(self.name()))?;
        match self.qclass() {
            class::IN => {}
            other => write!(f, "CLASS{other} ")?,
        }
        write!(f, "{}", rtype::name(self.qtype()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &[u8], qtype: u16) -> Key {
        KeyBuf::new(&Query { id: 1, flags: flag::RD, name, qtype, qclass: 1, edns: None }).to_key()
    }

    #[test]
    fn keys_ignore_case_but_not_type() {
        assert_eq!(key(b"\x03wWw\x00", 1), key(b"\x03Www\x00", 1));
        assert_ne!(key(b"\x03www\x00", 1), key(b"\x03www\x00", 28));
        assert_eq!(key(b"\x03wWw\x01.\x00", 28).to_string(), "www.\\.. AAAA");
    }

    #[test]
    fn only_the_same_question_is_an_answer() {
        let key = key(b"\x03www\x00", 1);
        let mut query = Vec::new();
        key.write_query(7, Some(1232), &mut query);
        assert!(!key.is_answered_by(&query), "a query is no response");
        query[2] |= 0x80;
        assert!(key.is_answered_by(&query));
        query[13] = b'W';
        assert!(key.is_answered_by(&query), "case does not count");
        query[13] = b'v';
        assert!(!key.is_answered_by(&query));
        query[5] = 0;
        assert!(!key.is_answered_by(&query), "no question and no failure");
        query[3] |= 5;
        assert!(key.is_answered_by(&query), "a failure without question");
    }
}
