//! Upstreams that do odd things to connections, to the clock and to the contents of right answers.

use std::thread;
use std::time::Instant;

use hickory_proto::op::ResponseCode;

use super::hostile_upstream_faults::{
    BAD, Fails, Fault, GOOD, MESSAGES, Refuses, STREAMS, Stage, Waits, case_of, flood, for_all, good_answer,
    server,
};
use crate::support::edit::{self, MX, PTR, Section, flag};
use crate::support::{
    Accept, Reaction, Step, Transport, Upstream, address_reply, ask, ask_tcp, ask_udp, datagram_reply,
    message, millis, nodens, query, seconds, wait_until, with_edns,
};

/// One connection only, with room for the IDs that nobody answers.
const ONE_CONNECTION: &str = ", connections: { max: 1, in_flight: 64 }";

/// Answers the names of cases with what `edit` makes of a good answer's bytes.
fn edited(edit: fn(&[u8]) -> Vec<u8>) -> Upstream {
    Upstream::start(move |query, _| {
        let good = message(&address_reply(query, 300, GOOD));
        match case_of(query) {
            Some(_) => Reaction::Bytes(vec![edit(&good)]),
            None => Reaction::Bytes(vec![good]),
        }
    })
}

#[test]
fn a_connection_that_carried_a_bad_message_is_kept() {
    let upstream = Upstream::scripted(|call| match case_of(call.query) {
        Some(case) if call.before == 0 => MESSAGES[case].reaction(call.query),
        _ => good_answer(call.query),
    });
    let stage = Stage::set(&[upstream.tcp()], ONE_CONNECTION);
    for_all(MESSAGES, MESSAGES.len(), |case, fault| {
        // One on which nothing comes that answers is silent, and would make room for another.
        if fault.fate != Waits {
            let outcome = stage.ask(&format!("c{case}.bad.example."));
            assert!(outcome.is_right() || fault.fate == Refuses, "{}: {outcome:?}", fault.what);
        }
    });
    for n in 0..20 {
        let outcome = stage.ask(&format!("n{n}.good.example."));
        assert!(outcome.is_right() && outcome.took < millis(900), "{outcome:?}");
    }
    assert_eq!((upstream.connections(), upstream.open_connections()), (1, 1));
    stage.is_sound("all together", &[&upstream]);
}

#[test]
fn a_connection_whose_framing_is_lost_is_closed_and_no_other_is() {
    let lost: Vec<_> = STREAMS.iter().filter(|fault| fault.what.starts_with("length 0")).collect();
    assert_eq!(lost.len(), 2);
    for_all(&lost, 2, |_, &fault| {
        let upstream = Upstream::scripted(|call| match case_of(call.query) {
            Some(_) if call.before == 0 => fault.reaction(call.query),
            Some(_) => good_answer(call.query),
            None if call.query.queries[0].name.to_ascii().to_ascii_lowercase().starts_with("held") => {
                Reaction::Hold(address_reply(call.query, 300, GOOD))
            }
            None => good_answer(call.query),
        });
        let stage = Stage::set(&[upstream.tcp()], "");
        thread::scope(|scope| {
            let stage = &stage;
            let held: Vec<_> = (0..6)
                .map(|n| {
                    let asked = scope.spawn(move || stage.ask(&format!("held{n}.example.")));
                    wait_until("it is held", seconds(3), || {
                        upstream.count_of(&format!("held{n}.example.")) == 1
                    });
                    asked
                })
                .collect();
            assert!(upstream.open_connections() >= 2, "{}", upstream.open_connections());
            let outcome = stage.ask("c0.bad.example.");
            assert!(outcome.is_right() && outcome.took < millis(900), "{}: {outcome:?}", fault.what);
            let lost = upstream.seen("c0.bad.example.")[0].connection.expect("a TCP connection");
            wait_until("it is closed", seconds(3), || !upstream.open_numbers().contains(&lost));
            upstream.release();
            for (n, held) in held.into_iter().enumerate() {
                let outcome = held.join().expect("thread");
                assert!(outcome.is_right(), "{}: {outcome:?}", fault.what);
                let seen = upstream.seen(&format!("held{n}.example."));
                let first = seen[0].connection.expect("a TCP connection");
                assert!(first == lost || upstream.open_numbers().contains(&first), "{first} was closed too");
                assert!(first == lost || seen.len() == 1, "held{n} was asked again");
            }
        });
        stage.is_sound(fault.what, &[&upstream]);
    });
}

#[test]
fn hundreds_of_connections_that_broke_leave_nothing_behind() {
    // Not those that leave a connection open on which nothing can be found any more.
    let ends = |fault: &&Fault| fault.fate == Fails && fault.what != "a length too small";
    let breaking: Vec<_> = STREAMS.iter().filter(ends).collect();
    let kinds = breaking.len();
    let upstream = Upstream::start(move |query, _| match case_of(query) {
        Some(case) => breaking[case].reaction(query),
        None => good_answer(query),
    });
    let stage = Stage::set(&[upstream.tcp()], ", connections: { idle: 1s }");
    for n in 0..25 {
        for case in 0..kinds {
            assert_eq!(stage.ask(&format!("n{n}.c{case}.bad.example.")).code, ResponseCode::ServFail);
        }
    }
    assert!(upstream.connections() > 25 * kinds, "{}", upstream.connections());
    stage.is_sound("broken connections", &[&upstream]);
    wait_until("no connection is open", seconds(5), || upstream.open_connections() == 0);
    stage.is_as_before();
}

#[test]
fn an_upstream_that_accepts_and_never_reads_is_servfail_in_time_and_its_first_connection_is_left() {
    let doors = [(usize::MAX, ResponseCode::ServFail), (1, ResponseCode::NoError)];
    for_all(&doors, doors.len(), |_, &(deaf, code)| {
        let upstream = Upstream::start(|query, _| good_answer(query));
        upstream.accept(move |number| if number < deaf { Accept::Ignore } else { Accept::Serve });
        let stage = Stage::set(&[upstream.tcp()], "");
        let outcome = stage.ask("deaf.example.");
        assert_eq!(outcome.code, code, "{outcome:?}");
        assert!(code != ResponseCode::NoError || outcome.took < millis(2_500), "{outcome:?}");
        assert!(code != ResponseCode::ServFail || outcome.error == Some(22), "{outcome:?}");
        upstream.accept(|_| Accept::Serve);
        wait_until("it is answered", seconds(6), || stage.ask("deaf.example.").is_right());
        stage.is_sound("deaf", &[&upstream]);
    });
}

#[test]
fn an_upstream_that_resets_each_connection_is_servfail_at_once_and_one_reset_is_not_noticed() {
    for (bad, code) in [(usize::MAX, ResponseCode::ServFail), (1, ResponseCode::NoError)] {
        let upstream = Upstream::start(|query, _| good_answer(query));
        upstream.accept(move |number| if number < bad { Accept::Reset } else { Accept::Serve });
        let stage = Stage::set(&[upstream.tcp()], "");
        let outcome = stage.ask("reset.example.");
        assert_eq!(outcome.code, code, "{outcome:?}");
        assert!(outcome.took < millis(900), "{outcome:?}");
        upstream.accept(|_| Accept::Serve);
        wait_until("it is answered", seconds(5), || stage.ask("reset.example.").is_right());
        stage.is_sound("reset", &[&upstream]);
    }
}

#[test]
fn a_port_that_refuses_is_servfail_at_once_and_is_used_again_when_it_opens() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let upstream = Upstream::start(|query, _| good_answer(query));
        let stage = Stage::set(&[server(&upstream, transport)], "");
        assert!(stage.ask("before.example.").is_right());
        upstream.go_away();
        // ICMP tells that a UDP port is closed, but to a busy machine not each time (icmp_msgs_per_sec).
        let at_once = (0..4).any(|n| {
            let outcome = stage.ask(&format!("away{n}.example."));
            assert_eq!((outcome.code, outcome.error), (ResponseCode::ServFail, Some(22)), "{outcome:?}");
            outcome.took < millis(900)
        });
        assert!(at_once, "{transport:?}: never within 900 ms");
        assert_eq!(stage.ask("away.example.").code, ResponseCode::ServFail);
        upstream.come_back();
        let back = Instant::now();
        wait_until("it is answered", seconds(3), || stage.ask("away.example.").is_right());
        assert!(
            back.elapsed() < seconds(2),
            "a transport failure is remembered for 1 s: {:?}",
            back.elapsed()
        );
        stage.is_sound("refused", &[&upstream]);
    }
}

#[test]
fn one_octet_in_100_ms_on_a_connection_delays_no_other_name() {
    let drip = STREAMS.last().expect("a table that is not empty");
    let upstream = Upstream::start(|query, _| match case_of(query) {
        Some(_) => drip.reaction(query),
        None => good_answer(query),
    });
    let stage = Stage::set(&[upstream.tcp()], ", timeout: 2500ms");
    thread::scope(|scope| {
        let slow = scope.spawn(|| stage.ask("c0.bad.example."));
        wait_until("it drips", seconds(3), || upstream.count_of("c0.bad.example.") == 1);
        let names: Vec<String> = (0..40).map(|n| format!("n{n}.good.example.")).collect();
        for_all(&names, 8, |_, name| {
            let outcome = stage.ask(name);
            assert!(outcome.is_right() && outcome.took < millis(2_500), "{outcome:?}");
        });
        assert_eq!(slow.join().expect("thread").code, ResponseCode::ServFail);
    });
    stage.is_sound("drip", &[&upstream]);
}

#[test]
fn a_flood_of_unmatched_ids_is_servfail_in_time_and_costs_no_memory() {
    for_all(&[Transport::Udp, Transport::Tcp], 2, |_, &transport| {
        let upstream = Upstream::start(|query, _| match case_of(query) {
            Some(_) => Reaction::Steps(flood(&message(&address_reply(query, 300, BAD)), 20_000)),
            None => good_answer(query),
        });
        let stage = Stage::set(&[server(&upstream, transport)], "");
        thread::scope(|scope| {
            let flooded = scope.spawn(|| stage.ask("c0.bad.example."));
            for n in 0..10 {
                let outcome = stage.ask(&format!("n{n}.good.example."));
                assert!(outcome.is_right(), "{transport:?}: {outcome:?}");
            }
            let outcome = flooded.join().expect("thread");
            assert_eq!(outcome.code, ResponseCode::ServFail, "{transport:?}: {outcome:?}");
        });
        stage.is_sound("flood", &[&upstream]);
    });
}

#[test]
fn a_late_answer_is_never_another_questions() {
    let upstream = Upstream::start(|query, _| match case_of(query) {
        Some(_) => Reaction::Hold(address_reply(query, 300, "192.0.2.67")),
        None => good_answer(query),
    });
    let stage = Stage::set(&[upstream.tcp()], ", timeout: 1s, connections: { max: 1, in_flight: 64 }");
    let names: Vec<String> = (0..20).map(|n| format!("n{n}.c0.bad.example.")).collect();
    for_all(&names, names.len(), |_, name| {
        assert_eq!(stage.ask(name).code, ResponseCode::ServFail);
    });
    thread::scope(|scope| {
        scope.spawn(|| upstream.release());
        for n in 0..50 {
            let outcome = stage.ask(&format!("n{n}.good.example."));
            assert!(outcome.is_right(), "{outcome:?}");
        }
    });
    stage.is_sound("late", &[&upstream]);
}

#[test]
fn answers_in_reverse_order_reach_their_own_questions() {
    let upstream = Upstream::start(|query, _| match case_of(query) {
        Some(n) => {
            let delay = millis(20 * (16 - n as u64));
            Reaction::After(delay, address_reply(query, 300, &format!("192.0.2.{}", 100 + n)))
        }
        None => good_answer(query),
    });
    for transport in [Transport::Udp, Transport::Tcp] {
        let stage = Stage::set(&[server(&upstream, transport)], ONE_CONNECTION);
        let names: Vec<String> = (0..16).map(|n| format!("c{n}.bad.example.")).collect();
        for_all(&names, names.len(), |n, name| {
            let outcome = stage.ask(name);
            assert_eq!(outcome.addresses, [format!("192.0.2.{}", 100 + n)], "{transport:?}: {outcome:?}");
        });
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn ttls_of_0_are_delivered_and_not_kept_and_huge_ones_mean_the_zones_greatest() {
    let upstream = Upstream::start(|query, _| {
        let good = message(&address_reply(query, 300, GOOD));
        let ttl = [0, 1 << 31, u32::MAX, i32::MAX as u32];
        Reaction::Bytes(vec![case_of(query).map_or(good.clone(), |case| edit::with_ttl(&good, ttl[case]))])
    });
    for transport in [Transport::Udp, Transport::Tcp] {
        let stage = Stage::set(&[server(&upstream, transport)], "");
        for (case, (ttl, asked)) in [(0, 2), (3_600, 1), (3_600, 1), (3_600, 1)].into_iter().enumerate() {
            let owner = format!("{transport:?}.c{case}.bad.example.");
            for _ in 0..2 {
                let reply = ask(stage.agent.address, &owner, "A");
                assert!(reply.answers[0].ttl <= ttl && reply.answers[0].ttl + 2 >= ttl, "{owner}: {reply:?}");
            }
            assert_eq!(upstream.count_of(&owner), asked, "{owner}");
        }
    }
}

#[test]
fn of_the_upstreams_flags_only_aa_and_a_wanted_ad_reach_a_client() {
    let all = flag::AA | flag::RD | flag::RA | flag::Z | flag::AD | flag::CD;
    let upstream =
        edited(|good| edit::flipped(good, flag::AA | flag::RD | flag::RA | flag::Z | flag::AD | flag::CD));
    for transport in [Transport::Udp, Transport::Tcp] {
        let stage = Stage::set(&[server(&upstream, transport)], "");
        for (wants_ad, expected) in
            [(false, flag::AA | flag::RD | flag::RA), (true, flag::AA | flag::RD | flag::RA | flag::AD)]
        {
            for _ in 0..2 {
                let mut asked = query("c0.bad.example.", "A");
                asked.metadata.authentic_data = wants_ad;
                let reply = datagram_reply(stage.agent.address, &message(&asked), seconds(6)).expect("reply");
                let flags = u16::from_be_bytes([reply[2], reply[3]]);
                assert_eq!(flags & all, expected, "{transport:?}: {flags:#06x}");
            }
        }
    }
}

#[test]
fn endless_aliases_are_delivered_as_they_came_and_never_followed() {
    let cycle = edited(|good| edit::chain(good, &["b.example".to_owned(), "c0.bad.example".to_owned()]));
    let chain =
        edited(|good| edit::chain(good, &(0..500).map(|n| format!("n{n}.example")).collect::<Vec<_>>()));
    for (upstream, length) in [(&cycle, 2), (&chain, 500)] {
        let stage = Stage::set(&[upstream.tcp()], "");
        let reply = ask_tcp(stage.agent.address, &query("c0.bad.example.", "A"));
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert_eq!(reply.answers.len(), length);
        let reply = ask(stage.agent.address, "c0.bad.example.", "A");
        assert_eq!(reply.metadata.truncation, length == 500);
        for followed in ["b.example.", "n0.example.", "n499.example."] {
            assert_eq!(upstream.count_of(followed), 0, "{followed}");
        }
        // Without SOA nothing says how long the type is absent.
        assert_eq!(upstream.count_of("c0.bad.example."), 2);
        stage.is_sound("aliases", &[upstream]);
    }
}

#[test]
fn a_loop_in_rdata_that_is_passed_untouched_harms_nobody_here() {
    for (record_type, upstream) in [
        ("MX", edited(|good| edit::rdata_loop(good, MX, &[0, 10]))),
        ("PTR", edited(|good| edit::rdata_loop(good, PTR, &[]))),
    ] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let stage = Stage::set(&[server(&upstream, transport)], "");
            let asked = message(&query("c0.bad.example.", record_type));
            for _ in 0..2 {
                let reply = datagram_reply(stage.agent.address, &asked, seconds(6)).expect("a reply");
                let code = reply[3] & 0xf;
                assert!(code == 0 || code == 2, "{record_type}: {reply:?}");
            }
            // Whoever shows what is cached has to read it.
            let control = stage.agent.control();
            for arguments in [&["cache", "get", "c0.bad.example."][..], &["cache", "dump"]] {
                let tool = nodens(&[arguments, &["--control", &control]].concat());
                assert!(matches!(tool.code, 0 | 1), "{}", tool.text());
            }
            stage.is_sound(record_type, &[&upstream]);
        }
    }
}

#[test]
fn an_answer_of_64_kib_comes_whole_by_tcp_and_never_in_part_as_if_whole() {
    let upstream = edited(edit::filled);
    let stage = Stage::set(&[upstream.tcp()], "");
    for _ in 0..2 {
        let reply = ask_tcp(stage.agent.address, &query("c0.bad.example.", "A"));
        assert!(reply.answers.len() > 4_000, "{}", reply.answers.len());
        let reply = ask(stage.agent.address, "c0.bad.example.", "A");
        assert!(reply.metadata.truncation && !reply.answers.is_empty());
    }
    assert_eq!(upstream.count_of("c0.bad.example."), 1);
    stage.is_sound("64 KiB", &[&upstream]);
}

#[test]
fn a_datagram_larger_than_we_take_is_read_whole_or_not_at_all() {
    let upstream = Upstream::start(|query, _| {
        let good = message(&address_reply(query, 300, GOOD));
        let Some(count) = case_of(query) else { return Reaction::Bytes(vec![good]) };
        let one = edit::record(&[0xc0, 12], edit::A, 300, &[192, 0, 2, 3]);
        let count = u16::try_from(count).expect("a small number");
        let large = edit::with_records(&good, Section::Answer, &one.repeat(count.into()), count);
        Reaction::Steps(vec![Step::Message(large)])
    });
    let stage = Stage::set(&[upstream.udp()], "");
    for count in [100, 200, 250, 252, 253, 254, 300, 4_000] {
        let asked = with_edns(query(&format!("c{count}.bad.example."), "A"), 1232);
        let reply = ask_udp(stage.agent.address, &asked).expect("reply");
        if reply.metadata.response_code == ResponseCode::NoError {
            let whole = ask_tcp(stage.agent.address, &asked);
            assert_eq!(whole.answers.len(), count + 1);
        } else {
            assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "{count}");
            assert!(count > 200, "{count}: 4096 octets are taken");
        }
    }
    stage.is_sound("large", &[&upstream]);
}

#[test]
fn a_datagram_from_another_port_is_ignored() {
    let upstream = Upstream::start(|query, _| match case_of(query) {
        Some(_) => {
            let (bad, good) = (address_reply(query, 300, BAD), address_reply(query, 300, GOOD));
            let late = [Step::Pause(millis(100)), Step::Message(message(&good))];
            Reaction::Steps([&[Step::FromElsewhere(message(&bad))], &late[..]].concat())
        }
        None => good_answer(query),
    });
    let stage = Stage::set(&[upstream.udp()], "");
    let outcome = stage.ask("c0.bad.example.");
    assert!(outcome.is_right() && outcome.took >= millis(100), "{outcome:?}");
    stage.is_sound("elsewhere", &[&upstream]);
}
