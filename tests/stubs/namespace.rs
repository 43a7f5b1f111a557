//! A network namespace with files of its own in `/etc`, and tests that run inside.

use std::any::type_name;
use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::programs;
use crate::support::missing;

/// The agent's address in every namespace.
pub(crate) const ADDRESS: &str = "169.254.20.10";
/// A second family, as a pod of a dual-stack cluster has it: without one, stub resolvers with
/// AI_ADDRCONFIG do not ask for AAAA.
const POD_IPV6: &str = "fd00:10::10";
/// A namespace's name begins like this; the number of the process that made it comes next.
const PREFIX: &str = "nodens-stubs-";
/// Holds the namespace's name inside of it.
const INSIDE: &str = "NODENS_STUBS_NAMESPACE";

/// What `ip netns exec` mounts over the files of the same names in `/etc`.
const FILES: [(&str, &str); 3] = [
    (
        "resolv.conf",
        "nameserver 169.254.20.10\nsearch default.svc.cluster.local svc.cluster.local cluster.local\n\
         options ndots:5\n",
    ),
    ("nsswitch.conf", "hosts: files dns\n"),
    ("hosts", "127.0.0.1 localhost\n"),
];

/// Runs `body` as the calling test, in a process and a namespace of its own.
///
/// The test's name is read from `body`'s type, so it has to be a closure written in the test itself.
#[track_caller]
pub(crate) fn in_a_namespace<F: Fn()>(body: F) {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    let full = type_name::<F>();
    let (_, test) = full.split_once("::").expect("a path in this crate");
    let test = test.trim_end_matches("::{{closure}}");
    let namespace = Namespace::new();
    let output = Command::new("ip")
        .args(["netns", "exec", &namespace.name])
        .arg(env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, &namespace.name)
        .env(programs::DIRECTORY, programs::built())
        .output()
        .expect("ip netns exec");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    // A name that matches no test would be a success of nothing.
    let passed = output.status.success() && stdout.contains("test result: ok. 1 passed");
    assert!(passed, "{test} inside of the namespace: {}\n{stdout}\n{stderr}", output.status);
    print!("{stdout}");
}

/// Removed, with its files and whatever still runs in it, when dropped.
struct Namespace {
    name: String,
    files: PathBuf,
}

impl Namespace {
    #[track_caller]
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let user = fs::metadata("/proc/self").expect("/proc").uid();
        assert!(
            user == 0,
            "these tests make network namespaces and need root: run `cargo test --test stubs` as root, \
             or `sudo -E env \"PATH=$PATH\" cargo test --test stubs`"
        );
        remove_left_behind();
        let name = format!("{PREFIX}{}-{}", id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let namespace = Self::named(name);
        fs::create_dir_all(&namespace.files).expect("/etc/netns");
        for (file, content) in FILES {
            fs::write(namespace.files.join(file), content).expect("a file of the namespace");
        }
        let inside = ["-n", &namespace.name];
        for command in [
            &["link", "set", "lo", "up"][..],
            &["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"],
            &["address", "add", &format!("{POD_IPV6}/128"), "dev", "lo", "nodad"],
        ] {
            ip(&[&inside[..], command].concat());
        }
        namespace
    }

    fn named(name: String) -> Self {
        let files = Path::new("/etc/netns").join(&name);
        Self { name, files }
    }
}

/// Removes what tests that were killed could not.
fn remove_left_behind() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for entry in fs::read_dir("/etc/netns").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
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
        let removed = fs::remove_dir_all(&self.files);
        if !deleted.is_ok_and(|status| status.success()) || removed.is_err() {
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
