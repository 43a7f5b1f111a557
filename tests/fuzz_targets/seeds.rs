//! Honest messages to begin with, as other servers and clients write them.

use std::io::Cursor;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, NS, NULL, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nodens::cache::Cache;
use nodens::cache::entry::Entry;
use nodens::cache::lifetime::{Bounds, MAX_TTL};
use nodens::cache::snapshot::{self, Rule};
use nodens::wire::key::Key;
use nodens::wire::response::{Answer, Kind};

/// A file's name and what is in it.
type Seed = (String, Vec<u8>);
/// An EDNS option's code and value.
type Opt = (u16, &'static [u8]);

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn asked(owner: &str, qtype: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(owner), qtype));
    message
}

fn edns(size: u16, options: &[Opt]) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    for &(code, value) in options {
        edns.options_mut().insert(EdnsOption::Unknown(code, value.to_vec()));
    }
    edns
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().expect("a message that fits")
}

/// Questions of every kind that the query target's cache knows, and of others.
pub(crate) fn queries() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let owners = ["a", "b", "c", "n", "o", "s", "f", "host", "miss"].map(|label| format!("{label}.test."));
    let others = ["localhost.", "x.invalid.", "_dns.resolver.arpa.", "7.0.0.10.in-addr.arpa.", "."];
    for owner in owners.iter().map(String::as_str).chain(others) {
        let mut message = asked(owner, RecordType::A);
        seeds.push((format!("plain-{owner}"), bytes(&message)));
        message.set_edns(edns(4096, &[]));
        message.metadata.authentic_data = true;
        seeds.push((format!("edns-{owner}"), bytes(&message)));
    }
    let options: [(&str, &[Opt]); 4] = [
        ("cookie", &[(10, b"12345678")]),
        ("keepalive", &[(11, b"")]),
        ("padding", &[(12, &[0; 64])]),
        ("many", &[(3, b""), (8, b"\x00\x01\x18\x00\x0a\x00\x00"), (65_001, b"\x00")]),
    ];
    for (what, options) in options {
        let mut message = asked("a.test.", RecordType::A);
        let mut edns = edns(1232, options);
        edns.set_dnssec_ok(true);
        message.set_edns(edns);
        seeds.push((format!("option-{what}"), bytes(&message)));
    }
    for (what, qtype) in
        [("axfr", RecordType::AXFR), ("any", RecordType::ANY), ("unknown", RecordType::from(65_280))]
    {
        seeds.push((what.to_owned(), bytes(&asked("a.test.", qtype))));
    }
    let mut message = asked("A.tEsT.", RecordType::A);
    message.metadata.recursion_desired = false;
    message.metadata.checking_disabled = true;
    seeds.push(("no-recursion".to_owned(), bytes(&message)));
    let mut message = asked("a.test.", RecordType::A);
    let mut later = edns(1232, &[]);
    later.set_version(1);
    message.set_edns(later);
    seeds.push(("version".to_owned(), bytes(&message)));
    message.metadata.op_code = OpCode::Update;
    seeds.push(("update".to_owned(), bytes(&message)));
    message.metadata.op_code = OpCode::Query;
    message.add_answer(Record::from_rdata(name("a.test."), 1, RData::A(A(Ipv4Addr::LOCALHOST))));
    seeds.push(("with-answer".to_owned(), bytes(&message)));
    seeds
}

/// RDATA of every type that a cluster's DNS gives, and of some others.
fn rdata() -> Vec<(&'static str, RecordType, Vec<RData>)> {
    let target = |label: &str| name(&format!("{label}.default.svc.cluster.local."));
    let unknown =
        |code: u16, rdata: &[u8]| RData::Unknown { code: code.into(), rdata: NULL::with(rdata.to_vec()) };
    let mut kinds = vec![
        ("a", RecordType::A, (1..=3).map(|n| RData::A(A(Ipv4Addr::new(10, 244, 1, n)))).collect()),
        (
            "aaaa",
            RecordType::AAAA,
            (1..=2).map(|n| RData::AAAA(AAAA(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)))).collect(),
        ),
        ("many-a", RecordType::A, (1..=100).map(|n| RData::A(A(Ipv4Addr::new(10, 244, 2, n)))).collect()),
        ("cname", RecordType::CNAME, vec![RData::CNAME(CNAME(target("web")))]),
        ("ns", RecordType::NS, ["ns1", "ns2"].map(|ns| RData::NS(NS(target(ns)))).to_vec()),
        ("ptr", RecordType::PTR, vec![RData::PTR(PTR(target("10-244-1-7.web")))]),
        (
            "srv",
            RecordType::SRV,
            (1..=3).map(|n| RData::SRV(SRV::new(0, 33, 8080, target(&format!("web-{n}"))))).collect(),
        ),
        ("mx", RecordType::MX, vec![RData::MX(MX::new(10, target("mail")))]),
        ("txt", RecordType::TXT, vec![RData::TXT(TXT::from_bytes(vec![b"1.1.0", b"", b"\x00\xff"]))]),
        ("soa", RecordType::SOA, vec![soa()]),
    ];
    let names: [(u16, &[u8]); 10] = [
        (14, b"\x01a\x00\xc0\x0c"),
        (17, b"\xc0\x0c\x01t\xc0\x0c"),
        (18, b"\x00\x01\x03afs\x00"),
        (21, b"\x00\x01\x02rt\x00"),
        (24, b"\x00\x01\x05\x02\x00\x00\x00\x1e\x00\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01s\x00sig"),
        (26, b"\x00\x01\x01a\x00\x01b\x00"),
        (30, b"\x01n\x00\x40"),
        (35, b"\x00\x01\x00\x02\x01u\x07E2U+sip\x00\x01n\x00"),
        (36, b"\x00\x01\xc0\x0c"),
        (39, b"\x01d\x00"),
    ];
    for (code, rdata) in names {
        kinds.push(("named", RecordType::from(code), vec![unknown(code, rdata)]));
    }
    for (code, rdata) in
        [(64u16, b"\x00\x01\x00".as_slice()), (65, b"\x00\x00\x01t\x00"), (65_280, &[0xc0; 40])]
    {
        kinds.push(("opaque", RecordType::from(code), vec![unknown(code, rdata)]));
    }
    kinds
}

fn soa() -> RData {
    let server = name("ns.dns.cluster.local.");
    RData::SOA(SOA::new(server, name("hostmaster.cluster.local."), 1, 7200, 1800, 86_400, 5))
}

fn response(owner: &str, qtype: RecordType) -> Message {
    let mut message = asked(owner, qtype);
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    message
}

/// Responses of an honest server.
pub(crate) fn responses() -> Vec<Seed> {
    let owner = "web.default.svc.cluster.local.";
    let record = |owner: &str, ttl, data| Record::from_rdata(name(owner), ttl, data);
    let mut seeds = Vec::new();
    for (what, qtype, data) in rdata() {
        let mut message = response(owner, qtype);
        message.insert_answers(data.into_iter().map(|data| record(owner, 30, data)).collect());
        seeds.push((format!("{what}-{}", u16::from(qtype)), bytes(&message)));
    }
    for (what, code) in [
        ("nodata", ResponseCode::NoError),
        ("nxdomain", ResponseCode::NXDomain),
        ("servfail", ResponseCode::ServFail),
        ("refused", ResponseCode::Refused),
    ] {
        let mut message = response(owner, RecordType::AAAA);
        message.metadata.response_code = code;
        seeds.push((what.to_owned(), bytes(&message)));
        message.metadata.authoritative = true;
        message.add_authority(record("cluster.local.", 30, soa()));
        message.set_edns(edns(1232, &[(10, b"12345678abcdefgh"), (15, b"\x00\x16")]));
        seeds.push((format!("{what}-soa"), bytes(&message)));
    }
    for (what, negative) in [("chain", false), ("chain-nodata", true)] {
        let mut message = response(owner, RecordType::A);
        let links = [owner, "edge.example.net.", "e7.edge.example.net.", "lb.example.org."];
        for (at, pair) in links.windows(2).enumerate() {
            message.add_answer(record(pair[0], 300 >> at, RData::CNAME(CNAME(name(pair[1])))));
        }
        if negative {
            message.add_authority(record("example.org.", 60, soa()));
        } else {
            for n in 1..=3 {
                message.add_answer(record(links[3], 20, RData::A(A(Ipv4Addr::new(192, 0, 2, n)))));
            }
            message.add_authority(record("example.org.", 3600, RData::NS(NS(name("ns.example.org.")))));
            message.add_additional(record(
                "ns.example.org.",
                3600,
                RData::A(A(Ipv4Addr::new(192, 0, 2, 53))),
            ));
            message.set_edns(edns(4096, &[]));
        }
        seeds.push((what.to_owned(), bytes(&message)));
    }
    let mut message = response(owner, RecordType::A);
    message.metadata.truncation = true;
    seeds.push(("truncated".to_owned(), bytes(&message)));
    seeds.push(("failure-without-question".to_owned(), b"\x124\x81\x82\0\0\0\0\0\0\0\0".to_vec()));
    seeds
}

/// Streams of responses to the names that the framing target asks, cut in several ways.
pub(crate) fn streams() -> Vec<Seed> {
    let answer = |place: u8, owner: &[u8]| {
        [&[place, 0, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0], owner, &[0, 1, 0, 1]].concat()
    };
    let frame = |message: &[u8]| [&(message.len() as u16).to_be_bytes(), message].concat();
    let answers = [answer(0, b"\x01a\x00"), answer(1, b"\x01b\x00"), answer(2, b"\x00")];
    let all: Vec<u8> = answers.iter().flat_map(|answer| frame(answer)).collect();
    let failure = frame(b"\x01\0\x81\x82\0\0\0\0\0\0\0\0");
    let streams = [
        ("in-order", all.clone()),
        ("twice", all.repeat(2)),
        ("backwards", answers.iter().rev().flat_map(|answer| frame(answer)).collect()),
        ("another-question", [frame(&answer(0, b"\x01b\x00")), all.clone()].concat()),
        ("failure", [failure, all.clone()].concat()),
        ("empty-message", [&all[..all.len() / 2], &[0, 0], &all].concat()),
        ("short-message", [frame(&answers[0]), frame(b"x"), frame(&answers[1])].concat()),
        ("large-message", [frame(&[3; 3000]), all.clone()].concat()),
        ("cut-off", [all.clone(), vec![0xff, 0xff, 1]].concat()),
    ];
    let cuts: [&[u8]; 3] = [&[], &[1, 1, 1, 1], &[2, 19, 1, 0, 20, 255]];
    let mut seeds = Vec::new();
    for (what, stream) in &streams {
        for (at, cut) in cuts.iter().enumerate() {
            seeds.push((format!("{what}-{at}"), [&[cut.len() as u8], *cut, stream].concat()));
        }
    }
    seeds
}

/// A cache with the answer to each of these, bound to suffixes of 0 to 5 labels, as its bytes.
fn snapshot(answers: &[Vec<u8>], age: Duration) -> Vec<u8> {
    let bounds = Bounds { min_ttl: 0, max_ttl: MAX_TTL, negative_max_ttl: 30, negative_no_soa_ttl: 0 };
    let (cache, now) = (Cache::new(1 << 24), Instant::now());
    for (at, message) in answers.iter().enumerate() {
        let key = Key::of_answer([at as u8 % 6, at as u8 % 4], message).expect("a question");
        let answer = Answer::read(message.clone(), &key).expect("an answer");
        cache.store(key, Arc::new(Entry::new(answer, &bounds, now)));
    }
    let rule = |_: &Key| Some(Rule { bounds, stale: Duration::MAX });
    let wall = UNIX_EPOCH + Duration::from_secs(1_800_000_000) - age;
    let mut out = Cursor::new(Vec::new());
    snapshot::write(&cache, rule, now, wall, u64::MAX, &mut out).expect("room for it");
    out.into_inner()
}

/// What a process leaves to the next: one answer each, and several of different ages. And a failure, which none
/// leaves.
pub(crate) fn snapshots() -> Vec<Seed> {
    let is_kept = |message: &[u8]| {
        let Ok(key) = Key::of_answer([0, 0], message) else { return false };
        let answer = Answer::read(message.to_vec(), &key);
        answer.is_ok_and(|answer| match answer.kind {
            Kind::Positive => true,
            Kind::NoData | Kind::NxDomain => answer.soa.is_some(),
            Kind::Failure(_) => false,
        })
    };
    let mut answers = responses();
    let failures: Vec<Seed> = answers.extract_if(.., |(name, _)| name == "servfail").collect();
    answers.retain(|(_, message)| message.len() < 1000 && is_kept(message));
    let mut seeds = vec![("none".to_owned(), snapshot(&[], Duration::ZERO))];
    for (name, message) in failures.iter().chain(&answers) {
        seeds.push((name.clone(), snapshot(std::slice::from_ref(message), Duration::from_secs(1))));
    }
    let all: Vec<Vec<u8>> = answers.into_iter().map(|(_, message)| message).collect();
    for (at, some) in all.chunks(8).enumerate() {
        for age in [0, 20, 100_000] {
            seeds.push((format!("some-{at}-{age}"), snapshot(some, Duration::from_secs(age))));
        }
    }
    seeds
}
