//! An upstream's answer, read through once: what kind it is and where its TTLs stand.

use std::ops::Range;

use super::edns::rcode_high;
use super::key::Key;
use super::{HEADER, MAX_MESSAGE, Malformed, Record, flag, name, rcode, rdata, rtype, u16_at, u32_at};

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
    /// A record that breaks the format, bytes behind the last record, a second OPT, another number of
    /// questions than one (a failure may have none), or more than [`MAX_MESSAGE`] bytes.
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
        let kind = match code {
            rcode::NXDOMAIN => Kind::NxDomain,
            rcode::NOERROR if has_type => Kind::Positive,
            rcode::NOERROR => Kind::NoData,
            failure => Kind::Failure(failure),
        };
        match u16_at(&message, 4)? {
            1 => {}
            0 if matches!(kind, Kind::Failure(_)) => {}
            _ => return Err(Malformed("other than one question")),
        }
        message.truncate(end);
        Ok(Self {
            message,
            flags,
            kind,
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
    /// Behind the name of the question.
    question: usize,
    at: usize,
    /// Behind the last record that is kept.
    end: usize,
    /// Where the last pointer led that was found good: the records of an RRset share it.
    checked: Option<usize>,
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
        let (question, at) = match u16_at(message, 4)? {
            0 => (HEADER, HEADER),
            _ => name::skip_plain(message, HEADER).map(|end| (end, end + 4))?,
        };
        if at > message.len() {
            return Err(Malformed("message ends inside its question"));
        }
        Ok(Self {
            message,
            key,
            question,
            at,
            end: at,
            checked: None,
            has_type: false,
            ttls: Vec::with_capacity(8),
            soa: None,
            rotation: None,
            owner: 0,
            additionals: 0,
            rcode_high: 0,
        })
    }

    /// The next record, wherever it is, and where the names in its RDATA are.
    fn record(&mut self) -> Result<(Record, rdata::Names), Malformed> {
        let record = Record::read(self.message, self.at)?;
        self.at = record.end;
        Ok((record, rdata::names(self.message, &record)?))
    }

    /// The next record of the answer or authority section.
    fn kept(&mut self) -> Result<Record, Malformed> {
        let (record, names) = self.record()?;
        if matches!(record.rtype, rtype::OPT | rtype::TSIG) {
            return Err(Malformed("OPT or TSIG outside of the additional section"));
        }
        self.keep(&record, names)?;
        Ok(record)
    }

    fn keep(&mut self, record: &Record, names: rdata::Names) -> Result<(), Malformed> {
        self.ttls.push((record.ttl_at() as u16, record.ttl));
        self.end = record.end;
        self.check_shared(record.owner)?;
        names.into_iter().flatten().try_for_each(|at| self.check_shared(at))
    }

    /// Checks the labels that a well-formed name takes from other places.
    fn check_shared(&mut self, at: usize) -> Result<(), Malformed> {
        let (_, first) = name::run(self.message, at)?;
        let (mut next, mut before) = (first, at);
        while let Some(start) = next.filter(|&start| start != HEADER && Some(start) != self.checked) {
            let (end, target) = name::run(self.message, start)?;
            if start >= before || !self.stays(&(start..end)) {
                return Err(Malformed("compression pointer to what is no name"));
            }
            (next, before) = (target, start);
        }
        self.checked = first.or(self.checked);
        Ok(())
    }

    /// Whether labels that a name shares are the same in every copy. TTLs are written anew, addresses
    /// rotated, and the letters of the question are the client's: a name must not be made of those.
    fn stays(&self, labels: &Range<usize>) -> bool {
        if labels.start < self.question {
            return labels.end == self.question; // else letters would be read as a pointer
        }
        let behind = self.ttls.partition_point(|&(ttl, _)| usize::from(ttl) + 6 <= labels.start);
        let is_before = |&(ttl, _): &(u16, u32)| labels.end <= usize::from(ttl) - 4;
        let in_address = |&(ttl, _): &(u16, u32)| {
            let rtype = u16_at(self.message, usize::from(ttl) - 4);
            let size = u16_at(self.message, usize::from(ttl) + 4).map_or(0, usize::from);
            matches!(rtype, Ok(rtype::A | rtype::AAAA)) && labels.start < usize::from(ttl) + 6 + size
        };
        self.ttls.get(behind).is_none_or(is_before) && !self.ttls[..behind].last().is_some_and(in_address)
    }

    fn answer(&mut self) -> Result<(), Malformed> {
        let record = self.kept()?;
        let qtype = self.key.qtype();
        self.has_type |= record.rtype == qtype || qtype == rtype::ANY;
        let size = record.end - record.rdata();
        if (record.rtype, record.class) == (qtype, self.key.qclass())
            && matches!((qtype, size), (rtype::A, 4) | (rtype::AAAA, 16))
        {
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
                if follows && name::same(self.message, self.owner, record.owner) {
                    run.stride = stride;
                    run.count += 1;
                }
            }
        }
    }

    fn authority(&mut self) -> Result<(), Malformed> {
        let record = self.kept()?;
        if record.rtype == rtype::SOA && self.soa.is_none() {
            let minimum = u32_at(self.message, record.end - 4)?; // the last of its five numbers
            self.soa = Some(Soa { ttl_at: record.ttl_at() as u16, minimum });
        }
        Ok(())
    }

    /// Reads the section and keeps it up to its OPT or TSIG, which are between the upstream and us. What
    /// stands behind could point into what is cut out, and additional records may always be left out.
    fn additional(&mut self, count: u16) -> Result<(), Malformed> {
        let (mut opt, mut cut) = (false, false);
        for _ in 0..count {
            let (record, names) = self.record()?;
            match record.rtype {
                rtype::OPT if opt => return Err(Malformed("second OPT")),
                rtype::OPT => {
                    (opt, cut) = (true, true);
                    self.rcode_high = rcode_high(record.ttl);
                }
                rtype::TSIG => cut = true,
                _ if cut => {}
                _ => {
                    self.keep(&record, names)?;
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
mod tests;
