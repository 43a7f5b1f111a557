//! What the kernel refuses is said with what helps.

use std::collections::BTreeSet;
use std::env;
use std::process::Command;

use nodens::node::link::{Problem, hold, holders, release};
use nodens::node::netfilter::Bits;
use nodens::node::route::{lead_here, seen};

use crate::node::{ON, V4, V6, addresses, attempt, hold_all, make_link, on_a_node, on_link, place};
use crate::support::{missing, run};

const MARK: Bits = Bits { value: 0x35, mask: 0xff };

fn sysctl(setting: &str) {
    let output = attempt("sysctl", "procps", &format!("-w {setting}"));
    assert!(output.status.success(), "{setting}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_link_without_ipv6_holds_ipv4_and_names_the_sysctl() {
    on_a_node(|| {
        make_link(ON);
        sysctl(&format!("net.ipv6.conf.{ON}.disable_ipv6=1"));
        let held = hold(ON, &addresses(&[V4, V6])).expect("what it can");
        assert_eq!(held.added, [place(V4, ON)]);
        let [(address, problem)] = &held.missing[..] else { panic!("{held:?}") };
        assert_eq!([*address], addresses(&[V6])[..]);
        let said = problem.to_string();
        assert!(said.contains(&format!("sysctl -w net.ipv6.conf.{ON}.disable_ipv6=0")), "{said}");
        // What it says helps.
        sysctl(&format!("net.ipv6.conf.{ON}.disable_ipv6=0"));
        assert_eq!(hold_all(ON, &[V4, V6]).added, [place(V6, ON)]);
    });
}

#[test]
fn a_namespace_without_ipv6_names_the_link_that_has_to_hold_the_address() {
    on_a_node(|| {
        sysctl("net.ipv6.conf.all.disable_ipv6=1");
        sysctl("net.ipv6.conf.default.disable_ipv6=1");
        for (link, named) in [("lo", "net.ipv6.conf.lo."), ("node.dns", "net.ipv6.conf.node/dns.")] {
            if link != "lo" {
                make_link(link);
            }
            let held = hold(link, &addresses(&[V6])).expect("a link");
            let said = held.missing[0].1.to_string();
            assert!(said.contains(named), "{said}");
            // As sysctl(8) takes it.
            sysctl(said.split('`').nth(1).expect("a command").trim_start_matches("sysctl -w "));
            assert_eq!(hold_all(link, &[V6]).added, [place(V6, link)]);
            hold_all(link, &[V6]);
            release(link, &addresses(&[V6]), &BTreeSet::new()).expect("released");
        }
    });
}

#[test]
fn a_name_that_no_link_can_have_is_refused_before_anything_is_done() {
    on_a_node(|| {
        for name in ["", ".", "..", "a b", "a/b", "a:b", "dns%d", "sixteen-letters-", "tab\there"] {
            let problem = hold(name, &addresses(&[V4])).expect_err(name);
            assert!(matches!(problem, Problem::Name(..)), "{name:?}: {problem}");
            assert!(problem.to_string().contains(&format!("`{name}` cannot be")), "{problem}");
        }
        assert!(!on_link("lo").iter().any(|line| line.contains(V4)));
        // The longest that can.
        make_link("fifteen-letters");
        hold_all("fifteen-letters", &[V4]);
    });
}

/// Runs the calling test once more as a process without the capability; true inside of it.
fn without_the_capability(test: &str) -> bool {
    const WITHOUT: &str = "NODENS_TEST_WITHOUT";
    if env::var_os(WITHOUT).is_some() {
        return true;
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"])
        .arg(env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(WITHOUT, "yes");
    let output = run(&mut command);
    let output = output.unwrap_or_else(|error| panic!("{}", missing("setpriv", "util-linux", &error)));
    let stdout = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && stdout.contains("test result: ok. 1 passed");
    assert!(passed, "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    false
}

#[test]
fn a_missing_capability_is_named() {
    on_a_node(|| {
        if !without_the_capability("refused::a_missing_capability_is_named") {
            // As before, with all rights.
            hold_all("lo", &[V4]);
            lead_here(&addresses(&[V4]), MARK).expect("led");
            return;
        }
        let problems = [
            hold(ON, &addresses(&[V4])).expect_err("a new link").to_string(),
            hold("lo", &addresses(&[V4])).expect("a link").missing[0].1.to_string(),
            lead_here(&addresses(&[V4]), MARK).expect_err("a route").to_string(),
            lead_here(&addresses(&[V6]), MARK).expect_err("a route").to_string(),
        ];
        for problem in problems {
            assert!(problem.contains("CAP_NET_ADMIN"), "{problem}");
        }
        // To look is everybody's right.
        assert!(!holders().expect("holders").is_empty());
        seen(MARK).expect("rules and routes");
        let held = hold_all(ON, &["127.0.0.1"]);
        assert!(!held.changed());
    });
}

/// An agent without the capability beside addresses that somebody else has set up.
#[test]
fn what_is_there_already_needs_no_capability() {
    on_a_node(|| {
        const TEST: &str = "refused::what_is_there_already_needs_no_capability";
        if env::var_os("NODENS_TEST_WITHOUT").is_none() {
            make_link(ON);
            hold_all(ON, &[V4, V6]);
            lead_here(&addresses(&[V4, V6]), MARK).expect("led");
        }
        if without_the_capability(TEST) {
            assert!(!hold_all(ON, &[V4, V6]).changed());
            assert!(lead_here(&addresses(&[V4, V6]), MARK).expect("led").is_empty());
        }
    });
}
