//! How the agent treats its upstreams, as they see it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use hickory_proto::op::{Edns, ResponseCode};

use crate::support::{
    Agent, Launch, Nsd, Reaction, Transport, Upstream, address_reply, ask, dig, dnsperf, free_port, message,
    millis, name, query, reply_code, seconds, wait_until,
};

#[test]
fn ten_thousand_misses_go_by_tcp_only_on_few_connections() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    let names: Vec<String> = (0..10_000).map(|n| format!("n{n}.miss.example. A")).collect();
    let load = dnsperf(agent.address, &names, &["-n", "1", "-c", "8", "-q", "100"]);
    assert_eq!((load.sent, load.lost, load.good), (10_000, 0, 10_000), "{}", load.text);
    assert_eq!(upstream.count(Transport::Udp), 0);
    assert!(upstream.connections() <= 16, "{} connections", upstream.connections());
    // One each, and hedges as far as their budget goes: 128, and 5 for each hundred.
    let asked = upstream.count_below("miss.example.");
    assert!((10_000..=10_000 + 128 + 500).contains(&asked), "{asked} upstream queries");
    let by_tcp = agent.admin.count("nodens_upstream_requests_total", &[("transport", "tcp")]);
    assert!(by_tcp >= 10_000.0, "{by_tcp}");
    agent.wait_without_flights();
}

#[test]
fn ten_thousand_misses_through_nsd_lose_nothing() {
    let nsd = Nsd::cluster();
    let agent = Agent::before(format!("tcp://{}", nsd.address));
    let names: Vec<String> = (0..10_000).map(|n| format!("n{n}.wild.default.svc.cluster.local. A")).collect();
    let load = dnsperf(agent.address, &names, &["-n", "1", "-c", "8", "-q", "100"]);
    assert_eq!((load.sent, load.lost, load.good), (10_000, 0, 10_000), "{}", load.text);
    agent.wait_without_flights();
}

#[test]
fn connections_stay_within_the_configured_number() {
    let upstream =
        Upstream::start(|query, _| Reaction::After(millis(20), address_reply(query, 30, "192.0.2.1")));
    let agent = Agent::start(&format!(
        "zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"], connections: {{ min: 1, max: 3, in_flight: 8 }} }}\n",
        upstream.tcp()
    ));
    let names: Vec<String> = (0..1_000).map(|n| format!("n{n}.example. A")).collect();
    let load = dnsperf(agent.address, &names, &["-n", "1", "-c", "4", "-q", "60"]);
    assert_eq!(load.good, 1_000, "{}", load.text);
    assert!(upstream.connections() <= 3, "{} connections", upstream.connections());
}

#[test]
fn an_upstream_that_closes_after_each_few_answers_is_not_noticed_by_clients() {
    let upstream = Upstream::plain(30);
    upstream.close_after(3);
    let agent = Agent::before(upstream.tcp());
    for n in 0..60 {
        let reply = ask(agent.address, &format!("n{n}.example."), "A");
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "query {n}");
    }
    assert!(upstream.connections() >= 20, "{}", upstream.connections());
}

#[test]
fn a_reused_connection_that_breaks_costs_a_silent_retry() {
    let times = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&times);
    let upstream = Upstream::start(move |query, _| {
        let first =
            query.queries[0].name == name("breaks.example.") && count.fetch_add(1, Ordering::Relaxed) == 0;
        if first { Reaction::Close } else { Reaction::Answer(address_reply(query, 30, "192.0.2.1")) }
    });
    let agent = Agent::before(upstream.tcp());
    ask(agent.address, "warm.example.", "A");
    let started = Instant::now();
    let reply = ask(agent.address, "breaks.example.", "A");
    assert_eq!(reply.answers.len(), 1);
    assert!(started.elapsed() < millis(1_000), "{:?}", started.elapsed());
    assert_eq!(upstream.count_of("breaks.example."), 2);
    // All at once, between two queries, as when the upstream's pod is replaced.
    upstream.break_connections();
    let reply = ask(agent.address, "after.example.", "A");
    assert_eq!(reply.answers.len(), 1);
}

#[test]
fn idle_connections_are_closed() {
    let upstream = Upstream::plain(30);
    let agent = Agent::start(&format!(
        "zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"], connections: {{ idle: 1s }} }}\n",
        upstream.tcp()
    ));
    ask(agent.address, "idle.example.", "A");
    assert!(upstream.open_connections() >= 1);
    wait_until("idle connections are closed", seconds(5), || upstream.open_connections() == 0);
}

#[test]
fn a_silent_upstream_is_servfail_before_clients_give_up() {
    let upstream = Upstream::start(|_, _| Reaction::Drop);
    let ask_by = |server: String| {
        let agent = Agent::before(&server);
        let started = Instant::now();
        let printed = dig(agent.address, &["silent.example", "A"]);
        assert_eq!(printed.status, "SERVFAIL", "{}", printed.text);
        // glibc gives up at 5 s; the deadline is 4 s.
        assert!(started.elapsed() < millis(4_800), "{:?}", started.elapsed());
        assert!(printed.has_extended_error(22), "{}", printed.text);
        agent.wait_without_flights();
    };
    thread::scope(|scope| {
        scope.spawn(|| ask_by(upstream.udp()));
        ask_by(upstream.tcp());
    });
}

#[test]
fn an_unreachable_upstream_is_servfail_at_once() {
    let port = free_port();
    for server in [format!("tcp://127.0.0.1:{port}"), format!("udp://127.0.0.1:{port}")] {
        let agent = Agent::before(&server);
        // ICMP tells that a UDP port is closed, but to a busy machine not each time (icmp_msgs_per_sec).
        let at_once = (0..4).any(|n| {
            let started = Instant::now();
            let reply = ask(agent.address, &format!("nobody{n}.example."), "A");
            assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
            started.elapsed() < millis(900)
        });
        assert!(at_once, "{server}: never within 900 ms");
        assert!(agent.admin.count("nodens_upstream_failures_total", &[]) >= 1.0);
    }
}

#[test]
fn a_second_server_answers_when_the_first_does_not() {
    let good = Upstream::plain(30);
    let refusing = Upstream::start(|query, _| Reaction::Answer(reply_code(query, ResponseCode::Refused)));
    let port = free_port();
    for bad in [format!("tcp://127.0.0.1:{port}"), refusing.tcp()] {
        let agent = Agent::start(&format!(
            "zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{bad}\", \"{}\"], policy: sequential }}\n",
            good.tcp()
        ));
        let reply = ask(agent.address, "second.example.", "A");
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "first is {bad}");
        assert_eq!(reply.answers.len(), 1);
    }
}

#[test]
fn replies_with_a_wrong_id_or_question_are_ignored() {
    let upstream = Upstream::start(|query, _| {
        let good = address_reply(query, 30, "192.0.2.1");
        if good.answers.is_empty() {
            return Reaction::Answer(good);
        }
        let mut wrong_id = address_reply(query, 30, "192.0.2.66");
        wrong_id.metadata.id = wrong_id.metadata.id.wrapping_add(1);
        let mut wrong_question = address_reply(query, 30, "192.0.2.66");
        wrong_question.queries[0].name = name("elsewhere.example.");
        let mut no_reply = address_reply(query, 30, "192.0.2.66");
        no_reply.metadata.message_type = hickory_proto::op::MessageType::Query;
        Reaction::Bytes([wrong_id, wrong_question, no_reply, good].iter().map(message).collect())
    });
    for server in [upstream.udp(), upstream.tcp()] {
        let agent = Agent::before(&server);
        let reply = ask(agent.address, "spoof.example.", "A");
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{server}");
        assert_eq!(reply.answers[0].data.to_string(), "192.0.2.1", "{server}");
    }
}

#[test]
fn garbage_from_an_upstream_is_survived() {
    let upstream =
        Upstream::start(|query, _| match query.queries[0].name.to_ascii().to_ascii_lowercase().as_str() {
            "garbage.example." => Reaction::Bytes(vec![vec![0xff; 40], vec![], vec![0; 3]]),
            _ => Reaction::Answer(address_reply(query, 30, "192.0.2.1")),
        });
    for server in [upstream.udp(), upstream.tcp()] {
        let agent = Agent::before(&server);
        let reply = ask(agent.address, "garbage.example.", "A");
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "{server}");
        assert_eq!(ask(agent.address, "good.example.", "A").answers.len(), 1, "{server}");
    }
}

#[test]
fn a_server_that_does_not_know_opt_is_asked_without() {
    let upstream = Upstream::start(|query, _| {
        if query.edns.is_some() {
            let mut reply = reply_code(query, ResponseCode::FormErr);
            reply.edns = None;
            Reaction::Answer(reply)
        } else {
            Reaction::Answer(address_reply(query, 30, "192.0.2.1"))
        }
    });
    let agent = Agent::before(upstream.tcp());
    assert_eq!(ask(agent.address, "old.example.", "A").answers.len(), 1);
    // Learned either here, by a refused query, or before, by the question that made the agent ready.
    assert!(upstream.count_of("old.example.") <= 2);
    assert_eq!(ask(agent.address, "older.example.", "A").answers.len(), 1);
    assert_eq!(upstream.count_of("older.example."), 1, "remembered for this server");
}

#[test]
fn the_upstreams_opt_never_reaches_a_client() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = address_reply(query, 30, "192.0.2.1");
        let mut edns = Edns::new();
        edns.set_max_payload(4_321);
        reply.set_edns(edns);
        Reaction::Answer(reply)
    });
    let agent = Agent::before(upstream.tcp());
    for _ in 0..2 {
        assert!(ask(agent.address, "opt.example.", "A").edns.is_none());
        let printed = dig(agent.address, &["opt.example", "A"]);
        assert!(printed.text.contains("udp: 1232"), "{}", printed.text);
    }
}

#[test]
fn the_longest_suffix_decides_who_is_asked() {
    let outer = Upstream::plain(30);
    let inner = Upstream::plain(30);
    let rest = Upstream::plain(30);
    let agent = Agent::start(&format!(
        "zones:\n  - match: [example.com]\n    upstream: {{ servers: [\"{}\"] }}\n  - match: [\"Corp.example.com\", 2.0.192.in-addr.arpa]\n    upstream: {{ servers: [\"{}\"] }}\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"] }}\n",
        outer.tcp(),
        inner.tcp(),
        rest.udp()
    ));
    for owner in ["www.example.com.", "example.com.", "xcorp.example.com."] {
        ask(agent.address, owner, "A");
        assert_eq!(outer.count_of(owner), 1, "{owner}");
    }
    for owner in ["a.corp.example.com.", "CORP.example.COM.", "1.2.0.192.in-addr.arpa."] {
        ask(agent.address, owner, "A");
        assert_eq!(inner.count_of(owner), 1, "{owner}");
    }
    for owner in ["myexample.com.", "com.", "other.test."] {
        ask(agent.address, owner, "A");
        assert_eq!(rest.count_of(owner), 1, "{owner}");
    }
    assert_eq!(outer.count_below("corp.example.com."), 0);
    assert_eq!(rest.count_below("example.com."), 0);
    assert_eq!(inner.count_below("test."), 0);
    assert_eq!(rest.count(Transport::Tcp), 0);
}

#[test]
fn a_query_of_no_zone_is_refused() {
    let upstream = Upstream::plain(30);
    let agent = Agent::start(&format!(
        "zones:\n  - match: [example.com]\n    upstream: {{ servers: [\"{}\"] }}\n",
        upstream.tcp()
    ));
    let reply = ask(agent.address, "www.example.org.", "A");
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
}

#[test]
fn system_means_the_servers_of_resolv_conf() {
    // resolv.conf has no ports: each run takes an address of its own in 127/8, at port 53.
    let [high, low] = std::process::id().to_be_bytes()[2..] else { unreachable!("four bytes") };
    let ip = Ipv4Addr::new(127, 77, high, low);
    let upstream = Upstream::start_on(SocketAddr::from((ip, 53)), |query, transport| {
        let mut reply = address_reply(query, 30, "192.0.2.1");
        if transport == Transport::Udp && query.queries[0].name == name("cut.example.") {
            reply.metadata.truncation = true;
            reply.answers.clear();
        }
        Reaction::Answer(reply)
    });
    let agent = Agent::launch(
        "zones:\n  - match: [\".\"]\n    upstream: { servers: [system] }\n",
        &Launch {
            resolv_conf: Some(&format!("search example.org\nnameserver {ip}\noptions ndots:5\n")),
            ..Launch::default()
        },
    );
    assert_eq!(ask(agent.address, "www.example.", "A").answers.len(), 1);
    assert_eq!(upstream.seen("www.example.")[0].transport, Transport::Udp);
    assert_eq!(ask(agent.address, "cut.example.", "A").answers.len(), 1);
    assert_eq!(upstream.count_of("cut.example."), 2, "TC=1, then TCP");
    assert_eq!(upstream.count_below("example.org."), 0, "no search list");
}

#[test]
fn system_servers_are_those_of_the_time() {
    let [high, low] = std::process::id().to_be_bytes()[2..] else { unreachable!("four bytes") };
    let first = Upstream::start_on(SocketAddr::from((Ipv4Addr::new(127, 78, high, low), 53)), |query, _| {
        Reaction::Answer(address_reply(query, 30, "192.0.2.1"))
    });
    let second = Upstream::start_on(SocketAddr::from((Ipv4Addr::new(127, 79, high, low), 53)), |query, _| {
        Reaction::Answer(address_reply(query, 30, "192.0.2.2"))
    });
    let agent = Agent::launch(
        "zones:\n  - match: [\".\"]\n    upstream: { servers: [system] }\n",
        &Launch { resolv_conf: Some(&format!("nameserver {}\n", first.address.ip())), ..Launch::default() },
    );
    let address = |owner: &str| ask(agent.address, owner, "A").answers[0].data.to_string();
    assert_eq!(address("before.example."), "192.0.2.1");
    // In place: the agent's view is a bind mount of this very file.
    std::fs::write(agent.resolv_conf_path(), format!("nameserver {}\n", second.address.ip()))
        .expect("resolv.conf");
    let mut asked = 0;
    wait_until("the new server is asked", seconds(15), || {
        asked += 1;
        thread::sleep(millis(200));
        address(&format!("after{asked}.example.")) == "192.0.2.2"
    });
    // As a DHCP client leaves it for a moment.
    std::fs::write(agent.resolv_conf_path(), "").expect("resolv.conf");
    thread::sleep(millis(1_500));
    assert_eq!(address("empty.example."), "192.0.2.2", "the servers known so far stay");
}

#[test]
fn an_upstream_that_comes_back_is_used_within_seconds() {
    let down = Arc::new(AtomicBool::new(true));
    let is_down = Arc::clone(&down);
    let upstream = Upstream::start(move |query, _| {
        if is_down.load(Ordering::Relaxed) {
            Reaction::Close
        } else {
            Reaction::Answer(address_reply(query, 30, "192.0.2.1"))
        }
    });
    let agent = Agent::before(upstream.tcp());
    let reply = ask(agent.address, "back.example.", "A");
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    down.store(false, Ordering::Relaxed);
    wait_until("it is answered again", seconds(5), || {
        ask(agent.address, "back.example.", "A").metadata.response_code == ResponseCode::NoError
    });
}

#[test]
fn connections_filled_by_names_that_are_never_answered_are_replaced() {
    let upstream = Upstream::start(|query, _| {
        if query.queries[0].name.to_ascii().starts_with("silent") {
            Reaction::Drop
        } else {
            Reaction::Answer(address_reply(query, 300, "192.0.2.1"))
        }
    });
    let agent = Agent::start(&format!(
        "zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"], timeout: 1s, connections: {{ max: 2, in_flight: 4 }} }}\n",
        upstream.tcp()
    ));
    let client = UdpSocket::bind("127.0.0.1:0").expect("socket");
    for index in 0..8 {
        // Two connections of four queries each: nothing else fits beside them.
        let silent = message(&query(&format!("silent{index}.example."), "A"));
        client.send_to(&silent, agent.address).expect("sent");
    }
    wait_until("the silent ones are all asked", seconds(5), || upstream.count_below("example.") >= 8);
    wait_until("another name is answered again", seconds(8), || {
        let reply = ask(agent.address, "good.example.", "A");
        reply.metadata.response_code == ResponseCode::NoError && reply.answers.len() == 1
    });
}
