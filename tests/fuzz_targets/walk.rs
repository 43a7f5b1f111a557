//! A reply, walked as a client would: everything in it must be well-formed.

use nodens::wire::edns::Edns;
use nodens::wire::{HEADER, Record, name, rdata, rtype, u16_at};

/// Where everything stands in a message.
pub(crate) struct Walked {
    /// Behind the question, or behind the header if there is none.
    pub(crate) question_end: usize,
    /// The records of each section, without the OPT.
    pub(crate) sections: [Vec<Record>; 3],
    /// The OPT.
    pub(crate) opt: Option<(Record, Edns)>,
}

/// The 16-bit number at `at`.
pub(crate) fn u16_of(message: &[u8], at: usize) -> u16 {
    u16_at(message, at).expect("a whole header")
}

/// Walks `message` to its end.
pub(crate) fn walk(message: &[u8]) -> Walked {
    let questions = u16_of(message, 4);
    assert!(questions <= 1, "{questions} questions");
    let mut at = HEADER;
    if questions == 1 {
        at = name::skip_plain(message, HEADER).expect("a plain QNAME") + 4;
        assert!(at <= message.len(), "a whole question");
    }
    let question_end = at;
    let mut opt = None;
    let sections = [6, 8, 10].map(|count| {
        let mut records = Vec::new();
        for _ in 0..u16_of(message, count) {
            let record = Record::read(message, at).expect("a well-formed record");
            rdata::names(message, &record).expect("well-formed RDATA");
            at = record.end;
            if record.rtype == rtype::OPT {
                assert_eq!((count, opt.is_some()), (10, false), "one OPT, among the additional records");
                opt = Some((record, Edns::read(message, &record).expect("a well-formed OPT")));
            } else {
                records.push(record);
            }
        }
        records
    });
    assert_eq!(at, message.len(), "nothing behind the last record");
    Walked { question_end, sections, opt }
}
