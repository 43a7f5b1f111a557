//! Names as programs in pods write them.

use std::process::Command;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::namespace::in_a_namespace;
use crate::support::stubs::records;
use crate::support::stubs::{Client, STUBS, Said};

/// Sooner than the first repetition of any stub resolver here but JNDI's (musl: 2.5 s).
pub(crate) const AT_ONCE: Duration = Duration::from_millis(2400);

/// Every client, started.
pub(crate) fn clients() -> impl Iterator<Item = Client> {
    STUBS.iter().map(|stub| Client::start(stub, |program| Command::new(program)))
}

/// Whether it found exactly `expected`, without waiting.
#[track_caller]
pub(crate) fn assert_found(client: &Client, asked: &str, said: &Said, expected: &[String]) {
    assert_eq!(said.sorted().as_deref(), Ok(expected), "{}: {asked}", client.stub.name);
    assert!(said.after < AT_ONCE, "{}: {asked} took {:?}", client.stub.name, said.after);
}

/// Whether it failed in exactly this way, without waiting.
#[track_caller]
pub(crate) fn assert_failed(client: &Client, asked: &str, said: &Said, kind: &str) {
    assert_eq!(said.result, Err(kind.to_owned()), "{}: {asked}", client.stub.name);
    assert!(said.after < AT_ONCE, "{}: {asked} took {:?}", client.stub.name, said.after);
}

#[test]
fn short_and_long_names_lead_to_the_same_addresses() {
    in_a_namespace(|| {
        let _cluster = Cluster::start();
        let service = "nginx.default.svc.cluster.local";
        let expected = records::addresses(service);
        assert_eq!(expected.len(), 4);
        for mut client in clients() {
            let searched = ["nginx", "nginx.default", "nginx.default.svc"];
            let whole = [service, "nginx.default.svc.cluster.local.", "NGINX.Default.sVc.clusteR.LOCAL"];
            let searched = if client.stub.searches { &searched[..] } else { &[] };
            for name in searched.iter().chain(&whole) {
                let said = client.addresses(name);
                assert_found(&client, name, &said, &expected);
            }
        }
    });
}

#[test]
fn services_of_other_namespaces_are_found_by_search() {
    in_a_namespace(|| {
        let _cluster = Cluster::start();
        for mut client in clients().filter(|client| client.stub.searches) {
            for name in ["kube-dns.kube-system", "kube-dns.kube-system.svc"] {
                let said = client.addresses(name);
                assert_found(
                    &client,
                    name,
                    &said,
                    &records::addresses("kube-dns.kube-system.svc.cluster.local"),
                );
            }
        }
    });
}

#[test]
fn names_outside_walk_the_search_path_once() {
    in_a_namespace(|| {
        let cluster = Cluster::start();
        let name = "www.example.com";
        for mut client in clients() {
            cluster.flush();
            // Two types each of: three suffixes and the name itself; the name alone without a search path.
            let questions = if client.stub.searches { 8.0 } else { 2.0 };
            let before = cluster.sent_upstream();
            for sent in [questions, questions] {
                let said = client.addresses(name);
                assert_found(&client, name, &said, &records::addresses(name));
                assert_eq!(cluster.sent_upstream() - before, sent, "{}: sent upstream", client.stub.name);
            }
        }
    });
}

#[test]
fn names_that_do_not_exist_are_not_found_at_once() {
    in_a_namespace(|| {
        let _cluster = Cluster::start();
        for mut client in clients() {
            for name in
                ["nowhere", "nowhere.default.svc.cluster.local.", "nowhere.example.com", "nowhere.test."]
            {
                for _ in 0..2 {
                    let said = client.addresses(name);
                    assert_failed(&client, name, &said, "NOTFOUND");
                }
            }
        }
    });
}

#[test]
fn names_without_addresses_are_told_from_missing_ones() {
    in_a_namespace(|| {
        let _cluster = Cluster::start();
        for mut client in clients() {
            for (name, kind) in [
                ("noaddress.default.svc.cluster.local.", client.stub.nodata),
                ("alias-nodata.default.svc.cluster.local.", client.stub.bare_alias),
            ] {
                let said = client.addresses(name);
                assert_failed(&client, name, &said, kind);
            }
        }
    });
}

#[test]
fn names_of_one_family_are_found_without_an_error() {
    in_a_namespace(|| {
        let _cluster = Cluster::start();
        for mut client in clients() {
            for (name, count) in [("six", 1), ("webapp", 1), ("dual", 2)] {
                let whole = format!("{name}.default.svc.cluster.local.");
                let expected = records::addresses(&whole);
                assert_eq!(expected.len(), count);
                for name in [name, &whole].into_iter().skip(usize::from(!client.stub.searches)) {
                    let said = client.addresses(name);
                    assert_found(&client, name, &said, &expected);
                }
            }
        }
    });
}

#[test]
fn both_families_are_asked_for_once() {
    in_a_namespace(|| {
        let cluster = Cluster::start();
        let name = "dual.default.svc.cluster.local.";
        for mut client in clients() {
            let before = [cluster.asked_for("A"), cluster.asked_for("AAAA")];
            for _ in 0..20 {
                let said = client.addresses(name);
                assert_found(&client, name, &said, &records::addresses(name));
            }
            // glibc sends both from one socket: a lost answer would show as a query more.
            let asked = [cluster.asked_for("A") - before[0], cluster.asked_for("AAAA") - before[1]];
            assert_eq!(asked, [20.0, 20.0], "{}", client.stub.name);
        }
    });
}

#[test]
fn aliases_lead_to_the_addresses_of_their_targets() {
    in_a_namespace(|| {
        let _cluster = Cluster::start();
        for mut client in clients() {
            // An alias inside of the cluster, and an ExternalName whose target lies outside.
            for name in ["alias.default.svc.cluster.local.", "my-service.prod.svc.cluster.local."] {
                for _ in 0..2 {
                    let said = client.addresses(name);
                    assert_found(&client, name, &said, &records::addresses(name));
                }
            }
        }
    });
}

#[test]
fn an_alias_without_its_target_is_a_name_without_addresses() {
    in_a_namespace(|| {
        // This cluster DNS does not resolve the target, and no stub resolver does it by itself.
        let _cluster = Cluster::without_outside();
        for mut client in clients() {
            let name = "my-service.prod.svc.cluster.local.";
            let said = client.addresses(name);
            assert_failed(&client, name, &said, client.stub.bare_alias);
        }
    });
}
