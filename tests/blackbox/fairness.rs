//! One address that asks far more than the others takes it from itself.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};

use crate::support::{
    Agent, Bystander, Reaction, Upstream, address_reply, ask, datagrams_from, message, millis, option, query,
    seconds, source, wait_until, with_edns,
};

const CACHED: &str = "cached.example.";
/// How long the upstream thinks.
const SLOW: Duration = Duration::from_millis(900);
/// Addresses that ask beside the one that floods.
const OTHERS: usize = 10;

/// Asks as a stub resolver does: again after two seconds, from the same port under the same ID.
fn ask_from(socket: &UdpSocket, query: &Message) -> Message {
    socket.set_read_timeout(Some(seconds(2))).expect("timeout");
    let mut buffer = [0; 1_500];
    for _ in 0..3 {
        socket.send(&message(query)).expect("send");
        while let Ok(length) = socket.recv(&mut buffer) {
            let reply = Message::from_vec(&buffer[..length]).expect("reply");
            if reply.metadata.id == query.metadata.id {
                return reply;
            }
        }
    }
    panic!("no reply to {query}");
}

/// What an address that asks for very many names got, by RCODE: how often, and the time to the reply.
struct Flood {
    refused: Vec<Duration>,
    answered: usize,
}

/// Asks for unique names for a while, a thousand or two each second, and reads what comes.
fn flood(agent: SocketAddr, time: Duration) -> Flood {
    let socket = datagrams_from(source(1), agent);
    socket.set_nonblocking(true).expect("not blocking");
    let (mut sent, mut flood) = (HashMap::new(), Flood { refused: Vec::new(), answered: 0 });
    let (started, mut buffer, mut n) = (Instant::now(), [0; 1_500], 0);
    // Those of the last flights are awaited, too.
    while started.elapsed() < time + seconds(3) {
        if started.elapsed() < time {
            for _ in 0..4 {
                let asked = with_edns(query(&format!("flood{n}.example."), "A"), 1232);
                sent.insert(asked.queries[0].name.clone(), Instant::now());
                socket.send(&message(&asked)).expect("send");
                n += 1;
            }
        }
        while let Ok(length) = socket.recv(&mut buffer) {
            let reply = Message::from_vec(&buffer[..length]).expect("reply");
            let asked = sent.remove(&reply.queries[0].name).expect("each is answered once");
            match reply.metadata.response_code {
                ResponseCode::NoError => flood.answered += 1,
                ResponseCode::ServFail => {
                    assert_eq!(option(&reply, 15).expect("an extended error")[..2], [0, 14], "not ready");
                    flood.refused.push(asked.elapsed());
                }
                other => panic!("{other}: {reply}"),
            }
        }
        if sent.is_empty() && started.elapsed() >= time {
            break;
        }
        thread::sleep(millis(2));
    }
    assert!(sent.len() * 100 <= n, "{} of {n} have no answer", sent.len());
    flood
}

#[test]
fn one_address_that_floods_unique_names_leaves_the_others_their_misses_and_hits() {
    const FLIGHTS: usize = 120;
    let upstream = Upstream::start(|query, _| {
        let reply = address_reply(query, 300, "192.0.2.1");
        if query.queries[0].name.to_ascii() == CACHED {
            Reaction::Answer(reply)
        } else {
            Reaction::After(SLOW, reply)
        }
    });
    let agent = Agent::start(&format!(
        "limits: {{ flights: {FLIGHTS} }}\nzones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"] }}\n",
        upstream.tcp()
    ));
    let address = agent.address;
    assert_eq!(ask(address, CACHED, "A").answers.len(), 1);
    let bystander = Bystander::start(address, CACHED);
    let flooding = thread::spawn(move || flood(address, seconds(5)));
    let refused = |reason| agent.admin.count("nodens_flights_refused_total", &[("reason", reason)]);
    wait_until("the flood is refused", seconds(3), || {
        agent.admin.count("nodens_flights_refused_total", &[]) >= 100.0
    });
    let others: Vec<_> = (0..OTHERS)
        .map(|other| {
            thread::spawn(move || {
                let socket = datagrams_from(source(10 + other), address);
                for n in 0..3 {
                    let reply = ask_from(&socket, &query(&format!("o{other}n{n}.example."), "A"));
                    assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{reply}");
                    assert_eq!(reply.answers.len(), 1);
                }
            })
        })
        .collect();
    others.into_iter().for_each(|other| other.join().expect("all misses of the others are answered"));
    bystander.end().must_be_served();
    let flood = flooding.join().expect("the flood got answers");
    // It has its share: half of the flights at most, and what the others leave of it at least, each second.
    assert!(flood.answered >= FLIGHTS / 2, "{} of the flood were answered", flood.answered);
    assert!(flood.refused.len() > 2 * flood.answered, "{} were refused", flood.refused.len());
    let at_once = flood.refused.iter().filter(|&&took| took < SLOW / 2).count();
    assert!(at_once * 100 >= flood.refused.len() * 95, "{at_once} of {} at once", flood.refused.len());
    assert_eq!(refused("flights"), 0.0, "there was always room for another source");
    agent.wait_without_flights();
}

#[test]
fn one_address_that_repeats_a_hot_name_leaves_the_others_places_to_wait() {
    let upstream = Upstream::start(|query, _| {
        let reply = address_reply(query, 300, "192.0.2.1");
        if query.queries[0].name.to_ascii() == CACHED {
            Reaction::Answer(reply)
        } else {
            Reaction::Hold(reply)
        }
    });
    let agent = Agent::start(&format!(
        "limits: {{ waiters: 100 }}\nzones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"] }}\n",
        upstream.tcp()
    ));
    let greedy = datagrams_from(source(1), agent.address);
    greedy.set_read_timeout(Some(seconds(3))).expect("timeout");
    let replies = |socket: &UdpSocket, count: usize, code: ResponseCode| {
        let mut buffer = [0; 1_500];
        for _ in 0..count {
            let length = socket.recv(&mut buffer).expect("a reply");
            let reply = Message::from_vec(&buffer[..length]).expect("reply");
            assert_eq!(reply.metadata.response_code, code);
        }
    };
    for _ in 0..150 {
        greedy.send(&message(&query("hot.example.", "A"))).expect("send");
    }
    replies(&greedy, 100, ResponseCode::ServFail);
    assert_eq!(agent.admin.count("nodens_flights_refused_total", &[("reason", "share")]), 100.0);
    let others: Vec<UdpSocket> =
        (0..OTHERS).map(|other| datagrams_from(source(10 + other), agent.address)).collect();
    for other in &others {
        other.set_read_timeout(Some(seconds(3))).expect("timeout");
        other.send(&message(&query("hot.example.", "A"))).expect("send");
        other.send(&message(&query("HOT.example.", "A"))).expect("send");
    }
    wait_until("they all wait", seconds(3), || {
        agent.admin.metric("nodens_waiters", &[]) == Some((50 + 2 * OTHERS) as f64)
    });
    upstream.release();
    replies(&greedy, 50, ResponseCode::NoError);
    others.iter().for_each(|other| replies(other, 2, ResponseCode::NoError));
    wait_until("nobody waits", seconds(3), || agent.admin.metric("nodens_waiters", &[]) == Some(0.0));
}
