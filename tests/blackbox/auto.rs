//! `auto://`: servers that refuse or limit TCP are asked by UDP, and by TCP again later.

use std::thread;

use hickory_proto::op::ResponseCode;

use crate::support::{
    Accept, Agent, Reaction, Transport, Unbound, Upstream, address_reply, ask, dnsperf, nodens, seconds,
    wait_until,
};

const NAME: &str = "dns.kube-system.svc.cluster.local.";

/// Whether its one server is asked by this transport first.
fn is_by(agent: &Agent, transport: &str) -> bool {
    let value = |transport| agent.admin.count("nodens_upstream_transport", &[("transport", transport)]);
    let other = if transport == "udp" { "tcp" } else { "udp" };
    value(transport) == 1.0 && value(other) == 0.0
}

#[test]
fn a_real_server_without_tcp_behind_a_name_answers_by_udp() {
    let server = Unbound::configured(
        &["wild.example. 60 IN A 192.0.2.1"],
        "  do-tcp: no\n  local-zone: \"wild.example.\" redirect\n",
    );
    let bootstrap = Unbound::start(&[&format!("{NAME} 60 IN A 127.0.0.1")]);
    let agent = Agent::start(&format!(
        "zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"auto://{NAME}:{}\"], bootstrap: [\"auto://{}\"] }}\n",
        server.address.port(),
        bootstrap.address
    ));
    let names: Vec<String> = (0..2_000).map(|n| format!("n{n}.wild.example. A")).collect();
    let load = dnsperf(agent.address, &names, &["-n", "1", "-c", "4", "-q", "50"]);
    assert_eq!((load.sent, load.lost, load.good), (2_000, 0, 2_000), "{}", load.text);
    assert!(is_by(&agent, "udp"));
    let requests =
        |transport| agent.admin.count("nodens_upstream_requests_total", &[("transport", transport)]);
    assert_eq!(requests("tcp"), 0.0);
    assert!(requests("udp") >= 2_000.0);
    let label = format!("auto://{}", server.address);
    let (code, page) = agent.admin.get("/ready").expect("/ready");
    assert_eq!(code, 200, "{page}");
    assert!(page.contains(&format!("zone . upstream {label}: in use, by udp, ")), "{page}");
    let stats = nodens(&["stats", "--json", "--control", &agent.control()]);
    assert!(stats.text().contains("\"transport\":\"udp\""), "{}", stats.text());
    let log = agent.output();
    assert_eq!(log.matches("it is asked by UDP").count(), 1, "one line for the change: {log}");
    agent.wait_without_flights();
}

#[test]
fn a_server_that_resets_each_connection_is_asked_by_udp_and_later_by_tcp_again() {
    let server = Upstream::plain(30);
    let agent = Agent::before(format!("auto://{}", server.address));
    assert_eq!(ask(agent.address, "before.example.", "A").answers.len(), 1);
    assert_eq!(server.seen("before.example.")[0].transport, Transport::Tcp);
    assert!(is_by(&agent, "tcp"));
    server.accept(|_| Accept::Reset);
    server.break_connections();
    let asked: Vec<_> = (0..20)
        .map(|n| {
            let address = agent.address;
            thread::spawn(move || ask(address, &format!("n{n}.example."), "A"))
        })
        .collect();
    for thread in asked {
        let reply = thread.join().expect("a reply");
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 1));
    }
    assert!(is_by(&agent, "udp"));
    server.accept(|_| Accept::Serve);
    // A second; a minute, if this machine was so slow that the first probe still met a reset.
    wait_until("TCP is used again", seconds(75), || is_by(&agent, "tcp"));
    assert_eq!(ask(agent.address, "after.example.", "A").answers.len(), 1);
    assert_eq!(server.seen("after.example.")[0].transport, Transport::Tcp);
    let log = agent.output();
    for change in ["it is asked by UDP", "it is asked by TCP"] {
        assert_eq!(log.matches(change).count(), 1, "{change}: {log}");
    }
    assert_eq!(agent.admin.count("nodens_responses_total", &[("rcode", "SERVFAIL")]), 0.0);
}

#[test]
fn a_server_that_takes_no_more_connections_answers_by_those_it_has() {
    let server = Upstream::start(|query, _| {
        Reaction::After(std::time::Duration::from_millis(2), address_reply(query, 30, "192.0.2.1"))
    });
    let agent = Agent::before(format!("auto://{}", server.address));
    let first: Vec<String> = (0..200).map(|n| format!("a{n}.example. A")).collect();
    let load = dnsperf(agent.address, &first, &["-n", "1", "-c", "1", "-q", "2"]);
    assert_eq!((load.lost, load.good), (0, 200), "{}", load.text);
    let most = server.connections();
    server.accept(move |number| if number < most { Accept::Serve } else { Accept::Reset });
    let names: Vec<String> = (0..2_000).map(|n| format!("b{n}.example. A")).collect();
    let load = dnsperf(agent.address, &names, &["-n", "1", "-c", "4", "-q", "50"]);
    assert_eq!((load.sent, load.lost, load.good), (2_000, 0, 2_000), "{}", load.text);
    assert!(is_by(&agent, "tcp"), "{}", agent.output());
    let by_udp = server.count(Transport::Udp);
    assert!(by_udp < 100, "{by_udp} of 2000 by UDP: {}", agent.output());
    assert!(agent.output().contains("refuses more connections"), "{}", agent.output());
}
