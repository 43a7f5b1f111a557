//! A changed config, by signal and by itself, and what becomes of queries meanwhile.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::{
    Agent, Launch, Reaction, Upstream, address_reply, ask, dnsperf, millis, seconds, wait_until,
};

fn zone(upstream: &Upstream, more: &str) -> String {
    format!("{more}zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"] }}\n", upstream.tcp())
}

fn answering(address: &'static str) -> Upstream {
    Upstream::start(move |query, _| Reaction::Answer(address_reply(query, 30, address)))
}

/// Asks names that nobody has asked before until one is answered with this address.
#[track_caller]
fn wait_for_address(agent: &Agent, address: &str, limit: Duration) {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    wait_until(&format!("answers are {address}"), limit, || {
        let n = ASKED.fetch_add(1, Ordering::Relaxed);
        let reply = ask(agent.address, &format!("n{n}.new.example."), "A");
        let first = reply.answers.first();
        first.is_some_and(|record| record.data.to_string() == address)
    });
}

fn last_reload(agent: &Agent) -> Option<f64> {
    agent.admin.metric("nodens_config_last_reload_success", &[])
}

#[test]
fn sighup_takes_a_changed_upstream() {
    let (first, second) = (answering("192.0.2.1"), answering("192.0.2.2"));
    let mut agent = Agent::start(&zone(&first, "reload: signal\n"));
    wait_for_address(&agent, "192.0.2.1", seconds(2));
    agent.write_config(&zone(&second, "reload: signal\n"));
    thread::sleep(millis(1_500));
    let reply = ask(agent.address, "unsignalled.example.", "A");
    assert_eq!(reply.answers[0].data.to_string(), "192.0.2.1", "`reload: signal` watches nothing");
    agent.signal("HUP");
    wait_for_address(&agent, "192.0.2.2", seconds(5));
    assert_eq!(last_reload(&agent), Some(1.0));
    assert!(agent.admin.count("nodens_config_reloads_total", &[]) >= 1.0);
    assert!(!agent.has_ended());
}

#[test]
fn a_wrong_new_config_keeps_the_old_one() {
    let (first, second) = (answering("192.0.2.1"), answering("192.0.2.2"));
    let mut agent = Agent::start(&zone(&first, "reload: signal\n"));
    for wrong in ["zonse: []\n", "zones:\n  - match: [\n", "zones: []\nworkers: many\n"] {
        agent.write_config(wrong);
        agent.signal("HUP");
        wait_until("the failure shows", seconds(5), || last_reload(&agent) == Some(0.0));
        wait_for_address(&agent, "192.0.2.1", seconds(2));
    }
    assert!(agent.output().contains("nodens.yaml"), "the log names the file");
    agent.write_config(&zone(&second, "reload: signal\n"));
    agent.signal("HUP");
    wait_for_address(&agent, "192.0.2.2", seconds(5));
    assert_eq!(last_reload(&agent), Some(1.0));
}

#[test]
fn what_is_fixed_at_the_start_is_not_reloaded() {
    let (first, second) = (answering("192.0.2.1"), answering("192.0.2.2"));
    let mut agent = Agent::start(&zone(&first, "reload: signal\n"));
    agent.write_config(&zone(&second, "reload: signal\nnetwork: { mark: { own: 0x37 } }\n"));
    agent.signal("HUP");
    wait_until("the failure shows", seconds(5), || last_reload(&agent) == Some(0.0));
    let said = agent.output();
    assert!(said.contains("network cannot change while the agent runs: restart it"), "{said}");
    wait_for_address(&agent, "192.0.2.1", seconds(2));
}

#[test]
fn a_changed_file_is_noticed() {
    let (first, second) = (answering("192.0.2.1"), answering("192.0.2.2"));
    let mut agent = Agent::start(&zone(&first, ""));
    wait_for_address(&agent, "192.0.2.1", seconds(2));
    agent.write_config(&zone(&second, ""));
    wait_for_address(&agent, "192.0.2.2", seconds(10));
    // And back, by writing into the file as an editor may.
    let text = std::fs::read_to_string(agent.config_path()).expect("config");
    let back = text.replace(&second.address.to_string(), &first.address.to_string());
    std::fs::write(agent.config_path(), back).expect("config");
    wait_for_address(&agent, "192.0.2.1", seconds(10));
}

#[test]
fn a_config_map_swap_is_noticed() {
    let (first, second) = (answering("192.0.2.1"), answering("192.0.2.2"));
    let launch = Launch { config_map: true, ..Launch::default() };
    let mut agent = Agent::launch(&zone(&first, ""), &launch);
    wait_for_address(&agent, "192.0.2.1", seconds(2));
    for (upstream, address) in [(&second, "192.0.2.2"), (&first, "192.0.2.1")] {
        agent.write_config(&zone(upstream, ""));
        wait_for_address(&agent, address, seconds(10));
    }
}

#[test]
fn twenty_reloads_under_load_lose_no_query() {
    let (first, second) = (answering("192.0.2.1"), answering("192.0.2.2"));
    let mut agent = Agent::start(&zone(&first, "reload: signal\n"));
    let address = agent.address;
    // Hits and misses: every other query is for one of 50 names, the rest come once.
    let names: Vec<String> = (0..10_000)
        .map(|n| match n % 2 {
            0 => format!("hot{}.example. A", n % 100),
            _ => format!("cold{n}.example. A"),
        })
        .collect();
    let load =
        thread::spawn(move || dnsperf(address, &names, &["-n", "1", "-Q", "1250", "-c", "4", "-q", "200"]));
    for round in 0..20 {
        thread::sleep(millis(350));
        let upstream = if round % 2 == 0 { &second } else { &first };
        agent.write_config(&zone(upstream, "reload: signal\n"));
        agent.signal("HUP");
    }
    let load = load.join().expect("dnsperf");
    assert_eq!((load.sent, load.lost, load.good), (10_000, 0, 10_000), "{}", load.text);
    assert!(first.count_below("example.") > 0 && second.count_below("example.") > 0);
    wait_until("all reloads are counted", seconds(5), || last_reload(&agent) == Some(1.0));
    agent.wait_without_flights();
}

#[test]
fn connections_to_a_server_that_left_the_config_are_closed() {
    let (first, second) = (answering("192.0.2.1"), answering("192.0.2.2"));
    let mut agent = Agent::start(&zone(&first, "reload: signal\n"));
    wait_for_address(&agent, "192.0.2.1", seconds(2));
    agent.write_config(&zone(&second, "reload: signal\n"));
    agent.signal("HUP");
    wait_for_address(&agent, "192.0.2.2", seconds(5));
    wait_until("no connection to it is left", seconds(12), || first.open_connections() == 0);
    let series = agent.admin.metric("nodens_upstream_connections", &[("server", &first.address.to_string())]);
    assert!(series.unwrap_or(0.0) == 0.0, "{series:?}");
}
