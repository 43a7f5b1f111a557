//! Real stub resolvers in pods, with the resolv.conf that kubelet writes: glibc's and musl's.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use crate::agent::{Agent, LISTEN, LISTEN6, holding, intercepting, zone};
use crate::kernel::{entries_to, forget_connections};
use crate::support::stubs::records;
use crate::support::stubs::{Client, STUBS, Said};
use crate::support::{run, seconds, wait_until};
use crate::topology::{Families, Firewall, Node, Place, Proxy, Topology, dns_at, on_a_node};

/// Sooner than the first repetition of either (musl: 2.5 s).
const AT_ONCE: Duration = Duration::from_millis(2400);
/// 200 addresses: more than any datagram.
const HUGE: &str = "huge.default.svc.cluster.local.";
/// 40 addresses: more than 512 bytes, less than 1,232.
const BIG: &str = "big.default.svc.cluster.local.";
/// How often both families are asked for.
const PAIRS: usize = 20;

/// One of each in a pod, which go on while the agent comes and goes.
fn clients(pod: Place) -> Vec<Client> {
    let libc = STUBS.iter().filter(|stub| ["glibc", "glibc with edns0", "musl"].contains(&stub.name));
    let clients: Vec<_> =
        libc.map(|stub| Client::start(stub, |program| Node::command(pod, program))).collect();
    assert_eq!(clients.len(), 3);
    clients
}

/// kubelet's resolv.conf is that of the pod, and of nobody else.
#[track_caller]
fn only_the_pod_has_these(pod: Place, servers: &[SocketAddr]) {
    let output = run(Node::command(pod, "cat").arg("/etc/resolv.conf")).expect("cat");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let named = text.lines().filter_map(|line| line.strip_prefix("nameserver "));
    let named: Vec<SocketAddr> = named.map(dns_at).collect();
    assert!(named == servers && text.contains("options ndots:5"), "{text}");
    let of_the_node = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert!(servers.iter().all(|server| !of_the_node.contains(&server.ip().to_string())), "{of_the_node}");
}

/// What `getaddrinfo` says at once.
#[track_caller]
fn addresses(client: &mut Client, name: &str) -> Result<Vec<String>, String> {
    at_once(client.stub.name, name, &client.addresses(name))
}

#[track_caller]
fn at_once(stub: &str, name: &str, said: &Said) -> Result<Vec<String>, String> {
    assert!(said.after < AT_ONCE, "{stub}: {name} took {:?}", said.after);
    said.sorted()
}

/// Everything that a pod may look up is answered as the cluster's DNS would do it, and without a repetition.
#[track_caller]
fn everything_is_resolved(client: &mut Client) {
    let stub = client.stub;
    assert!(stub.searches, "they walk the search path");
    let service = "webapp.default.svc.cluster.local";
    for name in
        ["webapp", "webapp.default", "webapp.default.svc", service, "webapp.default.svc.cluster.local."]
    {
        assert_eq!(addresses(client, name), Ok(records::addresses(service)), "{}: {name}", stub.name);
    }
    // An ExternalName, and two names that are looked for along the search path first.
    for name in ["my-service.prod", "www.example.com", "my.database.example.com"] {
        let whole = if name == "my-service.prod" { "my-service.prod.svc.cluster.local" } else { name };
        assert_eq!(addresses(client, name), Ok(records::addresses(whole)), "{}: {name}", stub.name);
    }
    for (name, kind) in [
        ("nowhere", "NOTFOUND"),
        ("nowhere.default.svc.cluster.local.", "NOTFOUND"),
        ("nowhere.example.com", "NOTFOUND"),
        ("noaddress.default.svc.cluster.local.", stub.nodata),
        ("alias-nodata.default.svc.cluster.local.", stub.bare_alias),
    ] {
        assert_eq!(addresses(client, name), Err(kind.to_owned()), "{}: {name}", stub.name);
    }
    if stub.services {
        let name = "_http._tcp.nginx.default.svc.cluster.local.";
        let said = client.services(name);
        assert_eq!(at_once(stub.name, name, &said), Ok(records::services(name)), "{}: {name}", stub.name);
    }
    let said = client.owner("10.96.0.10");
    assert_eq!(at_once(stub.name, "10.96.0.10", &said), Ok(records::owner("10.96.0.10")), "{}", stub.name);
}

/// A big answer comes whole by TCP, or the part of it that fits into 512 bytes where the stub knows no TCP.
#[track_caller]
fn big_answers_come(client: &mut Client) {
    for name in [BIG, HUGE] {
        let all = records::addresses(name);
        let found = addresses(client, name).expect("addresses");
        if client.stub.by_tcp {
            assert_eq!(found, all, "{}: {name}", client.stub.name);
        } else {
            let [some, all]: [HashSet<_>; 2] = [found, all].map(|list| list.into_iter().collect());
            // 512 bytes, less header and question of 49, hold 28 records of 16 bytes.
            assert!(some.is_subset(&all) && some.len() >= 28, "{}: {some:?}", client.stub.name);
        }
    }
}

/// Queries that the agent was asked: of a type, by a transport.
fn asked(agent: &Agent, record_type: &str, transport: &str) -> usize {
    let labels = [("type", record_type), ("transport", transport)];
    agent.admin.count("nodens_queries_total", &labels) as usize
}

/// Queries by UDP for A and for AAAA, once no more come: musl does not wait for the answer of its second server.
fn pairs_asked(agent: &Agent) -> [usize; 2] {
    let both = || ["A", "AAAA"].map(|record_type| asked(agent, record_type, "udp"));
    let mut before = both();
    wait_until("no more queries come", seconds(10), || {
        thread::sleep(Duration::from_millis(200));
        let now = both();
        std::mem::replace(&mut before, now) == now
    });
    before
}

/// Both families are asked for at once, glibc's from one socket and musl's too: a lost answer would show as a query
/// more. musl asks all servers at once.
#[track_caller]
fn both_families_are_asked_for_once(agent: &Agent, client: &mut Client, servers: usize) {
    let name = "dual.default.svc.cluster.local.";
    let before = pairs_asked(agent);
    for _ in 0..PAIRS {
        assert_eq!(addresses(client, name), Ok(records::addresses(name)), "{}", client.stub.name);
    }
    let queries = PAIRS * if client.stub.name == "musl" { servers } else { 1 };
    let after = pairs_asked(agent);
    assert_eq!([after[0] - before[0], after[1] - before[1]], [queries; 2], "{}", client.stub.name);
}

/// All of it is answered by this agent.
#[track_caller]
fn the_agent_resolves(agent: &Agent, client: &mut Client, servers: usize) {
    let queries = |transport| agent.admin.count("nodens_queries_total", &[("transport", transport)]) as usize;
    let (by_udp, by_tcp) = (queries("udp"), queries("tcp"));
    everything_is_resolved(client);
    // 14 look-ups of addresses with two questions each, and four of them with six more along the search path.
    assert!(queries("udp") - by_udp > 50, "{}: {} queries", client.stub.name, queries("udp") - by_udp);
    assert_eq!(queries("tcp"), by_tcp, "{}", client.stub.name);
    big_answers_come(client);
    // A comes by TCP for both, unless the first one is known to fit; AAAA is empty.
    let expected = match (client.stub.by_tcp, client.stub.edns) {
        (false, _) => 0,
        (true, true) => 1,
        (true, false) => 2,
    };
    assert!(queries("tcp") - by_tcp >= expected, "{}: by TCP", client.stub.name);
    if expected == 0 {
        assert_eq!(queries("tcp"), by_tcp, "{}", client.stub.name);
    }
    both_families_are_asked_for_once(agent, client, servers);
}

/// What kubelet is told of the cluster's DNS: each address by itself, and all of them.
fn cluster_dns_settings(servers: &[SocketAddr]) -> Vec<Vec<SocketAddr>> {
    let mut settings: Vec<Vec<SocketAddr>> = servers.iter().map(|&server| vec![server]).collect();
    if servers.len() > 1 {
        settings.push(servers.to_vec());
    }
    settings
}

fn kill(agent: &mut Agent) {
    agent.process.signal("KILL");
    assert!(agent.process.wait(seconds(5)).is_some());
}

/// Datagrams to the ClusterIPs that are tracked: those that nobody intercepts.
fn tracked(servers: &[SocketAddr]) -> usize {
    servers.iter().map(|server| entries_to(&server.ip().to_string(), "udp").len()).sum()
}

/// kubelet's clusterDNS is the ClusterIP, and the agent answers for that.
#[track_caller]
fn intercepted(topology: Topology) {
    let node = Node::start();
    let ips = node.cluster_ips();
    let body = intercepting(&node, &zone(&[format!("tcp://{}", ips[0])]));
    let mut agent = Agent::start(&body);
    for servers in cluster_dns_settings(&ips) {
        node.set_cluster_dns(&servers);
        only_the_pod_has_these(Place::Pod1, &servers);
        let mut clients = clients(Place::Pod1);
        forget_connections();
        for client in &mut clients {
            the_agent_resolves(&agent, client, servers.len());
        }
        assert_eq!(tracked(&ips), 0, "no query went past it");
        kill(&mut agent);
        for client in &mut clients {
            everything_is_resolved(client);
            // Into a truncated answer NSD puts no record at all, which is nothing to a stub without TCP.
            if client.stub.by_tcp {
                big_answers_come(client);
            }
        }
        let past = tracked(&servers);
        assert!(past > 0, "the cluster's DNS was asked by {servers:?}");
        agent = Agent::start(&body);
        for client in &mut clients {
            the_agent_resolves(&agent, client, servers.len());
        }
        eprintln!("{topology}: {servers:?} resolved for glibc and musl with the agent, killed, and back");
    }
}

/// kubelet's clusterDNS is the agent's own address.
#[track_caller]
fn asked_itself(topology: Topology) {
    let node = Node::start();
    let listen = node.sockets([LISTEN, LISTEN6]);
    let servers = zone(&[format!("tcp://{}", node.cluster_ips()[0])]);
    let body = holding(&listen, "address_on: nodelocaldns, notrack: true", &servers);
    let mut agent = Agent::start(&body);
    for servers in cluster_dns_settings(&listen) {
        node.set_cluster_dns(&servers);
        only_the_pod_has_these(Place::Pod2, &servers);
        let mut clients = clients(Place::Pod2);
        for client in &mut clients {
            the_agent_resolves(&agent, client, servers.len());
        }
        kill(&mut agent);
        // Nobody else listens there, so a name is not known for now; it is not said not to exist.
        if servers[..] == listen[..1] {
            for client in &mut clients {
                let said = client.addresses("webapp.default.svc.cluster.local.");
                assert_eq!(said.sorted(), Err(client.stub.server_failure.to_owned()), "{}", client.stub.name);
            }
        }
        agent = Agent::start(&body);
        for client in &mut clients {
            the_agent_resolves(&agent, client, servers.len());
        }
        eprintln!(
            "{topology}: {servers:?} resolved for glibc and musl with the agent, and after it was killed"
        );
    }
}

macro_rules! resolvers {
    ($($way:ident { $($name:ident: $topology:expr;)* })*) => {$($(
        #[test]
        fn $name() {
            on_a_node($topology.with_stubs(), || $way($topology));
        }
    )*)*};
}

resolvers! {
    intercepted {
        pods_resolve_by_the_cluster_ip_of_iptables_legacy: Topology::new(Proxy::IptablesLegacy);
        pods_resolve_by_the_cluster_ip_of_nftables: Topology::new(Proxy::Nftables).guarded(Firewall::Drops);
        pods_resolve_by_the_cluster_ip_of_ipv4_alone: Topology::new(Proxy::IptablesNft).only(Families::V4);
        pods_resolve_by_the_cluster_ip_of_ipv6_alone: Topology::new(Proxy::Nftables).only(Families::V6);
    }
    asked_itself {
        pods_resolve_by_the_agents_address_beside_iptables: Topology::new(Proxy::IptablesNft);
        pods_resolve_by_the_agents_address_behind_a_firewall:
            Topology::new(Proxy::IptablesLegacy).guarded(Firewall::Drops);
        pods_resolve_by_the_agents_address_of_ipv4_alone: Topology::new(Proxy::Nftables).only(Families::V4);
        pods_resolve_by_the_agents_address_of_ipv6_alone: Topology::new(Proxy::IptablesLegacy).only(Families::V6);
    }
}
