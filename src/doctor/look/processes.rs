//! Who holds a socket: `/proc/PID/fd`, `comm` and `cgroup`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::doctor::finding::Seen;
use crate::doctor::sources::Sources;

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
    /// systemd, as this unit.
    Unit(String),
    /// The kubelet, in a pod.
    Pod,
    /// Somebody else.
    Other,
}

impl Process {
    /// What ends it, as far as that can be known.
    pub fn stop(&self) -> String {
        match &self.origin {
            Origin::Unit(unit) => format!("systemctl disable --now {unit}"),
            Origin::Pod => {
                format!("# {} is in a pod: delete the DaemonSet or static pod that it comes from", self.name)
            }
            Origin::Other => format!("kill {}", self.pid),
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

/// What is known of a process.
pub fn process(sources: &Sources, pid: u32) -> Process {
    let name = sources.read(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    let origin = origin(&sources.read(format!("/proc/{pid}/cgroup")).unwrap_or_default());
    Process { pid, name, origin }
}

fn origin(cgroups: &str) -> Origin {
    if cgroups.contains("kubepods") {
        return Origin::Pod;
    }
    let parts = cgroups.lines().flat_map(|line| line.rsplit('/'));
    let unit = parts.into_iter().find(|part| part.ends_with(".service"));
    // Whatever a user's session has started is in the unit of that session's manager.
    match unit {
        Some(unit) if !unit.starts_with("user@") => Origin::Unit(unit.to_owned()),
        _ => Origin::Other,
    }
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
        assert_eq!(origin("0::/user.slice/user-0.slice/user@0.service/app.slice/x.scope\n"), Origin::Other);
        assert_eq!(
            origin("1:name=systemd:/system.slice/named.service\n"),
            Origin::Unit("named.service".into())
        );
        assert_eq!(origin(""), Origin::Other);
    }
}
