//! Upstreams given by name: the agent follows their addresses, and no client notices.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, Record};

use crate::support::{
    Agent, Nsd, Reaction, Transport, Unbound, Upstream, address_reply, ask, dnsperf, free_port, reply_code,
    seconds, wait_until,
};

const NAME: &str = "dns.kube-system.svc.cluster.local.";

/// Addresses of the name, by IPv4, and whether it exists.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<Option<Vec<IpAddr>>>>);

impl Answers {
    fn are(&self, addresses: Option<&[IpAddr]>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = addresses.map(<[_]>::to_vec);
    }

    /// Who resolves the name, with a TTL of a second.
    fn server(&self) -> Upstream {
        let answers = self.clone();
        Upstream::start(move |query, _| {
            let addresses = answers.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(addresses) = addresses else {
                return Reaction::Answer(reply_code(query, ResponseCode::NXDomain));
            };
            let mut reply = reply_code(query, ResponseCode::NoError);
            let question = query.queries.first().expect("question");
            for data in addresses.into_iter().map(RData::from) {
                if data.record_type() == question.query_type {
                    reply.add_answer(Record::from_rdata(question.name.clone(), 1, data));
                }
            }
            Reaction::Answer(reply)
        })
    }
}

/// A server on a loopback address of its own that answers every name with `says`.
fn server(address: [u8; 4], port: u16, says: &'static str) -> Upstream {
    Upstream::start_on(SocketAddr::from((address, port)), move |query, _| {
        Reaction::Answer(address_reply(query, 30, says))
    })
}

fn zone(port: u16, bootstrap: impl std::fmt::Display) -> String {
    format!(
        "zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"tcp://{NAME}:{port}\"], bootstrap: [\"{bootstrap}\"] }}\n"
    )
}

/// How often the label of this server stands in /metrics.
fn series(agent: &Agent, server: &Upstream) -> usize {
    let (code, page) = agent.admin.get("/metrics").expect("/metrics");
    assert_eq!(code, 200, "{page}");
    page.matches(&format!("server=\"{}\"", server.tcp())).count()
}

#[test]
fn misses_are_answered_while_the_addresses_of_the_upstreams_name_change() {
    let port = free_port();
    let first = server([127, 0, 0, 2], port, "192.0.2.1");
    let second = server([127, 0, 0, 3], port, "192.0.2.2");
    let answers = Answers::default();
    let [a, b] = [first.address.ip(), second.address.ip()];
    answers.are(Some(&[a]));
    let bootstrap = answers.server();
    let agent = Agent::start(&zone(port, bootstrap.tcp()));
    let address = agent.address;
    let names: Vec<String> = (0..9_000).map(|n| format!("n{n}.miss.example. A")).collect();
    let load =
        thread::spawn(move || dnsperf(address, &names, &["-n", "1", "-Q", "1000", "-c", "4", "-q", "200"]));
    let below = |server: &Upstream| server.count_below("miss.example.");
    wait_until("the first server has work", seconds(5), || below(&first) > 500);
    assert_eq!(below(&second), 0);
    answers.are(Some(&[a, b]));
    wait_until("both servers have work", seconds(5), || below(&second) > 500);
    assert!(series(&agent, &first) > 0 && series(&agent, &second) > 0);
    answers.are(Some(&[b]));
    wait_until("the first server's series are gone", seconds(5), || series(&agent, &first) == 0);
    wait_until("its connections are closed", seconds(5), || first.open_connections() == 0);
    let (left, taken) = (below(&first), below(&second));
    first.go_away();
    wait_until("the second server has all the work", seconds(5), || below(&second) > taken + 500);
    let load = load.join().expect("dnsperf");
    assert_eq!((load.sent, load.lost, load.good), (9_000, 0, 9_000), "{}", load.text);
    assert_eq!(below(&first), left, "no query came after it had left");
    assert_eq!(left + below(&second), 9_000, "each was asked once");
    assert!(series(&agent, &second) > 0);
    agent.wait_without_flights();
}

#[test]
fn a_bootstrap_that_is_down_at_the_start_is_asked_until_it_answers() {
    let port = free_port();
    let upstream = server([127, 0, 0, 2], port, "192.0.2.1");
    let answers = Answers::default();
    answers.are(Some(&[upstream.address.ip()]));
    let bootstrap = answers.server();
    bootstrap.go_away();
    let agent = Agent::start(&zone(port, bootstrap.udp()));
    let (code, page) = agent.admin.get("/ready").expect("/ready");
    assert_eq!(code, 503, "{page}");
    let reply = ask(agent.address, "early.example.", "A");
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    let (_, page) = agent.admin.get("/ready").expect("/ready");
    assert!(
        page.contains(&format!("zone . upstream name {NAME}: not looked up (A connect; AAAA connect)\n"))
    );
    assert_eq!(upstream.count(Transport::Tcp), 0);
    bootstrap.come_back();
    // Names that nobody asked before: what failed is remembered for a second.
    let mut asked = 0;
    wait_until("queries are answered", seconds(8), || {
        asked += 1;
        let reply = ask(agent.address, &format!("n{asked}.example."), "A");
        reply.metadata.response_code == ResponseCode::NoError
    });
    wait_until("it is ready", seconds(2), || agent.admin.get("/ready").is_some_and(|(code, _)| code == 200));
    let (_, page) = agent.admin.get("/ready").expect("/ready");
    assert!(
        !page.contains("not looked up") && page.contains(&format!("upstream {}", upstream.tcp())),
        "{page}"
    );
}

#[test]
fn a_name_that_goes_keeps_its_servers_and_ready_says_why() {
    let port = free_port();
    let upstream = server([127, 0, 0, 2], port, "192.0.2.1");
    let answers = Answers::default();
    answers.are(Some(&[upstream.address.ip()]));
    let bootstrap = answers.server();
    let agent = Agent::start(&zone(port, bootstrap.tcp()));
    assert_eq!(ask(agent.address, "before.example.", "A").answers.len(), 1);
    answers.are(None);
    let reason = format!(
        "zone . upstream name {NAME}: not looked up (A NXDOMAIN, no address; AAAA NXDOMAIN, no address)\n"
    );
    wait_until("it is noticed", seconds(5), || {
        agent.admin.get("/ready").is_some_and(|(_, page)| page.contains(&reason))
    });
    let (code, page) = agent.admin.get("/ready").expect("/ready");
    assert_eq!(code, 200, "an upstream never revokes it: {page}");
    assert_eq!(ask(agent.address, "after.example.", "A").answers.len(), 1);
    assert!(agent.output().contains("NXDOMAIN"), "{}", agent.output());
}

#[test]
fn real_servers_resolve_a_name_and_answer_behind_it() {
    let nsd = Nsd::cluster();
    let unbound = Unbound::start(&[&format!("{NAME} 5 IN A 127.0.0.1")]);
    for scheme in ["udp", "tcp"] {
        let agent = Agent::start(&zone(nsd.address.port(), format!("{scheme}://{}", unbound.address)));
        let names: Vec<String> =
            (0..1_000).map(|n| format!("n{n}.wild.default.svc.cluster.local. A")).collect();
        let load = dnsperf(agent.address, &names, &["-n", "1", "-c", "4", "-q", "50"]);
        assert_eq!((load.sent, load.lost, load.good), (1_000, 0, 1_000), "{}", load.text);
        agent.wait_without_flights();
    }
}
