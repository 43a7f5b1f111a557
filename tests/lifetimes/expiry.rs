//! Fresh, expired, stale, failed: what the same query gets at different seconds.

use std::time::Duration;

use hickory_proto::op::ResponseCode;
use nodens::cache::failure::Cause;
use nodens::config::{Prefetch, StaleMode, Zone};
use nodens::metrics::Source;
use nodens::wire::rcode;

use super::agent::{
    Agent, a, cname, config, extended_error, nxdomain, query, record, response, soa, ttls, with_opt,
};

const HOUR: u32 = 3600;
const DAY: u32 = 86_400;

#[test]
fn an_answer_is_a_hit_until_its_life_ends_and_its_ttls_count_down() {
    let agent = Agent::plain();
    let asked = query("web.test.", 1);
    let answers = vec![
        record("web.test.", 100, cname("real.test.")),
        record("real.test.", 30, a(1)),
        record("real.test.", 31, a(2)),
    ];
    assert!(agent.ask(0.0, &asked).waits(), "nothing is known yet");
    assert_eq!(agent.learn(&asked, &response(&asked, answers, vec![])), 30);
    for (second, expected) in [
        (0.0, Some([100, 30, 31])),
        (0.9, Some([100, 30, 31])),
        (1.0, Some([99, 29, 30])),
        (29.0, Some([71, 1, 2])),
        (29.999, Some([71, 1, 2])),
        (30.0, None),
        (31.0, None),
    ] {
        let outcome = agent.ask(second, &asked);
        match expected {
            Some(expected) => {
                let (source, reply) = outcome.reply();
                assert_eq!((source, ttls(&reply)), (Source::Hit, expected.to_vec()), "at {second} s");
                assert_eq!(extended_error(&reply), None);
            }
            None => assert!(outcome.waits(), "at {second} s"),
        }
    }
}

/// Zone rules, the TTLs of an answer, and what is delivered and for how long.
#[test]
fn ttls_are_delivered_within_the_bounds_of_the_zone() {
    let unbounded: fn(&mut Zone) = |zone| zone.policy.max_ttl = Duration::from_secs(u32::MAX.into());
    let at_least_5: fn(&mut Zone) = |zone| zone.policy.min_ttl = Duration::from_secs(5);
    let at_most_60: fn(&mut Zone) = |zone| zone.policy.max_ttl = Duration::from_secs(60);
    for (what, rule, sent, delivered, life) in [
        ("as they are", at_most_60, [10, 20], [10, 20], 10),
        ("max_ttl", at_most_60, [HOUR, 61], [60, 60], 60),
        ("min_ttl", at_least_5, [1, 20], [5, 20], 5),
        ("min_ttl lifts 0", at_least_5, [0, 0], [5, 5], 5),
        ("0 is not stored", at_most_60, [0, 20], [0, 20], 0),
        ("a week is enough", unbounded, [30 * DAY, 8 * DAY], [7 * DAY, 7 * DAY], 7 * DAY),
        ("top bit set", unbounded, [0x8000_0000, 60], [7 * DAY, 60], 60),
    ] {
        let agent = Agent::new(&config(rule));
        let asked = query("web.test.", 1);
        let answers = vec![record("web.test.", sent[0], a(1)), record("web.test.", sent[1], a(2))];
        assert_eq!(agent.learn(&asked, &response(&asked, answers, vec![])), life, "{what}");
        match agent.ask(0.0, &asked) {
            outcome if life == 0 => assert!(outcome.waits(), "{what}"),
            outcome => assert_eq!(ttls(&outcome.reply().1), delivered, "{what}"),
        }
        let last = f64::from(life.max(1)) - 1.0;
        assert_eq!(agent.ask(last, &asked).waits(), life == 0, "{what}: in its last second");
        assert!(agent.ask(f64::from(life), &asked).waits(), "{what}: when its life has ended");
    }
}

#[test]
fn a_negative_answer_lives_as_long_as_its_soa_says() {
    let quick: fn(&mut Zone) = |_| {};
    let no_soa: fn(&mut Zone) = |zone| zone.policy.negative_no_soa_ttl = Duration::from_secs(4);
    let longer: fn(&mut Zone) = |zone| zone.policy.negative_max_ttl = Duration::from_secs(600);
    let min: fn(&mut Zone) = |zone| zone.policy.min_ttl = Duration::from_secs(5);
    for (what, rule, chain, soa_ttls, delivered, life) in [
        ("MINIMUM", quick, None, Some((HOUR, 20)), vec![20], 20),
        ("SOA's own TTL", quick, None, Some((7, 20)), vec![7], 7),
        ("negative_max_ttl", quick, None, Some((HOUR, HOUR)), vec![30], 30),
        ("raised negative_max_ttl", longer, None, Some((HOUR, HOUR)), vec![600], 600),
        ("min_ttl", min, None, Some((HOUR, 0)), vec![5], 5),
        ("MINIMUM 0", quick, None, Some((HOUR, 0)), vec![0], 0),
        ("a CNAME in front", quick, Some(3), Some((60, 60)), vec![3, 30], 3),
        ("no SOA", quick, None, None, vec![], 0),
        ("no SOA, allowed", no_soa, None, None, vec![], 4),
    ] {
        for exists in [true, false] {
            let agent = Agent::new(&config(rule));
            let asked = query("web.test.", 28);
            let authority: Vec<_> =
                soa_ttls.iter().map(|&(ttl, minimum)| record("test.", ttl, soa(minimum))).collect();
            let mut answer =
                if exists { response(&asked, vec![], authority) } else { nxdomain(&asked, authority) };
            answer.insert_answers(
                chain.iter().map(|&ttl| record("web.test.", ttl, cname("gone.test."))).collect(),
            );
            assert_eq!(agent.learn(&asked, &answer), life, "{what}");
            if life == 0 {
                assert!(agent.ask(0.0, &asked).waits(), "{what}");
                continue;
            }
            let (source, reply) = agent.ask(0.0, &asked).reply();
            assert_eq!((source, ttls(&reply)), (Source::Hit, delivered.clone()), "{what}");
            let code = if exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
            assert_eq!(reply.metadata.response_code, code, "{what}");
            assert!(!agent.ask(f64::from(life) - 1.0, &asked).waits(), "{what}: in its last second");
            assert!(agent.ask(f64::from(life), &asked).waits(), "{what}: when its life has ended");
        }
    }
}

#[test]
fn an_expired_answer_waits_for_a_fresh_one_in_timer_mode() {
    let agent = Agent::plain();
    let asked = with_opt(query("web.test.", 1));
    agent.learn(&asked, &response(&asked, vec![record("web.test.", 30, a(1))], vec![]));
    for second in [30.0, 31.0, 3629.0, 3631.0, 100_000.0] {
        assert!(agent.ask(second, &asked).waits(), "at {second} s");
    }
    // A refresh has failed: the stale answer bridges the 5 s until the next try.
    agent.fail(40.0, &asked, Cause::Transport);
    let (source, reply) = agent.ask(44.9, &asked).reply();
    assert_eq!((source, ttls(&reply), extended_error(&reply)), (Source::Stale, vec![30], Some(3)));
    assert!(agent.ask(45.0, &asked).waits(), "the next try is due");
}

#[test]
fn an_expired_answer_goes_out_at_once_in_immediate_mode_and_is_refreshed_behind() {
    let rule = |zone: &mut Zone| {
        let stale = zone.policy.stale.as_mut().expect("on by default");
        stale.mode = StaleMode::Immediate;
        stale.answer_ttl = Duration::from_secs(30);
        stale.max_age = Duration::from_secs(100);
    };
    let agent = Agent::new(&config(rule));
    let asked = with_opt(query("web.test.", 1));
    agent.learn(&asked, &response(&asked, vec![record("web.test.", 300, a(1))], vec![]));
    let gone = with_opt(query("gone.test.", 1));
    agent.learn(&gone, &nxdomain(&gone, vec![record("test.", 20, soa(20))]));
    let empty = with_opt(query("web.test.", 28));
    agent.learn(&empty, &response(&empty, vec![], vec![record("test.", 20, soa(20))]));

    assert_eq!(agent.resolver.flights.len(), 0);
    for (asked, life, error, code) in [
        (&asked, 300.0, 3, ResponseCode::NoError),
        (&gone, 20.0, 19, ResponseCode::NXDomain),
        (&empty, 20.0, 3, ResponseCode::NoError),
    ] {
        let flights = agent.resolver.flights.len();
        let (source, reply) = agent.ask(life, asked).reply();
        assert_eq!((source, ttls(&reply), extended_error(&reply)), (Source::Stale, vec![30], Some(error)));
        assert_eq!(reply.metadata.response_code, code);
        assert_eq!(agent.resolver.flights.len(), flights + 1, "a refresh is under way");
        let (source, _) = agent.ask(life + 99.9, asked).reply();
        assert_eq!(source, Source::Stale);
        assert_eq!(agent.resolver.flights.len(), flights + 1, "one refresh is enough");
        assert!(agent.ask(life + 100.0, asked).waits(), "beyond max_age");
    }
    let (_, reply) = agent.ask(310.0, &query("web.test.", 1)).reply();
    assert_eq!(reply.edns, None, "no OPT, no explanation");
}

#[test]
fn nothing_stale_goes_out_where_that_is_off() {
    let agent = Agent::new(&config(|zone| zone.policy.stale = None));
    let asked = with_opt(query("web.test.", 1));
    agent.learn(&asked, &response(&asked, vec![record("web.test.", 30, a(1))], vec![]));
    assert!(agent.ask(30.0, &asked).waits());
    agent.fail(30.0, &asked, Cause::Transport);
    let (source, reply) = agent.ask(30.5, &asked).reply();
    assert_eq!((source, extended_error(&reply)), (Source::Failure, Some(13)));
}

#[test]
fn a_failure_is_remembered_for_its_time_and_told_apart() {
    let (servfail, refused) = (Cause::Rcode(rcode::SERVFAIL), Cause::Rcode(rcode::REFUSED));
    for (cause, times, lasts, code) in [
        (Cause::Transport, 1, 1.0, ResponseCode::ServFail),
        (Cause::Transport, 3, 1.0, ResponseCode::ServFail),
        (servfail, 1, 1.0, ResponseCode::ServFail),
        (servfail, 3, 4.0, ResponseCode::ServFail),
        (servfail, 6, 10.0, ResponseCode::ServFail),
        (refused, 1, 1.0, ResponseCode::Refused),
        (refused, 3, 1.0, ResponseCode::Refused),
    ] {
        let agent = Agent::plain();
        let asked = with_opt(query("web.test.", 1));
        for _ in 0..times {
            agent.fail(0.0, &asked, cause);
        }
        let (source, reply) = agent.ask(lasts - 0.1, &asked).reply();
        assert_eq!((source, extended_error(&reply)), (Source::Failure, Some(13)), "{cause:?}");
        assert_eq!(reply.metadata.response_code, code);
        assert!(agent.ask(lasts, &asked).waits(), "{cause:?} after {times}");
        assert!(agent.ask(0.0, &query("other.test.", 1)).waits(), "other questions are asked");
    }
}

#[test]
fn a_failure_hides_no_fresh_answer() {
    let agent = Agent::plain();
    let asked = query("web.test.", 1);
    agent.fail(0.0, &asked, Cause::Transport);
    agent.learn(&asked, &response(&asked, vec![record("web.test.", 30, a(1))], vec![]));
    assert_eq!(agent.ask(0.5, &asked).reply().0, Source::Hit);
}

#[test]
fn without_rd_the_cache_answers_or_nobody() {
    let agent = Agent::plain();
    let mut asked = query("web.test.", 1);
    asked.metadata.recursion_desired = false;
    let (source, reply) = agent.ask(0.0, &asked).reply();
    assert_eq!((source, reply.metadata.response_code), (Source::Local, ResponseCode::Refused));
    agent.learn(&asked, &response(&asked, vec![record("web.test.", 30, a(1))], vec![]));
    let (source, reply) = agent.ask(29.0, &asked).reply();
    assert_eq!((source, ttls(&reply)), (Source::Hit, vec![1]));
    assert!(!reply.metadata.recursion_desired && reply.metadata.recursion_available);
    let (_, reply) = agent.ask(30.0, &asked).reply();
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "expired, and never forwarded");
}

#[test]
fn an_entry_that_is_asked_again_near_its_end_is_refreshed_once() {
    let rule = |zone: &mut Zone| zone.policy.prefetch = Some(Prefetch { hits: 2, at: 0.1 });
    for (seconds, refreshed) in
        [(vec![95.0], 0), (vec![1.0, 89.0], 0), (vec![1.0, 91.0], 1), (vec![91.0, 92.0, 93.0, 99.0], 1)]
    {
        let agent = Agent::new(&config(rule));
        let asked = query("web.test.", 1);
        agent.learn(&asked, &response(&asked, vec![record("web.test.", 100, a(1))], vec![]));
        for &second in &seconds {
            assert_eq!(agent.ask(second, &asked).reply().0, Source::Hit);
        }
        let prefetches = agent.resolver.view().zones[0].metrics.prefetches.value();
        assert_eq!(
            (prefetches, agent.resolver.flights.len()),
            (refreshed, refreshed as usize),
            "{seconds:?}"
        );
    }
}
