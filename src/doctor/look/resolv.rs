//! What `system` stands for: resolv.conf.

use std::net::IpAddr;

use crate::doctor::finding::Seen;
use crate::doctor::sources::Sources;

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
    let own = "/etc/resolv.conf".to_owned();
    let of_agent = agent.map(|pid| format!("/proc/{pid}/root/etc/resolv.conf"));
    let path = of_agent.filter(|path| sources.read(path).is_ok()).unwrap_or(own);
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
}
