//! Clients that mean harm, and those beside them: whatever the ones do, the others' cached answers keep flowing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Instant;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record};
use socket2::{Domain, Protocol, Socket, Type};

use super::malformed::{self, Expect};
use crate::support::{
    Agent, Bystander, Crowd, Reaction, Tcp, Transport, Upstream, address_reply, ask, ask_tcp, datagrams_from,
    framed, message, millis, option, query, seconds, source, stream_from, wait_until, with_edns,
};

const CACHED: &str = "cached.example.";
/// The default of `limits.tcp_connections`, and of one address.
const ALL: usize = 1024;
const EACH: usize = 64;

/// Silent about names that begin with `silent`, holds `held`, and has 48 KB for `held-big`.
fn upstream() -> Upstream {
    Upstream::start(|query, _| {
        let mut reply = address_reply(query, 300, "192.0.2.1");
        let owner = query.queries[0].name.clone();
        if owner.to_ascii().starts_with("held-big") {
            for n in 0..1_500_u16 {
                let [high, low] = n.to_be_bytes();
                let data = RData::from(IpAddr::from([192, 1, high, low]));
                reply.add_answer(Record::from_rdata(owner.clone(), 300, data));
            }
        }
        match owner.to_ascii() {
            owner if owner.starts_with("silent") => Reaction::Drop,
            owner if owner.starts_with("held") => Reaction::Hold(reply),
            _ => Reaction::Answer(reply),
        }
    })
}

fn agent_with(upstream: &Upstream, keys: &str) -> Agent {
    let agent = Agent::start(&format!(
        "{keys}\nzones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"] }}\n",
        upstream.tcp()
    ));
    assert_eq!(ask(agent.address, CACHED, "A").answers.len(), 1);
    // This, and what a starting agent asks for itself: whether a server is there, and no loop.
    wait_until("the first questions have come", seconds(5), || upstream.count(Transport::Tcp) >= 3);
    agent
}

fn connected(agent: &Agent) -> f64 {
    agent.admin.metric("nodens_tcp_connections", &[]).expect("gauge")
}

/// What an agent has at rest, to be compared with what it has after an attack.
struct AtRest {
    descriptors: usize,
    resident_kib: u64,
}

impl AtRest {
    fn of(agent: &Agent) -> Self {
        Self { descriptors: agent.descriptors(), resident_kib: agent.resident_kib() }
    }

    /// Waits until nothing of the attack is left, but for 16 MiB that the allocator may keep for itself.
    #[track_caller]
    fn must_come_back(&self, agent: &Agent) {
        wait_until("the clients have left", seconds(15), || connected(agent) <= 1.0);
        agent.wait_without_flights();
        // Upstream connections, at most 16 and as many that were given up and stay for 10 s, and one or two of the
        // admin port's own.
        assert!(agent.descriptors() <= self.descriptors + 34, "{}", agent.descriptors());
        wait_until("descriptors are back", seconds(15), || agent.descriptors() <= self.descriptors + 18);
        wait_until("memory is back", seconds(5), || agent.resident_kib() <= self.resident_kib + 16 * 1024);
    }
}

/// The length of a frame of 65,535 octets, of which no more come than a test sends.
const ENDLESS: &[u8] = &[0xff, 0xff];

#[test]
fn slow_loris_clients_on_all_places_turn_nobody_away() {
    let upstream = upstream();
    let agent = agent_with(&upstream, "");
    let rest = AtRest::of(&agent);
    let mut loris = Crowd::connect(agent.address, 0..ALL / EACH, EACH);
    loris.send(ENDLESS);
    wait_until("all places are taken", seconds(5), || connected(&agent) >= ALL as f64);
    let bystander = Bystander::start(agent.address, CACHED);
    for n in 0..20 {
        loris.send(b"x");
        assert_eq!(ask_tcp(agent.address, &query(CACHED, "A")).answers.len(), 1, "new client {n}");
        thread::sleep(millis(50));
    }
    bystander.end().must_be_served();
    let left = loris.open();
    assert!((ALL - 30..ALL).contains(&left), "each new client cost one of them: {left} are left");
    drop(loris);
    rest.must_come_back(&agent);
}

#[test]
fn a_trickle_of_octets_holds_no_place() {
    let upstream = upstream();
    let agent = agent_with(&upstream, "limits: { tcp_idle: 1s }");
    let mut loris = Crowd::connect(agent.address, 0..2, 20);
    loris.send(ENDLESS);
    wait_until("all are closed", seconds(10), || {
        loris.send(b"x");
        loris.open() == 0
    });
}

#[test]
fn frames_that_never_end_hold_little_memory_and_are_closed() {
    let upstream = upstream();
    let agent = agent_with(&upstream, "limits: { tcp_idle: 3s }");
    let rest = AtRest::of(&agent);
    let bystander = Bystander::start(agent.address, CACHED);
    let mut crowd = Crowd::connect(agent.address, 0..ALL / EACH, EACH);
    // 60 KB of each would be 60 MB.
    crowd.send(ENDLESS);
    let mut most = 0;
    for _ in 0..60 {
        crowd.send(&[b'x'; 1_000]);
        most = most.max(agent.resident_kib());
    }
    bystander.end().must_be_served();
    let grown = most.saturating_sub(rest.resident_kib);
    assert!(grown < 24 * 1024, "{grown} KiB for frames that never end");
    wait_until("all are closed", seconds(10), || crowd.open() == 0);
    rest.must_come_back(&agent);
}

#[test]
fn ten_thousand_connections_leave_those_beside_them_alone() {
    let upstream = upstream();
    let agent = agent_with(&upstream, "");
    let rest = AtRest::of(&agent);
    let bystander = Bystander::start(agent.address, CACHED);
    let crowd = Crowd::connect(agent.address, 0..200, 50);
    assert!(crowd.len() >= 9_000, "{} came through", crowd.len());
    assert!(connected(&agent) <= ALL as f64, "{}", connected(&agent));
    assert!(agent.descriptors() <= ALL + rest.descriptors + 18, "{}", agent.descriptors());
    assert!(agent.admin.count("nodens_dropped_total", &[("cause", "tcp_limit")]) > 0.0);
    assert_eq!(ask_tcp(agent.address, &query(CACHED, "A")).answers.len(), 1, "a new client");
    bystander.end().must_be_served();
    drop(crowd);
    rest.must_come_back(&agent);
}

#[test]
fn a_thousand_pipelined_queries_of_clients_that_never_read_cost_little() {
    let upstream = upstream();
    let agent = agent_with(&upstream, "limits: { tcp_idle: 2s }");
    upstream.release();
    assert_eq!(ask_tcp(agent.address, &query("held-big.example.", "A")).answers.len(), 1_501);
    let rest = AtRest::of(&agent);
    let bystander = Bystander::start(agent.address, CACHED);
    let mut crowd = Crowd::connect(agent.address, 0..4, EACH);
    let frame = |owner: &str| framed(&message(&query(owner, "A")));
    // Half of the answers are 48 KB from the cache, half have to be asked for.
    for n in 0..20 {
        let fresh: Vec<u8> = (0..25).flat_map(|m| frame(&format!("n{n}-{m}.example."))).collect();
        crowd.send(&[fresh, frame("held-big.example.").repeat(25)].concat());
    }
    let most = (0..20).map(|_| {
        thread::sleep(millis(50));
        agent.resident_kib()
    });
    let grown = most.max().unwrap_or_default().saturating_sub(rest.resident_kib);
    assert!(grown < 24 * 1024, "{grown} KiB for {} deaf clients", crowd.len());
    bystander.end().must_be_served();
    drop(crowd);
    rest.must_come_back(&agent);
}

#[test]
fn one_large_answer_for_very_many_queries_does_not_fill_the_memory() {
    let upstream = upstream();
    let agent = agent_with(&upstream, "");
    let rest = AtRest::of(&agent);
    let mut crowd = Crowd::connect(agent.address, 0..2, EACH);
    crowd.send(&framed(&message(&query("held-big.example.", "A"))).repeat(64)); // 128 clients of 64 queries with 48 KB each: 400 MB
    wait_until("all wait for one flight", seconds(5), || {
        agent.admin.count("nodens_flight_joins_total", &[]) >= (crowd.len() * 64 - 1) as f64
    });
    let bystander = Bystander::start(agent.address, CACHED);
    thread::sleep(millis(200));
    upstream.release();
    wait_until("it has landed", seconds(5), || agent.admin.metric("nodens_flights", &[]) == Some(0.0));
    let grown = agent.resident_kib().saturating_sub(rest.resident_kib);
    assert!(grown < 32 * 1024, "{grown} KiB for one answer");
    let reply = ask_tcp(agent.address, &query("held-big.example.", "A"));
    assert_eq!(reply.answers.len(), 1_501, "{:?}", reply.metadata);
    thread::sleep(millis(200));
    bystander.end().must_be_served();
    drop(crowd);
    rest.must_come_back(&agent);
}

#[test]
fn a_flood_of_unique_names_is_refused_at_once_and_hits_keep_flowing() {
    const FLIGHTS: usize = 500;
    const FLOOD: usize = 4_000;
    let upstream = upstream();
    let agent = agent_with(&upstream, &format!("limits: {{ flights: {FLIGHTS} }}"));
    let rest = AtRest::of(&agent);
    let bystander = Bystander::start(agent.address, CACHED);
    let socket = datagrams_from(source(0), agent.address);
    let reader = socket.try_clone().expect("a second handle");
    let started = Instant::now();
    let answers = thread::spawn(move || {
        let mut answers = HashMap::new();
        reader.set_read_timeout(Some(seconds(6))).expect("timeout");
        let mut buffer = [0; 1_500];
        while answers.len() < FLOOD
            && let Ok(length) = reader.recv(&mut buffer)
        {
            let reply = Message::from_vec(&buffer[..length]).expect("reply");
            assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
            let error = option(&reply, 15).expect("an extended error");
            answers.insert(reply.queries[0].name.to_ascii(), (error, started.elapsed()));
        }
        answers
    });
    for n in 0..FLOOD {
        socket.send(&message(&with_edns(query(&format!("silent{n}.example."), "A"), 1232))).expect("send");
        if n % 20 == 19 {
            thread::sleep(millis(2));
        }
    }
    let sent_after = started.elapsed();
    wait_until("one address's share of the flights is reached", seconds(2), || {
        agent.admin.metric("nodens_flights", &[]) >= Some(FLIGHTS as f64 * 0.45)
    });
    assert!(agent.admin.metric("nodens_flights", &[]) <= Some(FLIGHTS as f64 * 0.5 + 1.0));
    let answers = answers.join().expect("reader");
    assert!(answers.len() * 100 >= FLOOD * 99, "{} of {FLOOD} were answered", answers.len());
    let at_once = answers.values().filter(|(_, after)| *after < sent_after + seconds(1)).count();
    assert!(at_once >= FLOOD - 2 * FLIGHTS, "{at_once} at once");
    bystander.end().must_be_served();
    rest.must_come_back(&agent);
}

#[test]
fn a_zone_with_silent_servers_leaves_flights_to_the_others() {
    let (silent, good) = (Upstream::start(|_, _| Reaction::Drop), Upstream::plain(30));
    let agent = Agent::start(&format!(
        "limits: {{ flights: 64 }}\nzones:\n  - match: [silent.example]\n    upstream: {{ servers: [\"{}\"] }}\n  \
         - match: [\".\"]\n    upstream: {{ servers: [\"{}\"] }}\n",
        silent.tcp(),
        good.tcp()
    ));
    // From so many addresses, because each has its share only.
    let sockets: Vec<_> = (0..200).map(|n| datagrams_from(source(n), agent.address)).collect();
    for (n, socket) in sockets.iter().enumerate() {
        socket.send(&message(&query(&format!("n{n}.silent.example."), "A"))).expect("send");
    }
    wait_until("all flights are taken", seconds(2), || {
        agent.admin.count("nodens_flights_refused_total", &[]) >= 100.0
    });
    for n in 0..20 {
        assert_eq!(ask(agent.address, &format!("n{n}.example."), "A").answers.len(), 1);
    }
    assert!(agent.admin.metric("nodens_flights", &[]) >= Some(64.0), "they were still taken");
}

#[test]
fn malformed_packets_of_every_kind_in_volume_do_not_touch_good_queries() {
    let upstream = upstream();
    let agent = agent_with(&upstream, "");
    let rest = AtRest::of(&agent);
    let table = malformed::table();
    let bad: Vec<_> = table.iter().filter(|row| !matches!(row.2, Expect::Code(0))).collect();
    assert!(bad.len() >= 40);
    let bystander = Bystander::start(agent.address, CACHED);
    let asked = upstream.count(Transport::Tcp);
    let socket = datagrams_from(source(0), agent.address);
    for round in 0..300 {
        for (_, bytes, _) in &bad {
            socket.send(bytes).expect("send");
        }
        if round % 4 == 3 {
            thread::sleep(millis(5));
        }
    }
    let sent = (300 * bad.len()) as f64;
    wait_until("they are dealt with", seconds(5), || {
        // Not from the cache, as the bystander's.
        let refused = agent.admin.count("nodens_responses_total", &[("source", "local")]);
        refused + agent.admin.count("nodens_dropped_total", &[]) >= sent * 0.95
    });
    bystander.end().must_be_served();
    assert_eq!(upstream.count(Transport::Tcp), asked, "none of them went upstream");
    rest.must_come_back(&agent);
}

#[test]
fn strangers_are_refused_with_no_more_than_they_sent() {
    let upstream = upstream();
    let agent = agent_with(&upstream, "allow_from: [\"127.0.0.1/32\"]");
    let asked = upstream.count(Transport::Tcp);
    let stranger = datagrams_from(source(0), agent.address);
    stranger.set_read_timeout(Some(seconds(5))).expect("timeout");
    let mut keepalive = with_edns(query(CACHED, "A"), 65_535);
    let options = keepalive.edns.as_mut().expect("OPT").options_mut();
    options.insert(hickory_proto::rr::rdata::opt::EdnsOption::Unknown(11, Vec::new()));
    let mut padded = with_edns(query(CACHED, "A"), 4_096);
    let options = padded.edns.as_mut().expect("OPT").options_mut();
    options.insert(hickory_proto::rr::rdata::opt::EdnsOption::Unknown(12, vec![0; 3_500]));
    let sound = [
        query(CACHED, "A"),
        query(CACHED, "ANY"),
        query("new.example.", "TXT"),
        query(".", "NS"),
        query("localhost.", "A"),
        query("5.0.0.127.in-addr.arpa.", "PTR"),
        with_edns(query(CACHED, "A"), 4_096),
        with_edns(query(CACHED, "DNSKEY"), 512),
        with_edns(query(".", "ANY"), 65_535),
        keepalive,
        padded,
    ];
    let mut buffer = [0; 65_535];
    for asked in &sound {
        let bytes = message(asked);
        stranger.send(&bytes).expect("send");
        let length = stranger.recv(&mut buffer).expect("an answer");
        let reply = Message::from_vec(&buffer[..length]).expect("reply");
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{asked:?}");
        assert!(length <= bytes.len(), "{length} for {} bytes: {asked:?}", bytes.len());
        assert!(reply.answers.is_empty() && reply.authorities.is_empty());
    }
    for (what, bytes, expected) in malformed::table() {
        if expected != Expect::Dropped {
            stranger.send(&bytes).expect("send");
            let length = stranger.recv(&mut buffer).expect("an answer");
            assert!(length <= bytes.len(), "{length} for {}: {what}", bytes.len());
            assert_ne!(buffer[3] & 0x0f, 0, "{what}");
        }
    }
    let mut by_tcp = Tcp::from(stream_from(source(1), agent.address).expect("connected"));
    by_tcp.send(&query(CACHED, "A"));
    assert_eq!(by_tcp.receive().expect("an answer").metadata.response_code, ResponseCode::Refused);
    assert_eq!(upstream.count(Transport::Tcp), asked, "nothing of a stranger's goes upstream");
    assert_eq!(ask(agent.address, CACHED, "A").answers.len(), 1, "others are served");
}

/// A datagram with any source port (needs CAP_NET_RAW, which root has).
fn send_from_port(socket: &Socket, port: u16, agent: SocketAddr, payload: &[u8]) {
    let length = u16::try_from(8 + payload.len()).expect("short");
    let mut datagram = Vec::new();
    for field in [port, agent.port(), length, 0] {
        datagram.extend(field.to_be_bytes()); // without a checksum, which IPv4 allows
    }
    datagram.extend(payload);
    socket.send_to(&datagram, &SocketAddr::new(agent.ip(), 0).into()).expect("sent");
}

#[test]
fn forged_sources_get_nothing() {
    let upstream = upstream();
    let agent = agent_with(&upstream, "");
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).expect("raw socket: run as root");
    raw.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("bound");
    let dropped = |cause| agent.admin.count("nodens_dropped_total", &[("cause", cause)]);
    let count = |name| agent.admin.count(name, &[]);
    let (queries, responses) = (count("nodens_queries_total"), count("nodens_responses_total"));
    let bytes = message(&query(CACHED, "A"));
    for _ in 0..50 {
        send_from_port(&raw, 0, agent.address, &bytes);
        send_from_port(&raw, agent.address.port(), agent.address, &bytes);
    }
    wait_until("both kinds are dropped", seconds(5), || dropped("source") >= 100.0);
    let mut answer = bytes.clone();
    answer[2] |= 0x80;
    for _ in 0..50 {
        send_from_port(&raw, 53, agent.address, &answer);
    }
    wait_until("answers are dropped", seconds(5), || dropped("response") >= 50.0);
    assert_eq!(count("nodens_queries_total"), queries);
    assert_eq!(count("nodens_responses_total"), responses);
    assert_eq!(ask(agent.address, CACHED, "A").answers.len(), 1);
}
