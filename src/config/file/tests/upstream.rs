//! Servers and how they are asked: what is read, and each error in the very words that an operator reads.

use std::path::Path;

use super::errors::{said, zone};
use super::*;
use crate::config::{Hedge, Scheme, Server, ServerPolicy, Upstream};

/// The upstream that these keys make.
fn upstream(text: &str) -> Upstream {
    parsed(&zone(text, "")).zones.remove(0).upstream
}

#[test]
fn servers_are_read_with_and_without_ports() {
    let text = "zones:\n- match: [a]\n  upstream:\n    policy: round_robin\n    servers: \
        [\"tcp://10.96.0.10\", \"udp://10.96.0.10:5353\", \"tcp://[fd00::a]\", \"udp://[fd00::a]:54\", system]\n";
    let upstream = parsed(text).zones.remove(0).upstream;
    let address = |text: &str| text.parse().expect("an address");
    assert_eq!(
        upstream.servers,
        [
            Server::Tcp(address("10.96.0.10:53")),
            Server::Udp(address("10.96.0.10:5353")),
            Server::Tcp(address("[fd00::a]:53")),
            Server::Udp(address("[fd00::a]:54")),
            Server::System,
        ]
    );
    assert_eq!(upstream.policy, ServerPolicy::RoundRobin);
    let shown: Vec<String> = upstream.servers.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "tcp://10.96.0.10:53",
            "udp://10.96.0.10:5353",
            "tcp://[fd00::a]:53",
            "udp://[fd00::a]:54",
            "system"
        ]
    );
}

#[test]
fn every_scheme_is_read_and_shown_as_it_may_be_written() {
    let name = |text: &str| value::name(text).expect("a name");
    let address = |text: &str| text.parse().expect("an address");
    let tls = |at: &str, name: &str| Server::Tls(address(at), name.to_owned());
    for (text, expected, shown) in [
        (
            "tls://9.9.9.9#dns.quad9.net",
            tls("9.9.9.9:853", "dns.quad9.net"),
            "tls://9.9.9.9:853#dns.quad9.net",
        ),
        (
            "tls://9.9.9.9:8853#DNS.Example.",
            tls("9.9.9.9:8853", "dns.example"),
            "tls://9.9.9.9:8853#dns.example",
        ),
        ("tls://[2620:fe::9]#9.9.9.9", tls("[2620:fe::9]:853", "9.9.9.9"), "tls://[2620:fe::9]:853#9.9.9.9"),
        ("auto://10.96.0.10", Server::Auto(address("10.96.0.10:53")), "auto://10.96.0.10:53"),
        ("auto://[fd00::a]:54", Server::Auto(address("[fd00::a]:54")), "auto://[fd00::a]:54"),
        ("tcp://DNS.svc", Server::Named(Scheme::Tcp, name("dns.svc"), 53), "tcp://dns.svc.:53"),
        ("udp://dns.svc.:5353", Server::Named(Scheme::Udp, name("dns.svc"), 5353), "udp://dns.svc.:5353"),
        ("auto://localhost", Server::Named(Scheme::Auto, name("localhost"), 53), "auto://localhost.:53"),
    ] {
        let read = |text: &str| {
            let upstream = upstream(&format!("servers: [{text:?}], bootstrap: [\"tcp://10.96.0.10\"]"));
            assert_eq!(upstream.bootstrap, [Server::Tcp(address("10.96.0.10:53"))]);
            upstream.servers
        };
        assert_eq!(read(text), std::slice::from_ref(&expected), "{text}");
        assert_eq!(expected.to_string(), shown);
        assert_eq!(read(shown), [expected], "what is shown can be written");
    }
}

#[test]
fn who_resolves_names_is_asked_in_any_way_at_an_address() {
    let servers = "servers: [\"tcp://dns.svc\"], bootstrap: [\"udp://10.96.0.10\", \"auto://10.96.0.11\", \
                   \"tls://10.96.0.12#dns.example\"]";
    let shown: Vec<String> = upstream(servers).bootstrap.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["udp://10.96.0.10:53", "auto://10.96.0.11:53", "tls://10.96.0.12:853#dns.example"]);
    // Nobody needs it, and it does no harm.
    assert_eq!(upstream("servers: [system], bootstrap: [\"tcp://10.96.0.10\"]").bootstrap.len(), 1);
}

#[test]
fn second_queries_and_authorities_are_read() {
    let hedge = |text: &str| upstream(&format!("servers: [system], {text}")).hedge;
    assert_eq!(hedge("hedge: {}"), Some(Hedge { budget: 5, burst: 128 }));
    assert_eq!(hedge("hedge: { budget: 2% }"), Some(Hedge { budget: 2, burst: 128 }));
    assert_eq!(hedge("hedge: { budget: 100%, burst: 65536 }"), Some(Hedge { budget: 100, burst: 65_536 }));
    assert_eq!(hedge("hedge: off"), None);
    assert_eq!(upstream("servers: [system], ca: system").ca, None);
    let ca = upstream("servers: [system], ca: /etc/nodens/ca.pem").ca;
    assert_eq!(ca.as_deref(), Some(Path::new("/etc/nodens/ca.pem")));
}

#[test]
fn wrong_servers() {
    const SCHEMES: &str = "write tcp://10.96.0.10, udp://[fd00::a]:5353 or system";
    let cases = [
        ("", "is missing: write a list such as [\"tcp://10.96.0.10\"] or [system]".to_owned()),
        (
            "10.0.0.1",
            "\"10.0.0.1\" does not say how to ask: write tcp://10.0.0.1 or udp://10.0.0.1".to_owned(),
        ),
        (
            "10.0.0.1:53",
            "\"10.0.0.1:53\" does not say how to ask: write tcp://10.0.0.1:53 or udp://10.0.0.1:53"
                .to_owned(),
        ),
        (
            "fd00::a",
            "\"fd00::a\" does not say how to ask: write tcp://[fd00::a] or udp://[fd00::a]".to_owned(),
        ),
        ("sytem", format!("\"sytem\" does not say how to ask: {SCHEMES}")),
        (
            "tcp://fd00::a",
            "\"tcp://fd00::a\" lacks brackets around the address: write tcp://[fd00::a]".to_owned(),
        ),
        (
            "tcp://10.0.0.1:x",
            "\"tcp://10.0.0.1:x\" holds no IP address or host name: write tcp://10.96.0.10 or tcp://[fd00::a]:5353"
                .to_owned(),
        ),
        ("tcp://10.0.0.1:0", format!("\"tcp://10.0.0.1:0\" cannot be asked: {SCHEMES}")),
        ("udp://0.0.0.0", format!("\"udp://0.0.0.0\" cannot be asked: {SCHEMES}")),
        (
            "https://10.0.0.1",
            "\"https://10.0.0.1\" has no scheme of ours: write one of tcp://, udp://, auto:// and tls://, or system"
                .to_owned(),
        ),
        (
            "tcp://169.254.20.10",
            "169.254.20.10:53 is one of our own listen addresses, a loop: name the cluster's DNS service"
                .to_owned(),
        ),
    ];
    for (server, expected) in cases {
        let (text, key) = if server.is_empty() {
            (zone("", ""), "2: zones[0].upstream.servers")
        } else {
            (zone(&format!("servers: [system, {server:?}]"), ""), "4: zones[0].upstream.servers[1]")
        };
        assert_eq!(said(&text), [format!("{key}: {expected}")]);
    }
    assert_eq!(
        said(&zone("servers: [system, system]", "")),
        [
            "4: zones[0].upstream.servers[1]: repeats zones[0].upstream.servers[0] in line 4: keep one of the two"
        ]
    );
    assert_eq!(
        said(&zone("servers: []", "")),
        ["4: zones[0].upstream.servers: is empty: write a list such as [\"tcp://10.96.0.10\"] or [system]"]
    );
}

#[test]
fn wrong_upstream_values() {
    for (upstream, expected) in [
        ("mixed_case: on", "mixed_case: \"on\" is not known here: write true or false"),
        ("timeout: 0s", "timeout: \"0s\" is out of bounds: write 1ms to 30s"),
        ("timeout: 31s", "timeout: \"31s\" is out of bounds: write 1ms to 30s"),
        (
            "timeout: -1s",
            "timeout: \"-1s\" is not a duration: write a number and its unit, such as 30s, 500ms, 5m or 1h",
        ),
        (
            "timeout: 4",
            "timeout: \"4\" is not a duration: write a number and its unit, such as 30s, 500ms, 5m or 1h",
        ),
        (
            "policy: least_load",
            "policy: \"least_load\" is not known here: \
             write least_loaded, or another of least_loaded, random, round_robin, sequential",
        ),
        (
            "connections: { min: 17 }",
            "connections.min: 17 is more than max, 16: write at most 16, or raise max",
        ),
        (
            "connections: { min: 4, max: 2 }",
            "connections.min: 4 is more than max, 2: write at most 2, or raise max",
        ),
        (
            "connections: { max: 0 }",
            "connections.max: \"0\" is out of bounds: write a whole number from 1 to 1024",
        ),
        (
            "connections: { in_flight: 0 }",
            "connections.in_flight: \"0\" is out of bounds: write a whole number from 1 to 1024",
        ),
        (
            "connections: { in_flight: 1025 }",
            "connections.in_flight: \"1025\" is out of bounds: write a whole number from 1 to 1024",
        ),
        ("connections: { idle: 0s }", "connections.idle: \"0s\" is out of bounds: write 1ms to 1day"),
        ("hedge: on", "hedge: \"on\" is neither off nor a mapping: write off, or keys and values below it"),
        (
            "hedge: { budget: 0% }",
            "hedge.budget: \"0%\" is not a percentage in bounds: write a whole percentage from 1% to 100%",
        ),
        (
            "hedge: { budget: 5 }",
            "hedge.budget: \"5\" is not a percentage in bounds: write a whole percentage from 1% to 100%",
        ),
        ("hedge: { burst: 0 }", "hedge.burst: \"0\" is out of bounds: write a whole number from 1 to 65536"),
        ("hedge: { budged: 5% }", "hedge.budged: unknown key: write budget"),
        (
            "ca: ca.pem",
            "ca: \"ca.pem\" is neither system nor an absolute path: write system, or a PEM file such as /etc/nodens/ca.pem",
        ),
        ("connections: { max_age: 2d }", "connections.max_age: \"2d\" is out of bounds: write 1ms to 1day"),
    ] {
        let text = zone(&format!("servers: [system], {upstream}"), "");
        assert_eq!(said(&text), [format!("4: zones[0].upstream.{expected}")]);
    }
}

#[test]
fn wrong_schemes_and_names() {
    const KEY: &str = "4: zones[0].upstream.servers[0]";
    const BOOTSTRAP: &str = "bootstrap: [\"tcp://10.96.0.10\"]";
    for (server, expected) in [
        (
            "tls://9.9.9.9",
            "\"tls://9.9.9.9\" does not say which name the server's certificate has: write tls://9.9.9.9#NAME",
        ),
        (
            "tls://9.9.9.9:853#",
            "\"tls://9.9.9.9:853#\" does not say which name the server's certificate has: write tls://9.9.9.9:853#NAME",
        ),
        (
            "tls://9.9.9.9#a b",
            "\"a b\" is no name that a certificate can have: write a host name such as dns.quad9.net",
        ),
        (
            "tls://dns.quad9.net",
            "\"tls://dns.quad9.net\" holds no IP address, which a tls:// server needs: write tls://9.9.9.9#dns.quad9.net",
        ),
        (
            "tls://2620:fe::9#dns.quad9.net",
            "\"tls://2620:fe::9#dns.quad9.net\" lacks brackets around the address: write tls://[2620:fe::9]#NAME",
        ),
        (
            "tls://0.0.0.0#dns.quad9.net",
            "\"tls://0.0.0.0#dns.quad9.net\" cannot be asked: write tls://9.9.9.9#dns.quad9.net",
        ),
        (
            "tcp://9.9.9.9#dns.quad9.net",
            "\"tcp://9.9.9.9#dns.quad9.net\" names a certificate, which only tls:// servers have: \
             write tcp://9.9.9.9 or tls://9.9.9.9#dns.quad9.net",
        ),
        ("auto://fd00::a", "\"auto://fd00::a\" lacks brackets around the address: write auto://[fd00::a]"),
        (
            "tcp://10.96.0.256",
            "\"tcp://10.96.0.256\" holds no IP address or host name: \
             write tcp://10.96.0.10 or tcp://[fd00::a]:5353",
        ),
        ("udp://dns.svc:0", "\"udp://dns.svc:0\" has no port behind its colon: write udp://dns.svc:53"),
        (
            "auto://dns..svc",
            "\"auto://dns..svc\" holds no IP address or host name: \
             write auto://10.96.0.10 or auto://[fd00::a]:5353",
        ),
    ] {
        let text = zone(&format!("servers: [{server:?}], {BOOTSTRAP}"), "");
        assert_eq!(said(&text), [format!("{KEY}: {expected}")]);
    }
    for address in ["tls://169.254.20.10:53#a", "auto://169.254.20.10", "udp://169.254.20.10"] {
        let text = zone(&format!("servers: [{address:?}]"), "");
        assert!(said(&text)[0].contains("is one of our own listen addresses, a loop"), "{address}");
    }
}

#[test]
fn a_name_needs_somebody_who_resolves_it() {
    let fault = "4: zones[0].upstream.servers[1]: nobody is named who resolves dns.svc.: \
                 write zones[0].upstream.bootstrap, such as [\"tcp://10.96.0.10\"]";
    for bootstrap in ["", ", bootstrap: []"] {
        assert_eq!(said(&zone(&format!("servers: [system, \"tcp://dns.svc\"]{bootstrap}"), "")), [fault]);
    }
    for (server, expected) in [
        ("system", "\"system\" is not a server at an address"),
        ("tcp://dns.svc", "\"tcp://dns.svc\" is not a server at an address"),
    ] {
        let text = zone(&format!("servers: [\"tcp://dns.svc\"], bootstrap: [{server:?}]"), "");
        let fix = "write one such as tcp://10.96.0.10, whose address need not be looked up";
        assert_eq!(said(&text), [format!("4: zones[0].upstream.bootstrap[0]: {expected}: {fix}")]);
    }
    let loops = zone("servers: [\"tcp://dns.svc\"], bootstrap: [\"udp://169.254.20.10\"]", "");
    assert_eq!(
        said(&loops),
        ["4: zones[0].upstream.bootstrap[0]: 169.254.20.10:53 is one of our own listen addresses, a loop: \
             name the cluster's DNS service"]
    );
    let twice = zone("servers: [system], bootstrap: [\"tcp://10.96.0.10\", \"tcp://10.96.0.10:53\"]", "");
    assert_eq!(
        said(&twice),
        [
            "4: zones[0].upstream.bootstrap[1]: repeats zones[0].upstream.bootstrap[0] in line 4: keep one of the two"
        ]
    );
}
