//! Answers with many records: their order, and what does not fit into a datagram.

use std::collections::HashSet;

use crate::cluster::Cluster;
use crate::names::{assert_found, clients};
use crate::namespace::in_a_namespace;
use crate::support::stubs::records;

/// 40 addresses: more than 512 bytes, less than 1,232.
const BIG: &str = "big.default.svc.cluster.local.";
/// 200 addresses: more than any datagram.
const HUGE: &str = "huge.default.svc.cluster.local.";

#[test]
fn headless_services_give_all_endpoints_in_changing_order() {
    in_a_namespace(|| {
        let _cluster = Cluster::start();
        let name = "nginx.default.svc.cluster.local.";
        let expected = records::addresses(name);
        for mut client in clients() {
            let mut first = HashSet::new();
            for _ in 0..40 {
                let said = client.addresses(name);
                assert_found(&client, name, &said, &expected);
                first.extend(said.result.iter().flatten().take(1).cloned());
            }
            // Each of four is missed by 40 random choices once in 100,000 times; two always suffice here.
            assert!(first.len() >= 2, "{}: always {first:?} first", client.stub.name);
        }
    });
}

#[test]
fn truncated_answers_come_whole_by_tcp() {
    in_a_namespace(|| {
        let cluster = Cluster::start();
        let expected = records::addresses(HUGE);
        assert_eq!(expected.len(), 200);
        for mut client in clients().filter(|client| client.stub.by_tcp) {
            let before = cluster.asked("tcp");
            for _ in 0..2 {
                let said = client.addresses(HUGE);
                assert_found(&client, HUGE, &said, &expected);
            }
            assert!(cluster.asked("tcp") - before >= 2.0, "{} asked by TCP", client.stub.name);
        }
    });
}

#[test]
fn stubs_without_tcp_use_the_part_that_fits() {
    in_a_namespace(|| {
        let cluster = Cluster::start();
        let mut seen = 0;
        for mut client in clients().filter(|client| !client.stub.by_tcp) {
            for name in [BIG, HUGE] {
                let all: HashSet<String> = records::addresses(name).into_iter().collect();
                let said = client.addresses(name);
                let found = said.sorted().expect("addresses");
                let some: HashSet<String> = found.iter().cloned().collect();
                assert_eq!(some.len(), found.len(), "{}: twice in {found:?}", client.stub.name);
                assert!(some.is_subset(&all), "{}: {found:?}", client.stub.name);
                // 512 bytes, less header and question of 49, hold 28 records of 16 bytes.
                assert!(
                    found.len() >= 28 && found.len() < all.len(),
                    "{}: {}",
                    client.stub.name,
                    found.len()
                );
            }
            seen += 1;
        }
        assert_eq!(cluster.asked("tcp"), 0.0);
        assert!(seen >= 1, "musl is one of them");
    });
}

#[test]
fn edns_saves_the_way_by_tcp() {
    in_a_namespace(|| {
        let cluster = Cluster::start();
        let expected = records::addresses(BIG);
        assert_eq!(expected.len(), 40);
        for mut client in clients().filter(|client| client.stub.by_tcp) {
            let before = cluster.asked("tcp");
            let said = client.addresses(BIG);
            assert_found(&client, BIG, &said, &expected);
            let by_tcp = cluster.asked("tcp") - before;
            assert_eq!(by_tcp == 0.0, client.stub.edns, "{}: {by_tcp} queries by TCP", client.stub.name);
        }
    });
}
