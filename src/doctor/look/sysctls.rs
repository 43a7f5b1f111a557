//! Settings of the kernel that matter to queries: `/proc/sys`.

use crate::doctor::finding::Seen;
use crate::doctor::sources::Sources;

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

fn links(sources: &Sources) -> Seen<Vec<Link>> {
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
        let disable_ipv6 = of("ipv6", "disable_ipv6").ok();
        links.push(Link { arp_ignore, rp_filter, disable_ipv6, name: name.clone() });
    }
    links.sort_by_key(|link| (link.name != "all", link.name.clone()));
    Ok(links)
}
