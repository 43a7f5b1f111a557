//! Upstreams that answer with what is no answer: always, once, and beside a good one.

use hickory_proto::op::ResponseCode;

use super::hostile_upstream_faults::{
    Fails, Fate, Fault, GOOD, MESSAGES, ODD, ODD_MESSAGES, Outcome, Refuses, STREAMS, Stage, Waits, case_of,
    for_all, good_answer, server,
};
use crate::support::{Reaction, Transport, Upstream, address_reply, message, millis};

/// Extended errors (RFC 8914).
const CACHED: u16 = 13;
const UNREACHABLE: u16 = 22;
const NETWORK: u16 = 23;

fn is_failure(fate: Fate, outcome: &Outcome) -> bool {
    let error_fits = match fate {
        Waits => outcome.error == Some(UNREACHABLE),
        Refuses => outcome.error == Some(NETWORK),
        Fails => outcome.error == Some(NETWORK),
    };
    outcome.code == ResponseCode::ServFail && outcome.addresses.is_empty() && error_fits
}

/// One agent meets all faults at once, each under a name of its own, every time that it asks.
fn meets_all_of(faults: &'static [Fault], transport: Transport) {
    let upstream = Upstream::start(|query, _| match case_of(query) {
        Some(case) => faults[case].reaction(query),
        None => good_answer(query),
    });
    let stage = Stage::set(&[server(&upstream, transport)], "");
    for_all(faults, faults.len(), |case, fault| {
        let outcome = stage.ask(&format!("c{case}.bad.example."));
        assert!(is_failure(fault.fate, &outcome), "{transport:?}, {}: {outcome:?}", fault.what);
        if fault.fate != Waits {
            assert!(outcome.took < millis(900), "{transport:?}, {}: {outcome:?}", fault.what);
        }
    });
    stage.is_sound("all together", &[&upstream]);
}

#[test]
fn messages_that_are_no_answer_by_udp_are_servfail_before_clients_give_up() {
    meets_all_of(MESSAGES, Transport::Udp);
}

#[test]
fn messages_that_are_no_answer_by_tcp_are_servfail_before_clients_give_up() {
    meets_all_of(MESSAGES, Transport::Tcp);
}

#[test]
fn streams_that_break_are_servfail_before_clients_give_up() {
    for_all(STREAMS, STREAMS.len(), |_, fault| {
        let upstream = Upstream::start(|query, _| match case_of(query) {
            Some(_) => fault.reaction(query),
            None => good_answer(query),
        });
        let stage = Stage::set(&[upstream.tcp()], "");
        let own = upstream.count_of_own();
        let outcome = stage.ask("c0.bad.example.");
        assert!(is_failure(fault.fate, &outcome), "{}: {outcome:?}", fault.what);
        if fault.fate == Fails {
            assert!(outcome.took < millis(900), "{}: {outcome:?}", fault.what);
        }
        // The failure is remembered, until the server has been passed over for it and has answered a probe.
        let again = stage.ask("c0.bad.example.");
        let probed = upstream.count_of_own() > own;
        let is_remembered = (again.code, again.error) == (ResponseCode::ServFail, Some(CACHED));
        assert!(is_remembered || (probed && is_failure(fault.fate, &again)), "{}: {again:?}", fault.what);
        stage.is_sound(fault.what, &[&upstream]);
    });
}

/// Bad for the first query of a name, good for the next: the client gets the right answer, after a second
/// if the first was one to wait on, else at once.
fn assert_mended(what: &str, fate: Fate, outcome: &Outcome) {
    let limit = if fate == Waits { millis(2_500) } else { millis(900) };
    assert!(outcome.is_right() && outcome.took < limit, "{what}: {outcome:?}");
}

fn mends_all_of(faults: &'static [Fault], transport: Transport) {
    let upstream = Upstream::scripted(|call| match case_of(call.query) {
        Some(case) if call.before == 0 => faults[case].reaction(call.query),
        _ => good_answer(call.query),
    });
    let stage = Stage::set(&[server(&upstream, transport)], "");
    for_all(faults, faults.len(), |case, fault| {
        // A failure RCODE is an answer: the only server is not asked again.
        if fault.fate != Refuses {
            let outcome = stage.ask(&format!("c{case}.bad.example."));
            assert_mended(fault.what, fault.fate, &outcome);
        }
    });
    stage.is_sound("all together", &[&upstream]);
}

#[test]
fn a_second_query_by_udp_mends_one_message_that_is_no_answer() {
    mends_all_of(MESSAGES, Transport::Udp);
}

#[test]
fn a_second_query_by_tcp_mends_one_message_that_is_no_answer() {
    mends_all_of(MESSAGES, Transport::Tcp);
}

#[test]
fn a_second_connection_mends_one_stream_that_breaks() {
    for_all(STREAMS, STREAMS.len(), |_, fault| {
        // All of the first connection that asks for it is bad, whatever the name.
        let bad = std::sync::OnceLock::new();
        let upstream = Upstream::scripted(move |call| {
            if case_of(call.query).is_some() {
                bad.get_or_init(|| call.connection);
            }
            let is_bad = bad.get() == Some(&call.connection);
            if is_bad { fault.reaction(call.query) } else { good_answer(call.query) }
        });
        let stage = Stage::set(&[upstream.tcp()], "");
        assert_mended(fault.what, fault.fate, &stage.ask("c0.bad.example."));
        stage.is_sound(fault.what, &[&upstream]);
    });
}

#[test]
fn the_right_answer_right_behind_what_is_none_is_taken_at_once() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let upstream = Upstream::start(|query, _| match case_of(query) {
            Some(case) => MESSAGES[case].then_good(query),
            None => good_answer(query),
        });
        let stage = Stage::set(&[server(&upstream, transport)], "");
        for_all(MESSAGES, MESSAGES.len(), |case, fault| {
            if fault.fate == Waits && fault.what != "an answer after the deadline" {
                let outcome = stage.ask(&format!("c{case}.bad.example."));
                assert_mended(fault.what, Fails, &outcome);
            }
        });
        stage.is_sound("all together", &[&upstream]);
    }
}

#[test]
fn an_odd_way_of_a_right_answer_is_no_fault() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let odd = [ODD_MESSAGES, if transport == Transport::Tcp { ODD } else { &[] }].concat();
        let ways = odd.clone();
        let upstream = Upstream::start(move |query, _| match case_of(query) {
            Some(case) => {
                let good = message(&address_reply(query, 300, GOOD));
                Reaction::Steps(ways[case].1(&good))
            }
            None => good_answer(query),
        });
        let stage = Stage::set(&[server(&upstream, transport)], "");
        for_all(&odd, odd.len(), |case, (what, _)| {
            let outcome = stage.ask(&format!("c{case}.bad.example."));
            assert_eq!(outcome.code, ResponseCode::NoError, "{transport:?}, {what}: {outcome:?}");
            assert_eq!(outcome.addresses[0], GOOD, "{transport:?}, {what}: {outcome:?}");
            assert!(outcome.took < millis(900), "{transport:?}, {what}: {outcome:?}");
        });
        stage.is_sound("all together", &[&upstream]);
    }
}

/// A server that is always bad, and a good one, in turn.
fn is_covered_for(faults: &'static [Fault], transport: Transport) {
    for_all(faults, 16, |_, fault| {
        let bad = Upstream::start(|query, _| match case_of(query) {
            Some(_) => fault.reaction(query),
            None => good_answer(query), // else it is passed over before the first name is asked
        });
        let good = Upstream::start(|query, _| good_answer(query));
        let servers = [server(&bad, transport), server(&good, transport)];
        let stage = Stage::set(&servers, ", policy: round_robin");
        let names: Vec<String> = (0..20).map(|n| format!("n{n}.c0.bad.example.")).collect();
        for_all(&names, names.len(), |_, name| {
            assert_mended(&format!("{transport:?}, {}, {name}", fault.what), Waits, &stage.ask(name));
        });
        assert!(bad.count_below("bad.example.") >= 1, "{}: the bad server was never asked", fault.what);
        stage.is_sound(fault.what, &[&bad, &good]);
    });
}

#[test]
fn a_second_server_answers_for_one_with_bad_messages_by_udp() {
    is_covered_for(MESSAGES, Transport::Udp);
}

#[test]
fn a_second_server_answers_for_one_with_bad_messages_by_tcp() {
    is_covered_for(MESSAGES, Transport::Tcp);
}

#[test]
fn a_second_server_answers_for_one_with_bad_streams() {
    is_covered_for(STREAMS, Transport::Tcp);
}
