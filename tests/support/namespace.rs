//! Tests that run inside of network namespaces which they made themselves.

use std::any::type_name;
use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use super::process::missing;

/// A namespace's name begins like this; the name of the tests' crate and the number of the process that made it
/// come next.
const PREFIX: &str = "nodens-";
/// Holds the namespace's name inside of it.
const INSIDE: &str = "NODENS_TEST_NAMESPACE";

/// Runs `body` as the calling test, in a process and a namespace of its own. `prepare` sets the namespace up and
/// may tell the process more; what it returns lives as long as the namespace.
///
/// The test's name is read from `body`'s type, so it has to be a closure written in the test itself, or be handed
/// on from there.
#[track_caller]
pub(crate) fn inside<F: Fn(), P>(prepare: impl FnOnce(&Namespace, &mut Command) -> P, body: F) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    let full = type_name::<F>();
    let (suite, test) = full.split_once("::").expect("a path in this crate");
    let test = test.trim_end_matches("::{{closure}}");
    let namespace = Namespace::new(suite);
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", &namespace.name])
        .arg(env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, &namespace.name);
    let _prepared = prepare(&namespace, &mut command);
    let output = command.output().expect("ip netns exec");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    // A name that matches no test would be a success of nothing.
    let passed = output.status.success() && stdout.contains("test result: ok. 1 passed");
    assert!(passed, "{test} inside of the namespace: {}\n{stdout}\n{stderr}", output.status);
    // Without the lines by which a runner closes: there is one outside of this one.
    for line in
        stdout.lines().filter(|line| !line.starts_with("running ") && !line.starts_with("test result"))
    {
        println!("{line}");
    }
    // Figures are for everybody to see, so they go past the runner, which keeps what a test prints to itself.
    let _ = std::io::stderr().write_all(&output.stderr);
}

/// Removed, with its files and whatever still runs in it, when dropped.
pub(crate) struct Namespace {
    pub(crate) name: String,
    files: PathBuf,
}

impl Namespace {
    /// A new one, whose loopback link is up, for a crate of tests.
    #[track_caller]
    fn new(suite: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let user = fs::metadata("/proc/self").expect("/proc").uid();
        assert!(
            user == 0,
            "these tests make network namespaces and need root: run `cargo test --test {suite}` as root, \
             or `sudo -E env \"PATH=$PATH\" cargo test --test {suite}`"
        );
        remove_left_behind(suite);
        Self::add(format!("{PREFIX}{suite}-{}-{}", id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// One more, which a test may make beside its own: `name` begins with that one's.
    #[track_caller]
    pub(crate) fn add(name: String) -> Self {
        ip(&["netns", "add", &name]);
        let namespace = Self::named(name);
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    fn named(name: String) -> Self {
        let files = Path::new("/etc/netns").join(&name);
        Self { name, files }
    }

    /// Runs `ip` inside.
    #[track_caller]
    pub(crate) fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.name], arguments].concat());
    }
}

/// Removes what tests of this crate that were killed could not.
fn remove_left_behind(suite: &str) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let prefix = format!("{PREFIX}{suite}-");
        let folders = ["/run/netns", "/etc/netns"].into_iter().filter_map(|folder| fs::read_dir(folder).ok());
        let names = folders.flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        for name in names.collect::<BTreeSet<_>>() {
            let owner = name.strip_prefix(&prefix).and_then(|rest| rest.split('-').next());
            if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
                drop(Namespace::named(name));
            }
        }
    });
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Only what a test that broke off has left: the rest has ended with its owner.
        if let Ok(left) = Command::new("ip").args(["netns", "pids", &self.name]).output() {
            for process in String::from_utf8_lossy(&left.stdout).split_whitespace() {
                let _ = Command::new("kill").args(["-KILL", process]).status();
            }
        }
        // Both are tried, and a failure is shown; a panic here would hide the test's own.
        let deleted = Command::new("ip").args(["netns", "delete", &self.name]).status();
        let removed = !self.files.exists() || fs::remove_dir_all(&self.files).is_ok();
        if !deleted.is_ok_and(|status| status.success()) || !removed {
            eprintln!("left behind: namespace {} or {}", self.name, self.files.display());
        }
    }
}

#[track_caller]
fn ip(arguments: &[&str]) {
    let output = match Command::new("ip").args(arguments).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("{}", missing("ip", "iproute2", &error))
        }
        output => output.expect("ip"),
    };
    assert!(
        output.status.success(),
        "`ip {}` failed, which needs CAP_SYS_ADMIN and CAP_NET_ADMIN: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}
