//! What the node's kernel knows, and what changes it by hand.

use std::fmt;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::cluster_dns::SECOND_PORT;
use crate::support::{missing, run};

/// A tracked connection, and where its first packet went.
pub(crate) struct Entry {
    destination: String,
    port: String,
    line: String,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

/// Tracked connections of `protocol` (`tcp`, `udp`) to a port of the cluster's DNS, in both families.
#[track_caller]
pub(crate) fn entries(protocol: &str) -> Vec<Entry> {
    let of = |family| program("conntrack", "conntrack", &["-L", "-f", family, "-p", protocol]);
    let text = ["ipv4", "ipv6"].map(of).concat();
    let entry = |line: &str| {
        let first = |label: &str| line.split_whitespace().find_map(|word| word.strip_prefix(label));
        Some(Entry {
            destination: first("dst=")?.to_owned(),
            port: first("dport=")?.to_owned(),
            line: line.to_owned(),
        })
    };
    let ports = [53, SECOND_PORT].map(|port| port.to_string());
    text.lines().filter_map(entry).filter(|entry| ports.contains(&entry.port)).collect()
}

/// Those to this address.
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

/// Whether `nft` cannot carry out what it is given.
#[track_caller]
pub(crate) fn nft_refuses(rules: &str) -> bool {
    let output = run(Command::new("nft").arg(rules))
        .unwrap_or_else(|error| panic!("{}", missing("nft", "nftables", &error)));
    !output.status.success()
}

/// Has `ip` carry out what it is given, and returns what it printed.
#[track_caller]
pub(crate) fn ip(words: &str) -> String {
    let words: Vec<_> = words.split_whitespace().collect();
    program("ip", "iproute2", &words)
}

/// The rules of others, as one of iptables' saving programs lists them, without what changes by itself.
#[track_caller]
pub(crate) fn iptables_rules(save: &str) -> Vec<String> {
    let text = program(save, "iptables", &[]);
    text.lines().filter(|line| line.starts_with('-')).map(str::to_owned).collect()
}

/// The links that hold this address.
#[track_caller]
pub(crate) fn holders(address: &str) -> Vec<String> {
    let text = ip(&format!("-o address show to {address}"));
    text.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
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
