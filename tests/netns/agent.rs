//! The program under test, on the node.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Add;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;

pub(crate) use crate::support::{Agent, Home, Settings};
use crate::support::{ask_udp, free_port, query, seconds, wait_until};
use crate::topology::Node;

/// The longest TTL of the agents under test, shorter than that of the cluster's DNS: it says who answered.
pub(crate) const AGENT_TTL: u32 = 7;

/// The usual address, which a link of the node is to hold.
pub(crate) const LISTEN: &str = "169.254.20.10";
/// The same by IPv6.
pub(crate) const LISTEN6: &str = "fd00:169:254:20::10";

impl Agent {
    /// Runs with these settings, and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(settings: &Settings) -> Self {
        let mut agent = Self::launch(settings);
        agent.wait_until_ready();
        agent
    }

    /// As [`Agent::start`], without waiting for anything.
    #[track_caller]
    pub(crate) fn launch(settings: &Settings) -> Self {
        // Another one may be running with the same settings, and has a port of its own for HTTP.
        Self::launch_at(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), free_port()), settings)
    }

    /// As [`Agent::launch`], with its HTTP there.
    #[track_caller]
    pub(crate) fn launch_at(admin: SocketAddr, settings: &Settings) -> Self {
        Self::launch_in(Home::new(), &[], Settings { admin, ..settings.clone() })
    }

    /// Listens on loopback alone, with `body` (YAML), started by another program unless `by` is empty. Waits until it
    /// answers.
    #[track_caller]
    pub(crate) fn on_loopback(by: &[&str], body: &str) -> Self {
        let mut agent = Self::launch_in(Home::new(), by, Settings::new(&[], body));
        agent.wait_for_the_start();
        agent
    }

    /// Waits until it is ready.
    #[track_caller]
    pub(crate) fn wait_until_ready(&mut self) {
        let begun = Instant::now();
        while self.ready().0 != 200 {
            if let Some(status) = self.process.ended() {
                panic!("the agent ended by itself ({status}):\n{}", self.process.output());
            }
            let (code, body) = self.ready();
            let output = self.process.output();
            assert!(begun.elapsed() < seconds(15), "not ready: {code} {body}\n{output}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Code and body of `/ready`; 0 when there is none.
    pub(crate) fn ready(&self) -> (u16, String) {
        self.admin.get("/ready").unwrap_or_default()
    }

    /// Has it end in the tidy way, and waits for that.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.process.signal("TERM");
        let ended = self.process.wait(seconds(10));
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}\n{}", self.process.output());
    }

    /// Waits until the log has a line with all of these.
    #[track_caller]
    pub(crate) fn must_log(&self, parts: &[&str]) {
        let logged = || {
            let output = self.process.output();
            output.lines().any(|line| parts.iter().all(|part| line.contains(part)))
        };
        wait_until(
            &format!("the log has a line with {parts:?}:\n{}", self.process.output()),
            seconds(5),
            logged,
        );
    }

    /// TCP connections opened to upstreams.
    pub(crate) fn connections(&self) -> usize {
        self.admin.count("nodens_upstream_connects_total", &[("result", "ok")]) as usize
    }

    /// TCP connections opened to upstreams, and what `entries` counts at the same time: once they agree, or after a
    /// while, since a connection that is being opened has its entry before it is one.
    pub(crate) fn connections_and(&self, entries: impl Fn() -> usize) -> [usize; 2] {
        let end = Instant::now() + seconds(5);
        loop {
            let figures = [self.connections(), entries()];
            if figures[0] == figures[1] || Instant::now() >= end {
                return figures;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Times that something was put back, at a step.
    pub(crate) fn repairs(&self, step: &str) -> usize {
        self.admin.count("nodens_setup_repairs_total", &[("step", step)]) as usize
    }

    /// Queries sent to upstreams by UDP.
    pub(crate) fn sent_by_udp(&self) -> usize {
        self.sent("udp")
    }

    /// Queries sent to upstreams by a transport (`udp`, `tcp`).
    pub(crate) fn sent(&self, transport: &str) -> usize {
        self.admin.count("nodens_upstream_requests_total", &[("transport", transport)]) as usize
    }

    /// Asks for `count` names that nobody has asked for, one after the other, and expects an answer to each.
    #[track_caller]
    pub(crate) fn miss(&self, zone: &str, count: usize) {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        for _ in 0..count {
            let name = format!("n{}.{zone}.load.test.", NEXT.fetch_add(1, Ordering::Relaxed));
            let reply = ask_udp(self.address, &query(&name, "A")).expect("a reply");
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name}");
        }
    }
}

/// What the agents under test put into a stale answer.
pub(crate) const STALE_TTL: u32 = 9;

/// A zone for everything, whose answers show by their TTL that they come from the agent.
pub(crate) fn zone(servers: &[String]) -> String {
    format!(
        "zones:\n  - match: [\".\"]\n    upstream: {{ servers: {servers:?} }}\n    cache:\n      \
         max_ttl: {AGENT_TTL}s\n      stale: {{ answer_ttl: {STALE_TTL}s, client_response: 300ms }}\n"
    )
}

/// Further settings, as YAML.
impl Add<&str> for Settings {
    type Output = Self;

    fn add(mut self, more: &str) -> Self {
        self.body.push_str(more);
        self
    }
}

/// Settings to listen there, with these below `network`.
pub(crate) fn holding(listen: &[SocketAddr], network: &str, zone: &str) -> Settings {
    Settings::new(listen, &format!("network: {{ {network} }}\n{zone}"))
}

/// Settings to hold the usual addresses, spare them connection tracking, and answer for the ClusterIPs.
pub(crate) fn intercepting(node: &Node, zone: &str) -> Settings {
    let ips: Vec<_> = node.cluster_ips().iter().map(|at| at.ip().to_string()).collect();
    let network = format!("address_on: nodelocaldns, notrack: true, intercept: {ips:?}");
    holding(&node.sockets([LISTEN, LISTEN6]), &network, zone)
}
