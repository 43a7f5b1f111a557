//! The program under test, on the node.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use tempfile::TempDir;

use crate::support::{Http, Process, ask_udp, free_port, program, query, seconds, wait_until};

pub(crate) struct Agent {
    pub(crate) address: SocketAddr,
    pub(crate) admin: Http,
    head: String,
    pub(crate) process: Process,
    dir: TempDir,
}

impl Agent {
    /// Runs with `body` (YAML) below addresses of its own.
    #[track_caller]
    pub(crate) fn start(body: &str) -> Self {
        let mut agent = Self::launch(&[], body);
        agent.wait_for_the_start();
        agent
    }

    #[track_caller]
    pub(crate) fn wait_for_the_start(&mut self) {
        wait_until("the agent answers", seconds(10), || {
            if let Some(status) = self.process.ended() {
                panic!("the agent ended by itself ({status}):\n{}", self.process.output());
            }
            // `localhost` is answered without any upstream.
            ask_udp(self.address, &query("localhost.", "A")).is_some() && self.admin.get("/health").is_some()
        });
    }

    /// As [`Agent::start`], by another program, and without waiting for anything.
    pub(crate) fn launch(by: &[&str], body: &str) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let [address, admin] =
            [(); 2].map(|()| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), free_port()));
        let control = dir.path().join("control.sock");
        let head = format!("listen: [\"{address}\"]\nadmin: \"{admin}\"\ncontrol: {}\n", control.display());
        let config = dir.path().join("nodens.yaml");
        fs::write(&config, format!("{head}{body}")).expect("config");
        let mut command = match by {
            [] => Command::new(program()),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program());
                command
            }
        };
        command.arg("run").arg("--config").arg(&config);
        let process = Process::start(command, "util-linux", &dir.path().join("output"));
        Self { address, admin: Http { address: admin }, head, process, dir }
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("nodens.yaml")
    }

    /// Replaces the body of the configuration, and waits until it is in force.
    #[track_caller]
    pub(crate) fn reload(&self, body: &str) {
        self.try_to_reload(body, "ok");
    }

    /// The same, with what comes of it.
    #[track_caller]
    pub(crate) fn try_to_reload(&self, body: &str, result: &str) {
        let reloads = || self.admin.count("nodens_config_reloads_total", &[("result", result)]);
        let before = reloads();
        fs::write(self.config(), format!("{}{body}", self.head)).expect("config");
        self.process.signal("HUP");
        wait_until("the reload is done", seconds(10), || reloads() > before);
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

    /// Queries sent to upstreams by a transport (`udp`, `tcp`).
    pub(crate) fn sent(&self, transport: &str) -> usize {
        self.admin.count("nodens_upstream_requests_total", &[("transport", transport)]) as usize
    }
}
