//! DNS messages as bytes: reading questions and answers without building records of them.
//!
//! Nothing here allocates on the way of a query, does I/O or reads a clock. Every reader is total:
//! any input gives a value or [`Malformed`].

pub mod edns;
pub mod frame;
pub mod key;
pub mod name;
pub mod query;
pub mod rdata;
pub mod response;

/// Bytes of a DNS header (RFC 1035 §4.1.1).
pub const HEADER: usize = 12;
/// Largest message: what the two-byte length of TCP can say (RFC 1035 §4.2.2).
pub const MAX_MESSAGE: usize = 65_535;

/// A message that breaks the format, and what is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// Header flag bits, as in the 16-bit field behind the ID.
pub mod flag {
    /// This is a response.
    pub const QR: u16 = 0x8000;
    /// Kind of query.
    pub const OPCODE: u16 = 0x7800;
    /// Authoritative answer.
    pub const AA: u16 = 0x0400;
    /// Truncated.
    pub const TC: u16 = 0x0200;
    /// Recursion desired.
    pub const RD: u16 = 0x0100;
    /// Recursion available.
    pub const RA: u16 = 0x0080;
    /// Authentic data (RFC 6840 §5.7).
    pub const AD: u16 = 0x0020;
    /// Checking disabled.
    pub const CD: u16 = 0x0010;
    /// Low four bits of the RCODE.
    pub const RCODE: u16 = 0x000f;
}

/// RCODEs in use here (IANA DNS parameters).
#[expect(missing_docs, reason = "the registry's own names")]
pub mod rcode {
    pub const NOERROR: u16 = 0;
    pub const FORMERR: u16 = 1;
    pub const SERVFAIL: u16 = 2;
    pub const NXDOMAIN: u16 = 3;
    pub const NOTIMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const BADVERS: u16 = 16;

    /// The code's mnemonic, or `RCODE` and its number.
    pub fn name(rcode: u16) -> String {
        let known = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
        match known.get(usize::from(rcode)) {
            Some(name) => (*name).to_owned(),
            None if rcode == BADVERS => "BADVERS".to_owned(),
            None => format!("RCODE{rcode}"),
        }
    }
}

/// Types in use here (IANA DNS parameters).
#[expect(missing_docs, reason = "the registry's own names")]
pub mod rtype {
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const MD: u16 = 3;
    pub const MF: u16 = 4;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const MB: u16 = 7;
    pub const MG: u16 = 8;
    pub const MR: u16 = 9;
    pub const PTR: u16 = 12;
    pub const MINFO: u16 = 14;
    pub const MX: u16 = 15;
    pub const TXT: u16 = 16;
    pub const RP: u16 = 17;
    pub const AFSDB: u16 = 18;
    pub const RT: u16 = 21;
    pub const SIG: u16 = 24;
    pub const PX: u16 = 26;
    pub const AAAA: u16 = 28;
    pub const NXT: u16 = 30;
    pub const SRV: u16 = 33;
    pub const NAPTR: u16 = 35;
    pub const KX: u16 = 36;
    pub const DNAME: u16 = 39;
    pub const OPT: u16 = 41;
    pub const TSIG: u16 = 250;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;

    /// The type's mnemonic, or `TYPE` and its number (RFC 3597 §5).
    pub fn name(rtype: u16) -> String {
        match hickory_proto::rr::RecordType::from(rtype) {
            hickory_proto::rr::RecordType::Unknown(_) => format!("TYPE{rtype}"),
            known => known.to_string(),
        }
    }
}

/// Classes in use here (IANA DNS parameters).
#[expect(missing_docs, reason = "the registry's own names")]
pub mod class {
    pub const IN: u16 = 1;
    pub const CH: u16 = 3;
}

/// The 16-bit number at `at`, in network order.
pub fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    match bytes.get(at..at + 2) {
        Some(&[a, b]) => Ok(u16::from_be_bytes([a, b])),
        _ => Err(Malformed("message ends inside a field")),
    }
}

/// The 32-bit number at `at`, in network order.
pub fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => Ok(u32::from_be_bytes([a, b, c, d])),
        _ => Err(Malformed("message ends inside a field")),
    }
}

/// Overwrites the 16-bit number at `at`, which the caller knows to be inside.
pub fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Overwrites the 32-bit number at `at`, which the caller knows to be inside.
pub fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// One resource record's place in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Where its owner name begins.
    pub owner: usize,
    /// Where its TYPE begins: CLASS, TTL and RDLENGTH follow at +2, +4 and +8, RDATA at +10.
    pub fixed: usize,
    /// TYPE.
    pub rtype: u16,
    /// CLASS (of an OPT: the sender's UDP size).
    pub class: u16,
    /// TTL (of an OPT: extended RCODE, version and flags).
    pub ttl: u32,
    /// The first byte behind its RDATA.
    pub end: usize,
}

impl Record {
    /// Reads the record that begins at `at`; its RDATA is inside the message.
    pub fn read(message: &[u8], at: usize) -> Result<Self, Malformed> {
        let fixed = name::skip(message, at)?;
        let end = fixed + 10 + usize::from(u16_at(message, fixed + 8)?);
        if end > message.len() {
            return Err(Malformed("RDATA runs over the end of the message"));
        }
        Ok(Self {
            owner: at,
            fixed,
            rtype: u16_at(message, fixed)?,
            class: u16_at(message, fixed + 2)?,
            ttl: u32_at(message, fixed + 4)?,
            end,
        })
    }

    /// Where its RDATA begins.
    pub fn rdata(&self) -> usize {
        self.fixed + 10
    }

    /// Where its TTL stands.
    pub fn ttl_at(&self) -> usize {
        self.fixed + 4
    }
}
