//! Clients by TCP: pipelining, order, closing, limits.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::thread;
use std::time::Instant;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;

use crate::support::{
    Agent, Reaction, Tcp, Upstream, address_reply, ask, ask_tcp, dnsperf, kdig, message, millis, name,
    option, query, seconds, wait_until, with_edns,
};

fn with_limits(upstream: &Upstream, limits: &str) -> Agent {
    Agent::start(&format!(
        "limits: {{ {limits} }}\nzones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"] }}\n",
        upstream.tcp()
    ))
}

fn slow_names() -> Upstream {
    Upstream::start(|query, _| {
        let reply = address_reply(query, 30, "192.0.2.1");
        if query.queries[0].name.to_ascii().starts_with("slow") {
            Reaction::After(millis(1_000), reply)
        } else {
            Reaction::Answer(reply)
        }
    })
}

#[test]
fn fifty_queries_in_one_write_are_all_answered() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    let queries: Vec<Message> = (0..50).map(|n| query(&format!("n{n}.example."), "A")).collect();
    let mut open: HashSet<(u16, String)> =
        queries.iter().map(|asked| (asked.metadata.id, asked.queries[0].name.to_ascii())).collect();
    let mut connection = Tcp::connect(agent.address);
    connection.send_all(&queries);
    while !open.is_empty() {
        let reply = connection.receive().expect("an answer for every query");
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        let key = (reply.metadata.id, reply.queries[0].name.to_ascii());
        assert!(open.remove(&key), "{key:?} was asked, and is answered once");
    }
}

#[test]
fn length_and_reply_come_in_one_segment() {
    let upstream = Upstream::plain(300);
    let agent = Agent::before(upstream.tcp());
    let bytes = message(&query("one.example.", "A"));
    let framed = [&u16::try_from(bytes.len()).expect("short").to_be_bytes(), &bytes[..]].concat();
    let mut stream = TcpStream::connect(agent.address).expect("connected");
    stream.set_read_timeout(Some(seconds(5))).expect("timeout");
    let mut buffer = [0; 512];
    // The first is asked for, the others are in the cache. Two writes would be two reads now and then.
    for n in 0..200 {
        stream.write_all(&framed).expect("sent");
        let read = stream.read(&mut buffer).expect("a reply");
        assert!(read > 2, "{read} octets of reply {n}");
        assert_eq!(usize::from(u16::from_be_bytes([buffer[0], buffer[1]])), read - 2, "reply {n}");
    }
}

#[test]
fn queries_beyond_those_in_flight_wait_unread() {
    let upstream = Upstream::start(|query, _| {
        let reply = address_reply(query, 30, "192.0.2.1");
        let is_held = query.queries[0].name.to_ascii().ends_with("held.example.");
        if is_held { Reaction::Hold(reply) } else { Reaction::Answer(reply) }
    });
    let agent = with_limits(&upstream, "tcp_in_flight: 4");
    let mut connection = Tcp::connect(agent.address);
    connection.send_all(&(0..10).map(|n| query(&format!("n{n}.held.example."), "A")).collect::<Vec<_>>());
    wait_until("four are asked", seconds(3), || upstream.count_below("held.example.") >= 4);
    for n in 0..20 {
        assert_eq!(ask_tcp(agent.address, &query(&format!("n{n}.example."), "A")).answers.len(), 1);
    }
    assert_eq!(agent.admin.metric("nodens_flights", &[]), Some(4.0), "no more of this client");
    upstream.release();
    let mut names = HashSet::new();
    for _ in 0..10 {
        let reply = connection.receive().expect("an answer for every query");
        assert_eq!(reply.answers.len(), 1);
        names.insert(reply.queries[0].name.to_ascii());
    }
    assert_eq!(names.len(), 10);
}

#[test]
fn a_slow_name_does_not_delay_a_cached_one_behind_it() {
    let upstream = slow_names();
    let agent = Agent::before(upstream.tcp());
    ask(agent.address, "cached.example.", "A");
    let mut connection = Tcp::connect(agent.address);
    let started = Instant::now();
    connection.send_all(&[query("slow.example.", "A"), query("cached.example.", "A")]);
    let first = connection.receive().expect("first answer");
    assert_eq!(first.queries[0].name, name("cached.example."));
    assert!(started.elapsed() < millis(700), "{:?}", started.elapsed());
    let second = connection.receive().expect("second answer");
    assert_eq!(second.queries[0].name, name("slow.example."));
}

#[test]
fn a_half_close_after_the_last_query_still_gets_its_answers() {
    let upstream = slow_names();
    let agent = Agent::before(upstream.tcp());
    let mut connection = Tcp::connect(agent.address);
    connection.send_all(&[query("slow.example.", "A"), query("quick.example.", "A")]);
    connection.finish();
    for _ in 0..2 {
        assert_eq!(connection.receive().expect("an answer").answers.len(), 1);
    }
    assert!(connection.is_closed_within(seconds(2)), "then it is closed");
}

#[test]
fn a_query_that_comes_byte_by_byte_is_answered() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    let bytes = message(&query("drip.example.", "A"));
    let mut connection = Tcp::connect(agent.address);
    let framed = [&u16::try_from(bytes.len()).expect("short").to_be_bytes(), &bytes[..]].concat();
    for byte in framed {
        connection.send_bytes(&[byte]);
        thread::sleep(millis(5));
    }
    assert_eq!(connection.receive().expect("the answer").answers.len(), 1);
}

#[test]
fn idle_connections_are_closed() {
    let upstream = Upstream::plain(30);
    let agent = with_limits(&upstream, "tcp_idle: 1s");
    let mut never_asked = Tcp::connect(agent.address);
    let mut asked = Tcp::connect(agent.address);
    asked.send(&query("www.example.", "A"));
    assert!(asked.receive().is_some());
    let mut stuck = Tcp::connect(agent.address);
    stuck.send_bytes(&[0, 40, 1]); // a frame that never ends
    let started = Instant::now();
    for connection in [&mut never_asked, &mut asked, &mut stuck] {
        assert!(connection.is_closed_within(seconds(5)));
    }
    assert!(started.elapsed() >= millis(500), "not before it was idle");
}

#[test]
fn a_connection_is_not_idle_while_a_query_is_open() {
    let upstream = slow_names();
    let agent = with_limits(&upstream, "tcp_idle: 300ms");
    let mut connection = Tcp::connect(agent.address);
    connection.send(&query("slow.example.", "A"));
    assert_eq!(connection.receive().expect("the answer").answers.len(), 1);
}

#[test]
fn keepalive_is_told_when_asked() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    let mut asked = with_edns(query("keep.example.", "A"), 1232);
    asked.edns.as_mut().expect("OPT").options_mut().insert(EdnsOption::Unknown(11, Vec::new()));
    let reply = ask_tcp(agent.address, &asked);
    // RFC 7828: units of 100 ms; tcp_idle is 10 s.
    assert_eq!(option(&reply, 11), Some(vec![0, 100]));
    let plain = ask_tcp(agent.address, &with_edns(query("keep.example.", "A"), 1232));
    assert_eq!(option(&plain, 11), None);
}

#[test]
fn connections_of_one_address_are_limited() {
    let upstream = Upstream::plain(30);
    let agent = with_limits(&upstream, "tcp_connections_per_address: 4");
    let works = |connection: &mut Tcp| {
        connection.send(&query("www.example.", "A"));
        connection.receive().is_some()
    };
    let mut held: Vec<Tcp> = (0..4).map(|_| Tcp::connect(agent.address)).collect();
    assert!(held.iter_mut().all(works), "four are served");
    let refused = Tcp::try_connect(agent.address).map_or(true, |mut fifth| {
        fifth.send(&query("www.example.", "A"));
        fifth.is_closed_within(seconds(3))
    });
    assert!(refused, "the fifth is not");
    assert!(held.iter_mut().all(works), "the four still are");
    held.pop();
    wait_until("a place is free again", seconds(5), || {
        Tcp::try_connect(agent.address).is_ok_and(|mut connection| works(&mut connection))
    });
    assert_eq!(ask(agent.address, "www.example.", "A").answers.len(), 1, "UDP is not touched");
}

#[test]
fn connections_in_all_are_limited() {
    let upstream = Upstream::plain(30);
    let agent = with_limits(&upstream, "tcp_connections: 3");
    let mut held: Vec<Tcp> = (0..3).map(|_| Tcp::connect(agent.address)).collect();
    for connection in &mut held {
        connection.send(&query("www.example.", "A"));
        assert!(connection.receive().is_some());
    }
    assert_eq!(agent.admin.metric("nodens_tcp_connections", &[]), Some(3.0));
    let refused = Tcp::try_connect(agent.address).map_or(true, |mut fourth| {
        fourth.send(&query("www.example.", "A"));
        fourth.is_closed_within(seconds(3))
    });
    assert!(refused);
    drop(held);
    wait_until("the gauge is back", seconds(5), || {
        agent.admin.metric("nodens_tcp_connections", &[]) == Some(0.0)
    });
}

#[test]
fn a_reader_that_does_not_read_harms_only_itself() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = address_reply(query, 30, "192.0.2.1");
        let owner = query.queries[0].name.clone();
        for n in 0..=254_u8 {
            let data = hickory_proto::rr::RData::from(IpAddr::from([192, 0, 3, n]));
            reply.add_answer(hickory_proto::rr::Record::from_rdata(owner.clone(), 30, data));
        }
        Reaction::Answer(reply)
    });
    let agent = Agent::before(upstream.tcp());
    ask_tcp(agent.address, &query("large.example.", "A"));
    let mut deaf = Tcp::connect(agent.address);
    let writer = thread::spawn(move || {
        // 4 KiB back for each 33 bytes: far more than the buffers between hold.
        for _ in 0..100 {
            let queries: Vec<Message> = (0..60).map(|_| query("large.example.", "A")).collect();
            deaf.send_all(&queries);
        }
        deaf
    });
    let before = agent.resident_kib();
    for n in 0..50 {
        let started = Instant::now();
        assert!(!ask_tcp(agent.address, &query(&format!("n{n}.example."), "A")).answers.is_empty());
        assert!(started.elapsed() < millis(1_000), "{:?}", started.elapsed());
    }
    let grown = agent.resident_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB for one deaf client");
    // The agent may read no further or close; ending it frees the writer either way.
    drop(agent);
    drop(writer.join());
}

#[test]
fn what_a_deaf_client_goes_on_sending_is_not_read() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = address_reply(query, 30, "192.0.2.1");
        let owner = query.queries[0].name.clone();
        for n in 0..=254_u8 {
            let data = hickory_proto::rr::RData::from(IpAddr::from([192, 0, 3, n]));
            reply.add_answer(hickory_proto::rr::Record::from_rdata(owner.clone(), 30, data));
        }
        Reaction::Answer(reply)
    });
    let agent = Agent::before(upstream.tcp());
    ask_tcp(agent.address, &query("large.example.", "A"));
    let bytes = message(&query("large.example.", "A"));
    let framed = [&u16::try_from(bytes.len()).expect("small").to_be_bytes(), &bytes[..]].concat();
    let block = framed.repeat(2_000);
    let mut deaf = std::net::TcpStream::connect(agent.address).expect("connected");
    deaf.set_write_timeout(Some(seconds(1))).expect("timeout");
    let before = agent.resident_kib();
    let mut sent = 0;
    while sent < 128 << 20 {
        match std::io::Write::write(&mut deaf, &block[sent % framed.len()..]) {
            Ok(written) => sent += written,
            Err(_) => break,
        }
    }
    let grown = agent.resident_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB of {sent} bytes from one deaf client");
}

#[test]
fn kdig_and_dnsperf_are_served_by_tcp() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    let printed = kdig(agent.address, &["+tcp", "+keepopen", "www.example", "A"]);
    assert!(printed.by_tcp && printed.data("A") == ["192.0.2.1"], "{}", printed.text);
    let names: Vec<String> = (0..5_000).map(|n| format!("n{}.example. A", n % 500)).collect();
    let load = dnsperf(agent.address, &names, &["-m", "tcp", "-n", "1", "-c", "10", "-q", "100"]);
    assert_eq!((load.lost, load.good), (0, 5_000), "{}", load.text);
    let by_tcp = agent.admin.count("nodens_queries_total", &[("transport", "tcp")]);
    assert!(by_tcp >= 5_001.0, "{by_tcp}");
}

#[test]
fn a_thousand_clients_that_came_and_went_leave_nothing() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    let round = |count: usize| {
        for n in 0..count {
            let mut connection = Tcp::connect(agent.address);
            connection.send(&query("www.example.", "A"));
            // Every third leaves without its answer.
            if n % 3 != 0 {
                assert!(connection.receive().is_some());
            }
        }
    };
    round(50);
    let settled = || agent.admin.metric("nodens_tcp_connections", &[]) == Some(0.0);
    wait_until("the first have left", seconds(5), settled);
    let (descriptors, memory) = (agent.descriptors(), agent.resident_kib());
    round(1_000);
    wait_until("all have left", seconds(5), settled);
    // One or two of the admin port's own may still be closing.
    wait_until("descriptors are back", seconds(5), || agent.descriptors() <= descriptors + 2);
    let grown = agent.resident_kib().saturating_sub(memory);
    assert!(grown < 8 * 1024, "{grown} KiB more");
    agent.wait_without_flights();
}
