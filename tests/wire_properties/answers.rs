//! What an honest server says reaches the client: the same records, patched as the rules say.

use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{RData, Record, RecordType};
use nodens::cache::entry::{Entry, Ttls};
use nodens::cache::lifetime::Bounds;
use nodens::wire::query::Query;
use nodens::wire::response::{Answer, Kind};
use nodens::wire::rtype;
use proptest::prelude::*;

use super::generate::{
    Asker, Response, asker, bounds, config, hickory, key, recased, response, wants_keepalive,
};

/// RFC 8767 §4.
const WEEK: u32 = 7 * 86_400;
/// Bytes of an OPT without options, and of an option with a 16-bit value.
const OPT: usize = 11;
const OPTION: usize = 6;

/// The records as they are stored, and their life, by the rules and not by the code.
fn stored(message: &Message, kind: Kind, bounds: &Bounds) -> ([Vec<Record>; 3], u32) {
    let clamp = |ttl: u32| ttl.min(WEEK).max(bounds.min_ttl).min(bounds.max_ttl);
    let mut sections = [message.answers.clone(), message.authorities.clone(), message.additionals.clone()];
    for record in sections.iter_mut().flatten() {
        record.ttl = clamp(record.ttl);
    }
    let negative = matches!(kind, Kind::NoData | Kind::NxDomain);
    let is_soa = |record: &&mut Record| record.record_type() == RecordType::SOA;
    let mut has_soa = false;
    if negative
        && let Some(at) = message.authorities.iter().position(|r| r.record_type() == RecordType::SOA)
        && let RData::SOA(soa) = &message.authorities[at].data
        && let Some(delivered) = sections[1].iter_mut().find(is_soa)
    {
        delivered.ttl = clamp(message.authorities[at].ttl.min(soa.minimum)).min(bounds.negative_max_ttl);
        has_soa = true;
    }
    let shortest = sections.iter().flatten().map(|record| record.ttl).min();
    let life = match (negative, has_soa) {
        (false, _) => shortest.unwrap_or(0),
        (true, true) => shortest.unwrap_or(0).min(bounds.negative_max_ttl),
        (true, false) => shortest.unwrap_or(u32::MAX).min(bounds.negative_no_soa_ttl),
    };
    (sections, life)
}

/// The addresses of the answer, turned by the query's ID; everything else stays.
fn rotate(answers: &mut [Record], qtype: u16, id: u16) {
    if !matches!(qtype, rtype::A | rtype::AAAA) {
        return;
    }
    let is_address = |record: &Record| u16::from(record.record_type()) == qtype;
    let Some(first) = answers.iter().position(is_address) else { return };
    let run = answers[first..].iter().take_while(|record| is_address(record)).count();
    let data: Vec<RData> = answers[first..first + run].iter().map(|record| record.data.clone()).collect();
    for to in 0..run {
        answers[first + to].data = data[(to + usize::from(id) % run) % run].clone();
    }
}

fn check_header(reply: &Message, upstream: &Message, asker: &Asker, dnssec_ok: bool) {
    let (got, from) = (&reply.metadata, &upstream.metadata);
    assert_eq!((got.id, got.message_type, got.op_code), (asker.id, MessageType::Response, OpCode::Query));
    assert!(got.recursion_available, "RA");
    assert_eq!(got.recursion_desired, asker.recursion_desired, "RD");
    assert_eq!(got.checking_disabled, asker.checking_disabled, "CD");
    assert_eq!(got.authoritative, from.authoritative, "AA");
    assert_eq!(got.authentic_data, from.authentic_data && (asker.authentic_data || dnssec_ok), "AD");
    assert_eq!(got.response_code, from.response_code, "RCODE");
}

/// Checks our OPT, and returns the bytes that it takes.
fn check_opt(reply: &Message, asker: &Asker) -> usize {
    let (Some(asked), Some(opt)) = (&asker.edns, &reply.edns) else {
        assert_eq!(reply.edns, None, "OPT only if asked");
        assert!(asker.edns.is_none(), "OPT if asked");
        return 0;
    };
    assert_eq!((opt.max_payload(), opt.version()), (asker.ours.size, 0));
    assert_eq!(opt.flags().dnssec_ok, asked.flags().dnssec_ok, "DO");
    let value = |code: u16| match opt.options().get(EdnsCode::from(code)) {
        Some(EdnsOption::Unknown(_, value)) => Some(u16::from_be_bytes([value[0], value[1]])),
        Some(other) => panic!("option {other:?}"),
        None => None,
    };
    assert_eq!(value(15), asker.style.error.map(|error| error as u16), "extended error");
    let keepalive = asker.ours.keepalive.filter(|_| wants_keepalive(asked));
    assert_eq!(value(11), keepalive, "keepalive");
    let options = opt.options().as_ref().len();
    assert_eq!(options, usize::from(asker.style.error.is_some()) + usize::from(keepalive.is_some()));
    OPT + OPTION * options
}

fn check(response: &Response, bounds: &Bounds, asker: &Asker) {
    let Response { name, qtype, message } = response;
    let bytes = response.bytes();
    let upstream = Message::from_vec(&bytes).expect("hickory reads what it wrote");
    let key = key(name, *qtype);
    assert!(key.is_answered_by(&bytes));
    let without_opt = bytes.len() - message.edns.as_ref().map_or(0, opt_length);
    let answer = Answer::read(bytes, &key).expect("a well-formed response");
    let has_type = message.answers.iter().any(|record| u16::from(record.record_type()) == *qtype);
    let kind = match message.metadata.response_code {
        ResponseCode::NXDomain => Kind::NxDomain,
        _ if has_type => Kind::Positive,
        _ => Kind::NoData,
    };
    assert_eq!(answer.kind, kind);
    assert_eq!(answer.message.len(), without_opt);

    let now = Instant::now();
    let entry = Entry::new(answer, bounds, now);
    let ([mut answers, authorities, additionals], life) = stored(&upstream, kind, bounds);
    assert_eq!(entry.life(), life);
    let at = |seconds: u32| now + Duration::from_secs(seconds.into());
    assert_eq!(entry.remaining(now), (life > 0).then(|| Duration::from_secs(life.into())));
    assert_eq!(entry.remaining(at(life)), None);

    let packet = asker.packet(name, *qtype);
    let query = Query::parse(&packet).expect("a well-formed query");
    let mut out = vec![0xff; 7]; // what was there before must not show
    entry.write(&query, asker.ttls, &asker.style, &mut out);
    assert!(out.len() <= asker.limit(), "{} bytes for a client of {}", out.len(), asker.limit());

    let reply = Message::from_vec(&out).expect("hickory reads the reply");
    check_header(&reply, &upstream, asker, query.dnssec_ok());
    let labels: Vec<Vec<u8>> =
        nodens::wire::name::labels(&recased(name, asker.case)).map(<[u8]>::to_vec).collect();
    assert_eq!(reply.queries.len(), 1);
    assert!(reply.queries[0].name().eq_case(&hickory(&labels)), "the question in the client's letters");
    assert_eq!(u16::from(reply.queries[0].query_type()), *qtype);
    let opt = check_opt(&reply, asker);

    if asker.style.rotate {
        rotate(&mut answers, *qtype, asker.id);
    }
    let mut left_out = [0; 3];
    let sections =
        [(&reply.answers, answers), (&reply.authorities, authorities), (&reply.additionals, additionals)];
    for (index, (got, mut expected)) in sections.into_iter().enumerate() {
        for record in &mut expected {
            record.ttl = match asker.ttls {
                Ttls::Aged(age) => record.ttl.saturating_sub(age),
                Ttls::Fixed(ttl) => ttl,
            };
        }
        left_out[index] = expected.len() - got.len();
        assert_eq!(got[..], expected[..got.len()], "section {index}");
    }
    let partial = left_out[0] + left_out[1] > 0;
    assert_eq!(reply.metadata.truncation, partial, "TC; left out: {left_out:?}");
    if left_out.iter().sum::<usize>() > 0 {
        assert!(without_opt + opt > asker.limit(), "left out what would have fitted: {left_out:?}");
    }
}

fn opt_length(edns: &hickory_proto::op::Edns) -> usize {
    let options = edns.options().as_ref();
    OPT + options.iter().map(|(_, option)| 4 + usize::from(option.len())).sum::<usize>()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_response_reaches_the_client_with_the_same_records(
        response in response(),
        bounds in bounds(),
        asker in asker(),
    ) {
        check(&response, &bounds, &asker);
    }
}
