//! Connections to the ClusterIP that are open when the agent comes or goes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use crate::agent::{AGENT_TTL, Agent, intercepting, zone};
use crate::client::{Load, Pace, Seen, Way, ask_from};
use crate::client_ways::{framed, question};
use crate::cluster_dns::TTL;
use crate::support::{seconds, wait_until};
use crate::topology::{Node, PLACES, Proxy, Topology, on_a_node};

/// From everywhere to each of these, on one connection each for as long as it holds.
#[track_caller]
fn load(servers: &[SocketAddr], per_second: u64) -> Vec<Load> {
    let pace = Pace::Rate { per_second, for_ms: 4_000 };
    let each = servers.iter().flat_map(|&server| PLACES.map(|place| (place, server)));
    each.map(|(place, server)| Load::start(place, server, Way::TcpOneConnection, pace)).collect()
}

#[track_caller]
fn finish(loads: Vec<Load>, what: &str) -> Vec<Seen> {
    let seen: Vec<_> = loads.into_iter().map(Load::finish).collect();
    for seen in &seen {
        eprintln!("{what}, {} connections: {seen}", seen.connections);
        assert!(seen.lost.is_empty() && seen.answered == seen.sent, "{seen}");
    }
    seen
}

#[track_caller]
fn everybody_is_answered(servers: &[SocketAddr], ttl: u32) {
    for &server in servers {
        ask_from(&PLACES, server, Way::Tcp, 10).iter().for_each(|seen| seen.must_all_have(ttl));
    }
}

/// Opened before the agent starts, and still open when it has gone.
#[track_caller]
fn goes_on_at_the_clusters_dns() {
    let node = Node::start();
    let servers = node.cluster_ips();
    let loads = load(&servers, 50);
    let mut agent = Agent::start(&intercepting(&node, &zone(&[format!("tcp://{}", servers[0])])));
    everybody_is_answered(&servers, AGENT_TTL);
    agent.stop();
    everybody_is_answered(&servers, TTL);
    for seen in finish(loads, "opened before the agent starts") {
        assert_eq!((seen.connections, seen.with_ttl(TTL)), (1, seen.sent), "{seen}");
    }
}

#[test]
fn a_connection_to_the_clusters_dns_goes_on_there_beside_iptables() {
    on_a_node(Topology::new(Proxy::IptablesLegacy).alone(), || goes_on_at_the_clusters_dns());
}

#[test]
fn a_connection_to_the_clusters_dns_goes_on_there_beside_nftables() {
    on_a_node(Topology::new(Proxy::Nftables).endpoints(2).alone(), || goes_on_at_the_clusters_dns());
}

/// Each client has an answer to all that it has asked, and its next connection leads to the cluster's DNS. They leave
/// some time between two queries: one that crosses the goodbye has to be asked again (RFC 7766 §6.2.4).
#[track_caller]
fn ends_behind_its_answers() {
    let node = Node::start();
    let servers = node.cluster_ips();
    let mut agent = Agent::start(&intercepting(&node, &zone(&[format!("tcp://{}", servers[0])])));
    let loads = load(&servers, 20);
    thread::sleep(seconds(1));
    agent.stop();
    for seen in finish(loads, "open when the agent is stopped") {
        assert_eq!(seen.connections, 2, "{seen}");
        assert!(seen.with_ttl(AGENT_TTL) > 0 && seen.with_ttl(TTL) > 0, "{seen}");
    }
}

#[test]
fn a_connection_to_a_stopped_agent_ends_behind_its_answers_beside_iptables() {
    on_a_node(Topology::new(Proxy::IptablesLegacy).alone(), || ends_behind_its_answers());
}

#[test]
fn a_connection_to_a_stopped_agent_ends_behind_its_answers_beside_nftables() {
    on_a_node(Topology::new(Proxy::Nftables).alone(), || ends_behind_its_answers());
}

/// Asks so many queries at once.
#[track_caller]
fn say(stream: &mut TcpStream, queries: u64) {
    let run = Load::new_names();
    let asked: Vec<u8> = (0..queries).flat_map(|number| framed(&question(&run, number))).collect();
    stream.set_read_timeout(Some(seconds(5))).expect("a timeout");
    stream.write_all(&asked).expect("a connection that takes queries");
}

/// The TTL of the next answer; `None` when the connection has ended, in the tidy way.
#[track_caller]
fn hear(stream: &mut TcpStream) -> Option<u32> {
    let mut length = [0; 2];
    match stream.read(&mut length) {
        Ok(0) => return None,
        Ok(2) => {}
        other => panic!("instead of an answer or an end: {other:?}"),
    }
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).expect("a whole answer");
    // Behind a pointer to the name: A, IN, TTL.
    let ttl = |part: &[u8]| match *part {
        [0xc0, 12, 0, 1, 0, 1, a, b, c, d] => Some(u32::from_be_bytes([a, b, c, d])),
        _ => None,
    };
    answer.windows(10).find_map(ttl).or_else(|| panic!("no address: {answer:?}"))
}

#[test]
fn whoever_is_connected_when_the_agent_is_stopped_still_gets_all_answers_and_no_reset() {
    on_a_node(Topology::new(Proxy::IptablesLegacy), || {
        let node = Node::start();
        let servers = node.cluster_ips();
        let mut agent = Agent::start(&intercepting(&node, &zone(&[format!("tcp://{}", servers[0])])));
        let connect = |server: &SocketAddr| TcpStream::connect(server).expect("a connection");
        let mut connected: Vec<TcpStream> = servers.iter().map(connect).collect();
        agent.process.signal("TERM");
        wait_until("new connections are led past the agent", seconds(1), || {
            let mut new = connect(&servers[0]);
            say(&mut new, 1);
            hear(&mut new) == Some(TTL)
        });
        assert!(agent.process.ended().is_none());
        for stream in &mut connected {
            say(stream, 20);
            assert!((0..20).all(|_| hear(stream) == Some(AGENT_TTL)));
            assert_eq!(hear(stream), None, "a tidy end");
        }
        assert!(agent.process.wait(seconds(5)).is_some_and(|status| status.success()));
    });
}

/// An upgrade: each connection goes on with the process that has it, whichever table it was led here by.
#[test]
fn of_two_at_once_one_may_leave_and_the_connections_of_the_other_go_on() {
    on_a_node(Topology::new(Proxy::IptablesLegacy).alone(), || {
        let node = Node::start();
        let servers = node.cluster_ips();
        let body = intercepting(&node, &zone(&[format!("tcp://{}", servers[0])]));
        let mut first = Agent::start(&body);
        let before = load(&servers, 20);
        let _second = Agent::start(&body);
        // Some of these are with the first one, and some with the second.
        let meanwhile = load(&servers, 20);
        first.stop();
        everybody_is_answered(&servers, AGENT_TTL);
        for (loads, what) in [(before, "opened at the first"), (meanwhile, "opened at either")] {
            for seen in finish(loads, what) {
                assert_eq!(seen.with_ttl(AGENT_TTL), seen.sent, "{seen}");
            }
        }
    });
}
