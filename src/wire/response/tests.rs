use super::*;
use crate::wire::class;
use crate::wire::key::KeyBuf;
use crate::wire::query::Query;

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

/// A response to `qtype` with these answers is read.
fn is_read(qtype: u16, answers: &[Vec<u8>]) -> bool {
    Answer::read(message(0, qtype, [answers, &[], &[]]), &key(qtype)).is_ok()
}

#[test]
fn names_in_rdata_fill_it_exactly_in_every_section() {
    // Each type of RFC 3597 §4, and later ones that hold names alike: what stands before and behind them.
    let table: [(u16, &[u8], usize, &[u8]); 20] = [
        (2, b"", 1, b""),
        (3, b"", 1, b""),
        (4, b"", 1, b""),
        (rtype::CNAME, b"", 1, b""),
        (rtype::SOA, b"", 2, &[0; 20]),
        (7, b"", 1, b""),
        (8, b"", 1, b""),
        (9, b"", 1, b""),
        (rtype::PTR, b"", 1, b""),
        (14, b"", 2, b""),
        (15, b"\0\x0a", 1, b""),
        (17, b"", 2, b""),
        (18, b"\0\x01", 1, b""),
        (21, b"\0\x01", 1, b""),
        (26, b"\0\x01", 2, b""),
        (33, b"\0\x01\0\x02\0\x35", 1, b""),
        (35, b"\0\x01\0\x02\x01u\x07E2U+sip\x00", 1, b""),
        (36, b"\0\x01", 1, b""),
        (39, b"", 1, b""),
        (24, &[0; 18], 1, b"signature"),
    ];
    for (rtype, front, names, tail) in table {
        let read = |name: &[u8], tail: &[u8]| {
            let rdata = [front, &name.repeat(names), tail].concat();
            let record = [rr(OWNER, rtype, 30, &rdata)];
            let read = |sections| Answer::read(message(0, 1, sections), &key(1)).is_ok();
            let all = [read([&record, &[], &[]]), read([&[], &record, &[]]), read([&[], &[], &record])];
            assert!(all.iter().all(|&one| one == all[0]), "type {rtype}: {all:?} by section");
            all[0]
        };
        assert!(read(b"\x01t\xc0\x0e", tail), "type {rtype}, compressed");
        assert!(read(b"\x01t\x01z\x00", tail), "type {rtype}, plain");
        let own = (MESSAGE_RDATA + front.len()) as u8;
        assert!(!read(&[0xc0, own], tail), "type {rtype}, pointing to itself");
        assert!(!read(&[1, b'a', 0xc0, own], tail), "type {rtype}, a loop");
        assert!(!read(b"\xc0\xff", tail), "type {rtype}, pointing forward");
        assert!(!read(b"\xc0\x04", tail), "type {rtype}, pointing into the header");
        assert!(!read(b"\x01t", b""), "type {rtype}, running over its end");
        if !tail.starts_with(b"s") {
            assert!(!read(b"\x00", &[tail, &[0]].concat()), "type {rtype}, not filled");
        }
        assert!(!is_read(rtype, &[rr(OWNER, rtype, 30, b"")]), "type {rtype}, empty");
    }
}

#[test]
fn records_behind_an_opt_are_left_out_but_well_formed() {
    let opt = [0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0].to_vec();
    for (name, good) in [(b"\x01t\xc0\x0e".as_slice(), true), (b"\xc0\xff", false), (b"\x00\x00", false)] {
        let bytes = message(0, 12, [&[], &[], &[opt.clone(), rr(OWNER, 12, 30, name)]]);
        assert_eq!(Answer::read(bytes, &key(12)).is_ok(), good, "{name:?}");
    }
}

/// Where the RDATA of the first record begins, if its owner is a pointer.
const MESSAGE_RDATA: usize = HEADER + NAME.len() + 4 + 2 + 10;

#[test]
fn a_name_may_not_run_over_the_end_of_its_rdata() {
    // The record behind it would complete the name.
    let cut = rr(OWNER, 12, 30, b"\x02t");
    assert!(!is_read(12, &[cut, rr(b"\x00", 16, 30, b"\x00")]));
}

#[test]
fn addresses_have_their_length_in_class_in() {
    for (qtype, length, good) in [
        (rtype::A, 4, true),
        (rtype::A, 0, false),
        (rtype::A, 3, false),
        (rtype::A, 5, false),
        (rtype::A, 16, false),
        (rtype::AAAA, 16, true),
        (rtype::AAAA, 0, false),
        (rtype::AAAA, 4, false),
        (rtype::AAAA, 17, false),
    ] {
        assert_eq!(is_read(qtype, &[rr(OWNER, qtype, 30, &vec![1; length])]), good, "{qtype}, {length}");
    }
    let mut chaos = rr(OWNER, rtype::A, 30, b"\x00\x00\x01");
    chaos[5] = class::CH as u8;
    assert!(is_read(rtype::A, &[chaos]), "another class has its own format");
}

#[test]
fn rdata_of_other_types_is_not_looked_into() {
    for rtype in [rtype::TXT, 10, 43, 46, 47, 64, 65, 99, 257, 65_280] {
        for rdata in [b"".as_slice(), b"\xc0\x1f", b"\xff\xff\xff", &[0; 300]] {
            assert!(is_read(rtype, &[rr(OWNER, rtype, 30, rdata)]), "type {rtype}, {rdata:?}");
        }
    }
}

#[test]
fn names_that_point_to_what_differs_from_copy_to_copy_are_malformed() {
    let address = |owner: &[u8], last| rr(owner, rtype::A, 0x0161_0000, &[1, b'a', 0, last]);
    let text = |owner: &[u8]| rr(owner, rtype::TXT, 30, b"\x01x");
    let first = MESSAGE_RDATA as u8;
    for (what, target, good) in [
        ("the question", 12, true),
        ("its second label", 14, true),
        ("its root", 16, true),
        ("a letter of it, as a length", 13, false),
        ("the type of the question", 17, true),
        ("an owner name", first - 12, true),
        ("the type of a record", first - 10, false),
        ("its TTL", first - 6, false),
        ("the length of its RDATA", first - 2, false),
        ("an address", first, false),
        ("the end of an address", first + 2, false),
    ] {
        let records = [address(OWNER, 0), address(OWNER, 1), text(&[0xc0, target])];
        assert_eq!(is_read(rtype::A, &records), good, "owner: {what}");
        let alias = rr(OWNER, rtype::CNAME, 30, &[1, b'w', 0xc0, target]);
        assert_eq!(is_read(rtype::A, &[address(OWNER, 0), address(OWNER, 1), alias]), good, "RDATA: {what}");
    }
}

#[test]
fn names_may_point_to_names_in_rdata_of_any_other_type() {
    let target = MESSAGE_RDATA as u8;
    for (rtype, rdata) in [(rtype::CNAME, b"\x01t\x01z\x00".as_slice()), (64, b"\x01t\x01z\x00\x00\x01")] {
        let records = [rr(OWNER, rtype, 30, rdata), rr(&[0xc0, target], rtype::A, 30, &[10, 0, 0, 1])];
        assert!(is_read(rtype::A, &records), "type {rtype}");
    }
    // A name whose labels run on into the next record is none.
    let records = [rr(OWNER, 64, 30, b"\x05t"), rr(&[0xc0, target], rtype::A, 30, &[10, 0, 0, 1])];
    assert!(!is_read(rtype::A, &records));
}

/// Letters come back as each client wrote them: `\xc0A` and `\xc0a` are one question and two pointers.
#[test]
fn letters_of_the_question_are_no_pointer() {
    let mut name = [[63; 1].as_slice(), &[b'x'; 63], &[63], &[b'x'; 63], &[0]].concat();
    name[97 - HEADER] = 0;
    name[100 - HEADER..102 - HEADER].copy_from_slice(b"\xc0a");
    let key = KeyBuf::new(&Query { id: 1, flags: 0, name: &name, qtype: 16, qclass: 1, edns: None }).to_key();
    for (target, good) in [(12, true), (76, true), (97, false), (100, false)] {
        let mut bytes = message(0, 16, [&[rr(&[0xc0, target], 16, 30, b"")], &[], &[]]);
        bytes.splice(HEADER..HEADER + NAME.len(), name.iter().copied());
        assert!(key.is_answered_by(&bytes));
        assert_eq!(Answer::read(bytes, &key).is_ok(), good, "to {target}");
    }
}

#[test]
fn only_addresses_of_the_asked_class_rotate() {
    let a = |n: u8| rr(OWNER, rtype::A, 30, &[10, 0, 0, n]);
    let mut other = a(3);
    other[5] = 4; // HS
    let answer =
        Answer::read(message(0, rtype::A, [&[a(1), a(2), other], &[], &[]]), &key(rtype::A)).unwrap();
    assert_eq!(answer.rotation.unwrap().count, 2);
}

#[test]
fn a_signature_of_the_transaction_stays_between_the_upstream_and_us() {
    let tsig = rr(b"\x01k\x00", rtype::TSIG, 0, &[0; 16]);
    let a = rr(OWNER, rtype::A, 30, &[10, 0, 0, 1]);
    let bytes = message(0, rtype::A, [std::slice::from_ref(&a), &[], std::slice::from_ref(&tsig)]);
    let answer = Answer::read(bytes, &key(rtype::A)).unwrap();
    assert_eq!((answer.additionals, answer.ttls), (0, vec![(27, 30)]));
    assert!(!is_read(rtype::A, &[tsig, a]), "in the answer section it is misplaced");
}

#[test]
fn only_a_failure_may_come_without_its_question() {
    for (code, questions, good) in
        [(0, 0, false), (3, 0, false), (2, 0, true), (0, 1, true), (0, 2, false), (2, 2, false)]
    {
        let mut bytes = message(code, rtype::A, [&[], &[], &[]]);
        bytes[5] = questions;
        match questions {
            0 => bytes.truncate(HEADER),
            2 => bytes.extend_from_slice(&bytes.clone()[HEADER..]),
            _ => {}
        }
        assert_eq!(Answer::read(bytes, &key(rtype::A)).is_ok(), good, "RCODE {code}, {questions} questions");
    }
}

#[test]
fn counts_that_lie_are_malformed() {
    let a = rr(OWNER, rtype::A, 30, &[10, 0, 0, 1]);
    let good = message(0, rtype::A, [&[a.clone(), a.clone()], &[soa(1)], &[a]]);
    assert!(Answer::read(good.clone(), &key(rtype::A)).is_ok());
    for at in [6, 8, 10] {
        for lie in [0u16, 3, 255, 0xffff] {
            let mut bytes = good.clone();
            bytes[at..at + 2].copy_from_slice(&lie.to_be_bytes());
            assert!(Answer::read(bytes, &key(rtype::A)).is_err(), "{lie} at {at}");
        }
    }
}

#[test]
fn rdlength_that_lies_is_malformed() {
    let good = message(0, 16, [&[rr(OWNER, 16, 30, b"\x01x")], &[], &[]]);
    let at = MESSAGE_RDATA - 2;
    for (length, is_good) in [(0u16, false), (1, false), (2, true), (3, false), (0xffff, false)] {
        let mut bytes = good.clone();
        bytes[at..at + 2].copy_from_slice(&length.to_be_bytes());
        assert_eq!(Answer::read(bytes, &key(16)).is_ok(), is_good, "{length}");
    }
}
