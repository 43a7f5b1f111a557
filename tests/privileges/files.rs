//! Root without its capabilities is the owner of its files, and no more.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use crate::agent::{Agent, Home, NOBODY, Sets};
use crate::support::{program, run, seconds};

/// A zone whose server proves itself to the authorities in a file.
fn zone_with(authorities: &str) -> String {
    format!(
        "zones:\n  - match: [\".\"]\n    \
         upstream: {{ servers: [\"tls://192.0.2.1#dns.example\"], ca: {authorities} }}\n"
    )
}

fn only_for_root(home: &Home, name: &str) -> String {
    let certificate = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).expect("certificate");
    let file = home.file(name);
    fs::write(&file, certificate.cert.pem()).expect("certificate");
    fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("a file of ours");
    file.display().to_string()
}

#[test]
fn a_reload_reads_files_that_only_root_may_read() {
    let home = Home::of_root();
    let (first, second) = (only_for_root(&home, "first.pem"), only_for_root(&home, "second.pem"));
    fs::write(&home.config, "").expect("config");
    fs::set_permissions(&home.config, Permissions::from_mode(0o600)).expect("a file of ours");
    let mut agent = Agent::start(home, &[], &[], &zone_with(&first));
    assert_eq!(agent.capabilities(), Sets::only(0));
    agent.reload(&zone_with(&second), "ok");
    assert!(agent.answers());
    let output = agent.process.output();
    assert!(!output.contains("cannot be read again"), "{output}");
}

/// CAP_DAC_OVERRIDE would be needed, which the start still has.
#[test]
fn a_configuration_of_another_user_is_read_once_and_said_to_be() {
    let home = Home::of_root();
    fs::write(&home.config, "").expect("config");
    fs::set_permissions(&home.config, Permissions::from_mode(0o600)).expect("a file of ours");
    chown(&home.config, Some(NOBODY), Some(NOBODY)).expect("root");
    let mut agent = Agent::start(home, &[], &[], "");
    let output = agent.process.output();
    assert!(output.contains("cannot be read again for a reload"), "{output}");
    agent.reload("log: { level: debug }\n", "failed");
    assert!(agent.answers());
    let output = agent.process.output();
    assert!(output.contains("Permission denied") && output.contains("stays in force"), "{output}");
}

#[test]
fn the_control_socket_of_an_agent_that_died_is_replaced_and_asked() {
    let mut home = Home::of_root();
    home.control = home.file("run/control.sock");
    let mut agent = Agent::start(home, &[], &[], "");
    agent.process.signal("KILL");
    agent.process.wait(seconds(10)).expect("an end");
    assert!(agent.home.control.exists(), "it is left behind");
    let Agent { home, .. } = agent;
    let agent = Agent::start(home, &[], &[], "");
    assert_eq!(agent.capabilities(), Sets::only(0));
    let mut stats = Command::new(program());
    let stats = run(stats.args(["stats", "--control"]).arg(&agent.home.control)).expect("nodens stats");
    let text = String::from_utf8_lossy(&stats.stderr);
    assert!(stats.status.success() && !stats.stdout.is_empty(), "{text}");
}

#[test]
fn the_limit_of_open_files_is_raised_as_before() {
    let by = ["prlimit", "--nofile=512:4096"];
    let agent = Agent::start(Home::of_root(), &by, &[], "");
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.process.id())).expect("limits");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("open files");
    assert_eq!(line.split_whitespace().take(2).collect::<Vec<_>>(), ["4096", "4096"]);
}
