//! The program under test.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use tempfile::TempDir;

use super::process::{Process, program};
use super::{Http, ask_udp, free_port, query, seconds, wait_until};

/// A running `nodens demo`.
pub(crate) struct Demo {
    process: Process,
    _dir: TempDir,
}

impl Demo {
    /// Starts it on free ports.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut command = Command::new(program());
        command.arg("demo");
        command.args(["--listen", &format!("127.0.0.1:{}", free_port())]);
        command.args(["--admin", &format!("127.0.0.1:{}", free_port())]);
        command.arg("--control").arg(dir.path().join("control.sock"));
        let process = Process::start(command, "nodens", &dir.path().join("output"));
        Self { process, _dir: dir }
    }

    /// What it has printed so far.
    pub(crate) fn output(&self) -> String {
        self.process.output()
    }
}

/// A run of a subcommand that ended.
#[derive(Debug)]
pub(crate) struct Tool {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Tool {
    /// Both streams, for assertions that do not care which.
    pub(crate) fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs a subcommand to its end; one that hangs fails the test after 20 s.
#[track_caller]
pub(crate) fn nodens(arguments: &[&str]) -> Tool {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (stdout, stderr) = (dir.path().join("stdout"), dir.path().join("stderr"));
    let mut command = Command::new(program());
    command.args(arguments);
    let (out, errors) = (fs::File::create(&stdout), fs::File::create(&stderr));
    let mut process = Process::start_into(
        command,
        "none: it is the program under test",
        &stderr,
        out.expect("file"),
        errors.expect("file"),
    );
    let status = process.wait(seconds(20));
    let read = |file: &Path| fs::read_to_string(file).unwrap_or_default();
    let tool = Tool {
        code: status.and_then(|status| status.code()).unwrap_or(-1),
        stdout: read(&stdout),
        stderr: read(&stderr),
    };
    assert!(status.is_some(), "`nodens {}` does not end:\n{}", arguments.join(" "), tool.text());
    tool
}

/// How an agent is started; `Default` is the plain way.
#[derive(Default)]
pub(crate) struct Launch<'a> {
    /// The address to listen on first, of another agent for one, instead of a free port of 127.0.0.1.
    pub(crate) at: Option<SocketAddr>,
    /// Further addresses to listen on, after that.
    pub(crate) also_listen: &'a [SocketAddr],
    /// Replaces `/etc/resolv.conf` for this agent alone (needs root).
    pub(crate) resolv_conf: Option<&'a str>,
    /// Puts the config behind a `..data` link, as a mounted ConfigMap is.
    pub(crate) config_map: bool,
}

/// A running agent with ports and files of its own.
pub(crate) struct Agent {
    pub(crate) address: SocketAddr,
    pub(crate) admin: Http,
    head: String,
    process: Process,
    dir: TempDir,
    config_map: bool,
    generation: u32,
    /// Hits and misses of the wait for the start, which tests do not count.
    lookups_at_start: [f64; 2],
}

impl Agent {
    /// Runs with `body` (YAML: zones and whatever else) below generated addresses.
    #[track_caller]
    pub(crate) fn start(body: &str) -> Self {
        Self::launch(body, &Launch::default())
    }

    /// In front of one upstream for everything, with the body's further keys before the zones.
    #[track_caller]
    pub(crate) fn before(server: impl std::fmt::Display) -> Self {
        Self::start(&format!("zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{server}\"] }}\n"))
    }

    #[track_caller]
    pub(crate) fn launch(body: &str, launch: &Launch<'_>) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let free = || SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), free_port());
        let address = launch.at.unwrap_or_else(free);
        let admin = Http { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), free_port()) };
        let listen: Vec<String> = std::iter::once(&address)
            .chain(launch.also_listen)
            .map(|address| format!("\"{address}\""))
            .collect();
        let head = format!(
            "listen: [{}]\nadmin: \"{}\"\ncontrol: {}\n",
            listen.join(", "),
            admin.address,
            dir.path().join("control.sock").display(),
        );
        let folder = dir.path().join("config");
        fs::create_dir(&folder).expect("config directory");
        let config = folder.join("nodens.yaml");
        if launch.config_map {
            fs::create_dir(folder.join("..1")).expect("first version");
            fs::write(folder.join("..1/nodens.yaml"), format!("{head}{body}")).expect("config");
            symlink("..1", &folder.join("..data"));
            symlink("..data/nodens.yaml", &config);
        } else {
            fs::write(&config, format!("{head}{body}")).expect("config");
        }
        let mut command = match launch.resolv_conf {
            None => {
                let mut command = Command::new(program());
                command.arg("run").arg("--config").arg(&config);
                command
            }
            Some(content) => {
                let file = dir.path().join("resolv.conf");
                fs::write(&file, content).expect("resolv.conf");
                let mut command = Command::new("unshare");
                // `exec` keeps the process number, so that signals reach the agent.
                let script = "mount --bind \"$1\" /etc/resolv.conf && exec \"$2\" run --config \"$3\"";
                command.args(["-m", "sh", "-c", script, "sh"]);
                command.arg(&file).arg(program()).arg(&config);
                command
            }
        };
        command.env_remove("LISTEN_FDS");
        let process = Process::start(command, "util-linux", &dir.path().join("output"));
        let mut agent = Self {
            address,
            admin,
            head,
            process,
            dir,
            config_map: launch.config_map,
            generation: 1,
            lookups_at_start: [0.0; 2],
        };
        // `localhost` is answered without any upstream, so this waits for the agent alone.
        wait_until("the agent answers", seconds(10), || {
            if let Some(status) = agent.process.ended() {
                panic!("the agent ended by itself ({status}):\n{}", agent.output());
            }
            ask_udp(agent.address, &query("localhost.", "A")).is_some()
                && agent.admin.get("/health").is_some()
        });
        agent.lookups_at_start = [agent.lookups("hit"), agent.lookups("miss")];
        agent
    }

    pub(crate) fn output(&self) -> String {
        self.process.output()
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Arguments that reach this agent's control socket.
    pub(crate) fn control(&self) -> String {
        self.dir.path().join("control.sock").display().to_string()
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.dir.path().join("config/nodens.yaml")
    }

    pub(crate) fn resolv_conf_path(&self) -> PathBuf {
        self.dir.path().join("resolv.conf")
    }

    /// Replaces the config's body in the way it was put there: a write beside and a rename, or a
    /// new directory behind `..data`.
    pub(crate) fn write_config(&mut self, body: &str) {
        let folder = self.dir.path().join("config");
        let content = format!("{}{body}", self.head);
        self.generation += 1;
        if self.config_map {
            let version = format!("..{}", self.generation);
            fs::create_dir(folder.join(&version)).expect("next version");
            fs::write(folder.join(&version).join("nodens.yaml"), content).expect("config");
            symlink(&version, &folder.join("..data_tmp"));
            fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("swap");
        } else {
            let new = folder.join("nodens.yaml.new");
            fs::write(&new, content).expect("config");
            fs::rename(new, folder.join("nodens.yaml")).expect("swap");
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        self.process.signal(signal);
    }

    /// The exit status, `None` when it has not ended within `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.process.wait(limit)
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.ended().is_some()
    }

    /// Lookups that ended this way since the start (`hit` or `miss`), in all zones.
    pub(crate) fn lookups(&self, result: &str) -> f64 {
        let [hits, misses] = self.lookups_at_start;
        let at_start = if result == "hit" { hits } else { misses };
        self.admin.count("nodens_cache_lookups_total", &[("result", result)]) - at_start
    }

    /// Open file descriptors of the process.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.id())).map_or(0, Iterator::count)
    }

    /// Resident memory of the process in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    /// Waits until nothing is being asked upstream any more.
    #[track_caller]
    pub(crate) fn wait_without_flights(&self) {
        wait_until("nodens_flights is 0", seconds(10), || {
            self.admin.metric("nodens_flights", &[]) == Some(0.0)
        });
    }
}

fn symlink(target: &str, link: &Path) {
    std::os::unix::fs::symlink(target, link).expect("symbolic link");
}
