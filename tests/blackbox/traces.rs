//! `nodens query --trace`: the path of one query.

use std::thread;

use hickory_proto::op::ResponseCode;
use serde_json::Value;

use super::upstream_metrics::{acquaint, agent};
use crate::support::{
    Agent, Reaction, Transport, Upstream, address_reply, ask, free_port, millis, nodens, seconds, wait_until,
};

/// The trace of a name's A, as JSON.
pub(crate) fn trace(agent: &Agent, name: &str) -> Value {
    let tool = nodens(&["query", name, "A", "--trace", "--json", "--control", &agent.control()]);
    assert_eq!(tool.code, 0, "{}", tool.text());
    serde_json::from_str(&tool.stdout).expect("JSON")
}

/// What people see, without the answer.
fn shown(agent: &Agent, name: &str) -> String {
    let tool = nodens(&["query", name, "A", "--trace", "--control", &agent.control()]);
    assert_eq!(tool.code, 0, "{}", tool.text());
    println!("{}", tool.stdout); // for whoever wants to look at it, with --nocapture
    let at = tool.stdout.find(";; zone ").unwrap_or_else(|| panic!("no zone: {}", tool.text()));
    tool.stdout[at..].to_owned()
}

/// One field of each try.
fn each<'a>(trace: &'a Value, field: &str) -> Vec<&'a str> {
    let tries = trace["tries"].as_array().expect("tries");
    tries.iter().map(|one| one[field].as_str().unwrap_or("-")).collect()
}

fn begins(query: &hickory_proto::op::Message, text: &str) -> bool {
    query.queries[0].name.to_ascii().starts_with(text)
}

#[test]
fn a_miss_shows_its_try_and_its_connection_and_a_hit_none() {
    let upstream = Upstream::plain(300);
    let agent = agent(&[upstream.tcp()], ", connections: { max: 1 }");
    ask(agent.address, "before.example.", "A");
    let miss = trace(&agent, "miss.example");
    assert_eq!((&miss["result"], &miss["zone"]), (&"miss".into(), &".".into()), "{miss}");
    assert_eq!((&miss["name"], &miss["type"]), (&"miss.example.".into(), &"A".into()), "{miss}");
    assert_eq!(miss["message"]["rcode"], "NOERROR", "{miss}");
    assert_eq!(miss["tries"].as_array().map(Vec::len), Some(1), "{miss}");
    let one = &miss["tries"][0];
    assert_eq!((&one["why"], &one["outcome"]), (&"first".into(), &"answered".into()), "{miss}");
    assert_eq!((&one["server"], &one["transport"]), (&upstream.tcp().into(), &"tcp".into()), "{miss}");
    assert!(one["connection"].is_u64(), "{miss}");
    assert_eq!(one["reused"], true, "there is only one: {miss}");
    let us = |value: &Value| value.as_u64().expect("microseconds");
    let parts = us(&one["waited_us"]) + us(&one["answer_us"]);
    assert!(parts.abs_diff(us(&one["took_us"])) <= 1, "{miss}");
    assert!(us(&one["took_us"]) <= us(&miss["took_us"]), "{miss}");
    let hit = trace(&agent, "miss.example");
    assert_eq!((&hit["result"], hit["tries"].as_array().map(Vec::len)), (&"hit".into(), Some(0)), "{hit}");
    assert_eq!(hit["servers"][0]["state"], "in_use", "{hit}");
    let text = shown(&agent, "new.example");
    assert!(
        text.contains("zone .: miss in ") && text.contains("TCP ") && text.contains("answered"),
        "{text}"
    );
    let text = shown(&agent, "new.example");
    assert!(text.contains("zone .: hit in ") && !text.contains("server"), "{text}");
}

#[test]
fn a_connection_that_carries_its_first_query_is_shown_as_new() {
    let upstream = Upstream::plain(300);
    upstream.close_after(1);
    let agent = agent(&[upstream.tcp()], ", connections: { min: 0 }");
    for n in 0..3 {
        let miss = trace(&agent, &format!("n{n}.example"));
        let answered = miss["tries"].as_array().and_then(|tries| tries.last()).expect("a try");
        assert_eq!(
            (&answered["outcome"], &answered["reused"]),
            (&"answered".into(), &false.into()),
            "{miss}"
        );
    }
    let text = shown(&agent, "text.example");
    assert!(text.contains(", new "), "{text}");
}

#[test]
fn a_miss_by_udp_shows_its_datagrams() {
    let upstream = Upstream::scripted(|call| match call.before {
        0 if begins(call.query, "lost") => Reaction::Drop,
        _ => Reaction::Answer(address_reply(call.query, 300, "192.0.2.1")),
    });
    let agent = agent(&[upstream.udp()], "");
    let lost = trace(&agent, "lost.example");
    let one = &lost["tries"][0];
    assert_eq!((&one["transport"], &one["connection"]), (&"udp".into(), &Value::Null), "{lost}");
    assert_eq!((&one["udp_queries"], &one["waited_us"]), (&2.into(), &Value::Null), "{lost}");
    assert_eq!(upstream.count(Transport::Tcp), 0);
    let text = shown(&agent, "lost2.example");
    assert!(text.contains("UDP, 2 datagrams"), "{text}");
}

#[test]
fn a_failure_and_the_try_that_helped_stand_in_their_order() {
    let good = Upstream::plain(300);
    let gone = format!("tcp://127.0.0.1:{}", free_port());
    let agent = agent(&[gone.clone(), good.tcp()], ", policy: sequential");
    // Until the first server is passed over.
    let failover = trace(&agent, "failover.example");
    assert_eq!(each(&failover, "why"), ["first", "failed"], "{failover}");
    assert_eq!(each(&failover, "server"), [gone, good.tcp()], "{failover}");
    assert_eq!(each(&failover, "outcome"), ["connect", "answered"], "{failover}");
    assert_eq!(failover["tries"][0]["failed"], "connect", "{failover}");
    assert_eq!(failover["tries"][0]["waited_us"], Value::Null, "it never had a place: {failover}");
    println!("{}", shown(&agent, "again.example"));
}

#[test]
fn a_hedge_that_won_stands_beside_the_try_that_it_overtook() {
    let upstream = Upstream::scripted(|call| {
        let reply = address_reply(call.query, 300, "192.0.2.1");
        if begins(call.query, "slow") && call.before == 0 {
            Reaction::After(millis(600), reply)
        } else {
            Reaction::Answer(reply)
        }
    });
    let agent = agent(&[upstream.tcp()], "");
    acquaint(&agent);
    let hedged = trace(&agent, "slow.example");
    assert_eq!(each(&hedged, "why"), ["first", "hedge"], "{hedged}");
    assert_eq!(each(&hedged, "outcome"), ["overtaken", "answered"], "{hedged}");
    let [first, hedge] = [&hedged["tries"][0], &hedged["tries"][1]];
    assert_ne!(first["connection"], hedge["connection"], "{hedged}");
    assert!(hedge["at_us"].as_i64() > first["at_us"].as_i64(), "{hedged}");
    let text = shown(&agent, "slow2.example");
    assert!(text.contains("hedge") && text.contains("overtaken"), "{text}");
}

#[test]
fn where_no_server_works_nobody_is_asked_and_the_servers_say_why() {
    let upstream = Upstream::plain(2);
    let agent = agent(&[upstream.tcp()], "");
    assert_eq!(ask(agent.address, "known.example.", "A").answers.len(), 1);
    upstream.go_away();
    let mut asked = 0;
    wait_until("it is down", seconds(8), || {
        asked += 1;
        let reply = ask(agent.address, &format!("n{asked}.example."), "A");
        reply.metadata.response_code == ResponseCode::ServFail
            && agent.admin.get("/ready").is_some_and(|(_, page)| page.contains("down for"))
    });
    let down = trace(&agent, "unknown.example");
    assert_eq!((&down["result"], &down["flight"]), (&"failure".into(), &"first".into()), "{down}");
    assert_eq!(down["tries"].as_array().map(Vec::len), Some(0), "{down}");
    assert_eq!(down["why"], "nobody was asked: no server of the zone works", "{down}");
    assert_eq!(
        (&down["servers"][0]["state"], &down["message"]["rcode"]),
        (&"down".into(), &"SERVFAIL".into())
    );
    let again = trace(&agent, "unknown.example");
    assert!(again["why"].as_str().is_some_and(|why| why.ends_with("is remembered")), "{again}");
    wait_until("its life ends", seconds(5), || trace(&agent, "known.example")["result"] == "stale");
    let stale = trace(&agent, "known.example");
    assert_eq!(stale["why"], "at once, because no server of the zone works", "{stale}");
    assert_eq!(stale["message"]["answers"].as_array().map(Vec::len), Some(1), "{stale}");
    let text = shown(&agent, "unknown2.example");
    assert!(
        text.contains("nobody was asked") && text.contains(&format!("{}: down for", upstream.tcp())),
        "{text}"
    );
    let text = shown(&agent, "known.example");
    assert!(text.contains("zone .: stale in "), "{text}");
}

#[test]
fn a_name_that_cannot_be_looked_up_is_named_where_nobody_was_asked() {
    let bootstrap = format!("tcp://127.0.0.1:{}", free_port());
    let agent = Agent::start(&format!(
        "zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"tcp://dns.example\"], bootstrap: [\"{bootstrap}\"], timeout: 300ms }}\n"
    ));
    let failed = trace(&agent, "name.example");
    assert_eq!(failed["why"], "nobody was asked: no server of the zone works", "{failed}");
    assert_eq!(failed["unresolved"][0]["name"], "dns.example.", "{failed}");
    assert_eq!(failed["servers"].as_array().map(Vec::len), Some(0), "{failed}");
    let text = shown(&agent, "other.example");
    assert!(text.contains("server name dns.example.: not looked up (A connect; AAAA connect)"), "{text}");
}

#[test]
fn a_stale_answer_that_came_before_the_servers_shows_what_became_of_the_tries() {
    let upstream = Upstream::scripted(|call| {
        let reply = address_reply(call.query, 1, "192.0.2.1");
        if call.before == 0 { Reaction::Answer(reply) } else { Reaction::After(millis(700), reply) }
    });
    let agent = Agent::start(&format!(
        "zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"] }}\n    cache: {{ stale: {{ client_response: 200ms }} }}\n",
        upstream.tcp()
    ));
    let text = |agent: &Agent| {
        wait_until("its life ends", seconds(3), || {
            let get = nodens(&["cache", "get", "late.example", "--control", &agent.control()]);
            get.stdout.contains("expired")
        });
    };
    assert_eq!(ask(agent.address, "late.example.", "A").answers.len(), 1);
    text(&agent);
    let stale = trace(&agent, "late.example");
    assert_eq!((&stale["result"], &stale["flight"]), (&"stale".into(), &"first".into()), "{stale}");
    assert_eq!(stale["why"], "no answer within 200ms (stale.client_response), and asking went on", "{stale}");
    let tries = stale["tries"].as_array().expect("tries");
    assert!(tries.iter().any(|one| one["outcome"] == "answered"), "{stale}");
    let (took, tried) = (stale["took_us"].as_u64(), tries[0]["took_us"].as_u64());
    assert!(took >= Some(200_000) && took < tried, "it was answered before: {stale}");
    assert_eq!(
        agent.admin.count("nodens_responses_total", &[("source", "stale")]),
        1.0,
        "one answer, counted once"
    );
    text(&agent);
    let text = shown(&agent, "late.example");
    assert!(text.contains("stale in ") && text.contains("answered"), "{text}");
}

#[test]
fn a_query_that_joined_shows_the_tries_of_the_flight() {
    let upstream = Upstream::start(|query, _| {
        let reply = address_reply(query, 300, "192.0.2.1");
        if begins(query, "held") { Reaction::Hold(reply) } else { Reaction::Answer(reply) }
    });
    let agent = agent(&[upstream.tcp()], ", hedge: off");
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(ask(agent.address, "held.example.", "A").answers.len(), 1));
        wait_until("it is asked", seconds(3), || upstream.count_of("held.example.") >= 1);
        let joined = scope.spawn(|| trace(&agent, "held.example"));
        wait_until("it has joined", seconds(3), || {
            agent.admin.count("nodens_flight_joins_total", &[]) >= 1.0
        });
        upstream.release();
        let joined = joined.join().expect("trace");
        assert_eq!((&joined["result"], &joined["flight"]), (&"joined".into(), &"joined".into()), "{joined}");
        assert!(
            joined["tries"][0]["at_us"].as_i64().is_some_and(|at| at < 0),
            "it had begun before: {joined}"
        );
    });
}
