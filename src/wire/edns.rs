//! EDNS: what a client's OPT says, and the OPT that goes into a reply (RFC 6891).
//!
//! OPT is hop by hop: one that came from an upstream is dropped, and replies carry our own.

use super::{Malformed, Record, put_u16, rtype, u16_at};

/// RFC 6891 §6.2.3: what every requestor can take; smaller sizes mean this.
pub const MIN_SIZE: u16 = 512;
/// Bytes of an OPT without options.
pub const OPT: usize = 11;
/// The version that we speak.
const VERSION: u8 = 0;
/// The DO bit in an OPT's TTL (RFC 3225).
const DO: u32 = 0x8000;
/// EDNS option that asks for, or tells, a TCP idle timeout (RFC 7828).
const KEEPALIVE: u16 = 11;
/// EDNS option that explains an RCODE (RFC 8914).
const EXTENDED_ERROR: u16 = 15;

/// Extended DNS error codes in use here (RFC 8914 §5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
#[expect(missing_docs, reason = "the registry's own names")]
pub enum ExtendedError {
    StaleAnswer = 3,
    CachedError = 13,
    NotReady = 14,
    Prohibited = 18,
    StaleNxdomain = 19,
    NoReachableAuthority = 22,
    NetworkError = 23,
}

/// A client's OPT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// UDP payload size, at least [`MIN_SIZE`].
    pub size: u16,
    /// The client wants DNSSEC records.
    pub dnssec_ok: bool,
    /// Version; we speak 0.
    pub version: u8,
    /// The client asked for the TCP idle timeout.
    pub keepalive: bool,
}

impl Edns {
    /// Reads the OPT that `record` is. Unknown options are passed over, and those of another version
    /// are not read: it may have other rules for them (RFC 6891 §6.1.3).
    ///
    /// # Errors
    /// An owner other than the root, or options that do not fill the RDATA exactly.
    pub fn read(message: &[u8], record: &Record) -> Result<Self, Malformed> {
        debug_assert_eq!(record.rtype, rtype::OPT);
        if record.fixed != record.owner + 1 {
            return Err(Malformed("OPT whose owner is not the root"));
        }
        let version = (record.ttl >> 16) as u8;
        let mut keepalive = false;
        let mut at = if version == VERSION { record.rdata() } else { record.end };
        while at < record.end {
            let code = u16_at(message, at)?;
            at += 4 + usize::from(u16_at(message, at + 2)?);
            keepalive |= code == KEEPALIVE;
        }
        if at != record.end {
            return Err(Malformed("EDNS option runs over its OPT"));
        }
        Ok(Self { size: record.class.max(MIN_SIZE), dnssec_ok: record.ttl & DO != 0, version, keepalive })
    }
}

/// The high eight bits of an RCODE, from an OPT's TTL field.
pub fn rcode_high(ttl: u32) -> u16 {
    (ttl >> 24) as u16
}

/// What our OPT in a reply says.
#[derive(Debug, Clone, Copy)]
pub struct Opt {
    /// Our UDP payload size, bytes.
    pub size: u16,
    /// The query's DO, echoed.
    pub dnssec_ok: bool,
    /// High eight bits of the RCODE.
    pub rcode_high: u8,
    /// Why the answer is as it is.
    pub error: Option<ExtendedError>,
    /// The TCP idle timeout in units of 100 ms, for a client that asked.
    pub keepalive: Option<u16>,
}

impl Opt {
    /// Bytes of the whole record.
    #[expect(clippy::len_without_is_empty, reason = "no record is empty")]
    pub fn len(&self) -> usize {
        OPT + 6 * usize::from(self.error.is_some()) + 6 * usize::from(self.keepalive.is_some())
    }

    /// Appends the record. The caller counts it in ARCOUNT.
    pub fn write(&self, out: &mut Vec<u8>) {
        let [size_high, size_low] = self.size.to_be_bytes();
        let dnssec = if self.dnssec_ok { 0x80 } else { 0 };
        let at = out.len();
        out.extend([0, 0, rtype::OPT as u8, size_high, size_low, self.rcode_high, 0, dnssec, 0, 0, 0]);
        let mut option = |code: u16, value: u16| {
            for part in [code, 2, value] {
                out.extend(part.to_be_bytes());
            }
        };
        if let Some(error) = self.error {
            option(EXTENDED_ERROR, error as u16);
        }
        if let Some(timeout) = self.keepalive {
            option(KEEPALIVE, timeout);
        }
        let rdata = (out.len() - at - OPT) as u16;
        put_u16(out, at + 9, rdata);
    }
}

/// Asks a client to close its connection (RFC 7828 §3.2.2: a timeout of 0), in a message whose last record is an [`Opt`] of
/// ours with a timeout for it. Any other message stays as it is.
pub fn end_keepalive(message: &mut [u8]) {
    let is_ours = |options: usize| {
        let Some(at) = message.len().checked_sub(OPT + 6 * options) else { return false };
        let opt = &message[at..];
        opt[..3] == [0, 0, rtype::OPT as u8]
            && opt[9..11] == (6 * options as u16).to_be_bytes()
            && opt[opt.len() - 6..opt.len() - 2] == [0, KEEPALIVE as u8, 0, 2]
    };
    if is_ours(1) || is_ours(2) {
        let timeout = message.len() - 2;
        message[timeout..].fill(0);
    }
}
