//! Service records and names of addresses.

use crate::cluster::Cluster;
use crate::names::{assert_failed, assert_found, clients};
use crate::namespace::in_a_namespace;
use crate::support::stubs::records;

#[test]
fn service_records_are_found_with_all_targets() {
    in_a_namespace(|| {
        let _cluster = Cluster::start();
        for mut client in clients().filter(|client| client.stub.services) {
            for (name, targets) in [
                ("_http._tcp.nginx.default.svc.cluster.local.", 4),
                ("_http._tcp.webapp.default.svc.cluster.local.", 1),
                ("_dns._udp.kube-dns.kube-system.svc.cluster.local.", 1),
            ] {
                let expected = records::services(name);
                assert_eq!(expected.len(), targets);
                for _ in 0..2 {
                    let said = client.services(name);
                    assert_found(&client, name, &said, &expected);
                }
            }
            let name = "_none._tcp.nginx.default.svc.cluster.local.";
            let said = client.services(name);
            assert_failed(&client, name, &said, "NOTFOUND");
        }
    });
}

#[test]
fn addresses_have_their_names() {
    in_a_namespace(|| {
        let _cluster = Cluster::start();
        for mut client in clients() {
            for address in ["10.96.46.232", "10.96.0.10", "10.244.3.31"] {
                let said = client.owner(address);
                assert_found(&client, address, &said, &records::owner(address));
            }
            let said = client.owner("10.1.2.3");
            assert_failed(&client, "10.1.2.3", &said, "NOTFOUND");
        }
    });
}
