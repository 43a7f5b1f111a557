//! Any bytes as an upstream's message: the way from there to clients of all kinds.

use std::time::Instant;

use hickory_proto::op::Message;
use nodens::cache::entry::{Entry, Style, Ttls};
use nodens::cache::lifetime::{Bounds, MAX_TTL};
use nodens::wire::edns::{Edns, ExtendedError};
use nodens::wire::key::{Key, KeyBuf};
use nodens::wire::query::{OurEdns, Query};
use nodens::wire::response::{Answer, Kind};
use nodens::wire::{HEADER, Record, flag, name, rdata, rtype};

use super::walk::{Walked, u16_of, walk};

/// A zone as it is by default, and one that has every bound set.
const BOUNDS: [Bounds; 2] = [
    Bounds { min_ttl: 0, max_ttl: MAX_TTL, negative_max_ttl: 30, negative_no_soa_ttl: 0 },
    Bounds { min_ttl: 5, max_ttl: 60, negative_max_ttl: 10, negative_no_soa_ttl: 5 },
];

/// A client: what its query says and how it is answered.
struct Client {
    id: u16,
    flags: u16,
    edns: Option<Edns>,
    upper: bool,
    ttls: Ttls,
    style: Style,
}

fn clients() -> [Client; 5] {
    let edns = |size, dnssec_ok| Some(Edns { size, dnssec_ok, version: 0, keepalive: true });
    let style = |size, keepalive, rotate, error| Style { edns: OurEdns { size, keepalive }, rotate, error };
    let client = |id, flags, edns, upper, ttls, style| Client { id, flags, edns, upper, ttls, style };
    let stale = Some(ExtendedError::StaleAnswer);
    [
        client(0, flag::RD, None, false, Ttls::Aged(0), style(1232, None, true, None)),
        client(7, flag::RD | flag::AD, edns(4096, false), true, Ttls::Aged(9), style(1232, None, true, None)),
        client(0xfffe, flag::CD, edns(512, true), true, Ttls::Fixed(30), style(1232, None, true, stale)),
        client(1, 0, edns(700, false), false, Ttls::Aged(u32::MAX), style(512, None, false, stale)),
        client(2, flag::RD, edns(1232, true), true, Ttls::Aged(1), style(1232, Some(100), true, stale)),
    ]
}

/// The question that a message says it answers.
fn key_of(message: &[u8]) -> Option<Key> {
    let end = name::skip_plain(message, HEADER).ok()?;
    let rest = message.get(end..end + 4)?;
    let number = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let name = &message[HEADER..end];
    let query = Query { id: 0, flags: 0, name, qtype: number(0), qclass: number(2), edns: None };
    Some(KeyBuf::new(&query).to_key())
}

/// Takes `message` for the answer to its own question, and checks what clients get of it. What it was,
/// if it was an answer.
pub(crate) fn check(message: &[u8]) -> Option<Kind> {
    let other = Query { id: 0, flags: 0, name: b"\x01x\x00", qtype: 1, qclass: 1, edns: None };
    let key = key_of(message).unwrap_or_else(|| KeyBuf::new(&other).to_key());
    if !key.is_answered_by(message) {
        drop(Answer::read(message.to_vec(), &key)); // never happens, and would not panic
        return None;
    }
    let answer = Answer::read(message.to_vec(), &key).ok()?;
    if matches!(answer.kind, Kind::Failure(_)) {
        return Some(answer.kind); // becomes an RCODE
    }
    let readable = Message::from_vec(message).is_ok();
    for bounds in &BOUNDS {
        let entry = Entry::new(answer.clone(), bounds, Instant::now());
        let stored = walk(entry.message());
        check_lifetimes(&entry, &stored, bounds);
        for client in clients() {
            let mut name = key.name().to_vec();
            if client.upper {
                name.make_ascii_uppercase();
            }
            let (qtype, qclass) = (key.qtype(), key.qclass());
            let query =
                Query { id: client.id, flags: client.flags, name: &name, qtype, qclass, edns: client.edns };
            let mut out = b"what was here before".to_vec();
            entry.write(&query, client.ttls, &client.style, &mut out);
            check_reply(&entry, &stored, &client, &query, &out);
            if readable {
                let read = Message::from_vec(&out);
                assert!(read.is_ok(), "another implementation read the answer, not the reply: {read:?}");
            }
        }
    }
    Some(answer.kind)
}

fn check_lifetimes(entry: &Entry, stored: &Walked, bounds: &Bounds) {
    let lowest = bounds.min_ttl.min(bounds.negative_max_ttl);
    for record in stored.sections.iter().flatten() {
        assert!((lowest..=bounds.max_ttl).contains(&record.ttl), "TTL {} in {bounds:?}", record.ttl);
        assert!(entry.life() <= record.ttl, "a life of {} with a TTL of {}", entry.life(), record.ttl);
    }
    if entry.kind() != Kind::Positive {
        assert!(entry.life() <= bounds.negative_max_ttl.max(bounds.negative_no_soa_ttl));
    }
}

fn check_reply(entry: &Entry, stored: &Walked, client: &Client, query: &Query<'_>, out: &[u8]) {
    let walked = walk(out);
    assert_eq!(u16_of(out, 0), client.id, "ID");
    let mut question = Vec::new();
    query.write_question(&mut question);
    assert_eq!(out[HEADER..walked.question_end], question, "the question in the client's letters");
    assert_eq!(walked.opt.is_some(), client.edns.is_some(), "OPT if the query had one");
    let opt = walked.opt.map_or(0, |(record, _)| record.end - record.owner);
    let limit = match (client.style.edns.keepalive, client.edns) {
        (Some(_), _) => 65_535,
        (None, None) => 512,
        (None, Some(edns)) => usize::from(edns.size.max(512).min(client.style.edns.size)),
    };
    assert!(out.len() <= limit, "{} bytes for a client of {limit}", out.len());

    let mut left_out = [0; 3];
    for (index, (got, had)) in walked.sections.iter().zip(&stored.sections).enumerate() {
        left_out[index] = had.len().checked_sub(got.len()).expect("no record is added");
        assert!(got.is_empty() || left_out[..index] == [0; 3][..index], "no section behind one that was cut");
        for (got, had) in got.iter().zip(had) {
            check_record((out, got), (entry.message(), had), client);
        }
    }
    let partial = left_out[0] + left_out[1] > 0;
    assert_eq!(u16_of(out, 2) & flag::TC != 0, partial, "TC; left out: {left_out:?}");
    if left_out != [0; 3] {
        assert!(entry.message().len() + opt > limit, "left out what would have fitted: {left_out:?}");
    } else {
        assert_eq!(addresses(out, &walked), addresses(entry.message(), stored), "the same addresses");
    }
}

/// A record as it was delivered, beside the one that is stored.
fn check_record(got: (&[u8], &Record), had: (&[u8], &Record), client: &Client) {
    let ((out, got), (message, had)) = (got, had);
    assert!(name::eq((out, got.owner), (message, had.owner)), "owner");
    assert_eq!((got.owner, got.rtype, got.class, got.end), (had.owner, had.rtype, had.class, had.end));
    let ttl = match client.ttls {
        Ttls::Aged(age) => had.ttl.saturating_sub(age),
        Ttls::Fixed(ttl) => ttl,
    };
    assert_eq!(got.ttl, ttl, "TTL");
    if client.style.rotate && is_address(got) {
        return; // compared all together
    }
    assert_eq!(out[got.rdata()..got.end], message[had.rdata()..had.end], "RDATA");
    let names = |message, record| rdata::names(message, record).expect("well-formed RDATA");
    for at in names(out, got).into_iter().chain(names(message, had)).flatten() {
        assert!(name::eq((out, at), (message, at)), "a name in RDATA");
    }
}

fn is_address(record: &Record) -> bool {
    matches!(record.rtype, rtype::A | rtype::AAAA)
}

/// The RDATA of all addresses in the answer section, sorted.
fn addresses<'a>(message: &'a [u8], walked: &Walked) -> Vec<&'a [u8]> {
    let addresses = walked.sections[0].iter().filter(|record| is_address(record));
    let mut addresses: Vec<&[u8]> = addresses.map(|record| &message[record.rdata()..record.end]).collect();
    addresses.sort_unstable();
    addresses
}
