//! A small cluster inside of a namespace: its DNS, the resolver outside, and the agent between them and pods.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use crate::namespace::ADDRESS;
use crate::support::stubs::records;
use crate::support::{
    CLUSTER_ZONE, Http, Nsd, Process, REVERSE_ZONE, Unbound, ask_udp, program, query, seconds, wait_until,
};

pub(crate) struct Cluster {
    pub(crate) nsd: Nsd,
    _unbound: Unbound,
    admin: Http,
    control: String,
    // In this order: the process, then its files.
    _agent: Process,
    _dir: TempDir,
}

impl Cluster {
    /// The cluster's DNS knows the names outside as well, so that it answers ExternalNames with the CNAME
    /// and its target's addresses, as CoreDNS does.
    pub(crate) fn start() -> Self {
        let (root, outside) = records::root_zone();
        Self::before(Nsd::start(&[CLUSTER_ZONE, REVERSE_ZONE, (root, &outside)]), "")
    }

    /// The cluster's DNS knows its own zones alone.
    pub(crate) fn without_outside() -> Self {
        Self::before(Nsd::cluster(), "")
    }

    /// With one zone more, whose server is given.
    pub(crate) fn with_zone(zone: &str, server: SocketAddr) -> Self {
        let zone = format!("  - match: [{zone}]\n    upstream: {{ servers: [\"tcp://{server}\"] }}\n");
        Self::before(Nsd::cluster(), &zone)
    }

    fn before(nsd: Nsd, further_zones: &str) -> Self {
        let unbound = Unbound::outside();
        let dir = tempfile::tempdir().expect("temporary directory");
        let address = format!("{ADDRESS}:53");
        let admin = Http { address: ([127, 0, 0, 1], 9253).into() };
        let control = dir.path().join("control.sock").display().to_string();
        let config = dir.path().join("nodens.yaml");
        let content = format!(
            "listen: [\"{address}\"]\nadmin: \"{}\"\ncontrol: {control}\nzones:\n  \
             - match: [cluster.local, in-addr.arpa, ip6.arpa]\n    upstream: {{ servers: [\"tcp://{}\"] }}\n  \
             - match: [\".\"]\n    upstream: {{ servers: [\"udp://{}\"] }}\n{further_zones}",
            admin.address, nsd.address, unbound.address
        );
        fs::write(&config, content).expect("config");
        let mut command = Command::new(program());
        command.arg("run").arg("--config").arg(&config);
        let output = dir.path().join("output");
        let mut agent = Process::start(command, "none: it is the program under test", &output);
        wait_until("the agent answers", seconds(10), || {
            if let Some(status) = agent.ended() {
                panic!("the agent ended by itself ({status}):\n{}", agent.output());
            }
            // `localhost` is answered without any upstream.
            let address = address.parse().expect("an address");
            ask_udp(address, &query("localhost.", "A")).is_some() && admin.get("/health").is_some()
        });
        Self { nsd, _unbound: unbound, admin, control, _agent: agent, _dir: dir }
    }

    /// Queries that came from clients, by transport (`udp`, `tcp`).
    pub(crate) fn asked(&self, transport: &str) -> f64 {
        self.admin.count("nodens_queries_total", &[("transport", transport)])
    }

    /// Queries of one type that came from clients.
    pub(crate) fn asked_for(&self, record_type: &str) -> f64 {
        self.admin.count("nodens_queries_total", &[("type", record_type)])
    }

    /// Queries that went upstream.
    pub(crate) fn sent_upstream(&self) -> f64 {
        self.admin.count("nodens_upstream_requests_total", &[])
    }

    /// Answers past their life that went to clients.
    pub(crate) fn stale_answers(&self) -> f64 {
        self.admin.count("nodens_responses_total", &[("source", "stale")])
    }

    /// Makes the agent forget all answers, so that the next client is the first.
    #[track_caller]
    pub(crate) fn flush(&self) {
        let output = Command::new(program())
            .args(["cache", "flush", "--control", &self.control])
            .output()
            .expect("nodens cache flush");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
