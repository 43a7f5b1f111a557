//! The subcommands that ask a running agent, and the command line itself.

use std::os::unix::fs::PermissionsExt;

use hickory_proto::op::ResponseCode;

use crate::support::{
    Agent, Reaction, Upstream, address_reply, ask, datagram_reply, free_port, message, millis, nodens,
    seconds, wait_until,
};

#[test]
fn stats_as_json_is_an_object() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    ask(agent.address, "www.example.", "A");
    let tool = nodens(&["stats", "--json", "--control", &agent.control()]);
    assert_eq!(tool.code, 0, "{}", tool.text());
    let value: serde_json::Value = serde_json::from_str(&tool.stdout).expect("JSON");
    assert!(value.as_object().is_some_and(|object| !object.is_empty()), "{value}");
    let table = nodens(&["stats", "--control", &agent.control()]);
    assert_eq!(table.code, 0, "{}", table.text());
    assert!(!table.stdout.is_empty());
}

#[test]
fn the_cache_can_be_looked_into_and_emptied() {
    let upstream = Upstream::plain(300);
    let agent = Agent::before(upstream.tcp());
    let control = agent.control();
    for owner in ["one.example.", "two.example.", "three.other."] {
        ask(agent.address, owner, "A");
    }
    let get = nodens(&["cache", "get", "ONE.example", "--control", &control]);
    assert_eq!(get.code, 0, "{}", get.text());
    assert!(get.stdout.contains("one.example") && get.stdout.contains("192.0.2.1"), "{}", get.text());
    let absent = nodens(&["cache", "get", "absent.example", "--control", &control]);
    assert_eq!(absent.code, 1, "{}", absent.text());
    let dump = nodens(&["cache", "dump", "--control", &control]);
    assert_eq!(dump.code, 0, "{}", dump.text());
    for owner in ["one.example", "two.example", "three.other"] {
        assert!(dump.stdout.contains(owner), "{}", dump.text());
    }

    let flush = nodens(&["cache", "flush", "one.example", "--control", &control]);
    assert_eq!(flush.code, 0, "{}", flush.text());
    ask(agent.address, "one.example.", "A");
    ask(agent.address, "two.example.", "A");
    assert_eq!(upstream.count_of("one.example."), 2, "a miss after the flush");
    assert_eq!(upstream.count_of("two.example."), 1, "others stay");

    let flush = nodens(&["cache", "flush", "--control", &control]);
    assert_eq!(flush.code, 0, "{}", flush.text());
    ask(agent.address, "two.example.", "A");
    ask(agent.address, "three.other.", "A");
    assert_eq!(upstream.count_of("two.example."), 2);
    assert_eq!(upstream.count_of("three.other."), 2);
}

#[test]
fn the_cache_of_one_zone_can_be_emptied() {
    let upstream = Upstream::plain(300);
    let agent = Agent::start(&format!(
        "zones:\n  - match: [example.com]\n    upstream: {{ servers: [\"{server}\"] }}\n  - match: [\".\"]\n    upstream: {{ servers: [\"{server}\"] }}\n",
        server = upstream.tcp()
    ));
    ask(agent.address, "in.example.com.", "A");
    ask(agent.address, "out.example.org.", "A");
    let flush = nodens(&["cache", "flush", "--zone", "example.com", "--control", &agent.control()]);
    assert_eq!(flush.code, 0, "{}", flush.text());
    ask(agent.address, "in.example.com.", "A");
    ask(agent.address, "out.example.org.", "A");
    assert_eq!(upstream.count_of("in.example.com."), 2);
    assert_eq!(upstream.count_of("out.example.org."), 1);
}

#[test]
fn query_prints_the_answer_by_udp_and_tcp() {
    let upstream = Upstream::plain(300);
    let agent = Agent::before(upstream.tcp());
    let server = agent.address.to_string();
    for more in [&[][..], &["--tcp"]] {
        let tool = nodens(&[&["query", "www.example", "A", "--server", &server], more].concat());
        assert_eq!(tool.code, 0, "{}", tool.text());
        assert!(tool.stdout.contains("192.0.2.1"), "{}", tool.text());
        assert!(tool.stdout.contains("NOERROR"), "{}", tool.text());
    }
    assert!(agent.admin.count("nodens_queries_total", &[("transport", "tcp")]) >= 1.0);
}

#[test]
fn query_without_a_server_there_fails() {
    let server = format!("127.0.0.1:{}", free_port());
    let tool = nodens(&["query", "www.example", "A", "--server", &server]);
    assert_eq!(tool.code, 1, "{}", tool.text());
    assert!(tool.text().contains(&server), "{}", tool.text());
}

#[test]
fn trace_tells_miss_and_hit_and_the_zone() {
    let upstream = Upstream::plain(300);
    let agent = Agent::start(&format!(
        "zones:\n  - match: [example.com]\n    upstream: {{ servers: [\"{server}\"] }}\n  - match: [\".\"]\n    upstream: {{ servers: [\"{server}\"] }}\n",
        server = upstream.tcp()
    ));
    let control = agent.control();
    let trace = || {
        let tool = nodens(&["query", "www.example.com", "A", "--trace", "--control", &control]);
        assert_eq!(tool.code, 0, "{}", tool.text());
        assert!(tool.stdout.contains("192.0.2.1"), "{}", tool.text());
        tool.text().to_lowercase()
    };
    let first = trace();
    assert!(first.contains("miss") && first.contains("example.com"), "{first}");
    assert!(first.contains(&upstream.address.to_string()), "the server is named: {first}");
    let second = trace();
    assert!(second.contains("hit"), "{second}");
}

#[test]
fn probe_says_by_its_exit_status_whether_the_agent_answers() {
    let upstream = Upstream::plain(300);
    let agent = Agent::before(upstream.tcp());
    let control = agent.control();
    let tool = nodens(&["query", "--probe", "--control", &control]);
    assert_eq!(tool.code, 0, "{}", tool.text());
    drop(agent);
    let tool = nodens(&["query", "--probe", "--control", &control]);
    assert_eq!(tool.code, 1, "{}", tool.text());
}

#[test]
fn the_control_socket_is_for_its_owner_alone() {
    let agent = Agent::before(format!("tcp://127.0.0.1:{}", free_port()));
    let mode = std::fs::metadata(agent.control()).expect("socket").permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
}

#[test]
fn without_an_agent_the_subcommands_fail_and_name_the_socket() {
    let socket = "/nonexistent/control.sock";
    for arguments in [
        &["stats", "--control", socket][..],
        &["cache", "dump", "--control", socket],
        &["cache", "flush", "--control", socket],
    ] {
        let tool = nodens(arguments);
        assert_eq!(tool.code, 1, "{}", tool.text());
        assert!(tool.stderr.contains(socket), "{}", tool.text());
    }
}

#[test]
fn wrong_usage_exits_2() {
    for arguments in
        [&["frobnicate"][..], &[], &["run", "--no-such-flag"], &["check"], &["cache", "frobnicate"]]
    {
        let tool = nodens(arguments);
        assert_eq!(tool.code, 2, "nodens {}\n{}", arguments.join(" "), tool.text());
        assert!(tool.stderr.contains("Usage"), "{}", tool.text());
    }
}

#[test]
fn help_of_every_subcommand_has_an_example() {
    assert_eq!(nodens(&["--version"]).code, 0);
    for subcommand in ["run", "check", "query", "cache", "stats"] {
        let tool = nodens(&[subcommand, "--help"]);
        assert_eq!(tool.code, 0, "{subcommand}: {}", tool.text());
        assert!(tool.stdout.to_lowercase().contains("example"), "{subcommand}: {}", tool.stdout);
    }
}

#[test]
fn sigusr1_logs_stats_and_the_agent_goes_on() {
    let upstream = Upstream::plain(300);
    let agent = Agent::before(upstream.tcp());
    let before = agent.output().len();
    agent.signal("USR1");
    wait_until("a line is logged", seconds(3), || agent.output().len() > before);
    assert_eq!(ask(agent.address, "www.example.", "A").answers.len(), 1);
}

#[test]
fn queries_and_failures_leave_no_line_in_the_log() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = address_reply(query, 300, "192.0.2.1");
        match query.queries[0].name.to_ascii() {
            owner if owner.starts_with("fails") => {
                reply.metadata.response_code = ResponseCode::ServFail;
                Reaction::Answer(reply)
            }
            owner if owner.starts_with("garbage") => {
                let bytes = message(&reply);
                Reaction::Bytes(vec![bytes[..bytes.len() - 2].to_vec()])
            }
            _ => Reaction::Answer(reply),
        }
    });
    let agent = Agent::before(upstream.tcp());
    wait_until("it is ready", seconds(12), || agent.admin.get("/ready").is_some_and(|(code, _)| code == 200));
    let before = agent.output();
    for n in 0..50 {
        assert_eq!(ask(agent.address, "www.example.", "A").answers.len(), 1);
        for kind in ["good", "fails", "garbage"] {
            ask(agent.address, &format!("{kind}{n}.example."), "A");
        }
        assert_eq!(datagram_reply(agent.address, &[1; 13], millis(500)).map(|reply| reply.len()), Some(12));
    }
    assert_eq!(agent.output(), before);
    assert!(!before.is_empty(), "the start is logged");
}
