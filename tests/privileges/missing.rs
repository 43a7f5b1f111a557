//! A missing capability ends the start, with the setting that needs it.

use crate::agent::{Agent, Home, WITHOUT};
use crate::support::{inside, seconds};

/// What an agent prints that does not start.
#[track_caller]
fn refused(home: Home, by: &[&str], listen: &[&str], body: &str) -> String {
    let mut agent = Agent::launch(home, by, listen, body);
    let status = agent.process.wait(seconds(10)).expect("an end");
    let output = agent.process.output();
    assert_eq!(status.code(), Some(1), "{output}");
    output
}

/// The lines for people, of which there is one for each setting.
fn needs(output: &str) -> Vec<(&str, &str)> {
    let lines = output.lines().map(|line| line.trim_start_matches("nodens: "));
    lines
        .filter(|line| !line.starts_with('{'))
        .filter_map(|line| line.split_once(" needs "))
        .map(|(setting, rest)| (setting, rest.split(':').next().unwrap_or_default()))
        .collect()
}

#[test]
fn every_missing_one_is_named_with_its_setting_at_once() {
    inside(
        |_, _| (),
        || {
            let body = "network:\n  address_on: nodens0\n  notrack: true\n  accept_untracked: true\n  \
                        intercept: [10.96.0.10]\n  upstream_notrack: true\n\
                        zones:\n  - match: [\".\"]\n    upstream: { servers: [\"udp://192.0.2.1\"] }\n";
            let output = refused(Home::of_root(), &WITHOUT, &["127.0.0.1:53", "[::1]:53"], body);
            let all = [
                ("network.address_on", "CAP_NET_ADMIN"),
                ("network.notrack", "CAP_NET_ADMIN"),
                ("network.accept_untracked", "CAP_NET_ADMIN"),
                ("network.intercept", "CAP_NET_ADMIN"),
                ("network.upstream_notrack", "CAP_NET_ADMIN"),
                ("network.intercept 10.96.0.10:53", "CAP_NET_BIND_SERVICE"),
                ("listen 127.0.0.1:53", "CAP_NET_BIND_SERVICE"),
                ("listen [::1]:53", "CAP_NET_BIND_SERVICE"),
            ];
            assert_eq!(needs(&output), all, "{output}");
            for part in ["securityContext", "AmbientCapabilities=CAP_NET_ADMIN", "a port above 1023"] {
                assert!(output.contains(part), "`{part}` is not in: {output}");
            }
            assert!(!output.contains("run as user 0"), "nothing allows it: {output}");
        },
    );
}

#[test]
fn one_that_is_there_is_not_named() {
    inside(
        |_, _| (),
        || {
            let by = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all"];
            let body = "network: { upstream_notrack: true }\n";
            let output = refused(Home::of_root(), &by, &["127.0.0.1:53"], body);
            assert_eq!(needs(&output), [("listen 127.0.0.1:53", "CAP_NET_BIND_SERVICE")], "{output}");
        },
    );
}

/// `runAsUser` with `capabilities.add` gives the process nothing.
#[test]
fn another_user_is_told_why_it_has_not_what_its_container_allows() {
    inside(
        |_, _| (),
        || {
            let by = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
            let output = refused(Home::of_nobody(), &by, &["127.0.0.1:53"], "");
            assert_eq!(needs(&output), [("listen 127.0.0.1:53", "CAP_NET_BIND_SERVICE")], "{output}");
            assert!(output.contains("run as user 0"), "{output}");
        },
    );
}
