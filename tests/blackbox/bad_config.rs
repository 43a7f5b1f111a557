//! Configs that are wrong: refused with their place, their key, and what would be right.

use std::fs;

use crate::support::{free_port, nodens};

/// A sound config; each wrong one changes one line of it.
const SOUND: &str = "\
listen: [\"127.0.0.1:5301\"]
admin: \"127.0.0.1:9301\"
control: /tmp/nodens-check.sock
allow_from: [\"127.0.0.0/8\", \"fd00::/8\"]
workers: 2
edns_size: 1232
reload: auto
cache:
  size: 16MiB
  rotate: true
zones:
  - match: [cluster.local, in-addr.arpa]
    upstream:
      servers: [\"tcp://127.0.0.1:5302\"]
      connections: { min: 1, max: 16, in_flight: 16, idle: 8s, max_age: 5m }
      policy: least_loaded
      timeout: 4s
    cache:
      min_ttl: 0s
      max_ttl: 1h
      stale: { for: 1h, answer_ttl: 30s, client_response: 500ms, mode: timer }
      prefetch: { hits: 2, at: 10% }
  - match: [\".\"]
    upstream: { servers: [system] }
hosts: { ttl: 30s, records: { \"10.0.0.7\": [db.example.internal] } }
limits: { tcp_connections: 1024, flights: 4096 }
log: { format: json, level: info }
";

/// What stands in the sound one, what stands there instead, and a word the message must have.
const WRONG: &[(&str, &str, &str)] = &[
    ("workers: 2", "wrokers: 2", "wrokers"),
    ("  size: 16MiB", "  szie: 16MiB", "szie"),
    ("      timeout: 4s", "      timeuot: 4s", "timeuot"),
    ("listen: [\"127.0.0.1:5301\"]", "listen: [\"127.0.0.1\"]", "listen"),
    ("listen: [\"127.0.0.1:5301\"]", "listen: [\"0.0.0.0:5301\"]", "listen"),
    ("listen: [\"127.0.0.1:5301\"]", "listen: [\"localhost:5301\"]", "listen"),
    ("listen: [\"127.0.0.1:5301\"]", "listen: []", "listen"),
    ("listen: [\"127.0.0.1:5301\"]", "listen: [\"127.0.0.1:99999\"]", "listen"),
    ("admin: \"127.0.0.1:9301\"", "admin: \"9301\"", "admin"),
    ("allow_from: [\"127.0.0.0/8\", \"fd00::/8\"]", "allow_from: [\"127.0.0.0/33\"]", "allow_from"),
    ("allow_from: [\"127.0.0.0/8\", \"fd00::/8\"]", "allow_from: some", "allow_from"),
    ("workers: 2", "workers: 0", "workers"),
    ("workers: 2", "workers: -1", "workers"),
    ("workers: 2", "workers: many", "workers"),
    ("edns_size: 1232", "edns_size: 511", "edns_size"),
    ("edns_size: 1232", "edns_size: 70000", "edns_size"),
    ("reload: auto", "reload: never", "reload"),
    ("  size: 16MiB", "  size: sixteen", "size"),
    ("  size: 16MiB", "  size: 0", "size"),
    ("  rotate: true", "  rotate: maybe", "rotate"),
    ("  - match: [cluster.local, in-addr.arpa]", "  - match: []", "match"),
    ("  - match: [cluster.local, in-addr.arpa]", "  - match: [cluster..local]", "match"),
    ("  - match: [cluster.local, in-addr.arpa]", "  - match: [cluster.local, Cluster.Local.]", "match"),
    ("  - match: [\".\"]", "  - match: [cluster.local]", "match"),
    ("      servers: [\"tcp://127.0.0.1:5302\"]", "      servers: []", "servers"),
    ("      servers: [\"tcp://127.0.0.1:5302\"]", "      servers: [\"http://127.0.0.1\"]", "servers"),
    ("      servers: [\"tcp://127.0.0.1:5302\"]", "      servers: [\"tcp://127.0.0.1:0\"]", "servers"),
    ("      servers: [\"tcp://127.0.0.1:5302\"]", "      servers: [\"tcp://300.0.0.1:53\"]", "servers"),
    ("      policy: least_loaded", "      policy: fastest", "policy"),
    ("      timeout: 4s", "      timeout: 4", "timeout"),
    ("      timeout: 4s", "      timeout: four seconds", "timeout"),
    ("      timeout: 4s", "      timeout: 0s", "timeout"),
    ("      min_ttl: 0s", "      min_ttl: 2h", "min_ttl"),
    ("      prefetch: { hits: 2, at: 10% }", "      prefetch: { hits: 2, at: 110% }", "at"),
    ("      prefetch: { hits: 2, at: 10% }", "      prefetch: sometimes", "prefetch"),
    (
        "hosts: { ttl: 30s, records: { \"10.0.0.7\": [db.example.internal] } }",
        "hosts: { ttl: 30s, records: { \"10.0.0\": [db.example.internal] } }",
        "hosts",
    ),
    (
        "limits: { tcp_connections: 1024, flights: 4096 }",
        "limits: { tcp_connections: 1024, flights: 0 }",
        "flights",
    ),
    ("log: { format: json, level: info }", "log: { format: xml, level: info }", "format"),
    ("log: { format: json, level: info }", "log: { format: json, level: loud }", "level"),
];

/// Writes a config with fresh ports of its own; returns its directory and path.
fn written(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("nodens.yaml");
    fs::write(&file, text).expect("config");
    let path = file.display().to_string();
    (dir, path)
}

#[test]
fn check_accepts_a_sound_config_and_says_what_it_means() {
    let (_dir, path) = written(SOUND);
    let tool = nodens(&["check", &path]);
    assert_eq!(tool.code, 0, "{}", tool.text());
    assert!(tool.stdout.contains("cluster.local"), "{}", tool.text());
}

#[test]
fn check_names_the_place_and_the_key_of_each_mistake() {
    let mut found = Vec::new();
    for (sound, wrong, key) in WRONG {
        let line = SOUND.lines().position(|line| line == *sound);
        let line = line.unwrap_or_else(|| panic!("no such line: {sound}")) + 1;
        let (_dir, path) = written(&SOUND.replace(sound, wrong));
        let tool = nodens(&["check", &path]);
        let text = tool.text();
        let message = text.lines().find(|text| text.contains(&format!("{path}:{line}:")));
        if tool.code != 78 {
            found.push(format!("`{}`: exit {}\n{text}", wrong.trim(), tool.code));
        } else if !message.is_some_and(|message| message.contains(key)) {
            found.push(format!("`{}`: no `{path}:{line}: … {key}` in\n{text}", wrong.trim()));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn check_names_the_line_of_a_syntax_error() {
    for (text, line) in [
        ("listen: [\"127.0.0.1:53\"\nworkers: 2\n", 2),
        ("workers: 2\nworkers: 3\n", 2),
        ("zones:\n\t- match: [\".\"]\n", 2),
        ("zones:\n  - match: [\".\"]\n", 2), // no upstream
    ] {
        let (_dir, path) = written(text);
        let tool = nodens(&["check", &path]);
        assert_eq!(tool.code, 78, "{text}\n{}", tool.text());
        // Parsers differ by a line on where an unclosed bracket is noticed.
        let near = (line - 1..=line + 1).any(|line| tool.text().contains(&format!("{path}:{line}:")));
        assert!(near, "{text}\n{}", tool.text());
    }
}

#[test]
fn run_with_a_wrong_config_exits_78_with_the_same_message() {
    let (_dir, path) = written(&SOUND.replace("workers: 2", "wrokers: 2"));
    let run = nodens(&["run", "--config", &path]);
    assert_eq!(run.code, 78, "{}", run.text());
    assert!(run.text().contains(&format!("{path}:5:")), "{}", run.text());
    assert!(run.text().contains("wrokers"), "{}", run.text());
    let check = nodens(&["check", &path]);
    assert_eq!(check.code, 78, "{}", check.text());
}

#[test]
fn a_missing_config_is_named() {
    for arguments in
        [&["check", "/nonexistent/nodens.yaml"][..], &["run", "--config", "/nonexistent/nodens.yaml"]]
    {
        let tool = nodens(arguments);
        assert!(tool.code > 0, "{}", tool.text());
        assert!(tool.text().contains("/nonexistent/nodens.yaml"), "{}", tool.text());
        assert!(!tool.text().contains("panicked"), "{}", tool.text());
    }
}

#[test]
fn our_own_address_as_upstream_is_an_error_that_names_it() {
    let (listen, admin) = (free_port(), free_port());
    let text = format!(
        "listen: [\"127.0.0.1:{listen}\"]\nadmin: \"127.0.0.1:{admin}\"\nzones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"tcp://127.0.0.1:{listen}\"] }}\n"
    );
    let (_dir, path) = written(&text);
    let tool = nodens(&["run", "--config", &path]);
    assert!(tool.code > 0, "{}", tool.text());
    assert!(tool.text().contains(&format!("127.0.0.1:{listen}")), "{}", tool.text());
}
