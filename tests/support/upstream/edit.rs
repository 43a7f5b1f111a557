//! Ways in which an answer can be wrong: functions from the bytes of a good one to those of a bad one.
//!
//! What they are given has one question without compression, and whole records behind it, as
//! [`super::reply::address_reply`] makes it.

/// A section of a message, as the header counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Answer = 1,
    Authority = 2,
    Additional = 3,
}

/// Bits of the header's second word.
pub(crate) mod flag {
    pub(crate) const QR: u16 = 0x8000;
    pub(crate) const STATUS: u16 = 0x1000;
    pub(crate) const AA: u16 = 0x0400;
    pub(crate) const TC: u16 = 0x0200;
    pub(crate) const RD: u16 = 0x0100;
    pub(crate) const RA: u16 = 0x0080;
    pub(crate) const Z: u16 = 0x0040;
    pub(crate) const AD: u16 = 0x0020;
    pub(crate) const CD: u16 = 0x0010;
}

pub(crate) const A: u16 = 1;
pub(crate) const CNAME: u16 = 5;
pub(crate) const PTR: u16 = 12;
pub(crate) const MX: u16 = 15;
pub(crate) const OPT: u16 = 41;

/// Octets of the header, and so the place of the question's name.
const HEADER: usize = 12;
/// A pointer to the question's name.
const ASKED: [u8; 2] = [0xc0, 12];

/// A name in wire form.
pub(crate) fn plain_name(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in text.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).expect("a label's length"));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// A record of class IN.
pub(crate) fn record(owner: &[u8], record_type: u16, ttl: u32, rdata: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rdata.len()).expect("RDATA of at most 64 KiB");
    let fixed = [&record_type.to_be_bytes()[..], &[0, 1], &ttl.to_be_bytes(), &length.to_be_bytes()];
    [owner, &fixed.concat(), rdata].concat()
}

/// An OPT of this extended RCODE and version, without options.
pub(crate) fn opt(rcode_high: u8, version: u8) -> Vec<u8> {
    vec![0, 0, 41, 4, 208, rcode_high, version, 0, 0, 0, 0]
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn set_word(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The first octet behind the name at `at`.
fn name_end(bytes: &[u8], mut at: usize) -> usize {
    loop {
        match bytes[at] {
            0 => return at + 1,
            0xc0.. => return at + 2,
            length => at += 1 + usize::from(length),
        }
    }
}

fn question_end(bytes: &[u8]) -> usize {
    name_end(bytes, HEADER) + 4
}

/// Where each record begins and ends, with its section.
fn records(bytes: &[u8]) -> Vec<(Section, usize, usize)> {
    let mut at = question_end(bytes);
    let mut found = Vec::new();
    for section in [Section::Answer, Section::Authority, Section::Additional] {
        for _ in 0..word(bytes, 4 + 2 * section as usize) {
            let rdata = name_end(bytes, at) + 10;
            let end = rdata + usize::from(word(bytes, rdata - 2));
            found.push((section, at, end));
            at = end;
        }
    }
    found
}

/// Another ID.
pub(crate) fn wrong_id(good: &[u8]) -> Vec<u8> {
    with_id(good, word(good, 0) ^ 0x5a5a)
}

pub(crate) fn with_id(good: &[u8], id: u16) -> Vec<u8> {
    let mut bytes = good.to_vec();
    set_word(&mut bytes, 0, id);
    bytes
}

/// A question for another name; the records, whose owner points there, follow it.
pub(crate) fn wrong_name(good: &[u8], name: &str) -> Vec<u8> {
    [&good[..HEADER], &plain_name(name), &good[name_end(good, HEADER)..]].concat()
}

pub(crate) fn wrong_type(good: &[u8], record_type: u16) -> Vec<u8> {
    let mut bytes = good.to_vec();
    set_word(&mut bytes, question_end(good) - 4, record_type);
    bytes
}

pub(crate) fn wrong_class(good: &[u8], class: u16) -> Vec<u8> {
    let mut bytes = good.to_vec();
    set_word(&mut bytes, question_end(good) - 2, class);
    bytes
}

/// The question's letters in the other case each.
pub(crate) fn other_case(good: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for octet in &mut bytes[HEADER..question_end(good) - 4] {
        if octet.is_ascii_alphabetic() {
            *octet ^= 0x20;
        }
    }
    bytes
}

/// No question; owners that pointed there are written out.
pub(crate) fn without_question(good: &[u8]) -> Vec<u8> {
    let name = &good[HEADER..name_end(good, HEADER)];
    let mut bytes = good[..HEADER].to_vec();
    set_word(&mut bytes, 4, 0);
    for (_, start, end) in records(good) {
        let owner = name_end(good, start);
        bytes.extend(if good[start..owner] == ASKED { name } else { &good[start..owner] });
        bytes.extend(&good[owner..end]);
    }
    bytes
}

/// The header alone, with an RCODE and no question.
pub(crate) fn header_only(good: &[u8], rcode: u16) -> Vec<u8> {
    let mut bytes = good[..HEADER].to_vec();
    let flags = (word(good, 2) & !0xf) | rcode;
    set_word(&mut bytes, 2, flags);
    bytes[4..].fill(0);
    bytes
}

/// These bits of the flags the other way round.
pub(crate) fn flipped(good: &[u8], bits: u16) -> Vec<u8> {
    let mut bytes = good.to_vec();
    let flags = word(good, 2) ^ bits;
    set_word(&mut bytes, 2, flags);
    bytes
}

/// A section's count that is not that of its records.
pub(crate) fn counted(good: &[u8], section: Section, count: u16) -> Vec<u8> {
    let mut bytes = good.to_vec();
    set_word(&mut bytes, 4 + 2 * section as usize, count);
    bytes
}

/// One record more, at the end of its section.
pub(crate) fn with_record(good: &[u8], section: Section, record: &[u8]) -> Vec<u8> {
    with_records(good, section, record, 1)
}

/// As many records more as `all` holds, at the end of their section.
pub(crate) fn with_records(good: &[u8], section: Section, all: &[u8], count: u16) -> Vec<u8> {
    let before = records(good).into_iter().rfind(|&(other, ..)| (other as usize) <= section as usize);
    let at = before.map_or_else(|| question_end(good), |(.., end)| end);
    let mut bytes = [&good[..at], all, &good[at..]].concat();
    let place = 4 + 2 * section as usize;
    set_word(&mut bytes, place, word(good, place) + count);
    bytes
}

/// No records at all.
pub(crate) fn without_records(good: &[u8]) -> Vec<u8> {
    let mut bytes = good[..question_end(good)].to_vec();
    bytes[6..HEADER].fill(0);
    bytes
}

/// Every TTL of the answer section.
pub(crate) fn with_ttl(good: &[u8], ttl: u32) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for (_, start, _) in records(good).into_iter().filter(|&(section, ..)| section == Section::Answer) {
        let at = name_end(good, start) + 4;
        bytes[at..at + 4].copy_from_slice(&ttl.to_be_bytes());
    }
    bytes
}

/// An owner name that is a pointer to itself.
pub(crate) fn owner_loop(good: &[u8]) -> Vec<u8> {
    let mut bytes = without_records(good);
    let here = u16::try_from(bytes.len()).expect("a short question") | 0xc000;
    bytes = with_record(&bytes, Section::Answer, &record(&here.to_be_bytes(), A, 300, &[192, 0, 2, 66]));
    bytes
}

/// RDATA of a type that holds a name, which is a pointer to itself; `lead` stands before the name.
pub(crate) fn rdata_loop(good: &[u8], record_type: u16, lead: &[u8]) -> Vec<u8> {
    let bytes = without_records(good);
    let rdata = bytes.len() + ASKED.len() + 10 + lead.len();
    let here = u16::try_from(rdata).expect("a short question") | 0xc000;
    let data = [lead, &here.to_be_bytes()].concat();
    with_record(&bytes, Section::Answer, &record(&ASKED, record_type, 300, &data))
}

/// Aliases from the question's name by way of these names, the last of which owns nothing.
pub(crate) fn chain(good: &[u8], names: &[String]) -> Vec<u8> {
    let mut owner = ASKED.to_vec();
    let mut all = Vec::new();
    for name in names {
        let target = plain_name(name);
        all.extend(record(&owner, CNAME, 300, &target));
        owner = target;
    }
    let count = u16::try_from(names.len()).expect("at most 64 Ki records");
    with_records(&without_records(good), Section::Answer, &all, count)
}

/// As large as a message can be: addresses that fill it to its last whole record.
pub(crate) fn filled(good: &[u8]) -> Vec<u8> {
    let more = (65_535 - good.len()) / 16;
    let count = u16::try_from(more).expect("at most 64 KiB");
    let one = |n: u16| record(&ASKED, A, 300, &[10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
    with_records(good, Section::Answer, &(0..count).flat_map(one).collect::<Vec<u8>>(), count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::{address_reply, message, query, with_edns};
    use hickory_proto::op::Message;

    fn good() -> Vec<u8> {
        message(&address_reply(&with_edns(query("Ab.example.", "A"), 1232), 300, "192.0.2.1"))
    }

    fn read(bytes: &[u8]) -> Message {
        Message::from_vec(bytes).expect("a message that can be read")
    }

    #[test]
    fn edits_that_leave_a_message_change_what_they_say_and_nothing_else() {
        let good = good();
        let plain = read(&good);
        assert_ne!(read(&wrong_id(&good)).metadata.id, plain.metadata.id);
        assert_eq!(read(&wrong_name(&good, "elsewhere.test")).answers[0].name.to_ascii(), "elsewhere.test.");
        assert_eq!(u16::from(read(&wrong_type(&good, 28)).queries[0].query_type()), 28);
        assert_eq!(u16::from(read(&wrong_class(&good, 3)).queries[0].query_class()), 3);
        assert_eq!(read(&other_case(&good)).queries[0].name.to_ascii(), "aB.EXAMPLE.");
        let bare = read(&without_question(&good));
        assert_eq!((bare.queries.len(), &bare.answers), (0, &plain.answers));
        assert_eq!(header_only(&good, 5).len(), 12);
        assert!(read(&flipped(&good, flag::TC)).metadata.truncation);
        assert_eq!(read(&with_ttl(&good, 7)).answers[0].ttl, 7);
        let extra = record(&plain_name("more.test"), A, 1, &[192, 0, 2, 2]);
        for (section, counts) in
            [(Section::Answer, [2, 0, 0]), (Section::Authority, [1, 1, 0]), (Section::Additional, [1, 0, 1])]
        {
            let read = read(&with_record(&good, section, &extra));
            assert_eq!([read.answers.len(), read.authorities.len(), read.additionals.len()], counts);
            assert!(read.edns.is_some());
        }
        let names: Vec<String> = (0..3).map(|n| format!("n{n}.test")).collect();
        assert_eq!(read(&chain(&good, &names)).answers.len(), 3);
        let full = filled(&good);
        assert!(full.len() > 65_535 - 16, "{}", full.len());
        assert!(read(&full).answers.len() > 4_000);
    }

    #[test]
    fn edits_that_break_a_message_break_it() {
        let good = good();
        for bad in [
            counted(&good, Section::Answer, 2_000),
            owner_loop(&good),
            rdata_loop(&good, CNAME, &[]),
            rdata_loop(&good, PTR, &[]),
            rdata_loop(&good, MX, &[0, 10]),
            with_record(&good, Section::Additional, &opt(0, 0)),
        ] {
            assert!(Message::from_vec(&bad).is_err(), "{bad:?}");
        }
    }
}
