//! However many ask the same at once, the upstream is asked once.

use std::collections::HashSet;
use std::net::UdpSocket;
use std::thread;
use std::time::Instant;

use hickory_proto::op::{Message, ResponseCode};

use crate::support::{
    Agent, Reaction, Transport, Upstream, address_reply, ask, datagrams_from, dnsperf, message, millis,
    query, seconds, source, wait_until,
};

fn holding() -> Upstream {
    Upstream::start(|query, _| {
        let reply = address_reply(query, 30, "192.0.2.1");
        if query.queries[0].name.to_ascii().starts_with("held") {
            Reaction::Hold(reply)
        } else {
            Reaction::Answer(reply)
        }
    })
}

#[test]
fn a_thousand_equal_misses_are_one_upstream_query_and_a_thousand_answers() {
    let upstream = holding();
    let agent = Agent::before(upstream.tcp());
    let sockets: Vec<UdpSocket> = (0..10)
        .map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("client socket");
            socket.connect(agent.address).expect("connect");
            socket.set_read_timeout(Some(seconds(5))).expect("timeout");
            socket
        })
        .collect();
    let mut expected = vec![HashSet::new(); sockets.len()];
    for n in 0..1_000 {
        let asked = query(if n % 2 == 0 { "held.example." } else { "HELD.example." }, "A");
        assert!(expected[n % 10].insert(asked.metadata.id));
        sockets[n % 10].send(&message(&asked)).expect("send");
        if n % 50 == 49 {
            // The default receive buffer holds only some 250 datagrams.
            thread::sleep(millis(2));
        }
    }
    wait_until("all have joined", seconds(3), || {
        agent.admin.count("nodens_flight_joins_total", &[]) >= 999.0
    });
    assert_eq!(agent.admin.metric("nodens_flights", &[]), Some(1.0));
    assert_eq!(upstream.count_of("held.example."), 1);
    upstream.release();
    let mut buffer = [0; 1_500];
    for (socket, ids) in sockets.iter().zip(&mut expected) {
        while !ids.is_empty() {
            let length = socket.recv(&mut buffer).expect("an answer for every query");
            let reply = Message::from_vec(&buffer[..length]).expect("reply");
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
            assert_eq!(reply.answers.len(), 1);
            assert!(ids.remove(&reply.metadata.id), "each is answered once");
        }
    }
    assert_eq!(upstream.count_of("held.example."), 1);
    agent.wait_without_flights();
}

#[test]
fn equal_misses_of_dnsperf_are_one_upstream_query() {
    let upstream =
        Upstream::start(|query, _| Reaction::After(millis(300), address_reply(query, 30, "192.0.2.1")));
    let agent = Agent::before(upstream.tcp());
    let names = vec!["same.example. A".to_owned(); 1_000];
    let load = dnsperf(agent.address, &names, &["-n", "1", "-c", "20", "-q", "1000"]);
    assert_eq!((load.lost, load.good), (0, 1_000), "{}", load.text);
    assert_eq!(upstream.count_of("same.example."), 1);
}

#[test]
fn a_repeated_query_of_one_client_is_answered_once() {
    let upstream = holding();
    let agent = Agent::before(upstream.tcp());
    let socket = UdpSocket::bind("127.0.0.1:0").expect("client socket");
    socket.connect(agent.address).expect("connect");
    let asked = message(&query("held.example.", "A"));
    for _ in 0..5 {
        socket.send(&asked).expect("send");
    }
    wait_until("it is asked upstream", seconds(3), || upstream.count_of("held.example.") == 1);
    // A second name, so that all five have certainly been read before the release.
    ask(agent.address, "other.example.", "A");
    upstream.release();
    socket.set_read_timeout(Some(millis(700))).expect("timeout");
    let mut buffer = [0; 1_500];
    let replies = (0..5).take_while(|_| socket.recv(&mut buffer).is_ok()).count();
    assert_eq!(replies, 1);
    assert_eq!(upstream.count_of("held.example."), 1);
}

#[test]
fn a_held_name_does_not_delay_others() {
    let upstream = holding();
    let agent = Agent::before(upstream.tcp());
    let address = agent.address;
    let held = thread::spawn(move || ask(address, "held.example.", "A"));
    wait_until("it is asked upstream", seconds(3), || upstream.count_of("held.example.") >= 1);
    for n in 0..20 {
        let started = Instant::now();
        assert_eq!(ask(address, &format!("n{n}.example."), "A").answers.len(), 1);
        assert!(started.elapsed() < millis(500), "{:?}", started.elapsed());
    }
    upstream.release();
    assert_eq!(held.join().expect("thread").answers.len(), 1);
}

#[test]
fn a_client_that_has_gone_away_does_not_cancel_the_flight() {
    let upstream = holding();
    let agent = Agent::before(upstream.tcp());
    let socket = UdpSocket::bind("127.0.0.1:0").expect("client socket");
    socket.send_to(&message(&query("held.example.", "A")), agent.address).expect("send");
    wait_until("it is asked upstream", seconds(3), || upstream.count_of("held.example.") == 1);
    drop(socket);
    upstream.release();
    agent.wait_without_flights();
    assert_eq!(ask(agent.address, "held.example.", "A").answers.len(), 1);
    assert_eq!(upstream.count_of("held.example."), 1, "the answer was cached");
    assert_eq!(upstream.count(Transport::Udp), 0);
}

#[test]
fn no_more_flights_than_the_limit() {
    let upstream = holding();
    let agent = Agent::start(&format!(
        "limits: {{ flights: 10 }}\nzones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"] }}\n",
        upstream.tcp()
    ));
    // One address alone has its share of them.
    let sockets: Vec<UdpSocket> = (0..30).map(|n| datagrams_from(source(n), agent.address)).collect();
    for (n, socket) in sockets.iter().enumerate() {
        socket.set_nonblocking(true).expect("not blocking");
        socket.send(&message(&query(&format!("held{n}.example."), "A"))).expect("send");
    }
    let (mut buffer, mut codes) = ([0; 1_500], Vec::new());
    let mut replies = |count| {
        wait_until("replies come", seconds(3), || {
            for socket in &sockets {
                while let Ok(length) = socket.recv(&mut buffer) {
                    let reply = Message::from_vec(&buffer[..length]).expect("reply");
                    codes.push(reply.metadata.response_code);
                }
            }
            codes.len() >= count
        });
        std::mem::take(&mut codes)
    };
    assert_eq!(replies(20), [ResponseCode::ServFail; 20], "those beyond the limit");
    assert_eq!(agent.admin.metric("nodens_flights", &[]), Some(10.0));
    assert_eq!(agent.admin.count("nodens_flights_refused_total", &[("reason", "flights")]), 20.0);
    upstream.release();
    assert_eq!(replies(10), [ResponseCode::NoError; 10]);
    agent.wait_without_flights();
}
