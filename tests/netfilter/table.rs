//! Whose table it is, what becomes of it when it is replaced, and what is left of it.

use std::env;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nodens::node::netfilter::{Ownership, Refusal, Table, remove_orphans, tables};
use nodens::node::rules::{Wanted, chains};

use crate::node::{
    CLUSTER, LISTEN, NOTHING, address, entries, forget, host_asks, listen, nft, on_a_node, program, track,
};

/// Makes of a test a process that has a table and dies.
const OWNER: &str = "NODENS_TEST_OWNER";
/// Replacements under load.
const REPLACEMENTS: usize = 50;

fn names() -> Vec<String> {
    let ours = tables().expect("tables").into_iter().map(|table| table.name);
    ours.filter(|name| name.starts_with("nodens-")).collect()
}

fn delete(table: &str) -> bool {
    program("nft", "nftables", &["delete", "table", "inet", table]).0
}

#[test]
fn nobody_deletes_a_table_that_the_kernel_keeps_for_its_owner_and_it_ends_with_him() {
    on_a_node(|| {
        let at = LISTEN.map(address);
        let mut table = Table::open().expect("a table");
        assert_eq!(table.ownership(), Ownership::Kernel);
        assert!(names().is_empty(), "nothing is in the kernel yet");
        table.replace(&chains(&Wanted { notrack: &at, ..NOTHING })).expect("rules");
        assert_eq!(names(), [table.name()]);
        assert!(!delete(table.name()));
        nft("flush ruleset");
        assert!(table.is_there().expect("a look"));
        assert_eq!(remove_orphans().expect("a look"), [] as [&str; 0]);
        table.replace(&[]).expect("no rules");
        assert!(names().is_empty() && table.is_there().expect("a look"), "as much as was given");
        table.replace(&chains(&Wanted { notrack: &at, ..NOTHING })).expect("rules");
        drop(table);
        assert!(names().is_empty());
    });
}

#[test]
fn a_plain_table_is_taken_away_with_its_value_and_its_loss_is_noticed() {
    on_a_node(|| {
        let at = LISTEN.map(address);
        let rules = || chains(&Wanted { notrack: &at, ..NOTHING });
        let mut table = Table::open_as(Ownership::Ourselves).expect("a table");
        table.replace(&rules()).expect("rules");
        assert_eq!(names(), [table.name()]);
        assert!(table.is_there().expect("a look"));
        assert_eq!(remove_orphans().expect("a look"), [] as [&str; 0], "its socket is open");
        // Others can do what they like with it: a rule, a chain, everything.
        for loss in
            ["flush chain inet NAME listen_output", "delete chain inet NAME listen_output", "flush ruleset"]
        {
            nft(&loss.replace("NAME", table.name()));
            assert!(!table.is_there().expect("a look"), "{loss}");
            table.replace(&rules()).expect("rules again");
            assert!(table.is_there().expect("a look"), "{loss}");
        }
        // From chains that somebody has taken away to others.
        nft("flush ruleset");
        table.replace(&chains(&Wanted { intercept: &at, ..NOTHING })).expect("other rules");
        assert!(table.is_there().expect("a look"));
        nft("flush ruleset");
        table.remove().expect("no rules, again");
        table.replace(&rules()).expect("rules");
        drop(table);
        assert!(names().is_empty());
    });
}

#[test]
fn a_plain_table_whose_owner_died_is_found() {
    on_a_node(|| {
        if env::var_os(OWNER).is_some() {
            let mut table = Table::open_as(Ownership::Ourselves).expect("a table");
            table.replace(&chains(&Wanted { notrack: &LISTEN.map(address), ..NOTHING })).expect("rules");
            // As after SIGKILL: nothing is dropped.
            std::process::abort();
        }
        let mut alive = Table::open_as(Ownership::Ourselves).expect("a table");
        alive.replace(&chains(&Wanted { notrack: &LISTEN.map(address), ..NOTHING })).expect("rules");
        nft("add table inet nodens-of-somebody");
        let this = env::current_exe().expect("this program");
        let test = ["--exact", "table::a_plain_table_whose_owner_died_is_found"];
        let output = Command::new(this).args(test).env(OWNER, "").output().expect("an owner");
        let before = names();
        assert_eq!(before.len(), 3, "{before:?} {}", String::from_utf8_lossy(&output.stderr));
        let removed = remove_orphans().expect("orphans");
        assert_eq!(removed.len(), 1, "{removed:?}");
        assert!(before.contains(&removed[0]) && removed[0] != alive.name());
        assert!(alive.is_there().expect("a look") && names().len() == 2);
        assert_eq!(remove_orphans().expect("orphans"), [] as [&str; 0]);
    });
}

#[test]
fn what_the_kernel_refuses_leaves_the_old_rules() {
    on_a_node(|| {
        let at = LISTEN.map(address);
        for ownership in [Ownership::Kernel, Ownership::Ourselves] {
            let mut table = Table::open_as(ownership).expect("a table");
            table.replace(&chains(&Wanted { notrack: &at, ..NOTHING })).expect("rules");
            let before = nft(&format!("list table inet {}", table.name()));
            // A chain of another place under the name of one that is there.
            let mut wrong = chains(&Wanted { notrack: &at, intercept: &at, ..NOTHING });
            wrong.last_mut().expect("chains").name = "listen_output";
            let refused = table.replace(&wrong).expect_err("two chains of one name");
            assert!(matches!(refused, Refusal::Other(..)), "{refused}");
            assert_eq!(nft(&format!("list table inet {}", table.name())), before);
            assert!(table.is_there().expect("a look"));
            table.replace(&chains(&Wanted { intercept: &at, ..NOTHING })).expect("rules");
        }
    });
}

#[test]
fn no_packet_is_tracked_while_rules_are_replaced() {
    on_a_node(|| {
        track();
        let (at, cluster) = (LISTEN.map(address), CLUSTER.map(address));
        at.into_iter().for_each(listen);
        for ownership in [Ownership::Kernel, Ownership::Ourselves] {
            let mut table = Table::open_as(ownership).expect("a table");
            table.replace(&chains(&Wanted { notrack: &at, ..NOTHING })).expect("rules");
            forget();
            let (done, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
            thread::scope(|scope| {
                for to in at {
                    let (done, sent) = (&done, &sent);
                    scope.spawn(move || {
                        while !done.load(Ordering::Relaxed) {
                            assert!(host_asks("udp", to, 0), "{to}");
                            sent.fetch_add(1, Ordering::Relaxed);
                            thread::sleep(Duration::from_millis(1));
                        }
                    });
                }
                for round in 0..REPLACEMENTS {
                    let intercept = if round % 2 == 0 { &cluster[..] } else { &[] };
                    table.replace(&chains(&Wanted { notrack: &at, intercept, ..NOTHING })).expect("rules");
                    thread::sleep(Duration::from_millis(10));
                }
                done.store(true, Ordering::Relaxed);
            });
            let sent = sent.into_inner();
            eprintln!("{ownership:?}: {sent} queries during {REPLACEMENTS} replacements");
            assert!(sent > 2 * REPLACEMENTS, "{sent}");
            assert_eq!(entries(&at), [] as [&str; 0]);
        }
    });
}
