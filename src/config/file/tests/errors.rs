//! Each error, in the very words that an operator reads.

use super::super::parse;

/// What `parse` says of `text`, without the file's name.
pub(super) fn said(text: &str) -> Vec<String> {
    let error = parse(text, "test.yaml").expect_err(text);
    let strip = |line: &str| line.strip_prefix("test.yaml:").expect("the file's name").to_owned();
    error.to_string().lines().map(strip).collect()
}

/// Holds each text against the one error that it must give.
pub(super) fn assert_said(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(said(text), [*expected], "for:\n{text}");
    }
}

/// A valid file whose one zone begins in line 1 and has `upstream` in line 4 and `cache` in line 5.
pub(super) fn zone(upstream: &str, cache: &str) -> String {
    format!("zones:\n- match: [cluster.local]\n\n  upstream: {{ {upstream} }}\n  cache: {{ {cache} }}\n")
}

#[test]
fn shape() {
    assert_said(&[
        ("workers: \"1\n", "1: yaml: unclosed quote: write valid YAML"),
        (
            "workers: 1\n  reload: auto\n",
            "2: yaml: mapping values are not allowed in this context: write valid YAML",
        ),
        ("workers: *one\n", "1: yaml: reference to unknown value: write valid YAML"),
        (
            "listen: []\n---\nlisten: []\n",
            "3: yaml: a second YAML document begins here: keep one document in the file",
        ),
        ("- listen\n", "1: yaml: is not a mapping: write keys and values below it"),
        ("\ncache:\n", "2: cache: has no value: write one, or leave the key out"),
        ("cache: # later\n", "1: cache: has no value: write one, or leave the key out"),
        ("workers:\n", "1: workers: has no value: write one, or leave the key out"),
        ("workers: [1]\n", "1: workers: is a list or a mapping: write one value"),
        ("workers:\n  one: 1\n", "2: workers: is a list or a mapping: write one value"),
        ("cache: 16MiB\n", "1: cache: is not a mapping: write keys and values below it"),
        ("listen: 127.0.0.1:53\n", "1: listen: is not a list: write [one, another]"),
        ("zones: [{ match: . }]", "1: zones[0].match: is not a list: write [one, another]"),
        ("zones:\n- match: [[a]]\n", "2: zones[0].match[0]: is a list or a mapping: write one value"),
        ("workers: 1\nworkers: 2\n", "2: workers: is written twice: keep one of the two"),
        ("log: { level: info, level: warn }\n", "1: log.level: is written twice: keep one of the two"),
        (
            "zones:\n- match: [a]\n- match: [b]\n  match: [c]\n",
            "4: zones[1].match: is written twice: keep one of the two",
        ),
    ]);
}

#[test]
fn unknown_keys() {
    assert_said(&[
        ("\nlisten_on: []\n", "2: listen_on: unknown key: write listen"),
        ("cache:\n  sise: 1MiB\n", "2: cache.sise: unknown key: write size"),
        ("log: { levle: info }\nworkers: \"1\n", "1: levle: unknown key: write level"),
        ("cache: { colour: red }\n", "1: cache.colour: unknown key: write one of size, rotate"),
        (
            "zones:\n- match: [a]\n  upstream:\n    servers: [system]\n- match: [b]\n  upstream:\n    server: [system]\n",
            "7: zones[1].upstream.server: unknown key: write servers",
        ),
        (
            "zones:\n- match: [a]\n  upstream: { servers: [system] }\n  cache:\n    stale:\n      mood: timer\n",
            "6: zones[0].cache.stale.mood: unknown key: write mode",
        ),
        (
            "\"a\\nb\": 1\n",
            "1: a\\nb: unknown key: write one of listen, allow_from, admin, control, workers, reload, \
          edns_size, coredns_names, cache, zones, hosts, network, keep, limits, log",
        ),
    ]);
}

#[test]
fn top_level_values() {
    assert_said(&[
        ("listen: []\n", "1: listen: is empty: name at least one address, such as 169.254.20.10:53"),
        (
            "listen: [\"127.0.0.1:53\", \"[::1]:53\",\n  \"127.0.0.1:53\"]\n",
            "2: listen[2]: repeats listen[0] in line 1: keep one of the two",
        ),
        (
            "listen: [\"0.0.0.0:53\"]\n",
            "1: listen[0]: \"0.0.0.0:53\" is a wildcard, and a reply must come from the address that was asked: \
             name the addresses",
        ),
        (
            "listen: [\"[::]:53\"]\n",
            "1: listen[0]: \"[::]:53\" is a wildcard, and a reply must come from the address that was asked: \
             name the addresses",
        ),
        (
            "listen: [127.0.0.1]\n",
            "1: listen[0]: \"127.0.0.1\" is not an address with a port: write it with its port, such as 127.0.0.1:53",
        ),
        (
            "listen: [\"localhost:53\"]\n",
            "1: listen[0]: \"localhost:53\" is not an address with a port: \
             write IP:port, such as 169.254.20.10:53 or [fd00::a]:53",
        ),
        (
            "allow_from: all\n",
            "1: allow_from: \"all\" is neither auto nor a list: write auto or [10.0.0.0/8]",
        ),
        (
            "allow_from: []\n",
            "1: allow_from: is empty, and nobody would be answered: write auto or [10.0.0.0/8]",
        ),
        (
            "allow_from: [10.0.0.1]\n",
            "1: allow_from[0]: \"10.0.0.1\" has no prefix length: write 10.0.0.1/32 for this address alone",
        ),
        (
            "allow_from: [10.0.0.1/8]\n",
            "1: allow_from[0]: \"10.0.0.1/8\" has bits set beyond its length: write 10.0.0.0/8",
        ),
        (
            "allow_from: [10.0.0.0/33]\n",
            "1: allow_from[0]: \"10.0.0.0/33\" is not a prefix: write one such as 10.0.0.0/8 or fd00::/8",
        ),
        (
            "listen: [\"127.0.0.1:9253\"]\nadmin: \"127.0.0.1:9253\"\n",
            "2: admin: 127.0.0.1:9253 takes the port of listen[0], 127.0.0.1:9253: write another port, such as 127.0.0.1:9253",
        ),
        (
            "admin: 0.0.0.0:53\n",
            "1: admin: 0.0.0.0:53 takes the port of listen, 169.254.20.10:53: write another port, such as 127.0.0.1:9253",
        ),
        (
            "listen: [\"127.0.0.1:9253\"]\n",
            "1: listen[0]: 127.0.0.1:9253 is where admin listens unless it says otherwise: write another port, or set admin as well",
        ),
        (
            "control: control.sock\n",
            "1: control: \"control.sock\" is not an absolute path: write one such as /run/nodens/control.sock",
        ),
        ("workers: 0\n", "1: workers: \"0\" is out of bounds: write a whole number from 1 to 64"),
        ("workers: 65\n", "1: workers: \"65\" is out of bounds: write a whole number from 1 to 64"),
        ("workers: -1\n", "1: workers: \"-1\" is not a whole number: write a whole number from 1 to 64"),
        ("reload: sginal\n", "1: reload: \"sginal\" is not known here: write auto or signal"),
        ("edns_size: 511\n", "1: edns_size: \"511\" is out of bounds: write a whole number from 512 to 4096"),
        (
            "edns_size: 70000\n",
            "1: edns_size: \"70000\" is out of bounds: write a whole number from 512 to 4096",
        ),
        (
            "cache: { size: 1023KiB }\n",
            "1: cache.size: \"1023KiB\" is out of bounds: write 1.0 MiB to 64.0 GiB",
        ),
        ("cache: { size: 99EiB }\n", "1: cache.size: \"99EiB\" is out of bounds: write 1.0 MiB to 64.0 GiB"),
        (
            "cache: { size: big }\n",
            "1: cache.size: \"big\" is not a size: write a number and its unit, such as 16MiB",
        ),
        ("cache: { rotate: yes }\n", "1: cache.rotate: \"yes\" is not known here: write true or false"),
        ("log: { format: xml }\n", "1: log.format: \"xml\" is not known here: write json or text"),
        (
            "log: { level: wran }\n",
            "1: log.level: \"wran\" is not known here: write warn, or another of error, warn, info, debug, trace",
        ),
        (
            "limits: { flights: 0 }\n",
            "1: limits.flights: \"0\" is out of bounds: write a whole number from 1 to 1048576",
        ),
        ("limits: { tcp_idle: 0s }\n", "1: limits.tcp_idle: \"0s\" is out of bounds: write 1ms to 1day"),
    ]);
    let long = format!("control: /{}\n", "a".repeat(107));
    assert!(said(&long)[0].ends_with("is too long for a unix socket: write a path of at most 107 bytes"));
}

#[test]
fn every_limit_refuses_0() {
    for key in
        ["tcp_connections", "tcp_connections_per_address", "tcp_in_flight", "tcp_idle", "flights", "waiters"]
    {
        assert_eq!(said(&format!("limits: {{ {key}: 0 }}")).len(), 1, "{key}");
    }
}

#[test]
fn zone_suffixes() {
    const UPSTREAM: &str = "upstream: { servers: [system] }";
    let cases = [
        ("zones: []\n".to_owned(), "1: zones: is empty: write at least one zone, or leave the key out"),
        (
            format!("zones:\n- {UPSTREAM}\n"),
            "2: zones[0].match: is missing: write a list such as [cluster.local] or [\".\"]",
        ),
        (
            format!("zones:\n- {UPSTREAM}\n  match: []\n"),
            "3: zones[0].match: is empty: write a list such as [cluster.local] or [\".\"]",
        ),
        (
            format!("zones:\n- match: [a, B.]\n  {UPSTREAM}\n- match: [b]\n  {UPSTREAM}\n"),
            "4: zones[1].match[0]: repeats zones[0].match[1] in line 2: keep one of the two",
        ),
        (
            format!("zones:\n- match: [a..b]\n  {UPSTREAM}\n"),
            "2: zones[0].match[0]: \"a..b\" has an empty label: write a name such as cluster.local, or . for every name",
        ),
        (
            format!("zones:\n- match: [\"*.local\"]\n  {UPSTREAM}\n"),
            "2: zones[0].match[0]: \"*.local\" holds a wildcard: write the suffix alone: it covers every name below it",
        ),
        (
            format!("zones:\n- match: [a b]\n  {UPSTREAM}\n"),
            "2: zones[0].match[0]: \"a b\" is not a domain name: \
             write letters, digits, - and _ in labels with dots between them",
        ),
        (
            format!("zones:\n- match: [10.0.0.0/8]\n  {UPSTREAM}\n"),
            "2: zones[0].match[0]: \"10.0.0.0/8\" is an address and not a name: \
             write a name, such as 10.in-addr.arpa for 10.0.0.0/8",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(said(&text), [expected], "for:\n{text}");
    }
    for long in ["a".repeat(64), "abc.".repeat(64)] {
        let error = said(&format!("zones:\n- match: [{long}]\n  {UPSTREAM}\n"));
        assert!(
            error[0].ends_with(
                "is too long: write labels of at most 63 characters and at most 255 in all (RFC 1035 §2.3.4)"
            ),
            "{error:?}"
        );
    }
}

#[test]
fn lifetimes() {
    for (cache, expected) in [
        ("min_ttl: 2h", "min_ttl: 2h is more than max_ttl, 1h: write at most 1h, or raise max_ttl"),
        ("max_ttl: 8d", "max_ttl: \"8d\" is out of bounds: write 0s to 7days"),
        (
            "min_ttl: 500ms",
            "min_ttl: \"500ms\" has a part of a second: write whole seconds, as a TTL has no smaller unit",
        ),
        ("negative_max_ttl: 8d", "negative_max_ttl: \"8d\" is out of bounds: write 0s to 7days"),
        ("negative_no_soa_ttl: 8d", "negative_no_soa_ttl: \"8d\" is out of bounds: write 0s to 7days"),
        ("failure: { transport: 301s }", "failure.transport: \"301s\" is out of bounds: write 0s to 5m"),
        ("failure: { servfail_max: 6m }", "failure.servfail_max: \"6m\" is out of bounds: write 0s to 5m"),
        (
            "failure: { servfail: 11s }",
            "failure.servfail: 11s is more than servfail_max, 10s: write at most 10s, or raise servfail_max",
        ),
        (
            "failure: { servfail_max: 0s }",
            "failure.servfail_max: is below the default of servfail: raise it, or lower servfail as well",
        ),
        (
            "stale: maybe",
            "stale: \"maybe\" is neither off nor a mapping: write off, or keys and values below it",
        ),
        (
            "stale: false",
            "stale: \"false\" is neither off nor a mapping: write off, or keys and values below it",
        ),
        ("stale: { for: 0s }", "stale.for: \"0s\" is out of bounds: write 1s to 7days"),
        ("stale: { answer_ttl: 0s }", "stale.answer_ttl: \"0s\" is out of bounds: write 1s to 7days"),
        (
            "stale: { client_response: 31s }",
            "stale.client_response: \"31s\" is out of bounds: write 0s to 30s",
        ),
        ("stale: { failure_recheck: 1h }", "stale.failure_recheck: \"1h\" is out of bounds: write 0s to 5m"),
        ("stale: { mode: never }", "stale.mode: \"never\" is not known here: write timer or immediate"),
        (
            "prefetch: 2",
            "prefetch: \"2\" is neither off nor a mapping: write off, or keys and values below it",
        ),
        (
            "prefetch: { hits: 0 }",
            "prefetch.hits: \"0\" is out of bounds: write a whole number from 1 to 1000000",
        ),
        (
            "prefetch: { at: 10 }",
            "prefetch.at: \"10\" is not a percentage in bounds: write a whole percentage from 1% to 90%",
        ),
        (
            "prefetch: { at: 91% }",
            "prefetch.at: \"91%\" is not a percentage in bounds: write a whole percentage from 1% to 90%",
        ),
    ] {
        assert_eq!(said(&zone("servers: [system]", cache)), [format!("5: zones[0].cache.{expected}")]);
    }
}

#[test]
fn hosts() {
    assert_said(&[
        (
            "hosts: { records: { db: [a] } }",
            "1: hosts.records.db: \"db\" is not an IP address: write one such as 10.0.0.7 or fd00::7",
        ),
        (
            "hosts:\n  records:\n    10.0.0.7: [a, a b]",
            "3: hosts.records.10.0.0.7[1]: \"a b\" is not a domain name: \
             write letters, digits, - and _ in labels with dots between them",
        ),
        (
            "hosts: { records: { 10.0.0.7: [] } }",
            "1: hosts.records.10.0.0.7: has no name: write a list of names, such as [db.example.internal]",
        ),
        (
            "hosts: { records: { 10.0.0.7: a } }",
            "1: hosts.records.10.0.0.7: is not a list: write [one, another]",
        ),
        (
            "hosts:\n  records:\n    \"::7\": [a]\n    \"0::7\": [b]\n",
            "4: hosts.records.0::7: repeats the address ::7: put all its names into one list",
        ),
        ("hosts: { ttl: 8d }", "1: hosts.ttl: \"8d\" is out of bounds: write 0s to 7days"),
    ]);
}

#[test]
fn what_this_version_cannot_do() {
    let cases = [
        ("coredns_names: true", "1: coredns_names"),
        ("log: { queries: failures }", "1: log.queries"),
        ("keep: { handover: /tmp/h }", "1: keep.handover"),
        ("keep: { watchdog: 4s }", "1: keep.watchdog"),
        ("keep: { receive_buffer: 1MiB }", "1: keep.receive_buffer"),
    ];
    for (text, key) in cases {
        assert_eq!(said(text), [format!("{key}: not available in this version: leave it out")]);
    }
}

#[test]
fn all_wrong_values_are_told_at_once() {
    let text = "workers: 0\nedns_size: 1\nzones:\n- match: [a..]\n  upstream: { servers: [\"tcp://x y\"], timeout: 1 }\n";
    let keys: Vec<String> =
        said(text).iter().map(|line| line.splitn(3, ':').take(2).collect::<Vec<_>>().join(":")).collect();
    assert_eq!(
        keys,
        [
            "1: workers",
            "2: edns_size",
            "4: zones[0].match[0]",
            "5: zones[0].upstream.servers[0]",
            "5: zones[0].upstream.timeout"
        ]
    );
}

#[test]
fn a_wrong_value_behind_an_anchor_is_told_where_it_is_used() {
    let text = "zones:\n- match: [a]\n  upstream: &dns { servers: [system] }\n- match: [b]\n  upstream: *dns\n  cache: &c { stale: on }\n";
    assert_eq!(
        said(text),
        [
            "6: zones[1].cache.stale: \"on\" is neither off nor a mapping: write off, or keys and values below it"
        ]
    );
}

#[test]
fn long_text_is_not_repeated_in_full() {
    let error = said(&format!("workers: {}\n", "9".repeat(1000)));
    assert!(error[0].len() < 200, "{error:?}");
}
