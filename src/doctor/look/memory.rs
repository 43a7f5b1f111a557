//! How much memory a process may take: cgroups, both versions.

use std::path::{Path, PathBuf};

use crate::doctor::finding::{Seen, Unseen};
use crate::doctor::sources::Sources;

/// A limit, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Bytes.
    pub bytes: u64,
    /// The file that says so.
    pub file: PathBuf,
}

/// What version 1 calls its limit.
const FIRST: &str = "memory.limit_in_bytes";
/// Version 1 writes "no limit" as the largest number of whole pages.
const NONE: u64 = 1 << 60;

/// The smallest limit of a process's cgroup and all above it; `None` for none.
///
/// # Errors
/// Why it cannot be seen.
pub fn limit(sources: &Sources, process: &str) -> Seen<Option<Limit>> {
    let text = sources.read(format!("/proc/{process}/cgroup"))?;
    // `ip netns exec` has a /sys without cgroups; the first process has them.
    let found = ["", "/proc/1/root"].iter().find_map(|root| limits(sources, root, &text));
    let Some(limits) = found else {
        let why =
            format!("no limit of its cgroup is below /sys/fs/cgroup: {}", text.trim().replace('\n', " "));
        return Err(Unseen::new(why, format!("cat /proc/{process}/cgroup\nmount -t cgroup,cgroup2")));
    };
    Ok(limits.into_iter().filter(|limit| limit.bytes < NONE).min_by_key(|limit| limit.bytes))
}

/// All limits of these cgroups, as they are mounted below a root; `None` where they are not.
fn limits(sources: &Sources, root: &str, text: &str) -> Option<Vec<Limit>> {
    let mut seen = false;
    let mut limits = Vec::new();
    let all = || text.lines().filter_map(|line| memory_cgroup(sources, root, line));
    // Where version 1 has memory, version 2 has not.
    let first = all().any(|(_, file, _)| file == FIRST);
    for (top, file, path) in all().filter(|(_, file, _)| !first || *file == FIRST) {
        // In a container the path may be one of the host, which is not there: its own is at the top.
        let below = Path::new(path.trim_start_matches('/'));
        for folder in below.ancestors() {
            let file = Path::new(&top).join(folder).join(file);
            let Ok(text) = sources.read(&file) else { continue };
            seen = true;
            // Only numbers are limits: version 2 writes "max".
            limits.extend(text.trim().parse().ok().map(|bytes| Limit { bytes, file }));
        }
        // The root of all cgroups has none.
        seen |= path == "/" && sources.path(&top).join("cgroup.procs").exists();
    }
    seen.then_some(limits)
}

/// Where a line of `/proc/PID/cgroup` has a limit of memory: the hierarchy, the file's name, and the cgroup.
fn memory_cgroup<'a>(
    sources: &Sources,
    root: &str,
    line: &'a str,
) -> Option<(String, &'static str, &'a str)> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    if controllers.is_empty() {
        // Alone, or beside those of version 1.
        let beside = format!("{root}/sys/fs/cgroup/unified");
        let top = if sources.path(&beside).is_dir() { beside } else { format!("{root}/sys/fs/cgroup") };
        return Some((top, "memory.max", path));
    }
    let is_memory = controllers.split(',').any(|controller| controller == "memory");
    is_memory.then(|| (format!("{root}/sys/fs/cgroup/memory"), FIRST, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, Sources) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let sources = Sources { root: dir.path().to_owned(), kubelet: PathBuf::new() };
        (dir, sources)
    }

    #[test]
    fn the_smallest_limit_on_the_way_up_holds() {
        let (_dir, sources) = node(&[
            ("proc/7/cgroup", "0::/kubepods/pod1/c1\n"),
            ("sys/fs/cgroup/kubepods/pod1/c1/memory.max", "max\n"),
            ("sys/fs/cgroup/kubepods/pod1/memory.max", "67108864\n"),
            ("sys/fs/cgroup/kubepods/memory.max", "8000000000\n"),
        ]);
        let limit = limit(&sources, "7").unwrap().unwrap();
        assert_eq!(limit.bytes, 64 << 20);
        assert_eq!(limit.file, Path::new("/sys/fs/cgroup/kubepods/pod1/memory.max"));
    }

    #[test]
    fn version_1_is_read_and_its_largest_number_is_none() {
        let limit_in = |text| {
            let (_dir, sources) = node(&[
                ("proc/7/cgroup", "5:cpu,cpuacct:/a\n4:memory:/a\n"),
                ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", text),
            ]);
            limit(&sources, "7").unwrap().map(|limit| limit.bytes)
        };
        assert_eq!(limit_in("1048576\n"), Some(1 << 20));
        assert_eq!(limit_in("9223372036854771712\n"), None);
    }

    #[test]
    fn a_container_has_its_own_at_the_top() {
        let (_dir, sources) =
            node(&[("proc/self/cgroup", "0::/\n"), ("sys/fs/cgroup/memory.max", "1048576\n")]);
        assert_eq!(limit(&sources, "self").unwrap().unwrap().bytes, 1 << 20);
    }
    #[test]
    fn a_limit_that_is_not_there_to_be_read_is_not_taken_for_none() {
        let (_dir, sources) = node(&[("proc/7/cgroup", "0::/kubepods/pod1\n")]);
        assert!(limit(&sources, "7").unwrap_err().why.contains("0::/kubepods/pod1"));
        let (_dir, sources) = node(&[("proc/7/cgroup", "0::/\n"), ("sys/fs/cgroup/cgroup.procs", "")]);
        assert_eq!(limit(&sources, "7"), Ok(None));
    }

    #[test]
    fn where_no_cgroups_are_mounted_those_of_the_first_process_are_read() {
        let (_dir, sources) = node(&[
            ("proc/7/cgroup", "0::/system.slice/nodens.service\n"),
            ("proc/1/root/sys/fs/cgroup/system.slice/nodens.service/memory.max", "1048576\n"),
        ]);
        assert_eq!(limit(&sources, "7").unwrap().unwrap().bytes, 1 << 20);
    }

    #[test]
    fn version_2_beside_version_1_says_nothing_of_memory() {
        let files = [("proc/7/cgroup", "4:memory:/a\n0::/\n"), ("sys/fs/cgroup/unified/cgroup.procs", "")];
        let (_dir, sources) = node(&files);
        assert!(limit(&sources, "7").is_err());
    }
}
