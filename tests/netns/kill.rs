//! What is lost when the agent is killed, stopped and started, while two thousand queries a second go to the ClusterIP.

use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use crate::agent::{AGENT_TTL, Agent, intercepting, zone};
use crate::client::{Load, PATIENCE, Pace, Seen, Way, now_ms};
use crate::cluster_dns::TTL;
use crate::support::seconds;
use crate::topology::{Node, Place, Proxy, Topology, on_a_node};

/// The issue's: of two thousand a second.
const LOST_WHEN_KILLED: usize = 20;
/// Two thousand in all.
const BY_UDP: [(Place, Way, u64); 3] =
    [(Place::Pod1, Way::Udp, 1_000), (Place::Pod2, Way::UdpOnePort, 500), (Place::Host, Way::Udp, 500)];
/// The same by TCP. Most of what a client does here is to open connections.
const BY_TCP: [(Place, Way, u64); 3] = [
    (Place::Pod1, Way::TcpOneConnection, 1_000),
    (Place::Pod2, Way::TcpOneConnection, 600),
    (Place::Host, Way::Tcp, 400),
];
/// A connection for each.
const BY_CONNECTIONS: [(Place, Way, u64); 3] =
    [(Place::Pod1, Way::Tcp, 1_000), (Place::Pod2, Way::Tcp, 600), (Place::Host, Way::Tcp, 400)];
/// Where the machine is slow, more of one address's connections are open than one may have by default.
const LIMITS: &str = "limits: { tcp_connections: 4096, tcp_connections_per_address: 4096 }\n";
/// How long the clients ask.
const FOR_MS: u64 = 5_500;
/// What happens, and how long after the one before.
const EVENTS: [(&str, u64); 4] =
    [("SIGKILL", 1_000), ("start", 1_000), ("SIGTERM", 1_200), ("next start", 1_000)];

/// What was lost after each event, up to the next.
struct Losses([usize; 4]);

impl Losses {
    /// A query that was on its way when something happened is that one's loss.
    fn of(seen: &[&Seen], at_ms: [u64; 4]) -> Self {
        let mut losses = [0; 4];
        for (seen, lost) in seen.iter().flat_map(|seen| seen.lost.iter().map(move |lost| (seen, lost))) {
            let sent = seen.began_ms + lost.at_ms + 100;
            let event = at_ms.iter().rposition(|&at| at <= sent);
            // Where the machine is slow, more than that was on its way.
            let first = (sent + PATIENCE.as_millis() as u64 >= at_ms[0]).then_some(0);
            losses[event.or(first).unwrap_or_else(|| panic!("lost before anything happened: {seen}"))] += 1;
        }
        Self(losses)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for ((event, _), lost) in EVENTS.iter().zip(self.0) {
            let _ = write!(text, "{event} {lost} lost, ");
        }
        text.trim_end_matches(", ").to_owned()
    }
}

/// Kills, starts, stops and starts the agent under this load. Everybody is answered by it, by the cluster's DNS while
/// it is away, and by it again. Returns what they saw, when each thing happened, and when the killed process was dead.
#[track_caller]
fn under_load(clients: [(Place, Way, u64); 3]) -> ([Seen; 3], [u64; 4], u64) {
    let node = Node::start();
    let server = node.cluster_ips()[0];
    let body = intercepting(&node, &zone(&[format!("tcp://{server}")])) + LIMITS;
    let mut agent = Agent::start(&body);
    let begin =
        |(place, way, per_second)| Load::start(place, server, way, Pace::Rate { per_second, for_ms: FOR_MS });
    let loads = clients.map(begin);
    let (mut at_ms, mut dead_ms) = ([0; 4], 0);
    for (at, (event, after_ms)) in at_ms.iter_mut().zip(EVENTS) {
        thread::sleep(Duration::from_millis(after_ms));
        *at = now_ms();
        match event {
            "SIGKILL" => {
                agent.process.signal("KILL");
                assert!(agent.process.wait(seconds(5)).is_some());
                dead_ms = now_ms();
            }
            "SIGTERM" => agent.stop(),
            _ => agent = Agent::start(&body),
        }
    }
    let seen = loads.map(Load::finish);
    for seen in &seen {
        assert!(seen.with_ttl(AGENT_TTL) > 0 && seen.with_ttl(TTL) > 0, "both have answered: {seen}");
    }
    (seen, at_ms, dead_ms)
}

fn print(topology: &str, protocol: &str, losses: &Losses, seen: &[Seen; 3]) {
    eprintln!("{topology}, 2,000/s by {protocol}: {}", losses.text());
    for (place, seen) in ["pod 1", "pod 2", "host"].iter().zip(seen) {
        eprintln!("  {place}: {seen}");
    }
}

#[track_caller]
fn datagrams_survive(topology: &str) {
    let (seen, at_ms, _) = under_load(BY_UDP);
    let losses = Losses::of(&seen.each_ref(), at_ms);
    print(topology, "UDP", &losses, &seen);
    let [killed, started, stopped, started_again] = losses.0;
    assert!(killed <= LOST_WHEN_KILLED, "{}", losses.text());
    assert_eq!([started, stopped, started_again], [0; 3], "{}", losses.text());
}

#[test]
fn datagrams_survive_a_kill_a_stop_and_a_start_beside_iptables() {
    on_a_node(Topology::new(Proxy::IptablesLegacy).alone(), || datagrams_survive("iptables"));
}

#[test]
fn datagrams_survive_a_kill_a_stop_and_a_start_beside_nftables() {
    on_a_node(Topology::new(Proxy::Nftables).alone(), || datagrams_survive("nftables"));
}

/// A connection ends with the process that had it, and what is awaited on it is asked again by a real client, on
/// another. How many there are follows from how long they take: whoever asks when the process is dead loses nothing.
#[track_caller]
fn connections_survive(topology: &str, protocol: &str, clients: [(Place, Way, u64); 3]) {
    let (seen, at_ms, dead_ms) = under_load(clients);
    let losses = Losses::of(&seen.each_ref(), at_ms);
    print(topology, protocol, &losses, &seen);
    let [_, started, stopped, started_again] = losses.0;
    assert_eq!([started, stopped, started_again], [0; 3], "{}", losses.text());
    let sent = seen.iter().flat_map(|seen| seen.lost.iter().map(|lost| seen.began_ms + lost.at_ms));
    let late: Vec<_> = sent.filter(|&sent| sent > dead_ms).map(|sent| sent - dead_ms).collect();
    assert!(late.is_empty(), "lost that were sent so many ms after its death: {late:?}");
}

#[test]
fn connections_end_with_a_killed_process_and_with_no_other() {
    on_a_node(Topology::new(Proxy::IptablesLegacy).alone(), || {
        connections_survive("iptables", "TCP", BY_TCP);
    });
}

#[test]
fn connections_end_with_a_killed_process_and_with_no_other_beside_nftables() {
    on_a_node(Topology::new(Proxy::Nftables).alone(), || connections_survive("nftables", "TCP", BY_TCP));
}

#[test]
fn two_thousand_connections_a_second_survive_all_but_a_kill() {
    on_a_node(Topology::new(Proxy::IptablesLegacy).alone(), || {
        connections_survive("iptables", "TCP, a connection each", BY_CONNECTIONS);
    });
}

#[test]
fn two_thousand_connections_a_second_survive_all_but_a_kill_beside_nftables() {
    on_a_node(Topology::new(Proxy::Nftables).alone(), || {
        connections_survive("nftables", "TCP, a connection each", BY_CONNECTIONS);
    });
}
