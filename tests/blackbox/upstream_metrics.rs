//! What /metrics, /ready and `nodens stats` tell of upstreams: each number moves for its own reason.

use std::collections::HashSet;
use std::net::UdpSocket;
use std::thread;

use hickory_proto::op::ResponseCode;
use serde_json::Value;

use crate::support::{
    Agent, Reaction, Transport, Upstream, address_reply, ask, free_port, message, millis, nodens, query,
    seconds, wait_until,
};

/// An agent in front of these servers, with further keys of `upstream`.
pub(crate) fn agent(servers: &[String], more: &str) -> Agent {
    let servers = servers.join("\", \"");
    Agent::start(&format!(
        "zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{servers}\"]{more} }}\n    cache: {{ prefetch: off }}\n"
    ))
}

/// Answers until the server's usual time is known.
pub(crate) fn acquaint(agent: &Agent) {
    let late = || agent.admin.metric("nodens_upstream_late_seconds", &[]);
    let mut asked = 0;
    wait_until("its usual time is known", seconds(5), || {
        asked += 1;
        assert_eq!(ask(agent.address, &format!("n{asked}.warm.example."), "A").answers.len(), 1);
        late().is_some_and(|late| late < 0.4)
    });
}

fn begins(query: &hickory_proto::op::Message, text: &str) -> bool {
    query.queries[0].name.to_ascii().starts_with(text)
}

fn stats(agent: &Agent) -> Value {
    let tool = nodens(&["stats", "--json", "--control", &agent.control()]);
    assert_eq!(tool.code, 0, "{}", tool.text());
    serde_json::from_str(&tool.stdout).expect("JSON")
}

#[test]
fn two_zones_with_limits_of_their_own_share_the_series_of_their_server() {
    let upstream = Upstream::plain(30);
    let (server, label) = (upstream.tcp(), upstream.tcp());
    let agent = Agent::start(&format!(
        "zones:\n  - match: [one.example]\n    upstream: {{ servers: [\"{server}\"], connections: {{ max: 1 }} }}\n  \
         - match: [\".\"]\n    upstream: {{ servers: [\"{server}\"], connections: {{ max: 2 }} }}\n"
    ));
    for n in 0..5 {
        ask(agent.address, &format!("n{n}.one.example."), "A");
        ask(agent.address, &format!("n{n}.two.example."), "A");
    }
    wait_until("it is ready", seconds(3), || agent.admin.get("/ready").is_some_and(|(code, _)| code == 200));
    agent.wait_without_flights();
    let of = |name: &str| agent.admin.count(name, &[("server", &label)]);
    // What looks for loops at the start is asked past the pool, and is no try.
    let tries = of("nodens_upstream_tries_total");
    assert!((10.0..=upstream.count(Transport::Tcp) as f64).contains(&tries), "{tries}");
    assert_eq!(tries, of("nodens_upstream_requests_total"), "one query each");
    assert_eq!(tries, of("nodens_upstream_duration_seconds_count"), "all were answered");
    let connects = agent.admin.count("nodens_upstream_connects_total", &[("result", "ok")]);
    assert!(connects >= 2.0, "each pool has a connection of its own: {connects}");
    assert_eq!(connects as usize, upstream.connections());
    assert_eq!(of("nodens_upstream_up"), 1.0);
    for zone in ["one.example", "."] {
        let requests = agent.admin.count("nodens_upstream_requests_total", &[("zone", zone)]);
        assert!(requests >= 5.0, "{zone}: {requests}");
    }
    let (_, page) = agent.admin.get("/metrics").expect("/metrics");
    let series: Vec<&str> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit(' ').nth(1))
        .collect();
    let different: HashSet<&&str> = series.iter().collect();
    assert_eq!(different.len(), series.len(), "each series stands once:\n{page}");
}

#[test]
fn a_hedge_that_is_sent_and_wins_is_counted_and_one_without_budget_is_denied() {
    let upstream = Upstream::scripted(|call| {
        let reply = address_reply(call.query, 300, "192.0.2.1");
        if begins(call.query, "slow") && call.before == 0 {
            Reaction::After(millis(600), reply)
        } else {
            Reaction::Answer(reply)
        }
    });
    let agent = agent(&[upstream.tcp()], ", hedge: { budget: 1%, burst: 4 }");
    acquaint(&agent);
    let hedges = |result| agent.admin.count("nodens_hedges_total", &[("result", result)]);
    let tries = |why| agent.admin.count("nodens_upstream_tries_total", &[("why", why)]);
    // A busy machine may have hedged meanwhile, so that little of the budget is left.
    let mut asked = 0;
    wait_until("a hedge wins, and one is denied", seconds(15), || {
        asked += 1;
        assert_eq!(ask(agent.address, &format!("slow{asked}.example."), "A").answers.len(), 1);
        hedges("denied") >= 1.0
    });
    let (sent, won) = (hedges("sent"), hedges("won"));
    assert!((1.0..=5.0).contains(&sent), "{sent} of a burst of 4, and 1 % of some dozens");
    assert!((1.0..=sent).contains(&won), "{won} of {sent}");
    assert_eq!(tries("hedge"), sent);
    let hedged = (1..=asked).filter(|n| upstream.count_of(&format!("slow{n}.example.")) > 1).count();
    assert!(hedged >= 1, "the server was asked twice");
}

#[test]
fn where_hedges_are_off_none_is_sent_and_none_denied_and_a_silent_connection_is_left() {
    let upstream = Upstream::scripted(|call| match call.before {
        0 if begins(call.query, "silent") => Reaction::Drop,
        0 if begins(call.query, "closed") => Reaction::Close,
        _ => Reaction::Answer(address_reply(call.query, 300, "192.0.2.1")),
    });
    let agent = agent(&[upstream.tcp()], ", hedge: off");
    acquaint(&agent);
    let tries = |why| agent.admin.count("nodens_upstream_tries_total", &[("why", why)]);
    let (silent, failed) = (tries("silent"), tries("failed"));
    assert_eq!(ask(agent.address, "silent.example.", "A").answers.len(), 1);
    assert!(tries("silent") > silent, "asked again elsewhere");
    assert_eq!(ask(agent.address, "closed.example.", "A").answers.len(), 1);
    assert!(tries("failed") > failed, "asked again at once");
    assert!(agent.admin.count("nodens_upstream_failures_total", &[("cause", "closed")]) >= 1.0);
    assert_eq!(tries("hedge"), 0.0);
    for result in ["sent", "won", "denied"] {
        assert_eq!(agent.admin.metric("nodens_hedges_total", &[("result", result)]), Some(0.0), "{result}");
    }
}

#[test]
fn a_server_that_goes_is_ejected_and_probed_and_its_state_is_told_until_it_is_back() {
    let (first, second) = (Upstream::plain(300), Upstream::plain(300));
    let agent = agent(&[first.tcp(), second.tcp()], ", policy: sequential");
    let of = |name: &str, server: &Upstream| agent.admin.count(name, &[("server", &server.tcp())]);
    assert_eq!(ask(agent.address, "before.example.", "A").answers.len(), 1);
    assert_eq!(of("nodens_upstream_up", &first), 1.0);
    first.go_away();
    let mut asked = 0;
    wait_until("it is passed over", seconds(5), || {
        asked += 1;
        assert_eq!(ask(agent.address, &format!("n{asked}.example."), "A").answers.len(), 1);
        of("nodens_upstream_ejections_total", &first) == 1.0
    });
    assert_eq!(of("nodens_upstream_up", &first), 0.0);
    let result = |result| {
        agent.admin.count("nodens_upstream_probes_total", &[("server", &first.tcp()), ("result", result)])
    };
    wait_until("probes fail", seconds(3), || result("failed") >= 2.0);
    assert_eq!(result("ok"), 0.0);
    let (_, page) = agent.admin.get("/ready").expect("/ready");
    let line = format!("zone . upstream {}: down for ", first.tcp());
    assert!(page.contains(&line), "{page}");
    assert!(page.contains(&format!("zone . upstream {}: in use, ", second.tcp())), "{page}");
    let server = |value: &Value| value["zones"][0]["servers"][0].clone();
    let down = server(&stats(&agent));
    assert_eq!((&down["server"], &down["state"]), (&first.tcp().into(), &"down".into()), "{down}");
    assert!(down["since_s"].as_f64().is_some_and(|since| since > 0.0), "{down}");
    let table = nodens(&["stats", "--control", &agent.control()]);
    assert!(table.stdout.contains(&format!("  {}: down for ", first.tcp())), "{}", table.text());
    first.come_back();
    wait_until("it is back", seconds(3), || of("nodens_upstream_up", &first) == 1.0);
    assert_eq!((result("ok"), of("nodens_upstream_ejections_total", &first)), (1.0, 1.0));
    assert_eq!(server(&stats(&agent))["state"], "in_use");
    for name in ["nodens_upstream_ejections_total", "nodens_upstream_probes_total"] {
        assert_eq!(of(name, &second), 0.0, "{name}: it was well all the time");
    }
}

#[test]
fn queries_without_room_wait_in_the_queue_and_what_cannot_be_in_time_is_busy() {
    let upstream = Upstream::scripted(|call| {
        let reply = address_reply(call.query, 300, "192.0.2.1");
        if begins(call.query, "slow") { Reaction::After(millis(100), reply) } else { Reaction::Answer(reply) }
    });
    let limits = ", timeout: 2s, hedge: off, connections: { max: 1, in_flight: 1 }";
    let agent = agent(&[upstream.tcp()], limits);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("client socket");
    let send = |n| {
        let asked = message(&query(&format!("slow{n}.example."), "A"));
        socket.send_to(&asked, agent.address).expect("sent");
    };
    (0..15).for_each(send);
    let gauge = |name: &str| agent.admin.count(name, &[]);
    wait_until("they wait", seconds(2), || gauge("nodens_upstream_queue") >= 10.0);
    assert!(gauge("nodens_upstream_in_flight") >= 10.0, "those that wait are in flight too");
    let busy = || agent.admin.count("nodens_upstream_failures_total", &[("cause", "busy")]);
    // How fast they leave is known after half a second; ten of them take one, half of the time that there is.
    let mut asked = 15;
    wait_until("one is refused", seconds(4), || {
        (asked..asked + 5).for_each(send);
        asked += 5;
        thread::sleep(millis(100));
        busy() >= 1.0
    });
    assert_eq!(gauge("nodens_upstream_connections"), 1.0);
    assert_eq!(gauge("nodens_upstream_ejections_total"), 0.0, "it is busy, not gone");
    agent.wait_without_flights();
    assert_eq!(gauge("nodens_upstream_queue"), 0.0);
}

#[test]
fn a_reload_keeps_what_was_counted_and_drops_the_series_of_a_server_that_left() {
    let (stays, goes) = (Upstream::plain(300), Upstream::plain(300));
    let zone = |name: &str, server: &Upstream| {
        format!("  - match: [{name}]\n    upstream: {{ servers: [\"{}\"] }}\n", server.tcp())
    };
    let head = "reload: signal\nzones:\n";
    let mut agent = Agent::start(&format!("{head}{}{}", zone("goes.example", &goes), zone("\".\"", &stays)));
    for n in 0..3 {
        assert_eq!(ask(agent.address, &format!("n{n}.goes.example."), "A").answers.len(), 1);
        assert_eq!(ask(agent.address, &format!("n{n}.stays.example."), "A").answers.len(), 1);
    }
    let lines = |agent: &Agent, server: &Upstream| {
        let (_, page) = agent.admin.get("/metrics").expect("/metrics");
        page.matches(&format!("server=\"{}\"", server.tcp())).count()
    };
    assert_eq!(lines(&agent, &goes), lines(&agent, &stays));
    let families = ["tries_total", "failures_total", "up", "ejections_total", "probes_total", "late_seconds"];
    for family in families.into_iter().chain(["in_flight", "queue", "connections", "connects_total"]) {
        let name = format!("nodens_upstream_{family}");
        assert!(agent.admin.metric(&name, &[("server", &goes.tcp())]).is_some(), "{name}");
    }
    let requests = |agent: &Agent| agent.admin.count("nodens_upstream_requests_total", &[("zone", ".")]);
    let before = requests(&agent);
    assert!(before >= 3.0, "{before}");
    agent.write_config(&format!("{head}{}", zone("\".\"", &stays)));
    agent.signal("HUP");
    wait_until("the series are gone", seconds(5), || lines(&agent, &goes) == 0);
    assert!(requests(&agent) >= before, "a reload is no new start: {} after {before}", requests(&agent));
}

#[test]
fn servers_that_fail_at_the_start_are_shown_to_be_passed_over() {
    let agent = agent(&[format!("tcp://127.0.0.1:{}", free_port())], "");
    // Readiness asks four times a second.
    wait_until("it is passed over", seconds(5), || {
        agent.admin.metric("nodens_upstream_up", &[]) == Some(0.0)
    });
    let reply = ask(agent.address, "nobody.example.", "A");
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}
