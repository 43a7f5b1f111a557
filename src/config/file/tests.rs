use std::fs;
use std::io::Write;
use std::time::Duration;

use proptest::prelude::*;
use serde_saphyr::{Error, Spanned};

use super::tree::Tree;
use super::*;
use crate::config::{AllowFrom, Hosts, Mark, Network, StaleMode, Zone};

mod errors;
mod network;
mod upstream;

const REFERENCE: &str = include_str!("../../../config/reference.yaml");

fn parsed(text: &str) -> Config {
    parse(text, "test.yaml").unwrap_or_else(|error| panic!("{error}"))
}

/// The zone that `text`, a list of two-space indented keys, makes of `cluster.local`.
fn cluster_zone(text: &str) -> Zone {
    let text = format!("zones:\n- match: [cluster.local]\n  upstream: {{ servers: [system] }}\n{text}\n");
    parsed(&text).zones.remove(0)
}

#[test]
fn empty_file_is_the_default() {
    for text in ["", "\n\n", "# nothing but this\n", "{}", "cache: {}\nlog: {}\nhosts: {}\nkeep: {}\n"] {
        assert_eq!(parsed(text), Config::default(), "{text:?}");
    }
}

/// The reference shows what holds on a node with several cores; a single core alone has another default.
#[test]
fn reference_is_the_default() {
    let config = parsed(REFERENCE);
    assert_eq!(config.workers, 2);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(Config::default().workers, cores.min(2));
    assert_eq!(config, Config { workers: config.workers, ..Config::default() });
}

/// A key that no mapping knows is put into every mapping of the reference in turn: the error then names the
/// keys that the mapping knows, and the reference must show all of them.
#[test]
fn reference_shows_every_key() {
    let tree = Tree::read(REFERENCE).expect("a tree");
    let mut seen = 0;
    visit_mappings(&tree, "", &mut |path, entries| {
        if path == "hosts.records" {
            return;
        }
        let (first, _) = entries.first().unwrap_or_else(|| panic!("{path} shows no key"));
        let shown: Vec<&str> = entries.iter().map(|(key, _)| key.value.as_str()).collect();
        let mut known = known_keys(first).unwrap_or_else(|| panic!("{path} accepts any key"));
        known.sort_unstable();
        let mut sorted = shown.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, known, "keys of {path:?}");
        seen += 1;
    });
    // The file and its sections; a section that is no longer shown as a mapping would hide its keys.
    assert_eq!(seen, 16);
}

/// Keys of the mapping that begins with `first`, from the reader's own list.
fn known_keys(first: &Spanned<String>) -> Option<Vec<&'static str>> {
    const UNKNOWN: &str = "no_such_key: 1";
    let (line, column) = (first.referenced.line() as usize - 1, first.referenced.column() as usize - 1);
    let mut lines: Vec<String> = REFERENCE.lines().map(str::to_owned).collect();
    let (before, after) = lines[line].split_at(column);
    lines[line] = format!("{before}{UNKNOWN}\n{}{after}", " ".repeat(column));
    match serde_saphyr::from_str_with_options::<raw::File>(&lines.join("\n"), options()) {
        Err(Error::SerdeUnknownField { field, expected, .. }) if field == "no_such_key" => Some(expected),
        _ => None,
    }
}

type Entries = [(Spanned<String>, Spanned<Tree>)];

fn visit_mappings(tree: &Spanned<Tree>, path: &str, visit: &mut impl FnMut(&str, &Entries)) {
    match &tree.value {
        Tree::Leaf => {}
        Tree::List(items) => {
            for (index, item) in items.iter().enumerate() {
                visit_mappings(item, &format!("{path}[{index}]"), visit);
            }
        }
        Tree::Map(entries) => {
            visit(path, entries);
            for (key, value) in entries {
                visit_mappings(value, &tree::join(path, &key.value), visit);
            }
        }
    }
}

#[test]
fn zones_other_than_the_root_answer_stale_sooner() {
    let stale = cluster_zone("").policy.stale.expect("stale is on");
    assert_eq!(stale.client_response, Duration::from_millis(500));
    let both = parsed("zones: [{ match: [a, .], upstream: { servers: [system] } }]").zones.remove(0);
    assert_eq!(both.policy.stale.expect("stale is on").client_response, Duration::from_millis(1800));
}

#[test]
fn a_section_keeps_the_defaults_that_it_does_not_name() {
    let zone = cluster_zone("  cache: { stale: { mode: immediate, for: 2h }, prefetch: { at: 25% } }");
    let stale = zone.policy.stale.expect("stale is on");
    assert_eq!(stale.mode, StaleMode::Immediate);
    assert_eq!(stale.max_age, Duration::from_secs(7200));
    assert_eq!(stale.client_response, Duration::from_millis(500));
    let prefetch = zone.policy.prefetch.expect("prefetch is on");
    assert_eq!((prefetch.hits, prefetch.at), (2, 0.25));
}

#[test]
fn stale_prefetch_and_hedge_can_be_off() {
    let zone = cluster_zone("  cache: { stale: off, prefetch: \"off\" }");
    assert_eq!((zone.policy.stale, zone.policy.prefetch), (None, None));
    let hedge = "zones: [{ match: [.], upstream: { servers: [system], hedge: off } }]";
    assert_eq!(parsed(hedge).zones[0].upstream.hedge, None);
}

#[test]
fn names_become_lower_case_and_qualified() {
    let zone =
        parsed("zones: [{ match: [Cluster.LOCAL, b.], upstream: { servers: [system] } }]").zones.remove(0);
    let shown: Vec<String> = zone.matches.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["cluster.local.", "b."]);
    assert!(zone.matches.iter().all(hickory_proto::rr::Name::is_fqdn));
}

#[test]
fn port_0_and_several_families_are_fine() {
    let config = parsed("listen: [\"127.0.0.1:0\", \"127.0.0.1:0\", \"[::1]:0\"]\nadmin: \"127.0.0.1:0\"\n");
    assert_eq!(config.listen.len(), 3);
}

#[test]
fn hosts_keep_their_order() {
    let config =
        parsed("hosts:\n  ttl: 1m\n  records:\n    10.0.0.9: [b.internal, a.internal]\n    fd00::7: [c]\n");
    let name = |text: &str| value::name(text).expect("a name");
    let expected = Hosts {
        ttl: Duration::from_secs(60),
        records: vec![
            ("10.0.0.9".parse().expect("an address"), vec![name("b.internal"), name("a.internal")]),
            ("fd00::7".parse().expect("an address"), vec![name("c")]),
        ],
    };
    assert_eq!(config.hosts, expected);
}

#[test]
fn prefixes_replace_auto() {
    let config = parsed("allow_from: [10.0.0.0/8, \"fd00::/8\"]");
    let prefix = |text: &str| text.parse().expect("a prefix");
    assert_eq!(config.allow_from, AllowFrom::Prefixes(vec![prefix("10.0.0.0/8"), prefix("fd00::/8")]));
}

#[test]
fn values_may_come_through_anchors() {
    let text = "zones:\n- match: [a]\n  upstream: &dns { servers: [\"tcp://10.96.0.10\"] }\n- match: [b]\n  upstream: *dns\n";
    let config = parsed(text);
    assert_eq!(config.zones[0].upstream, config.zones[1].upstream);
}

#[test]
fn other_spellings_of_a_default_are_the_default() {
    let text = "keep: { watchdog: 3000ms, receive_buffer: 4096KiB }\nnetwork: { mark: { intercept: 53, own: 54 } }\n";
    assert_eq!(parsed(text), Config::default());
}

#[test]
fn marks_are_hexadecimal_or_decimal() {
    let network = parsed("network: { upstream_notrack: true, mark: { own: 0x3600, mask: 65280 } }").network;
    assert!(network.upstream_notrack);
    assert_eq!(network.mark, Mark { intercept: 0x35, own: 0x3600, mask: 0xff00 });
}

#[test]
fn the_network_of_a_node_is_read() {
    let network = parsed(
        "listen: [\"169.254.20.10:53\", \"[fd00::a]:53\"]\nnetwork:\n  address_on: nodelocaldns\n  keep_address: false\n  \
         notrack: true\n  accept_untracked: true\n  intercept: [10.96.0.10, \"fd00:96::a\"]\n",
    )
    .network;
    let expected = Network {
        address_on: Some("nodelocaldns".to_owned()),
        keep_address: false,
        notrack: true,
        accept_untracked: true,
        intercept: vec!["10.96.0.10".parse().expect("an address"), "fd00:96::a".parse().expect("an address")],
        ..Network::default()
    };
    assert_eq!(network, expected);
    assert_eq!(parsed("network: { address_on: none, intercept: [] }").network, Network::default());
}

#[test]
fn load_tells_versions_of_a_file_apart() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let first = load(file.path()).expect("empty is valid");
    assert_eq!(first.config, Config::default());
    // The published value of FNV-1a for no bytes.
    assert_eq!(first.hash, "cbf29ce484222325");
    writeln!(file, "workers: 1").expect("written");
    let second = load(file.path()).expect("valid");
    assert_eq!(second.config.workers, 1);
    assert_ne!(first.hash, second.hash);
    // The published value of FNV-1a for "foobar".
    assert_eq!(digest("foobar"), "85944171f73967e8");
}

#[test]
fn load_says_why_a_file_cannot_be_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("none.yaml");
    let expected = format!(
        "{}:0: file: cannot be read (No such file or directory (os error 2)): name a YAML file that this user may read",
        path.display()
    );
    assert_eq!(load(&path).expect_err("no file").to_string(), expected);

    fs::write(&path, "#".repeat(MAX_FILE as usize + 1)).expect("written");
    let error = load(&path).expect_err("too large").to_string();
    assert!(error.contains("larger than 1048576 bytes"), "{error}");

    fs::write(&path, [0xff, 0xfe]).expect("written");
    let error = load(&path).expect_err("no UTF-8").to_string();
    assert!(error.contains("UTF-8"), "{error}");
}

/// Every problem is one line, and says all that it has to.
fn is_well_said(error: &ConfigError) -> bool {
    !error.problems.is_empty()
        && error.to_string().lines().count() == error.problems.len()
        && error.problems.iter().all(|problem| !problem.what.is_empty() && !problem.fix.is_empty())
}

fn never_panics(text: &str) -> Result<(), TestCaseError> {
    if let Err(error) = parse(text, "test.yaml") {
        prop_assert!(is_well_said(&error), "{error:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in any::<String>()) {
        never_panics(&text)?;
    }

    #[test]
    fn any_yaml_like_text_is_read_or_refused(text in "[a-z:\\-\\[\\]{}\"' .0-9&*!?|>%#,\\n]{0,200}") {
        never_panics(&text)?;
    }

    #[test]
    fn any_value_is_read_or_refused(value in "\\PC{0,40}", key in 0_usize..KEYS.len()) {
        never_panics(&KEYS[key].replace('@', &value))?;
        never_panics(&KEYS[key].replace('@', &format!("{value:?}")))?;
    }

    #[test]
    fn any_duration_is_read_or_refused(value in "[0-9.]{1,22}(s|ms|h|d|w|y)( ?[0-9]{1,10}(s|ms|ns|m))?") {
        never_panics(&format!("limits: {{ tcp_idle: {value} }}"))?;
    }

    #[test]
    fn any_change_of_the_reference_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..20, any::<String>()), 1..4)
    ) {
        let mut text: Vec<char> = REFERENCE.chars().collect();
        for (at, length, with) in changes {
            let from = at.index(text.len());
            let to = (from + length).min(text.len());
            text.splice(from..to, with.chars());
        }
        never_panics(&text.into_iter().collect::<String>())?;
    }

    #[test]
    fn any_lines_of_the_reference_are_read_or_refused(
        keep in prop::collection::vec(any::<bool>(), REFERENCE.lines().count())
    ) {
        let kept = REFERENCE.lines().zip(keep).filter(|(_, keep)| *keep).map(|(line, _)| line);
        never_panics(&kept.collect::<Vec<_>>().join("\n"))?;
    }
}

/// A key of each kind of value.
const KEYS: &[&str] = &[
    "listen: [@]",
    "allow_from: @",
    "control: @",
    "edns_size: @",
    "cache: { size: @ }",
    "limits: { tcp_idle: @ }",
    "log: { level: @ }",
    "zones: [{ match: [@], upstream: { servers: [system] } }]",
    "zones: [{ match: [a], upstream: { servers: [@], bootstrap: [tcp://10.96.0.10] } }]",
    "zones: [{ match: [a], upstream: { servers: [tls://@] } }]",
    "zones: [{ match: [a], upstream: { servers: [system], hedge: { budget: @, burst: @ }, ca: @ } }]",
    "network: { upstream_notrack: @, mark: { own: @, mask: @ } }",
    "network: { address_on: @, intercept: [@], mark: { intercept: @ } }",
    "zones: [{ match: [a], upstream: { servers: [system] }, cache: { prefetch: { at: @ } } }]",
    "zones: [{ match: [a], upstream: { servers: [system] }, cache: { stale: @ } }]",
    "hosts: { records: { @: [@] } }",
];
