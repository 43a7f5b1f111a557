//! The program under test, with the capabilities that a test gives it.

use std::fs::{self, Permissions};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Http, Process, ask_udp, free_port, program, query, seconds, wait_until};

/// linux/capability.h.
pub(crate) const NET_BIND_SERVICE: u64 = 1 << 10;
/// linux/capability.h.
pub(crate) const NET_ADMIN: u64 = 1 << 12;

/// The user `nobody`.
pub(crate) const NOBODY: u32 = 65_534;

/// No capability, and no way to one.
pub(crate) const WITHOUT: [&str; 3] = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];

/// The five sets of a thread, as bits (proc_pid_status(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sets {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) bounding: u64,
    pub(crate) ambient: u64,
}

impl Sets {
    /// What root has: these, in force, and no way to more.
    pub(crate) fn only(held: u64) -> Self {
        Self { effective: held, permitted: held, inheritable: 0, bounding: held, ambient: 0 }
    }

    fn read(status: &str) -> Self {
        let set = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).expect(key);
            u64::from_str_radix(line.trim(), 16).expect("hexadecimal")
        };
        Self {
            effective: set("CapEff:"),
            permitted: set("CapPrm:"),
            inheritable: set("CapInh:"),
            bounding: set("CapBnd:"),
            ambient: set("CapAmb:"),
        }
    }
}

/// Where an agent has its files.
pub(crate) struct Home {
    dir: TempDir,
    program: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) control: PathBuf,
}

impl Home {
    pub(crate) fn of_root() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| dir.path().join(name);
        Self { program: program(), config: at("nodens.yaml"), control: at("control.sock"), dir }
    }

    /// With the program in it, since that may lie where only root finds it.
    pub(crate) fn of_nobody() -> Self {
        let mut home = Self::of_root();
        fs::set_permissions(home.dir.path(), Permissions::from_mode(0o755)).expect("a directory of ours");
        chown(home.dir.path(), Some(NOBODY), Some(NOBODY)).expect("root");
        let copy = home.file("nodens");
        fs::copy(&home.program, &copy).expect("a copy of the program");
        home.program = copy;
        home
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

pub(crate) struct Agent {
    pub(crate) address: SocketAddr,
    pub(crate) admin: Http,
    pub(crate) process: Process,
    pub(crate) home: Home,
    head: String,
}

impl Agent {
    /// By another program, listening on `listen` or, if there are none, on a free port; without waiting for anything.
    #[track_caller]
    pub(crate) fn launch(home: Home, by: &[&str], listen: &[&str], body: &str) -> Self {
        let free = || SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), free_port());
        let mut listen: Vec<SocketAddr> =
            listen.iter().map(|address| address.parse().expect("address")).collect();
        if listen.is_empty() {
            listen.push(free());
        }
        let admin = free();
        let listed: Vec<String> = listen.iter().map(|address| format!("\"{address}\"")).collect();
        let head = format!(
            "listen: [{}]\nadmin: \"{admin}\"\ncontrol: {}\n",
            listed.join(", "),
            home.control.display()
        );
        fs::write(&home.config, format!("{head}{body}")).expect("config");
        let mut words = by.to_vec();
        let program = home.program.display().to_string();
        words.push(&program);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("run").arg("--config").arg(&home.config);
        let process = Process::start(command, "util-linux", &home.file("output"));
        Self { address: listen[0], admin: Http { address: admin }, process, home, head }
    }

    /// As [`Agent::launch`], and waits until it answers.
    #[track_caller]
    pub(crate) fn start(home: Home, by: &[&str], listen: &[&str], body: &str) -> Self {
        let mut agent = Self::launch(home, by, listen, body);
        agent.wait_for_the_start();
        agent
    }

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

    /// Those of every thread, which are all the same.
    #[track_caller]
    pub(crate) fn capabilities(&self) -> Sets {
        let tasks = format!("/proc/{}/task", self.process.id());
        let read = |entry: fs::DirEntry| {
            Sets::read(&fs::read_to_string(entry.path().join("status")).expect("a thread"))
        };
        let tasks = fs::read_dir(tasks).expect("a running agent").filter_map(Result::ok);
        let mut threads: Vec<Sets> = tasks.map(read).collect();
        assert!(threads.len() > 1, "the workers are threads of their own: {threads:?}");
        threads.dedup();
        assert_eq!(threads.len(), 1, "{threads:?}");
        threads[0]
    }

    /// The log's line about what is kept.
    #[track_caller]
    pub(crate) fn logged_capabilities(&self) -> String {
        let output = self.process.output();
        let lines = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let kept: Vec<String> = lines
            .filter(|line| line["level"] == "INFO")
            .filter_map(|line| line["capabilities"].as_str().map(str::to_owned))
            .collect();
        assert_eq!(kept.len(), 1, "{output}");
        kept[0].clone()
    }

    /// Replaces the body of the configuration and has it read; `result` is what must come of it.
    #[track_caller]
    pub(crate) fn reload(&self, body: &str, result: &str) {
        let reloads = || self.admin.count("nodens_config_reloads_total", &[("result", result)]);
        let before = reloads();
        fs::write(&self.home.config, format!("{}{body}", self.head)).expect("config");
        self.process.signal("HUP");
        wait_until(&format!("a reload is {result}"), seconds(10), || reloads() > before);
    }
}
