//! Every reader is total: any input gives a value or an error.

use std::time::Instant;

use nodens::cache::entry::Entry;
use nodens::wire::frame::{self, Frames};
use nodens::wire::key::KeyBuf;
use nodens::wire::query::{Query, Reject, write_header_only};
use nodens::wire::response::{Answer, Kind};
use nodens::wire::{HEADER, Record, name, rcode};
use proptest::collection::vec;
use proptest::prelude::*;

use super::generate::{
    Asker, Response, asker, bounds, config, damage, damages, key, labels, nearly_a_message, plain, response,
};

/// Whatever can be done with a packet from a client.
fn read_as_query(packet: &[u8], asker: &Asker) {
    let mut out = Vec::new();
    match Query::parse(packet) {
        Ok(query) => {
            assert_eq!(KeyBuf::new(&query).name(), query.name.to_ascii_lowercase());
            query.write_empty(rcode::BADVERS, &asker.ours, asker.style.error, &mut out);
            assert!(out.len() <= query.reply_limit(&asker.ours));
        }
        Err(Reject::Header(code)) => {
            write_header_only(packet, code, &mut out);
            assert_eq!(out.len(), HEADER);
        }
        Err(Reject::Short | Reject::Response) => {}
    }
}

/// The way of a message from an upstream to a client, as far as it gets.
fn read_as_response(
    message: Vec<u8>,
    response: &Response,
    bounds: &nodens::cache::lifetime::Bounds,
    asker: &Asker,
) {
    let key = key(&response.name, response.qtype);
    if !key.is_answered_by(&message) {
        drop(Answer::read(message, &key)); // is never called, and would not panic
        return;
    }
    let Ok(answer) = Answer::read(message, &key) else { return };
    if matches!(answer.kind, Kind::Failure(_)) {
        return; // becomes an RCODE
    }
    let entry = Entry::new(answer, bounds, Instant::now());
    let packet = asker.packet(&response.name, response.qtype);
    let query = Query::parse(&packet).expect("a well-formed query");
    let mut out = Vec::new();
    entry.write(&query, asker.ttls, &asker.style, &mut out);
    assert!(out.len() <= asker.limit(), "{} bytes for a client of {}", out.len(), asker.limit());
    assert_eq!(out[..2], asker.id.to_be_bytes());
    assert_eq!(&out[HEADER..HEADER + query.name.len()], query.name);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_bytes_are_read_without_panic(
        bytes in prop_oneof![vec(any::<u8>(), 0..300), nearly_a_message()],
        at in 0..400usize,
        question in labels(),
        qtype in any::<u16>(),
        bounds in bounds(),
        asker in asker(),
    ) {
        read_as_query(&bytes, &asker);
        for reader in [name::skip, name::skip_plain] {
            if let Ok(end) = reader(&bytes, at) {
                prop_assert!(at < end && end <= bytes.len());
            }
        }
        if let Ok(record) = Record::read(&bytes, at) {
            prop_assert!(record.rdata() <= record.end && record.end <= bytes.len());
        }
        let _ = name::eq((&bytes, at), (&bytes, at / 2));
        let response = Response { name: plain(&question), qtype, message: hickory_proto::op::Message::query() };
        read_as_response(bytes, &response, &bounds, &asker);
    }

    #[test]
    fn any_stream_is_cut_into_frames_that_fill_it(
        bytes in vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..600),
        messages in vec(vec(any::<u8>(), 0..40), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut frames = Frames::new(&bytes);
        let taken: usize = frames.by_ref().map(|message| 2 + message.len()).sum();
        prop_assert_eq!(taken + frames.left(), bytes.len());

        let mut stream = Vec::new();
        for message in &messages {
            frame::append(&mut stream, |out| out.extend(message));
        }
        let whole: Vec<&[u8]> = Frames::new(&stream).collect();
        prop_assert_eq!(&whole, &messages);
        let part = &stream[..cut.index(stream.len() + 1)];
        let taken: Vec<&[u8]> = Frames::new(part).collect();
        prop_assert_eq!(&taken[..], &whole[..taken.len()]);
    }

    #[test]
    fn a_damaged_query_is_read_without_panic(
        question in labels(),
        qtype in any::<u16>(),
        asker in asker(),
        damages in damages(),
    ) {
        let mut packet = asker.packet(&plain(&question), qtype);
        damage(&mut packet, 2, &damages);
        read_as_query(&packet, &asker);
    }

    #[test]
    fn a_damaged_response_is_delivered_within_the_limit_or_not_at_all(
        response in response(),
        bounds in bounds(),
        asker in asker(),
        damages in damages(),
        behind_the_question in any::<bool>(),
    ) {
        let mut message = response.bytes();
        // Most damage to the question makes it no answer at all: spare it every other time.
        let from = if behind_the_question { HEADER + response.name.len() + 4 } else { 0 };
        damage(&mut message, from, &damages);
        read_as_response(message, &response, &bounds, &asker);
    }

    #[test]
    fn bytes_behind_a_matching_question_are_read_without_panic(
        response in response(),
        body in nearly_a_message(),
        bounds in bounds(),
        asker in asker(),
    ) {
        let question = HEADER + response.name.len() + 4;
        let mut message = response.bytes();
        message.truncate(question);
        message[6..HEADER].copy_from_slice(&body[6..HEADER]);
        message.extend(&body[HEADER..]);
        read_as_response(message, &response, &bounds, &asker);
    }
}
