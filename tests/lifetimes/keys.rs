//! Which questions share an answer, and which of several zones gives it.

use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use nodens::config::Config;
use nodens::metrics::Source;

use super::agent::{Agent, a, cname, config, in_class, name, query, record, response, ttls, with_opt, zone};

/// The last octets of the addresses in a reply, in order.
fn addresses(reply: &Message) -> Vec<u8> {
    let last = |data: &RData| match data {
        RData::A(a) => Some(a.octets()[3]),
        _ => None,
    };
    reply.answers.iter().filter_map(|record| last(&record.data)).collect()
}

#[test]
fn do_cd_type_and_class_have_answers_of_their_own_and_the_rest_shares_them() {
    let plain = query("web.test.", 1);
    let changed = |change: fn(&mut Message)| {
        let mut message = with_opt(plain.clone());
        change(&mut message);
        message
    };
    let renamed = |to: &str| {
        let mut message = plain.clone();
        message.queries[0].set_name(name(to));
        message
    };
    for (what, asked, shares) in [
        ("OPT", with_opt(plain.clone()), true),
        ("AD", changed(|message| message.metadata.authentic_data = true), true),
        ("ID", changed(|message| message.metadata.id = 77), true),
        ("RD", changed(|message| message.metadata.recursion_desired = true), true),
        ("letters", renamed("WeB.tEsT."), true),
        (
            "DO",
            changed(|message| message.edns.iter_mut().for_each(|edns| edns.flags_mut().dnssec_ok = true)),
            false,
        ),
        ("CD", changed(|message| message.metadata.checking_disabled = true), false),
        ("type", query("web.test.", 28), false),
        ("class", in_class(plain.clone(), 4), false),
        ("name", query("wob.test.", 1), false),
        ("label boundary", query("we.b.test.", 1), false),
    ] {
        let agent = Agent::plain();
        agent.learn(&plain, &response(&plain, vec![record("web.test.", 30, a(1))], vec![]));
        assert_eq!(agent.ask(1.0, &asked).waits(), !shares, "{what}");
        assert_eq!(agent.ask(1.0, &plain).reply().0, Source::Hit);
    }
}

#[test]
fn the_longest_suffix_chooses_the_zone_and_its_rules() {
    let mut zones = [(".", 100), ("local.", 90), ("svc.local.", 80)].map(|(suffix, max_ttl)| {
        let mut zone = zone(suffix);
        zone.policy.max_ttl = Duration::from_secs(max_ttl);
        zone
    });
    zones[1].matches.push(name("10.in-addr.arpa."));
    let agent = Agent::new(&Config { zones: zones.to_vec(), ..Config::default() });
    for (owner, max_ttl) in [
        ("test.", 100),
        ("xlocal.", 100),
        ("local.", 90),
        ("a.LOCAL.", 90),
        ("1.0.0.10.in-addr.arpa.", 90),
        ("11.in-addr.arpa.", 100),
        ("xsvc.local.", 90),
        ("svc.local.", 80),
        ("a.b.svc.local.", 80),
        (".", 100),
    ] {
        let asked = query(owner, 1);
        assert_eq!(agent.learn(&asked, &response(&asked, vec![record(owner, 3600, a(1))], vec![])), max_ttl);
        assert_eq!(ttls(&agent.ask(0.0, &asked).reply().1), [max_ttl], "{owner}");
    }
}

#[test]
fn an_answer_of_one_zone_is_not_given_by_another_after_a_reload() {
    let old = Agent::plain();
    let asked = query("a.svc.local.", 1);
    old.learn(&asked, &response(&asked, vec![record("a.svc.local.", 30, a(1))], vec![]));
    let split = Config { zones: vec![zone("."), zone("svc.local.")], ..Config::default() };
    let view = nodens::resolve::view::View::new(&split, |zone| {
        let pool = nodens::upstream::Pool::new(zone.upstream.clone(), 1232, &[]);
        (pool, old.resolver.metrics.zone(&zone.matches[0].to_ascii()))
    });
    old.resolver.replace_view(view);
    assert!(old.ask(1.0, &asked).waits());
}

#[test]
fn names_outside_of_every_zone_are_refused() {
    let agent = Agent::new(&Config { zones: vec![zone("local.")], ..Config::default() });
    let (source, reply) = agent.ask(0.0, &with_opt(query("test.", 1))).reply();
    assert_eq!((source, super::agent::extended_error(&reply)), (Source::Local, Some(18)));
    assert_eq!(reply.metadata.response_code, hickory_proto::op::ResponseCode::Refused);
}

#[test]
fn the_queries_id_turns_the_addresses_and_the_alias_stays_in_front() {
    let agent = Agent::plain();
    let mut asked = query("web.test.", 1);
    let mut answers = vec![record("web.test.", 30, cname("real.test."))];
    answers.extend((1..=3).map(|last| record("real.test.", 30, a(last))));
    agent.learn(&asked, &response(&asked, answers, vec![]));
    for (id, expected) in
        [(0, [1, 2, 3]), (1, [2, 3, 1]), (2, [3, 1, 2]), (3, [1, 2, 3]), (65_535, [1, 2, 3])]
    {
        asked.metadata.id = id;
        let (_, reply) = agent.ask(1.0, &asked).reply();
        assert_eq!(addresses(&reply), expected, "ID {id}");
        assert!(matches!(reply.answers[0].data, RData::CNAME(_)));
    }
}

#[test]
fn addresses_stay_in_place_where_rotation_is_off() {
    let mut config = config(|_| {});
    config.cache.rotate = false;
    let agent = Agent::new(&config);
    let mut asked = query("web.test.", 1);
    let answers = (1..=3).map(|last| record("web.test.", 30, a(last))).collect();
    agent.learn(&asked, &response(&asked, answers, vec![]));
    for id in 0..4 {
        asked.metadata.id = id;
        assert_eq!(addresses(&agent.ask(1.0, &asked).reply().1), [1, 2, 3]);
    }
}
