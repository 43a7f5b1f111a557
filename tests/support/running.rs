//! A running agent with a configuration and files of its own, in the namespace of the test that starts it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::process::{Process, program};
use super::{Http, ask_udp, free_port, query, seconds, wait_until};

/// Where an agent has its files.
pub(crate) struct Home {
    pub(crate) program: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) control: PathBuf,
    dir: TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| dir.path().join(name);
        Self { program: program(), config: at("nodens.yaml"), control: at("control.sock"), dir }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// What an agent is told, but for its files.
#[derive(Clone)]
pub(crate) struct Settings {
    /// Where it listens.
    pub(crate) listen: Vec<SocketAddr>,
    /// Where its HTTP is.
    pub(crate) admin: SocketAddr,
    /// The rest, as YAML.
    pub(crate) body: String,
}

impl Settings {
    /// It listens on a free port of loopback unless it is told where.
    pub(crate) fn new(listen: &[SocketAddr], body: &str) -> Self {
        let free = || SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), free_port());
        let listen = if listen.is_empty() { vec![free()] } else { listen.to_vec() };
        Self { listen, admin: free(), body: body.to_owned() }
    }

    fn text(&self, home: &Home) -> String {
        let listen: Vec<_> = self.listen.iter().map(SocketAddr::to_string).collect();
        let (admin, control) = (self.admin, home.control.display());
        format!("listen: {listen:?}\nadmin: \"{admin}\"\ncontrol: {control}\n{}", self.body)
    }
}

/// It ends with this value.
pub(crate) struct Agent {
    /// The first one at which it listens.
    pub(crate) address: SocketAddr,
    pub(crate) admin: Http,
    settings: Settings,
    pub(crate) process: Process,
    // After the process: fields are dropped in this order.
    pub(crate) home: Home,
}

impl Agent {
    /// Starts it, by another program with its arguments unless `by` is empty, and waits for nothing.
    #[track_caller]
    pub(crate) fn launch_in(home: Home, by: &[&str], settings: Settings) -> Self {
        fs::write(&home.config, settings.text(&home)).expect("config");
        let program = home.program.display().to_string();
        let words = [by, &[&program]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("run").arg("--config").arg(&home.config);
        let process = Process::start(command, "util-linux", &home.file("output"));
        let admin = Http { address: settings.admin };
        Self { address: settings.listen[0], admin, settings, process, home }
    }

    /// Waits until it answers.
    #[track_caller]
    pub(crate) fn wait_for_the_start(&mut self) {
        wait_until("the agent answers", seconds(10), || {
            if let Some(status) = self.process.ended() {
                panic!("the agent ended by itself ({status}):\n{}", self.process.output());
            }
            self.admin.get("/health").is_some() && self.answers()
        });
    }

    /// `localhost` is answered without any upstream.
    pub(crate) fn answers(&self) -> bool {
        ask_udp(self.address, &query("localhost.", "A")).is_some()
    }

    /// Replaces the body of the configuration and has it read; `result` is what must come of it.
    #[track_caller]
    pub(crate) fn reload(&mut self, body: &str, result: &str) {
        let reloads = |agent: &Self| agent.admin.count("nodens_config_reloads_total", &[("result", result)]);
        let before = reloads(self);
        body.clone_into(&mut self.settings.body);
        fs::write(&self.home.config, self.settings.text(&self.home)).expect("config");
        self.process.signal("HUP");
        wait_until(&format!("a reload is {result}"), seconds(10), || reloads(self) > before);
    }
}
