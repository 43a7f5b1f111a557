//! An upstream that leads back to the agent ends it at the start, with an error that names the upstream.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;
use std::{fs, io};

use crate::support::{
    Agent, Reaction, Upstream, address_reply, ask, datagram_reply, free_port, millis, nodens, seconds,
    wait_until,
};

/// Something that passes every packet and every connection on, as a Service would that has the agent itself
/// as its endpoint.
struct Relay {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
}

impl Relay {
    fn to(target: SocketAddr) -> Self {
        let address = loopback();
        let udp = Arc::new(UdpSocket::bind(address).expect("UDP socket"));
        let tcp = TcpListener::bind(address).expect("TCP socket");
        udp.set_read_timeout(Some(millis(200))).expect("timeout");
        let stopping = Arc::new(AtomicBool::new(false));
        let (stop_udp, stop_tcp) = (Arc::clone(&stopping), Arc::clone(&stopping));
        thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while !stop_udp.load(Ordering::Relaxed) {
                let Ok((length, from)) = udp.recv_from(&mut buffer) else { continue };
                let (query, udp) = (buffer[..length].to_vec(), Arc::clone(&udp));
                thread::spawn(move || {
                    if let Some(reply) = datagram_reply(target, &query, seconds(5)) {
                        let _ = udp.send_to(&reply, from);
                    }
                });
            }
        });
        thread::spawn(move || {
            for client in tcp.incoming().take_while(|_| !stop_tcp.load(Ordering::Relaxed)).flatten() {
                let Ok(server) = TcpStream::connect(target) else { continue };
                pass_on(&client, &server);
                pass_on(&server, &client);
            }
        });
        Self { address, stopping }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes the thread that waits in `accept`.
        let _ = TcpStream::connect(self.address);
    }
}

/// Copies one direction until it ends.
fn pass_on(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().expect("socket"), to.try_clone().expect("socket"));
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}

fn zone(servers: &[&str]) -> String {
    let servers: Vec<String> = servers.iter().map(|server| format!("\"{server}\"")).collect();
    let servers = servers.join(", ");
    format!("zones:\n  - {{ match: [loop.test, other.test], upstream: {{ servers: [{servers}] }} }}\n")
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// An agent on `listen` before these servers ends by itself, and names one of them and no other.
#[track_caller]
fn ends_and_names(listen: SocketAddr, servers: &[&str], named: &str) {
    ends_with(listen, &zone(servers), named);
}

/// The same with these zones.
#[track_caller]
fn ends_with(listen: SocketAddr, zones: &str, named: &str) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let config = dir.path().join("nodens.yaml");
    let (admin, control) = (loopback(), dir.path().join("control.sock"));
    let head = format!("listen: [\"{listen}\"]\nadmin: \"{admin}\"\ncontrol: {}\n", control.display());
    fs::write(&config, head + zones).expect("config");
    let run = nodens(&["run", "--config", &config.display().to_string()]);
    assert_eq!(run.code, 1, "{}", run.text());
    let error = format!(
        "nodens: {named} leads back to this agent (zone loop.test): name another server in upstream.servers\n"
    );
    assert!(run.stderr.ends_with(&error), "{}", run.text());
    assert_eq!(run.stderr.matches("nodens: ").count(), 1, "{}", run.text());
    assert!(!control.exists(), "the control socket is gone");
}

#[test]
fn an_upstream_that_leads_back_by_tcp_ends_the_agent() {
    let listen = loopback();
    let relay = Relay::to(listen);
    let server = format!("tcp://{}", relay.address);
    ends_and_names(listen, &[&server], &server);
}

#[test]
fn an_upstream_that_leads_back_by_udp_ends_the_agent() {
    let listen = loopback();
    let relay = Relay::to(listen);
    let server = format!("udp://{}", relay.address);
    ends_and_names(listen, &[&server], &server);
}

#[test]
fn of_two_servers_the_one_that_leads_back_is_named() {
    let (upstream, listen) = (Upstream::plain(30), loopback());
    let relay = Relay::to(listen);
    let server = format!("udp://{}", relay.address);
    ends_and_names(listen, &[&upstream.tcp(), &server], &server);
}

#[test]
fn a_name_that_leads_back_ends_the_agent() {
    let listen = loopback();
    let relay = Relay::to(listen);
    let bootstrap = Upstream::start(|query, _| Reaction::Answer(address_reply(query, 30, "127.0.0.1")));
    let zones = format!(
        "zones:\n  - match: [loop.test]\n    upstream: {{ servers: [\"tcp://dns.test:{}\"], bootstrap: [\"{}\"] }}\n",
        relay.address.port(),
        bootstrap.udp(),
    );
    ends_with(listen, &zones, &format!("tcp://{}", relay.address));
}

#[test]
fn a_loop_through_another_agent_is_found() {
    let listen = loopback();
    // It leads back to itself as well, but not yet when it looks: nobody listens there.
    let between = Agent::start(&format!(
        "zones:\n  - {{ match: [\".\"], upstream: {{ servers: [\"tcp://{listen}\"] }} }}\n"
    ));
    let server = format!("tcp://{}", between.address);
    ends_and_names(listen, &[&server], &server);
}

#[test]
fn an_upstream_that_leads_elsewhere_is_asked_once_and_changes_nothing() {
    let upstream = Upstream::plain(30);
    let mut agent = Agent::start(&zone(&[&upstream.tcp(), &upstream.udp()]));
    wait_until("both servers were asked", seconds(5), || upstream.count_below("loop.test.") >= 3);
    assert_eq!(ask(agent.address, "www.loop.test.", "A").answers.len(), 1);
    // Two probes, the SOA of the start, one query.
    assert_eq!(upstream.count_below("loop.test."), 4);
    assert_eq!(upstream.count_below("other.test."), 0, "one probe a server, not a zone");
    assert_eq!(agent.lookups("miss"), 1.0);
    assert_eq!(agent.admin.count("nodens_cache_entries", &[]), 1.0, "a probe's answer is not kept");
    assert!(!agent.has_ended());
}

#[test]
fn an_unreachable_upstream_is_no_loop() {
    let nobody = loopback();
    let mut agent = Agent::start(&zone(&[&format!("tcp://{nobody}"), &format!("udp://{nobody}")]));
    let started = Instant::now();
    wait_until("both were tried", seconds(10), || {
        agent.admin.count("nodens_upstream_connects_total", &[("result", "failed")]) >= 1.0
            && started.elapsed() > seconds(1)
    });
    assert!(!agent.has_ended(), "{}", agent.output());
    assert_eq!(agent.lookups("miss"), 0.0);
    assert_eq!(agent.admin.count("nodens_cache_entries", &[]), 0.0, "no failure is remembered");
}
