//! An agent whose node is not ready yet waits for it, says what for, and never ends.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::agent::{AGENT_TTL, Agent, LISTEN, Settings, holding, zone};
use crate::client::{Way, ask_from};
use crate::kernel::ip;
use crate::support::{free_port, seconds, wait_until};
use crate::topology::{ENDPOINTS, Families, Node, PLACES, Proxy, Topology, dns_at, on_a_node};

const TOPOLOGY: Topology = Topology::new(Proxy::Nftables).only(Families::V4);

/// It says in `/ready` why it waits, and goes on waiting.
#[track_caller]
fn waits_because(agent: &mut Agent, parts: &[&str]) {
    wait_until(&format!("/ready says {parts:?}: {:?}", agent.ready()), seconds(5), || {
        let (code, body) = agent.ready();
        code == 503 && parts.iter().all(|part| body.contains(part))
    });
    // Longer than the first pauses between its tries.
    thread::sleep(Duration::from_millis(600));
    assert!(agent.process.ended().is_none(), "{}", agent.process.output());
    assert_eq!(agent.ready().0, 503);
}

/// It does all it should.
#[track_caller]
fn works(agent: &mut Agent) {
    agent.wait_until_ready();
    for way in [Way::Udp, Way::Tcp] {
        ask_from(&PLACES, dns_at(LISTEN), way, 10).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
    }
}

fn config(network: &str, server: &str) -> Settings {
    holding(&[dns_at(LISTEN)], network, &zone(&[server.to_owned()]))
}

/// The cluster's DNS, dialled directly.
fn direct() -> String {
    format!("tcp://{}", ENDPOINTS[0])
}

fn failed_tries(agent: &Agent, step: &str) -> usize {
    agent.admin.count("nodens_setup_errors_total", &[("step", step)]) as usize
}

#[test]
fn until_some_link_has_its_address() {
    on_a_node(TOPOLOGY, || {
        let _node = Node::start();
        let mut agent = Agent::launch(&config("address_on: none", &direct()));
        waits_because(&mut agent, &[LISTEN, "network.address_on"]);
        assert!(failed_tries(&agent, "listen") >= 2);
        agent.must_log(&["WARN", LISTEN]);
        ip(&format!("address add {LISTEN}/32 dev lo"));
        works(&mut agent);
    });
}

#[test]
fn until_there_is_a_route() {
    on_a_node(TOPOLOGY, || {
        let node = Node::start();
        ip("route del default");
        let server = format!("tcp://{}", node.cluster_ips()[0]);
        let mut agent = Agent::launch(&config("address_on: lo, notrack: true", &server));
        waits_because(&mut agent, &["upstream"]);
        ip("route add default via 192.0.2.1");
        works(&mut agent);
    });
}

#[test]
fn until_the_name_of_its_server_is_known() {
    on_a_node(TOPOLOGY, || {
        let mut node = Node::start();
        node.dns.stop();
        let zone = zone(&["tcp://ns.test".to_owned()]);
        let bootstrap = format!("servers: [\"tcp://ns.test\"], bootstrap: [\"{}\"]", direct());
        let zone = zone.replace("servers: [\"tcp://ns.test\"]", &bootstrap);
        let mut agent = Agent::launch(&holding(&[dns_at(LISTEN)], "address_on: lo", &zone));
        waits_because(&mut agent, &["ns.test"]);
        node.dns.start();
        works(&mut agent);
    });
}

#[test]
fn until_another_process_leaves_its_port() {
    on_a_node(TOPOLOGY, || {
        let _node = Node::start();
        ip(&format!("address add {LISTEN}/32 dev lo"));
        let at = dns_at(LISTEN);
        let udp = UdpSocket::bind(at).expect("the port");
        let mut agent = Agent::launch(&config("address_on: lo", &direct()));
        waits_because(&mut agent, &[LISTEN, "UDP", "another process"]);
        let tcp = TcpListener::bind(at).expect("the port, which the agent has not taken half");
        drop(udp);
        waits_because(&mut agent, &[LISTEN, "TCP", "another process"]);
        drop(tcp);
        works(&mut agent);
    });
}

#[test]
fn without_its_http_it_answers_all_the_same() {
    on_a_node(TOPOLOGY, || {
        let _node = Node::start();
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let other = TcpListener::bind(admin).expect("the port");
        let mut agent = Agent::launch_at(admin, &config("address_on: lo", &direct()));
        agent.must_log(&["WARN", "admin", &admin.to_string()]);
        ask_from(&PLACES, dns_at(LISTEN), Way::Udp, 10).iter().for_each(|seen| seen.must_all_have(AGENT_TTL));
        drop(other);
        works(&mut agent);
    });
}
