//! Hostile upstreams: what is held against a server or a connection, and what is not.

use std::collections::HashSet;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use hickory_proto::op::ResponseCode;

use super::hostile_upstream_faults::{BAD, GOOD, Stage, case_of, flood, good_answer, server};
use crate::support::{
    Reaction, Step, Transport, Upstream, address_reply, edit, message, millis, query, seconds, wait_until,
};

#[test]
fn where_letters_are_mixed_an_answer_in_others_is_ignored() {
    let mixed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&mixed);
    let upstream = Upstream::start(move |query, _| {
        let owner = query.queries[0].name.to_ascii();
        let lower = owner.to_ascii_lowercase();
        if owner != lower && owner != owner.to_ascii_uppercase() {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let (bad, good) =
            (message(&address_reply(query, 300, BAD)), message(&address_reply(query, 300, GOOD)));
        match case_of(query) {
            Some(_) => Reaction::Bytes(vec![edit::other_case(&bad), good]),
            None => Reaction::Bytes(vec![good]),
        }
    });
    let stage = Stage::set(&[upstream.udp()], ", mixed_case: true");
    for n in 0..10 {
        let outcome = stage.ask(&format!("some-longer-label-{n}.c{n}.bad.example."));
        assert!(outcome.is_right() && outcome.took < millis(900), "{outcome:?}");
    }
    assert!(
        mixed.load(Ordering::Relaxed) >= 9,
        "{} of 10 names came in mixed case",
        mixed.load(Ordering::Relaxed)
    );
    stage.is_sound("other case", &[&upstream]);
}

#[test]
fn a_good_answer_after_the_deadline_fills_the_cache() {
    let upstream = Upstream::start(|query, _| match case_of(query) {
        Some(_) => Reaction::Hold(address_reply(query, 300, GOOD)),
        None => good_answer(query),
    });
    let stage = Stage::set(&[upstream.tcp()], ", timeout: 1s");
    assert_eq!(stage.ask("c0.bad.example.").code, ResponseCode::ServFail);
    let asked = upstream.count_of("c0.bad.example.");
    upstream.release();
    wait_until("it is answered", seconds(3), || stage.ask("c0.bad.example.").is_right());
    assert_eq!(upstream.count_of("c0.bad.example."), asked, "asked again instead of kept");
    stage.is_sound("late", &[&upstream]);
}

#[test]
fn a_server_whose_answers_to_some_names_are_malformed_is_not_passed_over_for_others() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let strange = Upstream::start(|query, _| match case_of(query) {
            Some(_) => Reaction::Bytes(vec![edit::owner_loop(&message(&address_reply(query, 300, BAD)))]),
            None => good_answer(query),
        });
        let good = Upstream::start(|query, _| good_answer(query));
        let servers = [server(&strange, transport), server(&good, transport)];
        let stage = Stage::set(&servers, ", policy: sequential");
        for n in 0..5 {
            assert!(stage.ask(&format!("c{n}.bad.example.")).is_right());
        }
        for n in 0..5 {
            assert!(stage.ask(&format!("n{n}.good.example.")).is_right());
        }
        assert_eq!(strange.count_below("good.example."), 5, "{transport:?}");
        stage.is_sound("malformed", &[&strange, &good]);
    }
}

#[test]
fn a_connection_that_is_flooded_with_unmatched_ids_is_closed() {
    let upstream = Upstream::scripted(|call| match case_of(call.query) {
        Some(_) if call.before == 0 => {
            let bad = message(&address_reply(call.query, 300, BAD));
            Reaction::Steps(flood(&bad, 20_000))
        }
        _ => good_answer(call.query),
    });
    let stage = Stage::set(&[upstream.tcp()], "");
    thread::scope(|scope| {
        let asked = scope.spawn(|| stage.ask("c0.bad.example."));
        wait_until("it is asked", seconds(3), || upstream.count_of("c0.bad.example.") >= 1);
        let flooded = upstream.seen("c0.bad.example.")[0].connection.expect("a TCP connection");
        let outcome = asked.join().expect("thread");
        assert!(outcome.is_right() && outcome.took < millis(2_500), "{outcome:?}");
        wait_until("it is closed", seconds(3), || !upstream.open_numbers().contains(&flooded));
    });
    stage.is_sound("flood", &[&upstream]);
}

#[test]
fn a_hundred_unmatched_datagrams_do_not_hide_the_right_answer_by_tcp() {
    let upstream = Upstream::start(|query, transport| {
        let (bad, good) =
            (message(&address_reply(query, 300, BAD)), message(&address_reply(query, 300, GOOD)));
        match case_of(query) {
            Some(_) if transport == Transport::Udp => Reaction::Steps(flood(&bad, 100)),
            Some(_) => Reaction::Steps(vec![Step::Message(good)]),
            None => good_answer(query),
        }
    });
    let stage = Stage::set(&[upstream.udp()], "");
    let outcome = stage.ask("c0.bad.example.");
    assert!(outcome.is_right() && outcome.took < millis(900), "{outcome:?}");
}

#[test]
fn names_that_are_never_answered_do_not_take_the_room_of_others() {
    let upstream = Upstream::start(|query, _| match case_of(query) {
        Some(_) => Reaction::Drop,
        None => good_answer(query),
    });
    let stage = Stage::set(&[upstream.tcp()], ", timeout: 600ms, connections: { max: 1, in_flight: 4 }");
    thread::scope(|scope| {
        // One after the other: never more than one of them is waited for.
        let silent = scope.spawn(|| {
            for n in 0..6 {
                assert_eq!(stage.ask(&format!("n{n}.c0.bad.example.")).code, ResponseCode::ServFail);
            }
        });
        let mut asked = 0;
        while !silent.is_finished() {
            // Without a place on the only connection it would be SERVFAIL at the deadline.
            let outcome = stage.ask(&format!("n{asked}.good.example."));
            assert!(outcome.is_right(), "name {asked}: {outcome:?}");
            asked += 1;
            thread::sleep(millis(10));
        }
    });
}

#[test]
fn ids_on_a_connection_are_unique_and_in_no_order() {
    const QUERIES: usize = 800;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let ids = Arc::clone(&seen);
    let upstream = Upstream::scripted(move |call| {
        if call.query.queries[0].name.to_ascii().ends_with(".silent.example.") {
            ids.lock().expect("ids").push((call.connection, call.query.metadata.id));
            return Reaction::Drop;
        }
        good_answer(call.query)
    });
    let stage = Stage::set(&[upstream.tcp()], ", timeout: 20s, connections: { max: 1, in_flight: 1024 }");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("client socket");
    for n in 0..QUERIES {
        let asked = message(&query(&format!("n{n}.silent.example."), "A"));
        socket.send_to(&asked, stage.agent.address).expect("sent");
        if n % 50 == 49 {
            thread::sleep(millis(2)); // the receive buffer holds some 250 datagrams
        }
    }
    wait_until("all are asked", seconds(5), || seen.lock().expect("ids").len() >= QUERIES);
    let seen = seen.lock().expect("ids");
    assert!(seen.iter().all(|(connection, _)| *connection == seen[0].0), "one connection");
    let different: HashSet<u16> = seen.iter().map(|&(_, id)| id).collect();
    assert_eq!(different.len(), seen.len(), "none was answered, so each ID is taken once");
    let next = seen.windows(2).filter(|pair| pair[0].1.abs_diff(pair[1].1) < 16).count();
    assert!(next < 10, "{next} of {} follow the one before", seen.len());
}
