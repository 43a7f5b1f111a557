//! The program under test, with the capabilities that a test gives it.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};

use serde_json::Value;

use crate::support::Settings;
pub(crate) use crate::support::{Agent, Home};

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

impl Home {
    pub(crate) fn of_root() -> Self {
        Self::new()
    }

    /// With the program in it, since that may lie where only root finds it.
    pub(crate) fn of_nobody() -> Self {
        let mut home = Self::new();
        let dir = home.config.parent().expect("a directory");
        fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("a directory of ours");
        chown(dir, Some(NOBODY), Some(NOBODY)).expect("root");
        let copy = home.file("nodens");
        fs::copy(&home.program, &copy).expect("a copy of the program");
        home.program = copy;
        home
    }
}

impl Agent {
    /// By another program, listening on `listen` or, if there are none, on a free port; without waiting for anything.
    #[track_caller]
    pub(crate) fn launch(home: Home, by: &[&str], listen: &[&str], body: &str) -> Self {
        let listen: Vec<SocketAddr> = listen.iter().map(|at| at.parse().expect("address")).collect();
        Self::launch_in(home, by, Settings::new(&listen, body))
    }

    /// As [`Agent::launch`], and waits until it answers.
    #[track_caller]
    pub(crate) fn start(home: Home, by: &[&str], listen: &[&str], body: &str) -> Self {
        let mut agent = Self::launch(home, by, listen, body);
        agent.wait_for_the_start();
        agent
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
}
