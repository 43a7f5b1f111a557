//! Lifetimes: counting down, ending, bounds, and answers past their life.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;
use std::time::Instant;

use hickory_proto::op::ResponseCode;

use crate::support::{
    Agent, Nsd, Reaction, Upstream, address_reply, ask, ask_udp, dig, millis, option, query, reply_code,
    seconds, wait_until, with_edns,
};

/// Option code of extended errors (RFC 8914).
const EDE: u16 = 15;

/// One zone for everything, with these cache settings.
fn zone(server: impl std::fmt::Display, cache: &str) -> String {
    format!(
        "zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{server}\"] }}\n    cache: {{ {cache} }}\n"
    )
}

#[test]
fn ttls_count_down_and_never_exceed_the_original() {
    let nsd = Nsd::cluster();
    let agent = Agent::before(format!("tcp://{}", nsd.address));
    let ttl = || {
        let printed = dig(agent.address, &["brief.default.svc.cluster.local", "A"]);
        printed.answers[0].ttl
    };
    let first = ttl();
    assert_eq!(first, 20);
    let started = Instant::now();
    let mut last = first;
    while started.elapsed() < millis(2_300) {
        let now = ttl();
        assert!(now <= last, "{now} after {last}");
        last = now;
        thread::sleep(millis(200));
    }
    // It was stored just before `started`.
    let least = started.elapsed().as_secs() as u32;
    last = ttl();
    let most = started.elapsed().as_secs() as u32 + 2;
    assert!((least..=most).contains(&(20 - last)), "{last} after {least} to {most} s");
    assert_eq!(agent.lookups("miss"), 1.0);
}

#[test]
fn an_expired_answer_is_asked_for_again() {
    let answer = Arc::new(AtomicU8::new(1));
    let current = Arc::clone(&answer);
    let upstream = Upstream::start(move |query, _| {
        let last = current.load(Ordering::Relaxed);
        Reaction::Answer(address_reply(query, 2, &format!("192.0.2.{last}")))
    });
    let agent = Agent::before(upstream.tcp());
    let address = || ask(agent.address, "moves.example.", "A").answers[0].data.to_string();
    assert_eq!(address(), "192.0.2.1");
    answer.store(2, Ordering::Relaxed);
    assert_eq!(address(), "192.0.2.1", "still in its life");
    assert_eq!(upstream.count_of("moves.example."), 1);
    wait_until("the new address is seen", seconds(5), || address() == "192.0.2.2");
}

#[test]
fn names_of_nsd_expire() {
    let nsd = Nsd::cluster();
    let agent = Agent::before(format!("tcp://{}", nsd.address));
    for n in 1..=10 {
        let owner = format!("short{n}.default.svc.cluster.local");
        assert_eq!(dig(agent.address, &[&owner, "A"]).data("A"), [format!("10.9.0.{n}")]);
    }
    let asked = agent.admin.count("nodens_upstream_requests_total", &[]);
    thread::sleep(millis(1_200));
    for n in 1..=10 {
        let owner = format!("short{n}.default.svc.cluster.local");
        let printed = dig(agent.address, &[&owner, "A"]);
        assert_eq!(printed.answers[0].ttl, 1, "fresh, not stale\n{}", printed.text);
    }
    let more = agent.admin.count("nodens_upstream_requests_total", &[]) - asked;
    assert!(more >= 10.0, "{more} more upstream requests");
}

#[test]
fn a_ttl_of_zero_is_delivered_and_not_stored() {
    let upstream = Upstream::plain(0);
    let agent = Agent::before(upstream.tcp());
    for asked in 1..=3 {
        assert_eq!(ask(agent.address, "zero.example.", "A").answers[0].ttl, 0);
        assert_eq!(upstream.count_of("zero.example."), asked);
    }
}

#[test]
fn ttls_are_bounded_on_the_miss_as_on_the_hit() {
    let long = Upstream::plain(86_400);
    let agent = Agent::before(long.tcp());
    for _ in 0..2 {
        let ttl = ask(agent.address, "long.example.", "A").answers[0].ttl;
        assert!((3_598..=3_600).contains(&ttl), "max_ttl is 1 h, not {ttl} s");
    }
    let short = Upstream::plain(0);
    let agent = Agent::start(&zone(short.tcp(), "min_ttl: 5s"));
    for _ in 0..2 {
        let ttl = ask(agent.address, "short.example.", "A").answers[0].ttl;
        assert!((4..=5).contains(&ttl), "min_ttl is 5 s, not {ttl} s");
    }
    assert_eq!(short.count_of("short.example."), 1);
}

#[test]
fn a_ttl_with_its_top_bit_set_is_large_and_not_zero() {
    let upstream = Upstream::plain(0x8000_0001);
    let agent = Agent::before(upstream.tcp());
    for _ in 0..2 {
        let ttl = ask(agent.address, "top.example.", "A").answers[0].ttl;
        assert!((3_598..=3_600).contains(&ttl), "{ttl}");
    }
    assert_eq!(upstream.count_of("top.example."), 1);
}

#[test]
fn cached_names_are_still_answered_when_the_upstream_has_stopped() {
    let mut nsd = Nsd::cluster();
    let agent = Agent::before(format!("tcp://{}", nsd.address));
    let fresh = ["webapp.default.svc.cluster.local", "A"];
    let short = ["two.default.svc.cluster.local", "A"];
    dig(agent.address, &fresh);
    dig(agent.address, &short);
    nsd.stop();
    let printed = dig(agent.address, &fresh);
    assert_eq!(printed.data("A"), ["10.96.46.232"], "{}", printed.text);
    thread::sleep(millis(2_200));
    let started = Instant::now();
    let printed = dig(agent.address, &short);
    assert_eq!(printed.data("A"), ["10.9.1.2"], "{}", printed.text);
    assert_eq!(printed.answers[0].ttl, 30, "stale.answer_ttl\n{}", printed.text);
    assert!(printed.has_extended_error(3), "{}", printed.text);
    // client_response of `.` is 1.8 s
    assert!(started.elapsed() < millis(2_500), "{:?}", started.elapsed());
    let uncached = dig(agent.address, &["nginx.default.svc.cluster.local", "A"]);
    assert_eq!(uncached.status, "SERVFAIL", "{}", uncached.text);
    assert!(uncached.has_extended_error(22) || uncached.has_extended_error(23), "{}", uncached.text);
    nsd.resume();
    wait_until("fresh answers again", seconds(12), || {
        dig(agent.address, &["nginx.default.svc.cluster.local", "A"]).status == "NOERROR"
            && dig(agent.address, &short).answers[0].ttl <= 2
    });
}

#[test]
fn a_stale_answer_comes_after_client_response_and_the_late_refresh_is_kept() {
    let slow = Arc::new(AtomicBool::new(false));
    let is_slow = Arc::clone(&slow);
    let upstream = Upstream::start(move |query, _| {
        if is_slow.load(Ordering::Relaxed) {
            Reaction::After(millis(1_000), address_reply(query, 300, "192.0.2.2"))
        } else {
            Reaction::Answer(address_reply(query, 1, "192.0.2.1"))
        }
    });
    let agent = Agent::start(&zone(upstream.tcp(), "stale: { client_response: 300ms }"));
    ask(agent.address, "slow.example.", "A");
    slow.store(true, Ordering::Relaxed);
    thread::sleep(millis(1_100));
    let started = Instant::now();
    let asked = with_edns(query("slow.example.", "A"), 1232);
    let reply = ask_udp(agent.address, &asked).expect("reply");
    let took = started.elapsed();
    assert!(took >= millis(250) && took < millis(900), "{took:?}");
    assert_eq!(reply.answers[0].data.to_string(), "192.0.2.1");
    assert_eq!(reply.answers[0].ttl, 30);
    let error = option(&reply, EDE).expect("an extended error");
    assert_eq!(&error[..2], [0, 3], "stale answer");
    wait_until("the refresh has filled the cache", seconds(5), || {
        ask(agent.address, "slow.example.", "A").answers[0].data.to_string() == "192.0.2.2"
    });
}

#[test]
fn a_name_that_expires_while_it_is_refreshed_is_answered_stale() {
    let silent = Arc::new(AtomicBool::new(false));
    let is_silent = Arc::clone(&silent);
    let upstream = Upstream::start(move |query, _| {
        if is_silent.load(Ordering::Relaxed) {
            Reaction::Drop
        } else {
            Reaction::Answer(address_reply(query, 2, "192.0.2.1"))
        }
    });
    let cache = "prefetch: { hits: 1, at: 50% }, stale: { client_response: 300ms }";
    let agent = Agent::start(&zone(upstream.tcp(), cache));
    ask(agent.address, "hot.example.", "A");
    silent.store(true, Ordering::Relaxed);
    thread::sleep(millis(1_200));
    ask(agent.address, "hot.example.", "A"); // a hit, and the refresh begins
    wait_until("the refresh has begun", seconds(1), || upstream.count_of("hot.example.") == 2);
    thread::sleep(millis(900));
    let started = Instant::now();
    let reply = ask(agent.address, "hot.example.", "A");
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(reply.answers[0].ttl, 30);
    assert!(started.elapsed() < millis(900), "{:?}", started.elapsed());
}

#[test]
fn an_answer_that_may_not_be_stored_replaces_the_stale_one() {
    let step = Arc::new(AtomicU8::new(0));
    let current = Arc::clone(&step);
    let upstream = Upstream::start(move |query, _| match current.load(Ordering::Relaxed) {
        0 => Reaction::Answer(address_reply(query, 1, "192.0.2.1")),
        1 => Reaction::Answer(reply_code(query, ResponseCode::NXDomain)), // without SOA
        _ => Reaction::Drop,
    });
    let agent = Agent::start(&zone(upstream.tcp(), "stale: { client_response: 300ms }"));
    let code = || ask(agent.address, "gone.example.", "A").metadata.response_code;
    assert_eq!(code(), ResponseCode::NoError);
    step.store(1, Ordering::Relaxed);
    thread::sleep(millis(1_100));
    assert_eq!(code(), ResponseCode::NXDomain);
    step.store(2, Ordering::Relaxed);
    assert_eq!(code(), ResponseCode::ServFail);
}

#[test]
fn stale_off_means_servfail() {
    let dead = Arc::new(AtomicBool::new(false));
    let is_dead = Arc::clone(&dead);
    let upstream = Upstream::start(move |query, _| {
        if is_dead.load(Ordering::Relaxed) {
            Reaction::Close
        } else {
            Reaction::Answer(address_reply(query, 1, "192.0.2.1"))
        }
    });
    let agent = Agent::start(&zone(upstream.tcp(), "stale: off"));
    ask(agent.address, "off.example.", "A");
    dead.store(true, Ordering::Relaxed);
    thread::sleep(millis(1_100));
    let reply = ask(agent.address, "off.example.", "A");
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn a_popular_name_is_refreshed_before_it_expires() {
    let upstream = Upstream::plain(4);
    let agent = Agent::start(&zone(upstream.tcp(), "prefetch: { hits: 2, at: 50% }"));
    let started = Instant::now();
    // All of these lie within the first answer's life, so none of them may be a second miss.
    while started.elapsed() < millis(3_500) {
        ask(agent.address, "hot.example.", "A");
        thread::sleep(millis(100));
    }
    assert_eq!(agent.lookups("miss"), 1.0);
    assert_eq!(upstream.count_of("hot.example."), 2);
    assert!(agent.admin.count("nodens_prefetches_total", &[]) >= 1.0);
}
