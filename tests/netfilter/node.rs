//! A node and a pod, each in a namespace of its own, who talks there, and what the node's kernel knows of it.

use std::collections::BTreeSet;
use std::env;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nodens::config::Mark;
use nodens::node::rules::{Kept, Wanted};
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{Namespace, inside, missing, seconds};

/// Addresses that the node holds and the agent listens at.
pub(crate) const LISTEN: [&str; 2] = ["169.254.20.10:53", "[fd00:20::10]:53"];
/// ClusterIPs, which nobody holds.
pub(crate) const CLUSTER: [&str; 2] = ["10.96.0.10:53", "[fd00:96::10]:53"];
/// The pod's addresses.
pub(crate) const POD: [&str; 2] = ["10.244.0.2", "fd00:244::2"];

pub(crate) const MARK: Mark = Mark { intercept: 0x35, own: 0x36, mask: 0xff };
pub(crate) const PROTOCOLS: [&str; 2] = ["udp", "tcp"];

/// Far more connections than a test has, and longer than it takes.
pub(crate) const KEPT: Kept = Kept { most: 1_000, silence: Duration::from_secs(60) };

/// Nothing at all.
pub(crate) const NOTHING: Wanted<'static> = Wanted {
    notrack: &[],
    intercept: &[],
    leaving: &[],
    kept: KEPT,
    upstream_ports: &BTreeSet::new(),
    never_upstream: &[],
    mark: MARK,
};

/// Names the pod's namespace inside of the node's.
const NAMED: &str = "NODENS_TEST_POD";

/// A firewall that looks at the state of connections in both families, so that the kernel tracks them.
const TRACKING: &str = "table inet firewall { chain input { type filter hook input priority 0; ct state established accept; }; }";

/// Runs `body`, a closure written in the calling test, as that test on a node of its own.
#[track_caller]
pub(crate) fn on_a_node<F: Fn()>(body: F) {
    let prepare = |node: &Namespace, command: &mut Command| {
        let pod = Namespace::add(format!("{}-pod", node.name));
        node.ip(&["link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", &pod.name]);
        for (namespace, link, last) in [(node, "pod0", "1"), (&pod, "eth0", "2")] {
            namespace.ip(&["address", "add", &format!("10.244.0.{last}/24"), "dev", link]);
            namespace.ip(&["address", "add", &format!("fd00:244::{last}/64"), "dev", link, "nodad"]);
            namespace.ip(&["link", "set", link, "up"]);
        }
        for (gateway, first, prefix) in [("10.244.0.1", "-4", "/32"), ("fd00:244::1", "-6", "/128")] {
            pod.ip(&[first, "route", "add", "default", "via", gateway]);
            for listen in LISTEN.map(|text| address(text).ip()) {
                if listen.is_ipv4() == (first == "-4") {
                    node.ip(&["address", "add", &format!("{listen}{prefix}"), "dev", "lo"]);
                }
            }
        }
        // A ClusterIP needs a route before its packets are looked at.
        for (family, gateway) in ["-4", "-6"].into_iter().zip(POD) {
            node.ip(&[family, "route", "add", "default", "via", gateway]);
        }
        command.env(NAMED, &pod.name);
        pod
    };
    inside(prepare, body);
}

/// Has the node's kernel track connections.
#[track_caller]
pub(crate) fn track() {
    nft(TRACKING);
}

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// An agent's sockets, as far as packets matter: whoever says something hears it again. It ends with the process.
pub(crate) fn listen(at: SocketAddr) {
    answer(at, |byte| byte);
}

/// The same with other words.
pub(crate) fn answer(at: SocketAddr, by: fn(u8) -> u8) {
    let domain = Domain::for_address(at);
    let open = |kind, protocol| {
        let socket = Socket::new(domain, kind, Some(protocol)).expect("socket");
        // For addresses that the node does not hold.
        let transparent = if at.is_ipv4() {
            socket.set_ip_transparent_v4(true)
        } else {
            socket.set_ip_transparent_v6(true)
        };
        transparent.and_then(|()| socket.set_reuse_address(true)).expect("an option");
        socket.bind(&at.into()).unwrap_or_else(|error| panic!("{at}: {error}"));
        socket
    };
    let udp = UdpSocket::from(open(Type::DGRAM, Protocol::UDP));
    thread::spawn(move || {
        let mut space = [0; 512];
        while let Ok((length, client)) = udp.recv_from(&mut space) {
            space.iter_mut().for_each(|byte| *byte = by(*byte));
            let _ = udp.send_to(&space[..length], client);
        }
    });
    let tcp = open(Type::STREAM, Protocol::TCP);
    tcp.listen(64).expect("a listener");
    let tcp = TcpListener::from(tcp);
    thread::spawn(move || {
        for mut client in tcp.incoming().flatten() {
            thread::spawn(move || {
                let mut space = [0; 512];
                while let Ok(length @ 1..) = client.read(&mut space) {
                    space.iter_mut().for_each(|byte| *byte = by(*byte));
                    let _ = client.write_all(&space[..length]);
                }
            });
        }
    });
}

/// Whether a process of the node hears its word again. Its packets have this mark.
pub(crate) fn host_asks(protocol: &str, to: SocketAddr, mark: u32) -> bool {
    hears(protocol, to, mark, seconds(2))
}

/// The same where nobody is expected to answer: what is not there at once does not come.
pub(crate) fn host_asks_in_vain(protocol: &str, to: SocketAddr, mark: u32) -> bool {
    !hears(protocol, to, mark, Duration::from_millis(200))
}

fn hears(protocol: &str, to: SocketAddr, mark: u32, limit: Duration) -> bool {
    let kind = if protocol == "udp" { Type::DGRAM } else { Type::STREAM };
    let socket = Socket::new(Domain::for_address(to), kind, None).expect("socket");
    socket.set_mark(mark).expect("a mark");
    socket.set_read_timeout(Some(limit)).expect("a timeout");
    let mut heard = [0; 4];
    let word = b"word";
    let said = socket.connect_timeout(&to.into(), limit).is_ok() && socket.send(word).is_ok();
    said && (&socket).read(&mut heard).is_ok_and(|length| &heard[..length] == word)
}

/// Whether a process of the pod hears its word again.
#[track_caller]
pub(crate) fn pod_asks(protocol: &str, to: SocketAddr) -> bool {
    let (ip, port) = (to.ip(), to.port());
    // Not by bash's own `read`, which takes one byte and so throws the rest of a datagram away.
    let script = format!(
        "exec 3<>/dev/{protocol}/{ip}/{port} && printf word >&3 && [ \"$(timeout 1 head -c 4 <&3)\" = word ]"
    );
    in_pod("bash", "bash", &["-c", &script]).0
}

/// A program that will run in the pod.
#[track_caller]
pub(crate) fn pod_command(name: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &env::var(NAMED).expect("the pod's namespace"), name]);
    command
}

/// Whether a program in the pod ended well, and what it printed.
#[track_caller]
pub(crate) fn in_pod(name: &str, package: &str, arguments: &[&str]) -> (bool, String) {
    let pod = env::var(NAMED).expect("the pod's namespace");
    // By `ip`, which says itself that a program is missing.
    let found = Path::new("/usr/bin").join(name).exists() || Path::new("/usr/sbin").join(name).exists();
    assert!(found, "no program {name}: install the Debian package `{package}`");
    program("ip", "iproute2", &[&["netns", "exec", &pod, name], arguments].concat())
}

/// Tracked connections, whoever has them, that begin at or lead to one of these addresses.
#[track_caller]
pub(crate) fn entries(about: &[SocketAddr]) -> Vec<String> {
    let mut found = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let (done, text) = program("conntrack", "conntrack", &["-L", "-f", family]);
        assert!(done, "conntrack: {text}");
        let is_about = |word: &str| {
            let address = word.split_once('=').and_then(|(_, address)| address.parse::<IpAddr>().ok());
            address.is_some_and(|address| about.iter().any(|wanted| wanted.ip() == address))
        };
        let lines = text.lines().filter(|line| line.split_whitespace().any(is_about));
        found.extend(lines.map(str::to_owned));
    }
    found
}

/// Has the kernel forget all connections.
#[track_caller]
pub(crate) fn forget() {
    let (done, text) = program("conntrack", "conntrack", &["-F"]);
    assert!(done, "conntrack: {text}");
}

/// Has `nft` carry out what it is given, and gives what it prints.
#[track_caller]
pub(crate) fn nft(rules: &str) -> String {
    let (done, text) = program("nft", "nftables", &[rules]);
    assert!(done, "nft: {text}");
    text
}

/// Whether a program ended well, and what it printed.
#[track_caller]
pub(crate) fn program(name: &str, package: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(name)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{}", missing(name, package, &error)));
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        text.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    (output.status.success(), text)
}
