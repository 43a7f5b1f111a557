//! One query as it came, parsed without copying, and the replies that need no cache entry.

use super::edns::{Edns, ExtendedError, Opt};
use super::{HEADER, Malformed, Record, class, flag, name, put_u16, rcode, rtype, u16_at};

/// A well-formed query with its one question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'a> {
    /// ID, to be echoed.
    pub id: u16,
    /// The header's flags.
    pub flags: u16,
    /// QNAME, plain, in the client's own letters.
    pub name: &'a [u8],
    /// QTYPE.
    pub qtype: u16,
    /// QCLASS.
    pub qclass: u16,
    /// The client's OPT.
    pub edns: Option<Edns>,
}

/// Why a packet is not a query that can be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// Shorter than a header: no answer.
    Short,
    /// A response: no answer, or two servers could keep each other busy.
    Response,
    /// An answer of a header alone, with this RCODE.
    Header(u16),
}

impl<'a> Query<'a> {
    /// Parses a packet.
    ///
    /// # Errors
    /// [`Reject`], in the order of RFC 1035 and RFC 9619: length, QR, opcode, counts, question, records.
    pub fn parse(packet: &'a [u8]) -> Result<Self, Reject> {
        let Some((header, _)) = packet.split_first_chunk::<HEADER>() else {
            return Err(Reject::Short);
        };
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let flags = count(2);
        if flags & flag::QR != 0 {
            return Err(Reject::Response);
        }
        if flags & flag::OPCODE != 0 {
            return Err(Reject::Header(rcode::NOTIMP));
        }
        if count(4) != 1 {
            return Err(Reject::Header(rcode::FORMERR));
        }
        Self::parse_body(packet, count(0), flags, [count(6), count(8), count(10)])
            .map_err(|_| Reject::Header(rcode::FORMERR))
    }

    fn parse_body(
        packet: &'a [u8],
        id: u16,
        flags: u16,
        [answers, authorities, additionals]: [u16; 3],
    ) -> Result<Self, Malformed> {
        let name_end = name::skip_plain(packet, HEADER)?;
        let mut query = Self {
            id,
            flags,
            name: &packet[HEADER..name_end],
            qtype: u16_at(packet, name_end)?,
            qclass: u16_at(packet, name_end + 2)?,
            edns: None,
        };
        // An IXFR has an SOA there. It is refused, but with our OPT if the client sent one.
        let transfer = query.is_transfer();
        if (answers != 0 || authorities != 0) && !transfer {
            return Err(Malformed("query with answer or authority records"));
        }
        let mut at = name_end + 4;
        for _ in 0..u32::from(answers) + u32::from(authorities) {
            at = Record::read(packet, at)?.end;
        }
        for _ in 0..additionals {
            let record = Record::read(packet, at)?;
            at = record.end;
            match record.rtype {
                rtype::OPT if query.edns.is_some() => return Err(Malformed("second OPT")),
                rtype::OPT => query.edns = Some(Edns::read(packet, &record)?),
                rtype::TSIG if !transfer => return Err(Malformed("TSIG, which is not supported here")),
                _ => {}
            }
        }
        if at != packet.len() {
            return Err(Malformed("trailing bytes"));
        }
        Ok(query)
    }

    /// Whether it asks for a zone transfer.
    pub fn is_transfer(&self) -> bool {
        matches!(self.qtype, rtype::AXFR | rtype::IXFR)
    }

    /// Whether it asks for the server itself (class CH).
    pub fn is_chaos(&self) -> bool {
        self.qclass == class::CH
    }

    /// Whether the client asked us to recurse.
    pub fn recursion_desired(&self) -> bool {
        self.flags & flag::RD != 0
    }

    /// Whether the client wants DNSSEC records.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// Whether the client wants unvalidated data.
    pub fn checking_disabled(&self) -> bool {
        self.flags & flag::CD != 0
    }

    /// Whether AD may be set in the reply (RFC 6840 §5.7).
    pub fn wants_ad(&self) -> bool {
        self.flags & flag::AD != 0 || self.dnssec_ok()
    }

    /// The flags of a reply that begins with those of an upstream's message (AA, AD, RCODE).
    pub fn reply_flags(&self, from: u16) -> u16 {
        let keep = flag::AA | flag::RCODE | if self.wants_ad() { flag::AD } else { 0 };
        flag::QR | flag::RA | (self.flags & (flag::RD | flag::CD)) | (from & keep)
    }

    /// Our OPT for this client, if it sent one.
    pub fn opt(&self, ours: &OurEdns, error: Option<ExtendedError>) -> Option<Opt> {
        self.edns.map(|edns| Opt {
            size: ours.size,
            dnssec_ok: edns.dnssec_ok,
            rcode_high: 0,
            error,
            keepalive: ours.keepalive.filter(|_| edns.keepalive),
        })
    }

    /// Largest reply in bytes: over UDP the smaller of the client's size (512 without OPT) and
    /// ours, over TCP what its length field can say.
    pub fn reply_limit(&self, ours: &OurEdns) -> usize {
        match ours.keepalive {
            Some(_) => super::MAX_MESSAGE,
            None => {
                let theirs = self.edns.map_or(super::edns::MIN_SIZE, |edns| edns.size);
                usize::from(theirs.min(ours.size))
            }
        }
    }

    /// Writes a reply without records: the question, this RCODE and, where the client sent one, our OPT.
    pub fn write_empty(&self, rcode: u16, ours: &OurEdns, error: Option<ExtendedError>, out: &mut Vec<u8>) {
        let opt = self.opt(ours, error).map(|opt| Opt { rcode_high: (rcode >> 4) as u8, ..opt });
        out.clear();
        out.extend(self.id.to_be_bytes());
        out.extend(self.reply_flags(rcode & flag::RCODE).to_be_bytes());
        out.extend([0, 1, 0, 0, 0, 0, 0, u8::from(opt.is_some())]);
        self.write_question(out);
        if let Some(opt) = opt {
            opt.write(out);
        }
    }

    /// Appends the question.
    pub fn write_question(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.name);
        out.extend(self.qtype.to_be_bytes());
        out.extend(self.qclass.to_be_bytes());
    }
}

/// What we say of ourselves by EDNS on one kind of transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OurEdns {
    /// Our UDP payload size, bytes.
    pub size: u16,
    /// Our TCP idle timeout in units of 100 ms; `None` over UDP.
    pub keepalive: Option<u16>,
}

/// Writes the reply of a header alone to a packet of at least [`HEADER`] bytes.
pub fn write_header_only(packet: &[u8], rcode: u16, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&packet[..2]);
    let asked = u16::from_be_bytes([packet[2], packet[3]]);
    out.extend([0; HEADER - 2]);
    put_u16(out, 2, flag::QR | flag::RA | (asked & (flag::OPCODE | flag::RD | flag::CD)) | rcode);
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: OurEdns = OurEdns { size: 1232, keepalive: None };

    fn packet(flags: u16, counts: [u16; 4], body: &[u8]) -> Vec<u8> {
        let mut packet = vec![0xab, 0xcd];
        for part in [flags].iter().chain(&counts) {
            packet.extend(part.to_be_bytes());
        }
        packet.extend_from_slice(body);
        packet
    }

    const QUESTION: &[u8] = b"\x03WwW\x07example\x03com\x00\x00\x01\x00\x01";

    #[test]
    fn a_plain_query_is_parsed_in_its_own_letters() {
        let packet = packet(flag::RD, [1, 0, 0, 0], QUESTION);
        let query = Query::parse(&packet).unwrap();
        assert_eq!((query.id, query.qtype, query.qclass), (0xabcd, 1, 1));
        assert_eq!(query.name, b"\x03WwW\x07example\x03com\x00");
        assert_eq!(query.reply_limit(&UDP), 512);
    }

    #[test]
    fn what_cannot_be_a_query_is_judged_in_order() {
        let formerr = Err(Reject::Header(rcode::FORMERR));
        let opt = b"\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00";
        let with = |tail: &[u8]| [QUESTION, tail].concat();
        let table: Vec<(&str, Vec<u8>, Result<(), Reject>)> = vec![
            ("short", vec![0; 11], Err(Reject::Short)),
            ("response", packet(0x8100, [1, 0, 0, 0], QUESTION), Err(Reject::Response)),
            ("status", packet(0x1000, [0, 0, 0, 0], b""), Err(Reject::Header(rcode::NOTIMP))),
            ("no question", packet(0x0100, [0, 0, 0, 0], b""), formerr),
            ("two questions", packet(0x0100, [2, 0, 0, 0], &QUESTION.repeat(2)), formerr),
            (
                "an answer",
                packet(0x0100, [1, 1, 0, 0], &with(b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04\x01\x02\x03\x04")),
                formerr,
            ),
            ("trailing", packet(0x0100, [1, 0, 0, 0], &with(b"x")), formerr),
            ("cut off", packet(0x0100, [1, 0, 0, 0], &QUESTION[..QUESTION.len() - 1]), formerr),
            ("two OPTs", packet(0x0100, [1, 0, 0, 2], &with(&opt.repeat(2))), formerr),
            ("missing OPT", packet(0x0100, [1, 0, 0, 1], QUESTION), formerr),
            (
                "named OPT",
                packet(0x0100, [1, 0, 0, 1], &with(b"\x01a\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00")),
                formerr,
            ),
            (
                "option too long",
                packet(
                    0x0100,
                    [1, 0, 0, 1],
                    &with(b"\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x01"),
                ),
                formerr,
            ),
            (
                "TSIG",
                packet(0x0100, [1, 0, 0, 1], &with(b"\x00\x00\xfa\x00\xff\x00\x00\x00\x00\x00\x00")),
                formerr,
            ),
            ("compressed question", packet(0x0100, [1, 0, 0, 0], b"\xc0\x0c\0\x01\0\x01"), formerr),
            ("one OPT", packet(0x0100, [1, 0, 0, 1], &with(opt)), Ok(())),
        ];
        for (what, packet, expected) in table {
            assert_eq!(Query::parse(&packet).map(|_| ()), expected, "{what}");
        }
    }

    #[test]
    fn a_transfer_is_read_with_its_soa_and_its_opt() {
        let question = b"\x01z\x00\x00\xfb\x00\x01";
        let soa = b"\xc0\x0c\0\x06\0\x01\0\0\0\0\0\x16\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let opt = b"\0\0\x29\x10\0\0\0\x80\0\0\0";
        let body = [&question[..], soa, opt].concat();
        let ixfr = packet(0, [1, 0, 1, 1], &body);
        let query = Query::parse(&ixfr).unwrap();
        assert!(query.is_transfer() && query.dnssec_ok());
        let cut = packet(0, [1, 0, 1, 1], &body[..body.len() - 1]);
        assert_eq!(Query::parse(&cut), Err(Reject::Header(rcode::FORMERR)));
    }

    #[test]
    fn edns_sizes_below_512_mean_512_and_ours_is_the_bound() {
        for (theirs, limit) in [(0u16, 512), (511, 512), (1000, 1000), (4096, 1232)] {
            let [high, low] = theirs.to_be_bytes();
            let tail = [0, 0, 0x29, high, low, 0, 0, 0x80, 0, 0, 0];
            let packet = packet(flag::RD, [1, 0, 0, 1], &[QUESTION, &tail].concat());
            let query = Query::parse(&packet).unwrap();
            assert_eq!(query.reply_limit(&UDP), limit);
            assert!(query.dnssec_ok());
        }
    }

    #[test]
    fn options_of_a_later_edns_version_are_not_read() {
        let opt = |version: u8| [b"\0\0\x29\x10\0\0", &[version][..], b"\0\0\0\x03\0\x0a\0"].concat();
        let packet = |version| packet(flag::RD, [1, 0, 0, 1], &[QUESTION, &opt(version)].concat());
        assert_eq!(Query::parse(&packet(0)), Err(Reject::Header(rcode::FORMERR)));
        for version in [1, 255] {
            let packet = packet(version);
            assert_eq!(Query::parse(&packet).unwrap().edns.unwrap().version, version);
        }
    }

    #[test]
    fn a_record_that_points_into_the_header_makes_a_query_malformed() {
        let record = |owner: &[u8]| [owner, b"\0\x10\0\x01\0\0\0\0\0\0"].concat();
        for (owner, good) in [(b"\xc0\x0c", true), (b"\xc0\x04", false), (b"\xc0\x0b", false)] {
            let packet = packet(flag::RD, [1, 0, 0, 1], &[QUESTION, &record(owner)].concat());
            assert_eq!(Query::parse(&packet).is_ok(), good, "{owner:?}");
        }
    }

    #[test]
    fn an_empty_reply_echoes_question_and_flags_and_has_opt_only_if_asked() {
        let plain = packet(flag::RD | flag::CD, [1, 0, 0, 0], QUESTION);
        let mut out = Vec::new();
        Query::parse(&plain).unwrap().write_empty(rcode::REFUSED, &UDP, None, &mut out);
        assert_eq!(out[..12], [0xab, 0xcd, 0x81, 0x95, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&out[12..], QUESTION);

        let asked = packet(flag::RD, [1, 0, 0, 1], &[QUESTION, b"\0\0\x29\x10\0\0\x01\0\0\0\0"].concat());
        let query = Query::parse(&asked).unwrap();
        assert_eq!(query.edns.unwrap().version, 1);
        query.write_empty(rcode::BADVERS, &UDP, Some(ExtendedError::NetworkError), &mut out);
        assert_eq!(out[2..12], [0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 1]);
        assert_eq!(&out[12 + QUESTION.len()..], [0, 0, 41, 4, 208, 1, 0, 0, 0, 0, 6, 0, 15, 0, 2, 0, 23]);
    }
}
