//! Settings of the kernel that matter to queries: `/proc/sys`, and of `/sys` which links they matter for.

use crate::doctor::finding::{Seen, Unseen};
use crate::doctor::sources::Sources;
use crate::node::link;

/// Those of this network namespace.
#[derive(Debug, Clone)]
pub struct Sysctls {
    /// `net.core.rmem_max`, bytes.
    pub rmem_max: Seen<u64>,
    /// `net.ipv4.tcp_migrate_req`; `None` before Linux 5.14.
    pub tcp_migrate_req: Seen<Option<u64>>,
    /// Of each link; `all` is the first.
    pub links: Seen<Vec<Link>>,
}

/// The settings of one link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name; `all` is what holds for every link.
    pub name: String,
    /// It is up, and whoever is behind it asks by ARP: no dummy and no tunnel.
    pub is_asked_by_arp: bool,
    /// IPv4 packets are sent there, as to pods that are behind it.
    pub has_routes: bool,
    /// It is a port of a bridge or bond, which is asked in its place.
    pub is_port: bool,
    /// `net.ipv4.conf.*.proxy_arp`: it answers for whatever it has a route to.
    pub proxy_arp: bool,
    /// `net.ipv4.conf.*.arp_ignore`
    pub arp_ignore: u64,
    /// `net.ipv4.conf.*.rp_filter`
    pub rp_filter: u64,
    /// `net.ipv6.conf.*.disable_ipv6`; `None` without IPv6.
    pub disable_ipv6: Option<u64>,
}

/// Reads them.
pub fn sysctls(sources: &Sources) -> Sysctls {
    let migrate = sources.read_if_there("/proc/sys/net/ipv4/tcp_migrate_req");
    Sysctls {
        rmem_max: sources.number("/proc/sys/net/core/rmem_max"),
        tcp_migrate_req: migrate.map(|text| text.and_then(|text| text.trim().parse().ok())),
        links: links(sources),
    }
}

/// Links that hold IPv4 addresses, and the length of each prefix.
///
/// # Errors
/// Why they cannot be seen.
pub fn ipv4_addresses() -> Seen<Vec<(String, u8)>> {
    let holders = link::holders().map_err(|problem| Unseen::new(problem.to_string(), ""))?;
    let v4 = holders.into_iter().filter(|holder| holder.address.is_ipv4());
    Ok(v4.map(|holder| (holder.link, holder.prefix)).collect())
}

/// linux/if.h: it is up; it has no ARP.
const IFF_UP: u32 = 0x1;
const IFF_NOARP: u32 = 0x80;

fn links(sources: &Sources) -> Seen<Vec<Link>> {
    let routes = sources.read("/proc/self/net/route").ok();
    let has_routes = |name: &str| {
        let is_by = |line: &str| line.split_whitespace().next() == Some(name);
        routes.as_ref().is_none_or(|text| text.lines().skip(1).any(is_by))
    };
    let mut links = Vec::new();
    for name in sources.names("/proc/sys/net/ipv4/conf")? {
        // What links that come later begin with.
        if name == "default" {
            continue;
        }
        let of =
            |family: &str, key: &str| sources.number(format!("/proc/sys/net/{family}/conf/{name}/{key}"));
        // A link may go while we look.
        let (Ok(arp_ignore), Ok(rp_filter)) = (of("ipv4", "arp_ignore"), of("ipv4", "rp_filter")) else {
            continue;
        };
        let flags = sources.read(format!("/sys/class/net/{name}/flags")).ok();
        let flags = flags.and_then(|text| u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok());
        links.push(Link {
            is_asked_by_arp: name != "lo"
                && flags.is_some_and(|flags| flags & (IFF_UP | IFF_NOARP) == IFF_UP),
            has_routes: has_routes(&name),
            is_port: sources.link(format!("/sys/class/net/{name}/master")).is_ok(),
            proxy_arp: of("ipv4", "proxy_arp").is_ok_and(|value| value != 0),
            arp_ignore,
            rp_filter,
            disable_ipv6: of("ipv6", "disable_ipv6").ok(),
            name,
        });
    }
    links.sort_by_key(|link| (link.name != "all", link.name.clone()));
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    #[test]
    fn links_are_read_with_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (name, arp_ignore) in [("all", "1"), ("default", "2"), ("dummy0", "0"), ("veth1", "8")] {
            write(&format!("proc/sys/net/ipv4/conf/{name}/arp_ignore"), arp_ignore);
            write(&format!("proc/sys/net/ipv4/conf/{name}/rp_filter"), "2\n");
        }
        write("proc/sys/net/ipv4/conf/gone/rp_filter", "0\n");
        write("proc/sys/net/ipv4/conf/veth1/proxy_arp", "1\n");
        write("proc/sys/net/ipv6/conf/veth1/disable_ipv6", "1\n");
        write("sys/class/net/dummy0/flags", "0x83\n");
        write("sys/class/net/veth1/flags", "0x1003\n");
        std::os::unix::fs::symlink("../cni0", dir.path().join("sys/class/net/veth1/master")).unwrap();
        write("proc/self/net/route", "Iface Destination Gateway\nveth1 0200010A 00000000\n");
        write("proc/sys/net/core/rmem_max", "212992\n");
        let sources = Sources { root: dir.path().to_owned(), kubelet: PathBuf::new() };
        let Sysctls { rmem_max, tcp_migrate_req, links } = sysctls(&sources);
        assert_eq!(rmem_max, Ok(212_992));
        assert_eq!(tcp_migrate_req, Ok(None));
        let links = links.unwrap();
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["all", "dummy0", "veth1"]);
        assert!(!links[1].is_asked_by_arp && !links[1].is_port && !links[1].has_routes);
        let veth = Link {
            name: "veth1".into(),
            is_asked_by_arp: true,
            has_routes: true,
            is_port: true,
            proxy_arp: true,
            arp_ignore: 8,
            rp_filter: 2,
            disable_ipv6: Some(1),
        };
        assert_eq!(links[2], veth);
    }
}
