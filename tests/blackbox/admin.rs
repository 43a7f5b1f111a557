//! /health, /ready and /metrics.

use crate::support::{Agent, Reaction, Upstream, ask, free_port, seconds, wait_until};

#[test]
fn health_is_200_while_the_workers_run() {
    let agent = Agent::before(format!("tcp://127.0.0.1:{}", free_port()));
    let (code, body) = agent.admin.get("/health").expect("an answer");
    assert_eq!(code, 200, "{body}");
}

#[test]
fn ready_comes_with_the_first_answer_of_an_upstream_and_stays() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    // The first answer may be to the agent's own probe or to a client.
    ask(agent.address, "www.example.", "A");
    wait_until("it is ready", seconds(3), || agent.admin.get("/ready").is_some_and(|(code, _)| code == 200));
    let server = upstream.address.to_string();
    drop(upstream);
    ask(agent.address, "fails.example.", "A");
    let (code, body) = agent.admin.get("/ready").expect("an answer");
    assert_eq!(code, 200, "an upstream's failure revokes nothing: {body}");
    assert!(body.contains(&server), "the state of each upstream is told: {body}");
}

#[test]
fn ready_waits_for_an_upstream_and_comes_without_after_ten_seconds() {
    let upstream = Upstream::start(|_, _| Reaction::Drop);
    let agent = Agent::before(upstream.tcp());
    let (code, body) = agent.admin.get("/ready").expect("an answer");
    assert_eq!(code, 503, "{body}");
    assert!(!body.trim().is_empty(), "the body names the reason");
    wait_until("it is ready all the same", seconds(14), || {
        agent.admin.get("/ready").is_some_and(|(code, _)| code == 200)
    });
}

#[test]
fn unknown_paths_are_404() {
    let agent = Agent::before(format!("tcp://127.0.0.1:{}", free_port()));
    let (code, body) = agent.admin.get("/nothing").expect("an answer");
    assert_eq!(code, 404, "{body}");
}

#[test]
fn metrics_are_prometheus_text_with_help_and_type() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    for _ in 0..3 {
        ask(agent.address, "www.example.", "A");
    }
    let (code, head, text) = agent.admin.exchange("/metrics").expect("an answer");
    assert_eq!(code, 200);
    assert!(head.to_ascii_lowercase().contains("content-type: text/plain"), "{head}");
    for family in [
        "nodens_queries_total",
        "nodens_responses_total",
        "nodens_query_duration_seconds",
        "nodens_cache_entries",
        "nodens_cache_bytes",
        "nodens_cache_lookups_total",
        "nodens_flights",
        "nodens_upstream_requests_total",
        "nodens_upstream_duration_seconds",
        "nodens_upstream_connections",
        "nodens_upstream_connects_total",
        "nodens_tcp_connections",
        "nodens_build_info",
        "nodens_config_info",
        "nodens_config_last_reload_success",
    ] {
        assert!(text.contains(&format!("# TYPE {family} ")), "no # TYPE of {family}\n{text}");
        assert!(text.contains(&format!("# HELP {family} ")), "no # HELP of {family}\n{text}");
    }
    assert!(!text.contains("www.example"), "a QNAME is never a label");
    assert!(!text.contains("\"127.0.0.1\""), "a client address is never a label");
}

#[test]
fn counters_follow_the_queries() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    let before = |name: &str, labels: &[(&str, &str)]| agent.admin.count(name, labels);
    let (queries, hits, misses) = (
        before("nodens_queries_total", &[("transport", "udp"), ("type", "A")]),
        agent.lookups("hit"),
        agent.lookups("miss"),
    );
    for _ in 0..5 {
        ask(agent.address, "www.example.", "A");
    }
    assert_eq!(before("nodens_queries_total", &[("transport", "udp"), ("type", "A")]) - queries, 5.0);
    assert_eq!((agent.lookups("hit") - hits, agent.lookups("miss") - misses), (4.0, 1.0));
    for (source, expected) in [("hit", 4.0), ("miss", 1.0)] {
        let labels = [("rcode", "NOERROR"), ("source", source)];
        assert_eq!(before("nodens_responses_total", &labels), expected, "{source}");
    }
    assert!(before("nodens_cache_entries", &[]) >= 1.0);
    assert!(before("nodens_cache_bytes", &[]) > 0.0);
    assert!(before("nodens_upstream_connections", &[]) >= 1.0);
    assert_eq!(before("nodens_build_info", &[]), 1.0);
    let timed = before("nodens_query_duration_seconds_count", &[]);
    assert!(timed >= 5.0, "{timed}");
}
