//! A cluster DNS that is gone, and one that is silent.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::names::{assert_found, clients};
use crate::namespace::in_a_namespace;
use crate::support::seconds;
use crate::support::stubs::records;
use crate::support::stubs::{Client, STUBS, Said, Stub};

/// Whether all failed as `kind` says of each.
#[track_caller]
fn assert_all_failed(said: &[(&'static Stub, Said)], kind: impl Fn(&'static Stub) -> &'static str) {
    let results: Vec<_> = said.iter().map(|(stub, said)| (stub.name, said.result.clone())).collect();
    let expected: Vec<_> = STUBS.iter().map(|stub| (stub.name, Err(kind(stub).to_owned()))).collect();
    assert_eq!(results, expected);
}

/// Each stub resolver asks for a name of its own, so that all are the first to ask, and all at once.
#[track_caller]
fn ask_for_unknown(clients: Vec<Client>, below: &str) -> Vec<(&'static Stub, Said)> {
    let ask = |(number, mut client): (usize, Client)| {
        let name = format!("unknown{number}.{below}");
        thread::spawn(move || (client.stub, client.addresses(&name)))
    };
    let asking: Vec<_> = clients.into_iter().enumerate().map(ask).collect();
    asking.into_iter().map(|thread| thread.join().expect("an answer")).collect()
}

#[test]
fn without_the_cluster_dns_known_names_are_found_and_others_fail_for_now() {
    in_a_namespace(|| {
        let mut cluster = Cluster::start();
        let known = "webapp.default.svc.cluster.local.";
        let expired = "short1.default.svc.cluster.local.";
        let mut clients: Vec<_> = clients().collect();
        for client in &mut clients {
            for name in [known, expired] {
                let said = client.addresses(name);
                assert_found(client, name, &said, &records::addresses(name));
            }
        }
        cluster.nsd.stop();
        // The TTL of the second one is a second.
        thread::sleep(Duration::from_millis(1200));
        for client in &mut clients {
            let before = cluster.stale_answers();
            for (name, stale) in [(known, false), (expired, true)] {
                let said = client.addresses(name);
                assert_found(client, name, &said, &records::addresses(name));
                assert_eq!(cluster.stale_answers() > before, stale, "{}: {name} is stale", client.stub.name);
            }
        }
        let said = ask_for_unknown(clients, "wild.default.svc.cluster.local.");
        assert_all_failed(&said, |stub| stub.server_failure);
        for (stub, said) in said {
            // musl waits for another server's answer until its 5 s are over.
            let limit = if stub.name == "musl" { seconds(8) } else { seconds(4) };
            assert!(said.after < limit, "{}: {:?}", stub.name, said.after);
        }
        cluster.nsd.resume();
    });
}

#[test]
fn a_silent_server_is_a_temporary_failure_before_stubs_give_up() {
    in_a_namespace(|| {
        // Connections are taken by the system and never read.
        let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
        let _cluster = Cluster::with_zone("silent.test", silent.local_addr().expect("its address"));
        let said = ask_for_unknown(clients().collect(), "silent.test.");
        // One that hears nothing in its 5 s says something else: c-ares and dnspython a timeout. JNDI asks again
        // after 1 s and later, ends with the answer, and tells what came of its first try.
        let kind = |stub: &Stub| if stub.name == "Java JNDI" { "TIMEOUT" } else { stub.server_failure };
        assert_all_failed(&said, kind);
        for (stub, said) in said {
            println!("{}: {:?}", stub.name, said.after);
            let after = said.after;
            assert!(after > seconds(3) && after < seconds(9), "{}: {after:?}", stub.name);
        }
    });
}
