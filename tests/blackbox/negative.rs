//! NXDOMAIN and NODATA, and how long they are kept.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{RData, Record};

use crate::support::{
    Agent, Nsd, Reaction, Unbound, Upstream, ask, dig, kdig, millis, name, reply_code, seconds, wait_until,
};

fn soa(ttl: u32, minimum: u32) -> Record {
    let data = SOA::new(name("ns.example."), name("host.example."), 1, 7200, 1800, 86_400, minimum);
    Record::from_rdata(name("example."), ttl, RData::SOA(data))
}

#[test]
fn nxdomain_and_nodata_come_with_their_soa_and_are_cached() {
    let nsd = Nsd::cluster();
    let agent = Agent::before(format!("tcp://{}", nsd.address));
    for (owner, record_type, status) in [
        ("nowhere.default.svc.cluster.local", "A", "NXDOMAIN"),
        ("webapp.default.svc.cluster.local", "AAAA", "NOERROR"),
        ("webapp.default.svc.cluster.local", "MX", "NOERROR"),
        ("99.9.96.10.in-addr.arpa", "PTR", "NXDOMAIN"),
    ] {
        let hits = agent.lookups("hit");
        for client in [dig, kdig] {
            let printed = client(agent.address, &[owner, record_type]);
            assert_eq!(printed.status, status, "{}", printed.text);
            assert!(printed.answers.is_empty(), "{}", printed.text);
            assert_eq!(printed.authority.len(), 1, "{}", printed.text);
            assert_eq!(printed.authority[0].record_type, "SOA", "{}", printed.text);
            // min(SOA's TTL 30, its MINIMUM 5)
            assert!(printed.authority[0].ttl <= 5, "{}", printed.text);
        }
        assert_eq!(agent.lookups("hit") - hits, 1.0, "{owner} {record_type}");
    }
}

#[test]
fn a_cname_to_a_name_without_the_type_is_nodata() {
    let nsd = Nsd::cluster();
    let agent = Agent::before(format!("tcp://{}", nsd.address));
    for _ in 0..2 {
        let printed = dig(agent.address, &["alias-nodata.default.svc.cluster.local", "A"]);
        assert_eq!(printed.status, "NOERROR", "{}", printed.text);
        assert_eq!(printed.data("CNAME"), ["noaddress.default.svc.cluster.local."]);
        assert!(printed.data("A").is_empty(), "{}", printed.text);
        assert_eq!(printed.authority[0].record_type, "SOA", "{}", printed.text);
    }
    assert!(agent.lookups("hit") >= 1.0);
}

#[test]
fn names_outside_are_negative_too() {
    let unbound = Unbound::outside();
    let agent = Agent::before(format!("udp://{}", unbound.address));
    let printed = kdig(agent.address, &["nowhere.example.test", "A"]);
    assert_eq!(printed.status, "NXDOMAIN", "{}", printed.text);
    let printed = kdig(agent.address, &["my.database.example.com", "AAAA"]);
    assert_eq!(printed.status, "NOERROR", "{}", printed.text);
    assert!(printed.answers.is_empty(), "{}", printed.text);
}

#[test]
fn a_negative_answer_without_soa_is_not_cached() {
    let upstream = Upstream::start(|query, _| Reaction::Answer(reply_code(query, ResponseCode::NXDomain)));
    let agent = Agent::before(upstream.tcp());
    for asked in 1..=3 {
        let reply = ask(agent.address, "bare.example.", "A");
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(upstream.count_of("bare.example."), asked);
    }
}

#[test]
fn a_negative_answer_lives_no_longer_than_the_soa_says() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = reply_code(query, ResponseCode::NXDomain);
        reply.add_authority(soa(600, 1));
        Reaction::Answer(reply)
    });
    let agent = Agent::before(upstream.tcp());
    let first = ask(agent.address, "gone.example.", "A");
    assert_eq!(first.authorities[0].ttl, 1, "min(TTL, MINIMUM) is delivered");
    wait_until("it is asked again", seconds(5), || {
        ask(agent.address, "gone.example.", "A");
        upstream.count_of("gone.example.") >= 2
    });
}

#[test]
fn a_negative_answer_lives_no_longer_than_negative_max_ttl() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = reply_code(query, ResponseCode::NXDomain);
        reply.add_authority(soa(600, 600));
        Reaction::Answer(reply)
    });
    let agent = Agent::before(upstream.tcp());
    let first = ask(agent.address, "gone.example.", "A");
    assert_eq!(first.authorities[0].ttl, 30, "negative_max_ttl is 30 s");
}

#[test]
fn nxdomain_replaces_what_was_there() {
    let gone = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen_by_script = std::sync::Arc::clone(&gone);
    let upstream = Upstream::start(move |query, _| {
        Reaction::Answer(if seen_by_script.load(std::sync::atomic::Ordering::Relaxed) {
            let mut reply = reply_code(query, ResponseCode::NXDomain);
            reply.add_authority(soa(30, 30));
            reply
        } else {
            crate::support::address_reply(query, 1, "192.0.2.1")
        })
    });
    let agent = Agent::before(upstream.tcp());
    assert_eq!(ask(agent.address, "went.example.", "A").answers.len(), 1);
    gone.store(true, std::sync::atomic::Ordering::Relaxed);
    wait_until("the name is gone here too", seconds(5), || {
        std::thread::sleep(millis(100));
        ask(agent.address, "went.example.", "A").metadata.response_code == ResponseCode::NXDomain
    });
}

#[test]
fn servfail_is_remembered_for_a_second_and_then_asked_again() {
    let upstream = Upstream::start(|query, _| Reaction::Answer(reply_code(query, ResponseCode::ServFail)));
    let agent = Agent::before(upstream.tcp());
    let reply = ask(agent.address, "broken.example.", "A");
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    let tries = upstream.count_of("broken.example.");
    assert!((1..=3).contains(&tries), "{tries} tries at one server");
    for _ in 0..10 {
        let reply = ask(agent.address, "broken.example.", "A");
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    }
    assert_eq!(upstream.count_of("broken.example."), tries, "a storm of repeats stays here");
    wait_until("it is asked again", seconds(5), || {
        ask(agent.address, "broken.example.", "A");
        upstream.count_of("broken.example.") > tries
    });
}
