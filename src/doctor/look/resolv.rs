//! What `system` stands for: resolv.conf.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use crate::doctor::finding::Seen;
use crate::doctor::sources::Sources;

/// Of this mount namespace.
pub const OWN: &str = "/etc/resolv.conf";
/// Where systemd-resolved writes down the servers that it asks itself (systemd-resolved.service(8)).
pub const OF_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// A resolv.conf, and systemd-resolved's own.
#[derive(Debug, Clone)]
pub struct Resolv {
    /// Where it was read.
    pub path: String,
    /// The servers that it names.
    pub servers: Seen<Vec<IpAddr>>,
    /// Those of systemd-resolved; `None` where it has written none down.
    pub of_resolved: Option<Vec<IpAddr>>,
}

/// Of the agent, if its files can be seen: in a pod it has its own. Otherwise ours.
pub fn resolv(sources: &Sources, agent: Option<u32>) -> Resolv {
    let of_agent = agent.map(|pid| format!("/proc/{pid}/root{OWN}"));
    let is_another = |path: &String| {
        let identity =
            |path: &str| fs::metadata(sources.path(path)).map(|file| (file.dev(), file.ino())).ok();
        sources.read(path).is_ok() && identity(path) != identity(OWN)
    };
    let path = of_agent.filter(is_another).unwrap_or_else(|| OWN.to_owned());
    let of_resolved = sources.read_if_there(OF_RESOLVED).ok().flatten();
    Resolv {
        servers: sources.read(&path).map(|text| servers(&text)),
        of_resolved: of_resolved.map(|text| servers(&text)),
        path,
    }
}

/// The servers of a resolv.conf (resolv.conf(5)).
fn servers(text: &str) -> Vec<IpAddr> {
    // A link-local IPv6 address may have its link behind it.
    let address = |word: &str| word.split('%').next().and_then(|word| word.parse().ok());
    text.lines().filter_map(server).filter_map(address).collect()
}

fn server(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    if words.next()? == "nameserver" { words.next() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_and_nothing_else() {
        let text = "# nameserver 1.1.1.1\nsearch a.b\nnameserver 127.0.0.53\nnameserver\tfe80::1%eth0\nnameserver x\noptions edns0\n";
        assert_eq!(servers(text), ["127.0.0.53".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
    }

    #[test]
    fn the_agents_own_file_is_read_where_it_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources { root: dir.path().to_owned(), kubelet: std::path::PathBuf::new() };
        for folder in ["etc", "proc/7/root/etc", "proc/8/root/etc"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("etc/resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
        fs::write(dir.path().join("proc/7/root/etc/resolv.conf"), "nameserver 192.0.2.7\n").unwrap();
        fs::hard_link(dir.path().join("etc/resolv.conf"), dir.path().join("proc/8/root/etc/resolv.conf"))
            .unwrap();
        let of = |agent| resolv(&sources, agent);
        assert_eq!(of(Some(7)).path, "/proc/7/root/etc/resolv.conf");
        assert_eq!(of(Some(7)).servers.unwrap(), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        for same in [None, Some(8), Some(9)] {
            assert_eq!(of(same).path, OWN);
        }
    }
}
