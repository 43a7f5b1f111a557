//! SIGTERM: no new work, what is in flight ends within 5 s, exit status 0.

use std::net::{TcpStream, UdpSocket};
use std::thread;
use std::time::Instant;

use hickory_proto::op::{Message, ResponseCode};

use crate::support::{
    Agent, Launch, Reaction, Tcp, Upstream, address_reply, ask, message, millis, query, seconds, wait_until,
};

fn holding() -> Upstream {
    Upstream::start(|query, _| Reaction::Hold(address_reply(query, 30, "192.0.2.1")))
}

#[test]
fn sigterm_ends_an_idle_agent_quickly() {
    let upstream = Upstream::plain(30);
    let mut agent = Agent::before(upstream.tcp());
    ask(agent.address, "www.example.", "A");
    // Idle clients hold nothing up.
    let _client = Tcp::connect(agent.address);
    let started = Instant::now();
    agent.signal("TERM");
    let status = agent.wait(seconds(6)).expect("it ends");
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(started.elapsed() < seconds(2), "{:?}", started.elapsed());
}

#[test]
fn sigint_ends_it_as_well() {
    let upstream = Upstream::plain(30);
    let mut agent = Agent::before(upstream.tcp());
    agent.signal("INT");
    let status = agent.wait(seconds(6)).expect("it ends");
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn who_still_waits_when_it_ends_is_told() {
    let upstream = Upstream::start(|_, _| Reaction::Drop);
    let mut agent = Agent::start(&format!(
        "zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"], timeout: 30s }}\n",
        upstream.tcp()
    ));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("client socket");
    socket.connect(agent.address).expect("connect");
    socket.set_read_timeout(Some(seconds(7))).expect("timeout");
    socket.send(&message(&query("never.example.", "A"))).expect("send");
    wait_until("it is in flight", seconds(3), || upstream.count_of("never.example.") >= 1);
    agent.signal("TERM");
    let mut buffer = [0; 1_500];
    let length = socket.recv(&mut buffer).expect("an answer");
    let reply = Message::from_vec(&buffer[..length]).expect("reply");
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert!(agent.wait(seconds(2)).is_some_and(|status| status.success()));
}

#[test]
fn queries_in_flight_at_sigterm_are_answered() {
    let upstream = holding();
    let mut agent = Agent::before(upstream.tcp());
    let socket = UdpSocket::bind("127.0.0.1:0").expect("client socket");
    socket.connect(agent.address).expect("connect");
    socket.set_read_timeout(Some(seconds(5))).expect("timeout");
    socket.send(&message(&query("udp.example.", "A"))).expect("send");
    let mut tcp = Tcp::connect(agent.address);
    tcp.send(&query("tcp.example.", "A"));
    wait_until("both are in flight", seconds(3), || {
        upstream.count_of("udp.example.") >= 1 && upstream.count_of("tcp.example.") >= 1
    });
    let started = Instant::now();
    agent.signal("TERM");
    thread::sleep(millis(800));
    assert!(!agent.has_ended(), "it waits for what is in flight");
    upstream.release();
    let mut buffer = [0; 1_500];
    let length = socket.recv(&mut buffer).expect("the answer by UDP");
    let reply = Message::from_vec(&buffer[..length]).expect("reply");
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(tcp.receive().expect("the answer by TCP").answers.len(), 1);
    let status = agent.wait(seconds(6)).expect("it ends");
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(started.elapsed() < millis(5_500), "{:?}", started.elapsed());
}

#[test]
fn queries_that_never_end_are_given_up_within_five_seconds() {
    let upstream = Upstream::start(|_, _| Reaction::Drop);
    let mut agent = Agent::start(&format!(
        "zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"], timeout: 30s }}\n",
        upstream.tcp()
    ));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("client socket");
    socket.send_to(&message(&query("never.example.", "A")), agent.address).expect("send");
    wait_until("it is in flight", seconds(3), || upstream.count_of("never.example.") >= 1);
    let started = Instant::now();
    agent.signal("TERM");
    let status = agent.wait(seconds(8)).expect("it ends");
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(started.elapsed() < millis(5_500), "{:?}", started.elapsed());
}

#[test]
fn a_draining_agent_takes_no_new_connections_and_is_not_ready() {
    let upstream = holding();
    let mut agent = Agent::before(upstream.tcp());
    let mut tcp = Tcp::connect(agent.address);
    tcp.send(&query("held.example.", "A"));
    wait_until("it is in flight", seconds(3), || upstream.count_of("held.example.") >= 1);
    agent.signal("TERM");
    wait_until("no new connection is taken", seconds(3), || match Tcp::try_connect(agent.address) {
        Err(_) => true,
        Ok(mut connection) => {
            connection.send(&query("localhost.", "A"));
            connection.is_closed_within(millis(300))
        }
    });
    if let Some((code, body)) = agent.admin.get("/ready") {
        assert_eq!(code, 503, "{body}");
    }
    upstream.release();
    assert_eq!(tcp.receive().expect("the answer").answers.len(), 1);
    assert_eq!(agent.wait(seconds(6)).expect("it ends").code(), Some(0));
    assert!(TcpStream::connect(agent.address).is_err());
}

#[test]
fn the_control_socket_is_gone_after_the_end() {
    let upstream = Upstream::plain(30);
    let mut agent = Agent::before(upstream.tcp());
    assert!(std::path::Path::new(&agent.control()).exists());
    agent.signal("TERM");
    agent.wait(seconds(6)).expect("it ends");
    assert!(!std::path::Path::new(&agent.control()).exists());
}

/// Both share the port, as agents of an upgrade do, and the one that ends has queries in flight that nobody answers.
#[test]
fn an_agent_that_ends_leaves_all_queries_to_one_that_stays() {
    const HOSTS: &str = "hosts: { records: { \"10.0.0.7\": [db.test] } }\n";
    let silent = Upstream::start(|_, _| Reaction::Drop);
    let body = format!(
        "{HOSTS}zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"], timeout: 30s }}\n",
        silent.tcp()
    );
    let mut leaves = Agent::start(&body);
    let _stays = Agent::launch(&body, &Launch { at: Some(leaves.address), ..Launch::default() });
    let waiting: Vec<UdpSocket> = (0..8)
        .map(|number| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("client socket");
            socket.connect(leaves.address).expect("connect");
            socket.send(&message(&query(&format!("never{number}.example."), "A"))).expect("send");
            socket
        })
        .collect();
    wait_until("all are in flight", seconds(3), || {
        (0..waiting.len()).all(|number| silent.count_of(&format!("never{number}.example.")) > 0)
    });
    leaves.signal("TERM");
    let started = Instant::now();
    let (mut asked, mut lost) = (0, 0);
    while !leaves.has_ended() {
        assert!(started.elapsed() < seconds(7), "it does not end");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("client socket");
        socket.connect(leaves.address).expect("connect");
        socket.set_read_timeout(Some(seconds(1))).expect("timeout");
        socket.send(&message(&query("db.test.", "A"))).expect("send");
        asked += 1;
        lost += usize::from(socket.recv(&mut [0; 512]).is_err());
    }
    assert!(asked > 100 && lost == 0, "{lost} of {asked} were lost");
}
