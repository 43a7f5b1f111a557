//! Who holds a socket: `/proc/PID/fd`, `comm` and `cgroup`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::doctor::finding::Seen;
use crate::doctor::sources::Sources;
use crate::doctor::words::{quoted, shown};

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name, of up to 15 letters (proc(5), `comm`).
    pub name: String,
    /// Who started it.
    pub origin: Origin,
}

/// Who started a process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// systemd, as the program that this unit is there for.
    Unit(String),
    /// Somebody in this unit of systemd, which is there for more.
    Within(String),
    /// The kubelet, in a pod.
    Pod,
    /// Somebody else.
    Other,
}

impl Process {
    /// What ends it, as far as that can be known, and nothing else; how to look where that cannot be known.
    pub fn stop(&self) -> String {
        let Self { pid, name, origin } = self;
        match origin {
            Origin::Unit(unit) if unit == RESOLVED => format!(
                "ls -l /etc/resolv.conf\n# once that does not name the stub of systemd-resolved: DNSStubListener=no, or \
                 less of DNSStubListenerExtra=, in /etc/systemd/resolved.conf, and\n# systemctl restart {RESOLVED}"
            ),
            Origin::Unit(unit) => format!("systemctl disable --now {}", quoted(unit)),
            Origin::Within(unit) => format!(
                "systemctl status {pid}\n# it belongs to {}, which does more than this: its configuration says how it \
                 goes without",
                quoted(unit)
            ),
            Origin::Pod => {
                format!(
                    "# {} is in a pod: delete the DaemonSet or static pod that it comes from",
                    quoted(name)
                )
            }
            Origin::Other => format!("kill {pid}"),
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

/// Those who hold sockets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owners {
    /// By the socket's inode.
    pub of: BTreeMap<u64, Vec<Process>>,
    /// Processes whose files may not be seen.
    pub hidden: usize,
}

/// Who holds these sockets.
///
/// # Errors
/// Why processes cannot be seen.
pub fn owners(sources: &Sources, inodes: &BTreeSet<u64>) -> Seen<Owners> {
    let mut owners = Owners::default();
    let pids = sources.names("/proc")?.into_iter().filter_map(|name| name.parse::<u32>().ok());
    for pid in pids {
        let folder = format!("/proc/{pid}/fd");
        let Ok(files) = sources.names(&folder) else {
            // One that has ended meanwhile has no `comm` either.
            owners.hidden += usize::from(sources.read(format!("/proc/{pid}/comm")).is_ok());
            continue;
        };
        let mut held: BTreeSet<u64> = BTreeSet::new();
        for file in files {
            let target = sources.link(format!("{folder}/{file}")).unwrap_or_default();
            let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            held.extend(inode.and_then(|inode| inode.parse::<u64>().ok()).filter(|at| inodes.contains(at)));
        }
        if !held.is_empty() {
            let process = process(sources, pid);
            for inode in held {
                owners.of.entry(inode).or_default().push(process.clone());
            }
        }
    }
    Ok(owners)
}

/// The processes of our network namespace that have this name.
///
/// # Errors
/// Why processes cannot be seen.
pub fn named(sources: &Sources, name: &str) -> Seen<Vec<Process>> {
    let pids = sources.names("/proc")?.into_iter().filter_map(|name| name.parse::<u32>().ok());
    let all = pids.map(|pid| process(sources, pid)).filter(|process| process.name == name);
    // One that has ended and that nobody has waited for yet.
    let has_ended = |pid: u32| {
        let status = sources.read(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:\tZ"))
    };
    let all = all.filter(|process| !has_ended(process.pid));
    let network = |pid: &str| sources.link(format!("/proc/{pid}/ns/net")).ok();
    let ours = network("self");
    Ok(all.filter(|process| network(&process.pid.to_string()).is_none_or(|its| Some(its) == ours)).collect())
}

/// What is known of a process. It chooses its own name.
pub fn process(sources: &Sources, pid: u32) -> Process {
    let name = sources.read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = shown(name.strip_suffix('\n').unwrap_or(&name));
    let origin = origin(&name, &sources.read(format!("/proc/{pid}/cgroup")).unwrap_or_default());
    Process { pid, name, origin }
}

/// systemd's own, which /etc/resolv.conf often leads to.
const RESOLVED: &str = "systemd-resolved.service";
/// linux/sched.h, `TASK_COMM_LEN`, less the zero at the end.
const NAME_MAX: usize = 15;

fn origin(name: &str, cgroups: &str) -> Origin {
    if cgroups.contains("kubepods") {
        return Origin::Pod;
    }
    // A user's units are no units of the system, whatever they are called.
    let of_the_system =
        cgroups.lines().filter(|line| !line.contains("/user.slice/") && !line.contains("/user@"));
    // The innermost, and whether the process is right there: what is below is somebody's whom the unit has started.
    let unit = of_the_system.into_iter().find_map(|line| {
        let (at, unit) = line.rsplit('/').enumerate().find(|(_, part)| part.ends_with(".service"))?;
        Some((at == 0, unit))
    });
    match unit {
        None => Origin::Other,
        Some((true, unit)) if is_program_of(name, unit) => Origin::Unit(unit.to_owned()),
        Some((_, unit)) => Origin::Within(unit.to_owned()),
    }
}

/// Whether a process is called as its unit is, `dnsmasq` as `dnsmasq@eth0.service`: the one that the unit is there for. What
/// NetworkManager or libvirtd has started is in their units as well.
fn is_program_of(name: &str, unit: &str) -> bool {
    let stem = unit.trim_end_matches(".service").split('@').next().unwrap_or_default();
    name == stem || (name.len() == NAME_MAX && stem.starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    #[test]
    fn each_process_that_has_the_socket_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (pid, name, cgroup, target) in [
            (7, "dnsmasq", "0::/system.slice/dnsmasq.service\n", "socket:[4711]"),
            (8, "node-cache", "0::/kubepods.slice/kubepods-pod1.slice/cri.scope\n", "socket:[4711]"),
            (9, "sshd", "0::/user.slice\n", "socket:[9]"),
        ] {
            let folder = dir.path().join(format!("proc/{pid}"));
            fs::create_dir_all(folder.join("fd")).unwrap();
            fs::write(folder.join("comm"), format!("{name}\n")).unwrap();
            fs::write(folder.join("cgroup"), cgroup).unwrap();
            symlink("/dev/null", folder.join("fd/0")).unwrap();
            symlink(target, folder.join("fd/3")).unwrap();
        }
        let sources = Sources { root: dir.path().to_owned(), kubelet: PathBuf::new() };
        let owners = owners(&sources, &BTreeSet::from([4711, 5])).unwrap();
        let found: Vec<_> = owners.of[&4711].iter().map(ToString::to_string).collect();
        assert_eq!(found, ["dnsmasq (pid 7)", "node-cache (pid 8)"]);
        assert_eq!(owners.of[&4711][0].origin, Origin::Unit("dnsmasq.service".to_owned()));
        assert_eq!(owners.of[&4711][1].origin, Origin::Pod);
        assert_eq!((owners.of.len(), owners.hidden), (1, 0));
    }

    #[test]
    fn a_users_session_is_nobodys_unit() {
        let user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice";
        assert_eq!(origin("x", &format!("{user}/x.scope\n")), Origin::Other);
        assert_eq!(
            origin("dnsmasq", &format!("{user}/dnsmasq.service\n")),
            Origin::Other,
            "the system's is another"
        );
        assert_eq!(origin("dnsmasq", &format!("{user}/$(id).service\n")), Origin::Other);
        assert_eq!(
            origin("named", "1:name=systemd:/system.slice/named.service\n"),
            Origin::Unit("named.service".into())
        );
        assert_eq!(origin("x", ""), Origin::Other);
    }

    #[test]
    fn a_unit_is_ended_only_for_the_program_that_it_is_there_for() {
        let stop = |name: &str, unit: &str| {
            let origin = origin(name, &format!("0::/system.slice/{unit}\n"));
            Process { pid: 8, name: name.to_owned(), origin }.stop()
        };
        assert_eq!(stop("dnsmasq", "dnsmasq.service"), "systemctl disable --now dnsmasq.service");
        assert_eq!(stop("dnsmasq", "dnsmasq@lan.service"), "systemctl disable --now dnsmasq@lan.service");
        assert_eq!(stop("a-b", "a-b@c\\x2dd.service"), "systemctl disable --now 'a-b@c\\x2dd.service'");
        for unit in ["NetworkManager.service", "libvirtd.service", "containerd.service/dnsmasq"] {
            let look = stop("dnsmasq", unit);
            assert!(look.starts_with("systemctl status 8\n# ") && look.lines().count() == 2, "{look}");
        }
        let resolved = stop("systemd-resolve", "systemd-resolved.service");
        assert!(resolved.starts_with("ls -l /etc/resolv.conf\n# "), "{resolved}");
        assert!(resolved.lines().skip(1).all(|line| line.starts_with('#')), "{resolved}");
    }

    #[test]
    fn a_process_has_no_line_in_a_shell_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("proc/7");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("comm"), "x\nreboot;\u{1b}[2J\n").unwrap();
        for cgroup in ["0::/kubepods.slice/pod1\n", "0::/system.slice/a\u{1b}`id`.service\n", "0::/\n"] {
            fs::write(folder.join("cgroup"), cgroup).unwrap();
            let sources = Sources { root: dir.path().to_owned(), kubelet: PathBuf::new() };
            let process = process(&sources, 7);
            assert_eq!(process.to_string(), "x\\nreboot;\\u{1b}[2J (pid 7)");
            let lines = process.stop();
            let changes =
                |line: &str| !line.starts_with("# ") && line != "systemctl status 7" && line != "kill 7";
            assert!(!lines.lines().any(changes) && !lines.contains('\u{1b}'), "{lines:?}");
        }
    }
}
