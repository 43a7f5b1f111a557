//! A cluster DNS that is gone.

use crate::cluster::Cluster;
use crate::names::{assert_found, clients};
use crate::namespace::in_a_namespace;
use crate::records;
use crate::support::seconds;

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
        // The TTL is one second: by then the answers are stale, and none can come from anywhere else.
        std::thread::sleep(seconds(2));
        for client in &mut clients {
            for name in [known, expired] {
                let said = client.addresses(name);
                assert_found(client, name, &said, &records::addresses(name));
            }
        }
        // Each stub resolver asks for a name of its own, so that all are the first to ask.
        for (number, client) in clients.iter_mut().enumerate() {
            let name = format!("unknown{number}.wild.default.svc.cluster.local.");
            let said = client.addresses(&name);
            assert_eq!(
                said.result,
                Err(client.stub.server_failure.to_owned()),
                "{}: {name}",
                client.stub.name
            );
            println!("{}: {:?}", client.stub.name, said.after);
        }
        cluster.nsd.resume();
    });
}
