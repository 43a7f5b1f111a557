//! Messages that no honest server would send, and the edges of what one may: each goes through the
//! `response` target, which holds every client's reply against the rules.

use nodens::wire::response::Kind;
use nodens::wire::{HEADER, flag, rtype};

use super::response;

const OWNER: &[u8] = &[0xc0, 12];
/// Where the first record begins, behind the question `n.z A`.
const FIRST: u16 = 12 + 5 + 4;
const OPT: &[u8] = &[0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0];

fn rr(owner: &[u8], rtype: u16, rdata: &[u8]) -> Vec<u8> {
    let fixed = [&rtype.to_be_bytes()[..], &[0, 1, 0, 0, 0, 30], &(rdata.len() as u16).to_be_bytes()];
    [owner, &fixed.concat(), rdata].concat()
}

fn a(owner: &[u8], last: u8) -> Vec<u8> {
    rr(owner, rtype::A, &[10, 0, 0, last])
}

fn pointer(to: u16) -> [u8; 2] {
    (0xc000 | to).to_be_bytes()
}

/// A response to `name` with these sections.
fn named(name: &[u8], qtype: u16, code: u16, sections: [&[Vec<u8>]; 3]) -> Vec<u8> {
    let counts = sections.map(|section| (section.len() as u16).to_be_bytes()).concat();
    let header = [&[0, 1], &(flag::QR | code).to_be_bytes()[..], &[0, 1], &counts].concat();
    [&header, name, &qtype.to_be_bytes(), &[0, 1], &sections.concat().concat()].concat()
}

fn message(sections: [&[Vec<u8>]; 3]) -> Vec<u8> {
    named(b"\x01n\x01z\x00", rtype::A, 0, sections)
}

fn assert_all(cases: &[(&str, Vec<u8>, Option<Kind>)]) {
    for (what, message, kind) in cases {
        println!("{what}"); // shown when the check panics
        assert_eq!(response::check(message), *kind, "{what}");
    }
}

#[test]
fn names_made_of_other_records_are_delivered_or_refused_whole() {
    let positive = Some(Kind::Positive);
    let alias = rr(OWNER, rtype::CNAME, b"\x01t\xc0\x0e");
    let target = pointer(FIRST + 12);
    let chain = [alias, a(&target, 1), a(&target, 2), a(&target, 3)];
    let text = rr(OWNER, rtype::TXT, b"\x03\x01t\x00");
    assert_all(&[
        ("owners in the RDATA of an alias", message([&chain, &[], &[]]), positive),
        ("an owner in a text", message([&[text, a(&pointer(FIRST + 13), 1)], &[], &[]]), positive),
        ("an owner in an address", message([&[a(OWNER, 0), a(&pointer(FIRST + 15), 1)], &[], &[]]), None),
        ("an owner in a TTL", message([&[a(OWNER, 0), a(&pointer(FIRST + 6), 1)], &[], &[]]), None),
        ("an owner in the header", message([&[a(&pointer(4), 1)], &[], &[]]), None),
        ("an owner behind itself", message([&[a(&pointer(FIRST + 2), 1)], &[], &[]]), None),
        ("owners in other letters", message([&[a(b"\x01N\x01Z\x00", 1), a(OWNER, 2)], &[], &[]]), positive),
    ]);
}

#[test]
fn addresses_in_odd_places_rotate_without_touching_anything_else() {
    let positive = Some(Kind::Positive);
    let plain = b"\x01n\x01z\x00";
    let other = rr(OWNER, rtype::TXT, b"\x01x");
    let mut wide = a(OWNER, 9);
    wide[3] = 28; // AAAA
    let aaaa = rr(OWNER, rtype::AAAA, &[7; 16]);
    assert_all(&[
        ("a record between", message([&[a(OWNER, 1), other.clone(), a(OWNER, 2)], &[], &[]]), positive),
        ("two owners", message([&[a(OWNER, 1), a(b"\x01q\x00", 2), a(OWNER, 3)], &[], &[]]), positive),
        ("two forms of an owner", message([&[a(plain, 1), a(OWNER, 2), a(plain, 3)], &[], &[]]), positive),
        ("two families", message([&[a(OWNER, 1), aaaa, a(OWNER, 2)], &[], &[]]), positive),
        ("an AAAA of four octets", message([&[a(OWNER, 1), wide], &[], &[]]), None),
        ("the same address twice", message([&[a(OWNER, 1), a(OWNER, 1)], &[], &[]]), positive),
        (
            "in the other sections",
            message([&[], &[a(OWNER, 1), a(OWNER, 2)], &[a(OWNER, 3)]]),
            Some(Kind::NoData),
        ),
        ("only another type", message([&[other], &[], &[]]), Some(Kind::NoData)),
    ]);
}

#[test]
fn an_opt_anywhere_is_cut_out_or_refused() {
    let positive = Some(Kind::Positive);
    let opt = || OPT.to_vec();
    let into_opt = a(&pointer(FIRST + 16), 2);
    let tsig = rr(b"\x01k\x00", rtype::TSIG, b"");
    assert_all(&[
        ("in the middle", message([&[a(OWNER, 1)], &[], &[a(OWNER, 2), opt(), a(OWNER, 3)]]), positive),
        ("pointed to", message([&[a(OWNER, 1)], &[], &[opt(), into_opt]]), positive),
        ("in the answer", message([&[opt(), a(OWNER, 1)], &[], &[]]), None),
        ("in the authority", message([&[a(OWNER, 1)], &[opt()], &[]]), None),
        ("twice", message([&[a(OWNER, 1)], &[], &[opt(), opt()]]), None),
        ("behind a TSIG", message([&[a(OWNER, 1)], &[], &[a(OWNER, 2), tsig, opt()]]), positive),
    ]);
}

#[test]
fn a_message_without_its_question_is_a_failure_or_nothing() {
    let without = |code: u16| {
        let mut message = named(b"\x00", rtype::A, code, [&[], &[], &[]])[..HEADER].to_vec();
        message[5] = 0;
        message
    };
    let mut twice = message([&[a(OWNER, 1)], &[], &[]]);
    twice[5] = 2;
    assert_all(&[
        ("SERVFAIL", without(2), Some(Kind::Failure(2))),
        ("NOERROR", without(0), None),
        ("NXDOMAIN", without(3), None),
        ("two questions", twice, None),
    ]);
}

#[test]
fn what_does_not_fit_is_left_out_whole() {
    let positive = Some(Kind::Positive);
    let longest = [[&[63u8][..], &[b'a'; 63]].concat().repeat(3), vec![61], vec![b'a'; 61], vec![0]].concat();
    let many = |count: u8| -> Vec<Vec<u8>> { (0..count).map(|last| a(OWNER, last)).collect() };
    let text = |size| rr(OWNER, rtype::TXT, &vec![0; size]);
    // RDATA so long that the message has `size` bytes.
    let filled = |size: usize| message([&[a(OWNER, 1), text(size - usize::from(FIRST) - 28)], &[], &[]]);
    let to_the_end: Vec<Vec<u8>> =
        (0..4094u16).map(|n| rr(OWNER, rtype::A, &[10, 0, (n >> 8) as u8, n as u8])).collect();
    assert_all(&[
        ("the longest name", named(&longest, rtype::A, 0, [&many(30), &[], &[]]), positive),
        ("one record too large", named(b"\x00", rtype::TXT, 0, [&[text(2000)], &[], &[]]), positive),
        ("a large one between", message([&[a(OWNER, 1), text(1500), a(OWNER, 2)], &[], &[]]), positive),
        ("a large authority", message([&[a(OWNER, 1)], &[text(1500)], &many(3)]), positive),
        ("only additional ones", message([&[a(OWNER, 1)], &[], &many(100)]), positive),
        ("512 bytes", filled(512), positive),
        ("513 bytes", filled(513), positive),
        ("1232 bytes", filled(1232), positive),
        ("all that TCP can carry", filled(65_535), positive),
        ("no room for our OPT by TCP", filled(65_530), positive),
        ("more than TCP can carry", [filled(65_535), a(OWNER, 1)].concat(), None),
        ("addresses up to the last offset", message([&to_the_end, &[], &[]]), positive),
    ]);
}
