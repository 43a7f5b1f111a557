//! An upstream's answer, read through once: what kind it is and where its TTLs stand.

use super::edns::rcode_high;
use super::key::Key;
use super::{HEADER, MAX_MESSAGE, Malformed, Record, flag, name, rcode, rtype, u16_at, u32_at};

/// What an answer means for the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Records of the asked type.
    Positive,
    /// The name exists, or an alias leads to one that does, without the asked type (RFC 2308 §2.2).
    NoData,
    /// The name does not exist.
    NxDomain,
    /// A resolution failure with this RCODE (RFC 9520).
    Failure(u16),
}

/// Where the SOA that bounds a negative answer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Soa {
    /// Offset of its TTL.
    pub ttl_at: u16,
    /// Its MINIMUM, seconds.
    pub minimum: u32,
}

/// The address RRset of an answer: equal-sized records one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Offset of the first record's RDATA.
    pub first: u16,
    /// From one record's RDATA to the next one's.
    pub stride: u16,
    /// Bytes of each RDATA.
    pub size: u16,
    /// Records, at least 2.
    pub count: u16,
}

/// A response that matched its question, without its OPT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The message up to its OPT (or all of it), still with the upstream's ID and counts.
    pub message: Vec<u8>,
    /// Flags as the upstream sent them.
    pub flags: u16,
    /// What it is.
    pub kind: Kind,
    /// ARCOUNT of [`Answer::message`].
    pub additionals: u16,
    /// Offset and value of every TTL, in order.
    pub ttls: Vec<(u16, u32)>,
    /// The authority section's SOA.
    pub soa: Option<Soa>,
    /// What can be rotated.
    pub rotation: Option<Rotation>,
}

impl Answer {
    /// Reads the response to `key`. That it answers this question was checked before
    /// ([`Key::is_answered_by`]).
    ///
    /// # Errors
    /// A record that breaks the format, bytes behind the last record, a second OPT, or more than
    /// [`MAX_MESSAGE`] bytes.
    pub fn read(mut message: Vec<u8>, key: &Key) -> Result<Self, Malformed> {
        if message.len() > MAX_MESSAGE {
            return Err(Malformed("message over 65535 bytes"));
        }
        let mut reader = Reader::new(&message, key)?;
        let flags = u16_at(&message, 2)?;
        let counts = [u16_at(&message, 6)?, u16_at(&message, 8)?, u16_at(&message, 10)?];
        for _ in 0..counts[0] {
            reader.answer()?;
        }
        for _ in 0..counts[1] {
            reader.authority()?;
        }
        reader.additional(counts[2])?;
        let code = reader.rcode_high << 4 | flags & flag::RCODE;
        let Reader { end, has_type, additionals, ttls, soa, rotation, .. } = reader;
        message.truncate(end);
        Ok(Self {
            message,
            flags,
            kind: match code {
                rcode::NXDOMAIN => Kind::NxDomain,
                rcode::NOERROR if has_type => Kind::Positive,
                rcode::NOERROR => Kind::NoData,
                failure => Kind::Failure(failure),
            },
            additionals,
            ttls,
            soa,
            rotation: rotation.filter(|run| run.count > 1),
        })
    }
}

struct Reader<'a, 'k> {
    message: &'a [u8],
    key: &'k Key,
    at: usize,
    /// Behind the last record that is kept.
    end: usize,
    has_type: bool,
    ttls: Vec<(u16, u32)>,
    soa: Option<Soa>,
    rotation: Option<Rotation>,
    /// Owner of the run in `rotation`.
    owner: usize,
    additionals: u16,
    rcode_high: u16,
}

impl<'a, 'k> Reader<'a, 'k> {
    fn new(message: &'a [u8], key: &'k Key) -> Result<Self, Malformed> {
        let at = match u16_at(message, 4)? {
            0 => HEADER,
            _ => name::skip_plain(message, HEADER)? + 4,
        };
        if at > message.len() {
            return Err(Malformed("message ends inside its question"));
        }
        Ok(Self {
            message,
            key,
            at,
            end: at,
            has_type: false,
            ttls: Vec::with_capacity(8),
            soa: None,
            rotation: None,
            owner: 0,
            additionals: 0,
            rcode_high: 0,
        })
    }

    /// The next record, wherever it is.
    fn record(&mut self) -> Result<Record, Malformed> {
        let record = Record::read(self.message, self.at)?;
        self.at = record.end;
        Ok(record)
    }

    /// The next record, which is kept.
    fn kept(&mut self) -> Result<Record, Malformed> {
        let record = self.record()?;
        if record.rtype == rtype::OPT {
            return Err(Malformed("OPT outside of the additional section"));
        }
        self.ttls.push((record.ttl_at() as u16, record.ttl));
        self.end = record.end;
        Ok(record)
    }

    fn answer(&mut self) -> Result<(), Malformed> {
        let record = self.kept()?;
        let qtype = self.key.qtype();
        self.has_type |= record.rtype == qtype || qtype == rtype::ANY;
        if record.rtype == rtype::CNAME && name::skip(self.message, record.rdata())? != record.end {
            return Err(Malformed("CNAME whose RDATA is not a name"));
        }
        let size = record.end - record.rdata();
        if record.rtype == qtype && matches!((qtype, size), (rtype::A, 4) | (rtype::AAAA, 16)) {
            self.extend_run(&record, size);
        }
        Ok(())
    }

    /// Adds an address to the run, if it follows it directly under the same owner.
    fn extend_run(&mut self, record: &Record, size: usize) {
        let rdata = record.rdata();
        match &mut self.rotation {
            None => {
                let (first, size) = (rdata as u16, size as u16);
                self.rotation = Some(Rotation { first, stride: 0, size, count: 1 });
                self.owner = record.owner;
            }
            Some(run) => {
                let stride = (record.end - record.owner) as u16;
                let follows = match run.count {
                    1 => rdata as u16 == run.first + stride,
                    n => {
                        stride == run.stride
                            && rdata == usize::from(run.first) + usize::from(n) * usize::from(stride)
                    }
                };
                if follows && name::eq((self.message, self.owner), (self.message, record.owner)) {
                    run.stride = stride;
                    run.count += 1;
                }
            }
        }
    }

    fn authority(&mut self) -> Result<(), Malformed> {
        let record = self.kept()?;
        if record.rtype == rtype::SOA && self.soa.is_none() {
            let names = name::skip(self.message, name::skip(self.message, record.rdata())?)?;
            if names + 20 != record.end {
                return Err(Malformed("SOA whose RDATA is not two names and five numbers"));
            }
            let minimum = u32_at(self.message, names + 16)?;
            self.soa = Some(Soa { ttl_at: record.ttl_at() as u16, minimum });
        }
        Ok(())
    }

    /// Reads the section and keeps it up to its OPT. What stands behind an OPT could point into what
    /// is cut out, and additional records may always be left out.
    fn additional(&mut self, count: u16) -> Result<(), Malformed> {
        let mut opt = false;
        for _ in 0..count {
            let record = self.record()?;
            match record.rtype {
                rtype::OPT if opt => return Err(Malformed("second OPT")),
                rtype::OPT => {
                    opt = true;
                    self.rcode_high = rcode_high(record.ttl);
                }
                _ if opt => {}
                _ => {
                    self.ttls.push((record.ttl_at() as u16, record.ttl));
                    self.end = record.end;
                    self.additionals += 1;
                }
            }
        }
        if self.at != self.message.len() {
            return Err(Malformed("bytes behind the last record"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::KeyBuf;
    use super::super::query::Query;
    use super::*;

    const NAME: &[u8] = b"\x01n\x01z\x00";

    fn key(qtype: u16) -> Key {
        KeyBuf::new(&Query { id: 1, flags: 0, name: NAME, qtype, qclass: 1, edns: None }).to_key()
    }

    fn rr(owner: &[u8], rtype: u16, ttl: u32, rdata: &[u8]) -> Vec<u8> {
        let mut rr = owner.to_vec();
        rr.extend(rtype.to_be_bytes());
        rr.extend([0, 1]);
        rr.extend(ttl.to_be_bytes());
        rr.extend((rdata.len() as u16).to_be_bytes());
        rr.extend(rdata);
        rr
    }

    fn message(code: u16, qtype: u16, sections: [&[Vec<u8>]; 3]) -> Vec<u8> {
        let mut message = vec![0, 1];
        message.extend((flag::QR | code).to_be_bytes());
        message.extend([0, 1]);
        for section in sections {
            message.extend((section.len() as u16).to_be_bytes());
        }
        message.extend(NAME);
        message.extend(qtype.to_be_bytes());
        message.extend([0, 1]);
        for section in sections {
            message.extend(section.concat());
        }
        message
    }

    const OWNER: &[u8] = &[0xc0, 12];

    fn soa(minimum: u32) -> Vec<u8> {
        let mut rdata = b"\x00\x00".to_vec();
        rdata.extend([0; 16]);
        rdata.extend(minimum.to_be_bytes());
        rr(b"\xc0\x0e", rtype::SOA, 60, &rdata)
    }

    #[test]
    fn addresses_are_positive_and_rotate_as_one_run() {
        let a = |n: u8| rr(OWNER, rtype::A, 30, &[10, 0, 0, n]);
        let opt = [0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0].to_vec();
        let extra = rr(b"\x01x\x00", rtype::A, 5, &[1, 1, 1, 1]);
        let bytes = message(0, rtype::A, [&[a(1), a(2), a(3)], &[], &[extra.clone(), opt, extra]]);
        let answer = Answer::read(bytes, &key(rtype::A)).unwrap();
        assert_eq!(answer.kind, Kind::Positive);
        assert_eq!(answer.rotation, Some(Rotation { first: 33, stride: 16, size: 4, count: 3 }));
        assert_eq!(answer.ttls, [(27, 30), (43, 30), (59, 30), (76, 5)]);
        assert_eq!(answer.additionals, 1, "what follows the OPT is left out");
        assert_eq!(answer.message.len(), 21 + 48 + 17);
    }

    #[test]
    fn an_alias_without_the_type_is_nodata_and_a_single_address_does_not_rotate() {
        let cname = rr(OWNER, rtype::CNAME, 30, b"\x01t\xc0\x0e");
        let bytes = message(0, rtype::A, [std::slice::from_ref(&cname), &[soa(7)], &[]]);
        let answer = Answer::read(bytes, &key(rtype::A)).unwrap();
        assert_eq!(answer.kind, Kind::NoData);
        assert_eq!(answer.soa.unwrap().minimum, 7);
        let a = rr(b"\x01t\xc0\x0e", rtype::A, 30, &[10, 0, 0, 1]);
        let bytes = message(0, rtype::A, [&[cname, a], &[], &[]]);
        let answer = Answer::read(bytes, &key(rtype::A)).unwrap();
        assert_eq!((answer.kind, answer.rotation), (Kind::Positive, None));
    }

    #[test]
    fn rcodes_are_told_apart_with_their_high_bits() {
        let badvers = [0, 0, 41, 4, 0xd0, 1, 0, 0, 0, 0, 0].to_vec();
        for (code, additional, kind) in [
            (3, vec![], Kind::NxDomain),
            (2, vec![], Kind::Failure(2)),
            (0, vec![], Kind::NoData),
            (0, vec![badvers], Kind::Failure(16)),
        ] {
            let bytes = message(code, rtype::A, [&[], &[], &additional]);
            assert_eq!(Answer::read(bytes, &key(rtype::A)).unwrap().kind, kind);
        }
    }

    #[test]
    fn what_breaks_the_format_is_malformed() {
        let a = rr(OWNER, rtype::A, 30, &[10, 0, 0, 1]);
        let good = message(0, rtype::A, [std::slice::from_ref(&a), &[soa(1)], &[]]);
        for cut in 0..good.len() {
            assert!(Answer::read(good[..cut].to_vec(), &key(rtype::A)).is_err(), "cut at {cut}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(Answer::read(longer, &key(rtype::A)).is_err());
        let mut lying = good;
        lying[7] = 200;
        assert!(Answer::read(lying, &key(rtype::A)).is_err());
        let opt = [0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0].to_vec();
        let two = message(0, rtype::A, [&[], &[], &[opt.clone(), opt.clone()]]);
        assert!(Answer::read(two, &key(rtype::A)).is_err());
        let misplaced = message(0, rtype::A, [&[opt], &[], &[]]);
        assert!(Answer::read(misplaced, &key(rtype::A)).is_err());
    }
}
