//! What the node's kernel knows, and what changes it by hand.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::support::{missing, run};

/// A tracked connection, as its first packet was and as its answers are expected.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) port: String,
    pub(crate) line: String,
}

/// Tracked connections of `protocol` (`tcp`, `udp`) to port 53, in both families.
#[track_caller]
pub(crate) fn entries(protocol: &str) -> Vec<Entry> {
    let of = |family| program("conntrack", "conntrack", &["-L", "-f", family, "-p", protocol]);
    let text = ["ipv4", "ipv6"].map(of).concat();
    let entry = |line: &str| {
        let first = |label: &str| line.split_whitespace().find_map(|word| word.strip_prefix(label));
        Some(Entry {
            source: first("src=")?.to_owned(),
            destination: first("dst=")?.to_owned(),
            port: first("dport=")?.to_owned(),
            line: line.to_owned(),
        })
    };
    text.lines().filter_map(entry).filter(|entry| entry.port == "53").collect()
}

/// Tracked connections to this address at port 53.
#[track_caller]
pub(crate) fn entries_to(address: &str, protocol: &str) -> Vec<Entry> {
    entries(protocol).into_iter().filter(|entry| entry.destination == address).collect()
}

/// As if nobody had asked anything so far.
#[track_caller]
pub(crate) fn forget_connections() {
    program("conntrack", "conntrack", &["-F"]);
}

/// Has `nft` carry out what it is given.
#[track_caller]
pub(crate) fn nft(rules: &str) -> String {
    program("nft", "nftables", &[rules])
}

/// Has `ip` carry out what it is given, and returns what it printed.
#[track_caller]
pub(crate) fn ip(words: &str) -> String {
    let words: Vec<_> = words.split_whitespace().collect();
    program("ip", "iproute2", &words)
}

/// The tables that agents have made.
pub(crate) fn tables() -> Vec<String> {
    let text = nft("list tables");
    let ours = text.lines().filter_map(|line| line.strip_prefix("table inet nodens-"));
    ours.map(|rest| format!("nodens-{}", rest.trim())).collect()
}

/// What a program printed; it has to end well.
#[track_caller]
pub(crate) fn program(name: &str, package: &str, arguments: &[&str]) -> String {
    let output = run(Command::new(name).args(arguments))
        .unwrap_or_else(|error| panic!("{}", missing(name, package, &error)));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {}: {errors}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Has a program read its orders; it has to end well.
#[track_caller]
pub(crate) fn feed(name: &str, package: &str, arguments: &[&str], orders: &str) {
    let mut command = Command::new(name);
    let command = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{}", missing(name, package, &error)));
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(orders.as_bytes()).expect("it reads its orders");
    drop(stdin);
    let output = child.wait_with_output().expect("its end");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {}: {errors}\n{orders}", arguments.join(" "));
}
