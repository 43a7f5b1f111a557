//! Queries as bytes, and replies read without any code of the program under test.

use std::fmt::{self, Write as _};

pub(crate) use crate::support::edit::flag;

/// An OPT: of a query as it is sent, of a reply as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opt {
    pub(crate) size: u16,
    pub(crate) version: u8,
    /// The low half of its TTL; DO is the top bit.
    pub(crate) flags: u16,
    /// Code and content.
    pub(crate) options: Vec<(u16, Vec<u8>)>,
}

impl Opt {
    pub(crate) fn dnssec_ok(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend([0, 0, 41]);
        out.extend(self.size.to_be_bytes());
        out.extend([0, self.version]);
        out.extend(self.flags.to_be_bytes());
        let length: usize = self.options.iter().map(|(_, content)| content.len() + 4).sum();
        out.extend((length as u16).to_be_bytes());
        for (code, content) in &self.options {
            out.extend(code.to_be_bytes());
            out.extend((content.len() as u16).to_be_bytes());
            out.extend(content);
        }
    }
}

/// One query, without its ID.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    /// In wire form, in the client's letters.
    pub(crate) name: Vec<u8>,
    pub(crate) qtype: u16,
    pub(crate) qclass: u16,
    pub(crate) flags: u16,
    pub(crate) opt: Option<Opt>,
    pub(crate) tcp: bool,
}

impl Query {
    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn dnssec_ok(&self) -> bool {
        self.opt.as_ref().is_some_and(Opt::dnssec_ok)
    }

    /// The bytes of the question.
    pub(crate) fn question(&self) -> Vec<u8> {
        [&self.name[..], &self.qtype.to_be_bytes(), &self.qclass.to_be_bytes()].concat()
    }

    pub(crate) fn to_bytes(&self, id: u16) -> Vec<u8> {
        let mut out = Vec::with_capacity(300);
        for part in [id, self.flags, 1, 0, 0, u16::from(self.opt.is_some())] {
            out.extend(part.to_be_bytes());
        }
        out.extend(self.question());
        if let Some(opt) = &self.opt {
            opt.write(&mut out);
        }
        out
    }
}

/// One record, its names written out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) owner: Vec<u8>,
    pub(crate) rtype: u16,
    pub(crate) class: u16,
    pub(crate) ttl: u32,
    pub(crate) rdata: Vec<u8>,
    /// RDATA with the letters of its names lower-cased.
    folded: Vec<u8>,
    /// Bytes it took in its message, compressed as it was.
    pub(crate) wire: usize,
}

impl Record {
    /// All but the TTL, for comparison without regard to letters in names.
    pub(crate) fn identity(&self) -> (Vec<u8>, u16, u16, &[u8]) {
        (self.owner.to_ascii_lowercase(), self.rtype, self.class, &self.folded)
    }

    /// All but the TTL, letter by letter.
    pub(crate) fn letters(&self) -> (&[u8], u16, u16, &[u8]) {
        (&self.owner, self.rtype, self.class, &self.rdata)
    }
}

/// One reply.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) flags: u16,
    /// With the high bits from the OPT.
    pub(crate) rcode: u16,
    pub(crate) question: Vec<u8>,
    /// Answer, authority, additional (without OPT).
    pub(crate) sections: [Vec<Record>; 3],
    pub(crate) opt: Option<Opt>,
    /// Bytes of the message.
    pub(crate) length: usize,
}

impl Reply {
    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sections.iter().all(Vec::is_empty)
    }

    /// Reads a whole message; `None` if it breaks the format anywhere.
    pub(crate) fn read(message: &[u8]) -> Option<Self> {
        let count = |at: usize| u16_at(message, at);
        let flags = count(2)?;
        let mut at = 12;
        if count(4)? == 1 {
            at = name(message, at)?.1 + 4;
        }
        let question = message.get(12..at)?.to_vec();
        let (mut sections, mut opt, mut high) = ([const { Vec::new() }; 3], None, 0);
        for (section, records) in sections.iter_mut().enumerate() {
            for _ in 0..count(6 + 2 * section)? {
                let (record, end) = record(message, at)?;
                at = end;
                if record.rtype != 41 {
                    records.push(record);
                } else if section == 2 && opt.is_none() && record.owner == [0] {
                    high = (record.ttl >> 24) as u16;
                    opt = Some(Opt {
                        size: record.class,
                        version: (record.ttl >> 16) as u8,
                        flags: record.ttl as u16,
                        options: options(&record.rdata)?,
                    });
                } else {
                    return None;
                }
            }
        }
        let rcode = high << 4 | flags & 0x000f;
        (at == message.len()).then_some(Self { flags, rcode, question, sections, opt, length: at })
    }
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]))
}

fn options(mut rdata: &[u8]) -> Option<Vec<(u16, Vec<u8>)>> {
    let mut options = Vec::new();
    while !rdata.is_empty() {
        let end = 4 + usize::from(u16_at(rdata, 2)?);
        options.push((u16_at(rdata, 0)?, rdata.get(4..end)?.to_vec()));
        rdata = &rdata[end..];
    }
    Some(options)
}

/// A name written out, and where the message goes on behind it.
fn name(message: &[u8], mut at: usize) -> Option<(Vec<u8>, usize)> {
    let (mut plain, mut end) = (Vec::new(), None);
    while plain.len() < 255 {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => {
                plain.push(0);
                return Some((plain, end.unwrap_or(at + 1)));
            }
            1..=63 => {
                plain.extend(message.get(at..=at + length)?);
                at += length + 1;
            }
            192.. => {
                end = end.or(Some(at + 2));
                let target = usize::from(u16_at(message, at)? & 0x3fff);
                // Only backwards, so that it ends.
                at = (target < at).then_some(target)?;
            }
            _ => return None,
        }
    }
    None
}

/// What stands in front of the names in the RDATA of a type, and how many names there are.
fn names_in(rtype: u16) -> (usize, usize) {
    match rtype {
        // NS, MD, MF, CNAME, MB, MG, MR, PTR, DNAME, NSEC
        2..=5 | 7..=9 | 12 | 39 | 47 => (0, 1),
        // SOA, MINFO, RP
        6 | 14 | 17 => (0, 2),
        // MX, AFSDB, RT, KX
        15 | 18 | 21 | 36 => (2, 1),
        // PX
        26 => (2, 2),
        // SRV
        33 => (6, 1),
        // SIG, RRSIG
        24 | 46 => (18, 1),
        _ => (0, 0),
    }
}

fn record(message: &[u8], at: usize) -> Option<(Record, usize)> {
    let (owner, fixed) = name(message, at)?;
    let end = fixed + 10 + usize::from(u16_at(message, fixed + 8)?);
    let rtype = u16_at(message, fixed)?;
    let (before, names) = names_in(rtype);
    let mut behind = fixed + 10 + before;
    let mut rdata = message.get(fixed + 10..behind)?.to_vec();
    let mut folded = rdata.clone();
    for _ in 0..names {
        let (plain, next) = name(message, behind)?;
        folded.extend(plain.to_ascii_lowercase());
        rdata.extend(plain);
        behind = next;
    }
    rdata.extend(message.get(behind..end)?);
    folded.extend(message.get(behind..end)?);
    let ttl = u32::from(u16_at(message, fixed + 4)?) << 16 | u32::from(u16_at(message, fixed + 6)?);
    let class = u16_at(message, fixed + 2)?;
    Some((Record { owner, rtype, class, ttl, rdata, folded, wire: end - at }, end))
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.tcp { "tcp" } else { "udp" };
        let (name, flags) = (shown(&self.name), flags(self.flags));
        write!(f, "{name} TYPE{} CLASS{}{flags} by {way}", self.qtype, self.qclass)?;
        self.opt.as_ref().map_or(Ok(()), |opt| write!(f, ", {opt:?}"))
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rcode {}{}, {} bytes, {:?}", self.rcode, flags(self.flags), self.length, self.opt)?;
        for (section, records) in ["answer", "authority", "additional"].iter().zip(&self.sections) {
            for Record { owner, rtype, class, ttl, rdata, .. } in records.iter().take(6) {
                let (owner, data) = (shown(owner), shown(&rdata[..rdata.len().min(80)]));
                writeln!(f, "  {section}: {owner} {ttl} CLASS{class} TYPE{rtype} {data}")?;
            }
            if records.len() > 6 {
                writeln!(f, "  {section}: {} records in all", records.len())?;
            }
        }
        Ok(())
    }
}

fn flags(flags: u16) -> String {
    let names = [
        (flag::AA, " aa"),
        (flag::TC, " tc"),
        (flag::RD, " rd"),
        (flag::RA, " ra"),
        (flag::Z, " z"),
        (flag::AD, " ad"),
        (flag::CD, " cd"),
    ];
    names.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name).collect()
}

/// Bytes of a name or of RDATA: letters as they are, all else by number.
fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        if byte.is_ascii_graphic() && byte != b'\\' {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "\\{byte}");
        }
    }
    text
}
