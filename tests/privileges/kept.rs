//! What is kept is what the configuration needs, in every thread.

use std::fs;
use std::net::{SocketAddr, UdpSocket};

use crate::agent::{Agent, Home, NET_ADMIN, NET_BIND_SERVICE, Sets, WITHOUT};
use crate::support::{inside, seconds, wait_until};

/// Needs both of the network's capabilities where it listens on port 53.
const BOTH: &str = "network: { upstream_notrack: true }\n\
                    zones:\n  - match: [\".\"]\n    upstream: { servers: [\"udp://192.0.2.1\"] }\n";
const PORT_53: [&str; 1] = ["127.0.0.1:53"];

#[test]
fn root_keeps_only_those_that_are_needed() {
    inside(
        |_, _| (),
        || {
            let agent = Agent::start(Home::of_root(), &[], &PORT_53, BOTH);
            assert_eq!(agent.capabilities(), Sets::only(NET_ADMIN | NET_BIND_SERVICE));
            assert_eq!(agent.logged_capabilities(), r#"["NET_ADMIN", "NET_BIND_SERVICE"]"#);
        },
    );
}

#[test]
fn each_one_is_kept_for_itself() {
    inside(
        |_, _| (),
        || {
            let agent = Agent::start(Home::of_root(), &[], &[], BOTH);
            assert_eq!(agent.capabilities(), Sets::only(NET_ADMIN));
            assert_eq!(agent.logged_capabilities(), r#"["NET_ADMIN"]"#);
            let agent = Agent::start(Home::of_root(), &[], &PORT_53, "");
            assert_eq!(agent.capabilities(), Sets::only(NET_BIND_SERVICE));
            assert_eq!(agent.logged_capabilities(), r#"["NET_BIND_SERVICE"]"#);
        },
    );
}

#[test]
fn root_keeps_none_when_network_is_off_and_the_port_is_a_high_one() {
    let agent = Agent::start(Home::of_root(), &[], &[], "");
    assert_eq!(agent.capabilities(), Sets::only(0));
    assert_eq!(agent.logged_capabilities(), "[]");
}

/// As the manifest of a DaemonSet asks for it: user 0, `drop: [ALL]`, and these two.
#[test]
fn a_container_with_exactly_those_needed_has_enough() {
    inside(
        |_, _| (),
        || {
            let by =
                ["setpriv", "--bounding-set=-all,+net_admin,+net_bind_service", "--inh-caps=-all", "--nnp"];
            let agent = Agent::start(Home::of_root(), &by, &PORT_53, BOTH);
            assert_eq!(agent.capabilities(), Sets::only(NET_ADMIN | NET_BIND_SERVICE));
        },
    );
}

/// Addresses, rules of both kinds and interception, and none of them is a reason not to be ready. A non-root user with
/// the two as ambient ones is the strictest place for it.
#[test]
fn every_setting_of_the_network_works_with_exactly_those_needed() {
    inside(
        // Somewhere for packets to go before the addresses are there.
        |namespace, _| namespace.ip(&["route", "add", "default", "dev", "lo"]),
        || {
            let server = answer_nxdomain();
            let by = [
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--bounding-set=-all,+net_admin,+net_bind_service",
                "--inh-caps=-all,+net_admin,+net_bind_service",
                "--ambient-caps=-all,+net_admin,+net_bind_service",
                "--nnp",
            ];
            let network = "network:\n  address_on: nodens0\n  keep_address: false\n  notrack: true\n  \
                        accept_untracked: true\n  intercept: [10.96.0.10]\n  upstream_notrack: true\n";
            let body = format!(
                "{network}zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"udp://{server}\"] }}\n"
            );
            let mut agent = Agent::start(Home::of_nobody(), &by, &["169.254.20.10:53"], &body);
            let is_ready = || matches!(agent.admin.get("/ready"), Some((200, _)));
            wait_until("the agent is ready", seconds(10), is_ready);
            agent.address = "10.96.0.10:53".parse().expect("address");
            wait_until("the ClusterIP is answered", seconds(10), || agent.answers());
            agent.process.signal("TERM");
            let status = agent.process.wait(seconds(10)).expect("an end");
            let output = agent.process.output();
            assert!(status.success() && !output.contains("CAP_NET"), "{status}: {output}");
        },
    );
}

#[test]
fn without_any_it_answers_on_a_high_port() {
    let by = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--nnp"];
    let agent = Agent::start(Home::of_nobody(), &by, &[], "");
    assert_eq!(agent.capabilities(), Sets::only(0));
    let agent = Agent::start(Home::of_root(), &WITHOUT, &[], "");
    assert_eq!(agent.capabilities(), Sets::only(0));
}

/// As systemd starts a unit with `User=` and `AmbientCapabilities=`.
#[test]
fn another_user_keeps_those_needed_of_its_ambient_ones() {
    inside(
        |_, _| (),
        || {
            let by = [
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--inh-caps=-all,+net_admin,+net_bind_service,+net_raw",
                "--ambient-caps=-all,+net_admin,+net_bind_service,+net_raw",
                "--nnp",
            ];
            let agent = Agent::start(Home::of_nobody(), &by, &PORT_53, BOTH);
            let held = NET_ADMIN | NET_BIND_SERVICE;
            let Sets { bounding, .. } = agent.capabilities();
            // Without CAP_SETPCAP it cannot be made smaller, and gives nothing by itself.
            assert_ne!(bounding & !held, 0);
            let all = Sets { inheritable: held, ambient: held, bounding, ..Sets::only(held) };
            assert_eq!(agent.capabilities(), all);
        },
    );
}

/// A container runtime or an administrator may have opened it.
#[test]
fn a_low_port_that_is_open_to_everybody_needs_none() {
    inside(
        |_, _| (),
        || {
            fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "53").expect("a namespace of ours");
            let agent = Agent::start(Home::of_root(), &WITHOUT, &["127.0.0.1:53", "[::1]:53"], "");
            assert_eq!(agent.capabilities(), Sets::only(0));
        },
    );
}

/// An upstream that knows no name.
fn answer_nxdomain() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
    let address = socket.local_addr().expect("address");
    std::thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut message) {
            message[2] |= 0x80; // RFC 1035 §4.1.1: QR, and the RCODE
            message[3] = 3;
            let _ = socket.send_to(&message[..length], from);
        }
    });
    address
}
