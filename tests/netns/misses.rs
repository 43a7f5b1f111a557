//! A hundred thousand misses by TCP cost as many entries as there are connections.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use crate::agent::Agent;
use crate::kernel::entries_to;
use crate::support::{missing, run};
use crate::topology::{CLUSTER_IP, Node, Proxy, Topology, on_a_node};

const MISSES: usize = 100_000;

#[test]
fn a_hundred_thousand_misses_cost_an_entry_for_each_connection() {
    on_a_node(Topology::new(Proxy::Nftables).alone(), || {
        let _node = Node::start();
        let agent = Agent::on_loopback(
            &[],
            &format!("zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"tcp://{CLUSTER_IP}\"] }}\n"),
        );
        let took = ask_for_different_names(agent.address, MISSES);
        let [connections, entries] = agent.connections_and(|| entries_to(CLUSTER_IP, "tcp").len());
        let sent = agent.sent("tcp");
        eprintln!(
            "{MISSES} misses over TCP to a ClusterIP in {took} s: {sent} queries sent, {connections} connections \
             opened, {entries} conntrack entries"
        );
        assert!(sent >= MISSES, "{sent} queries went upstream");
        assert!(connections > 0);
        assert_eq!(entries, connections, "conntrack entries, and connections opened");
        assert!(entries_to(CLUSTER_IP, "udp").is_empty());
    });
}

/// Has dnsperf ask for so many names, a hundred at a time, and expects a good answer to each. Returns the seconds
/// that it took.
#[track_caller]
fn ask_for_different_names(server: SocketAddr, count: usize) -> String {
    let mut names = String::new();
    for number in 0..count {
        let _ = writeln!(names, "n{number}.load.test A");
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("names");
    fs::write(&file, names).expect("names");
    let mut command = Command::new("dnsperf");
    command.args(["-s", &server.ip().to_string(), "-p", &server.port().to_string(), "-d"]).arg(&file);
    let output = run(command.args(["-n", "1", "-l", "120", "-q", "100"]))
        .unwrap_or_else(|error| panic!("{}", missing("dnsperf", "dnsperf", &error)));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = |label: &str| {
        let rest = text.split_once(label).map(|(_, rest)| rest.trim_start());
        rest.and_then(|rest| rest.split([' ', '\n']).next()).unwrap_or_default().to_owned()
    };
    assert_eq!(number("NOERROR "), count.to_string(), "{text}");
    number("Run time (s):")
}
