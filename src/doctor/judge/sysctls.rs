//! Settings of the kernel that harm. What each value does is told by the kernel's own documentation,
//! Documentation/networking/ip-sysctl.rst.

use crate::config::Config;
use crate::doctor::Patient;
use crate::doctor::finding::{Finding, Seen};
use crate::doctor::look::counters::reverse_path_drops;
use crate::doctor::look::sysctls::{Link, Sysctls, ipv4_addresses, sysctls};
use crate::doctor::sources::Sources;
use crate::doctor::words::{quoted, shown};

const CHECK: &str = "sysctls";

/// Looks, and judges.
pub fn check(patient: &Patient) -> Vec<Finding> {
    if let Some(unseen) = super::elsewhere(patient) {
        return vec![Finding::unknown(
            CHECK,
            "the settings of the agent's network are not to be seen",
            &unseen,
        )];
    }
    let (drops, addresses) = (reverse_path_drops(&patient.sources), ipv4_addresses());
    let mut findings = judge(&patient.config, &sysctls(&patient.sources), &addresses, &drops);
    let is_kept = patient.agent.pid.is_some_and(|pid| is_kept(&patient.sources, pid));
    findings.push(tcp_migrate_req(&sysctls(&patient.sources).tcp_migrate_req, is_kept));
    findings
}

fn judge(
    config: &Config,
    sysctls: &Sysctls,
    addresses: &Seen<Vec<(String, u8)>>,
    drops: &Seen<u64>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &sysctls.links {
        Ok(links) => {
            findings.extend(arp_ignore(config, links, addresses));
            findings.push(rp_filter(links, drops));
            findings.extend(disable_ipv6(config, links));
        }
        Err(unseen) => {
            findings.push(Finding::unknown(CHECK, "the settings of the links could not be read", unseen));
        }
    }
    findings
}

/// What of ours is set at each boot (sysctl.d(5)).
const FILE: &str = "/etc/sysctl.d/90-nodens.conf";

/// Sets it now, and at each boot; once, however often it is done.
pub(super) fn set(key: &str, value: u64) -> String {
    let line = format!("'{key} = {value}'");
    format!("sysctl -w {key}={value}\ngrep -qxF {line} {FILE} 2>/dev/null || echo {line} >> {FILE}")
}

/// sysctl(8): a dot in a link's name is written as a slash. It takes `*`, `?` and brackets for patterns, so that no key
/// names a link which has those in its name.
fn of_link(family: &str, link: &str, key: &str) -> Option<String> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-@".contains(letter);
    link.chars().all(plain).then(|| format!("net.{family}.conf.{}.{key}", link.replace('.', "/")))
}

/// Sets it for a link, or says why that is not said.
fn set_of_link(family: &str, link: &str, key: &str, value: u64) -> String {
    match of_link(family, link, key) {
        Some(key) => set(&key, value),
        None => format!(
            "# sysctl takes the name of link {} for a pattern: write {value} to its {key} in /proc/sys/net/{family}/conf",
            quoted(link)
        ),
    }
}

/// For people, who know what else depends on it.
fn behind(lines: &str) -> String {
    lines.lines().map(|line| format!("#   {line}")).collect::<Vec<_>>().join("\n")
}

/// Some names, and how many more.
fn names(links: &[&Link]) -> String {
    const SHOWN: usize = 5;
    let mut text = links.iter().take(SHOWN).map(|link| shown(&link.name)).collect::<Vec<_>>().join(", ");
    if links.len() > SHOWN {
        text += &format!(" and {} more", links.len() - SHOWN);
    }
    text
}

/// The larger one of `all` and the link's own holds, as for `rp_filter`.
fn in_force(links: &[Link], link: &Link, value: fn(&Link) -> u64) -> u64 {
    let of_all = links.iter().find(|link| link.name == "all").map_or(0, value);
    of_all.max(value(link))
}

/// Each value was tried in network namespaces, with pods behind a gateway, behind one with a /32, behind proxy_arp and without
/// any. The listen address is on another link than pods are, so from 1 on nobody answers an ARP request for it. That is
/// needed only where pods have no gateway: as a rule they ask for an address of their link, or proxy_arp answers.
fn arp_ignore(config: &Config, links: &[Link], addresses: &Seen<Vec<(String, u8)>>) -> Option<Finding> {
    let is_asked = config.listen.iter().any(|addr| addr.is_ipv4() && !addr.ip().is_loopback());
    if !is_asked {
        return None;
    }
    let value = |link: &Link| in_force(links, link, |link| link.arp_ignore);
    let strict: Vec<&Link> = links
        .iter()
        .filter(|link| link.is_asked_by_arp && link.has_routes && !link.is_port && value(link) > 0)
        .collect();
    if strict.is_empty() {
        return Some(Finding::ok(
            CHECK,
            "arp_ignore is 0 where pods can be: every link answers for the listen addresses",
        ));
    }
    let addresses = match addresses {
        Ok(addresses) => addresses,
        Err(unseen) => {
            let what =
                format!("arp_ignore is set on {}, and their addresses are not to be seen", names(&strict));
            return Some(Finding::unknown(CHECK, what, unseen));
        }
    };
    let harmed: Vec<&Link> =
        strict.iter().copied().filter(|link| is_harmed(link, value(link), addresses)).collect();
    if harmed.is_empty() {
        let what = format!("arp_ignore is set on {}, which have an address of their own", names(&strict));
        return Some(Finding::ok(CHECK, what + ": pods that have it as their gateway need no more"));
    }
    let values: Vec<String> =
        harmed.iter().take(5).map(|link| format!("{} ({})", shown(&link.name), value(link))).collect();
    let what =
        format!("arp_ignore keeps {} of {} links silent: {}", harmed.len(), strict.len(), values.join(", "));
    let why = "Pods behind such a link that ask for the listen address, or for their gateway, by ARP get no answer, and \
               their queries never leave them: 1 and 3 answer for no address of another link, 2 only to the link's own \
               subnet, 8 to nobody. Harmless where the network plugin writes pods' neighbours itself: then \
               `ip neigh` in a pod shows PERMANENT.";
    let all = links.iter().find(|link| link.name == "all");
    let strict: Vec<&Link> = all.into_iter().chain(harmed).filter(|link| link.arp_ignore > 0).collect();
    Some(Finding::warning(CHECK, what, why, look_at_arp(&strict)))
}

/// With 0 a node answers for every address that it has, those of Services too: where nodes share such addresses, that takes
/// their packets to the wrong one.
fn look_at_arp(strict: &[&Link]) -> String {
    let keys = strict.iter().filter_map(|link| of_link("ipv4", &link.name, "arp_ignore"));
    let mut lines: Vec<String> = keys.map(|key| format!("sysctl {key}")).collect();
    lines.push("ip -4 address show".to_owned());
    lines.push(
        "# leave all as it is where kube-proxy (IPVS with strictARP, which sets it when it starts), MetalLB in L2 mode or \
         LVS needs it:\n# an address of the link's own for its pods to have as their gateway does as well. Where nobody \
         needs it:"
            .to_owned(),
    );
    lines.extend(strict.iter().map(|link| behind(&set_of_link("ipv4", &link.name, "arp_ignore", 0))));
    lines.join("\n")
}

/// Whether a value keeps pods behind a link from finding the node.
fn is_harmed(link: &Link, value: u64, addresses: &[(String, u8)]) -> bool {
    let prefixes = || addresses.iter().filter(|(name, _)| *name == link.name).map(|(_, prefix)| *prefix);
    match value {
        0 => false,
        // A proxy answers for what is beyond it, as for the gateway 169.254.1.1 of Calico: none of the node's own addresses.
        _ if link.proxy_arp => false,
        2 => prefixes().all(|prefix| prefix == 32),
        8 => true,
        _ => prefixes().next().is_none(),
    }
}

/// Strict (RFC 3704): a packet is dropped when its sender would be answered by another link.
fn rp_filter(links: &[Link], drops: &Seen<u64>) -> Finding {
    let value = |link: &Link| in_force(links, link, |link| link.rp_filter);
    let strict: Vec<&Link> = links
        .iter()
        .filter(|link| !["all", "lo"].contains(&link.name.as_str()) && value(link) == 1)
        .collect();
    if strict.is_empty() {
        return Finding::ok(CHECK, "rp_filter is strict (1) on no link");
    }
    let links = names(&strict);
    match drops {
        Err(unseen) => Finding::unknown(
            CHECK,
            format!("rp_filter is strict (1) on {links}, what it drops is not to be seen"),
            unseen,
        ),
        Ok(0) => Finding::ok(
            CHECK,
            format!("rp_filter is strict (1) on {links}, and has dropped nothing since boot"),
        ),
        Ok(drops) => Finding::warning(
            CHECK,
            format!("rp_filter is strict (1) on {links}, and has dropped {drops} packets since boot"),
            "A packet whose sender would be answered by another link is dropped without a word: an upstream's answer where \
             there are several ways out, or a pod's query. The count is of all packets, not of DNS alone.",
            format!(
                "nstat -asz TcpExtIPReversePathFilter\n# if it grows while queries get lost, 2 only asks for some way back; the larger of all and the \
                 link's own holds, so\n# that this lets forged senders in on every link\n{}",
                behind(&set("net.ipv4.conf.all.rp_filter", 2))
            ),
        ),
    }
}

/// IPv6 addresses need a link that takes them.
fn disable_ipv6(config: &Config, links: &[Link]) -> Option<Finding> {
    let listens = config.listen.iter().any(|addr| addr.is_ipv6() && !addr.ip().is_loopback());
    let intercepts = config.network.intercept.iter().any(|ip| ip.is_ipv6());
    if !listens && !intercepts {
        return None;
    }
    let named = |name: &str| links.iter().find(|link| link.name == name);
    let why = "IPv6 addresses of `listen` cannot be added there, nor those of `network.intercept` led here by lo: nobody is \
               answered at them.";
    if links.iter().all(|link| link.disable_ipv6.is_none()) {
        let what = "this kernel has no IPv6, and the configuration has IPv6 addresses";
        let mend = "# boot without ipv6.disable=1, or leave them out of the configuration\ncat /proc/cmdline";
        return Some(Finding::problem(CHECK, what, why, mend));
    }
    let holder = config.network.address_on.as_deref().and_then(named);
    let lo = named("lo").filter(|_| intercepts || (config.network.address_on.is_some() && holder.is_none()));
    let off: Vec<&Link> = holder
        .filter(|_| listens)
        .into_iter()
        .chain(lo)
        .filter(|link| link.disable_ipv6 == Some(1))
        .collect();
    if off.is_empty() {
        return Some(Finding::ok(CHECK, "IPv6 is on where the configuration needs it"));
    }
    let lines: Vec<String> =
        off.iter().map(|link| set_of_link("ipv6", &link.name, "disable_ipv6", 0)).collect();
    Some(Finding::problem(CHECK, format!("IPv6 is off on {}", names(&off)), why, lines.join("\n")))
}

/// Whether `nodens keep` has started this process.
fn is_kept(sources: &Sources, pid: u32) -> bool {
    let status = sources.read(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap_or_default().trim();
    let started_as = sources.read(format!("/proc/{parent}/cmdline")).unwrap_or_default();
    started_as.split('\0').nth(1) == Some("keep")
}

/// What becomes of half-open connections when one of two agents at the same port closes its listener.
/// Under `nodens keep` all agents share one.
fn tcp_migrate_req(value: &Seen<Option<u64>>, is_kept: bool) -> Finding {
    match value {
        Ok(Some(0)) if is_kept => Finding::ok(
            CHECK,
            "net.ipv4.tcp_migrate_req is 0, which does not matter under `nodens keep`: no listener closes",
        ),
        Err(unseen) => Finding::unknown(CHECK, "net.ipv4.tcp_migrate_req could not be read", unseen),
        Ok(None) => {
            Finding::ok(CHECK, "this kernel has no net.ipv4.tcp_migrate_req (it came with Linux 5.14)")
        }
        Ok(Some(0)) => Finding::warning(
            CHECK,
            "net.ipv4.tcp_migrate_req is 0",
            "When an agent leaves its port to the next one, TCP connections that are being opened at that moment are reset. \
             With 1 the other agent's listener takes them over; under `nodens keep` all share one listener.",
            set("net.ipv4.tcp_migrate_req", 1),
        ),
        Ok(Some(_)) => Finding::ok(
            CHECK,
            "net.ipv4.tcp_migrate_req is 1: a leaving agent's half-open connections go to the next one",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::{Level, Unseen};

    fn link(name: &str, change: impl Fn(&mut Link)) -> Link {
        let mut link = Link {
            name: name.into(),
            is_asked_by_arp: true,
            has_routes: true,
            disable_ipv6: Some(0),
            ..Link::default()
        };
        change(&mut link);
        link
    }

    fn arp(links: &[Link], addresses: &[(&str, u8)]) -> Finding {
        let addresses = addresses.iter().map(|&(name, prefix)| (name.to_owned(), prefix)).collect();
        arp_ignore(&Config::default(), links, &Ok(addresses)).unwrap()
    }

    #[test]
    fn arp_ignore_is_harmless_on_a_link_that_is_pods_gateway() {
        let links = [
            link("all", |link| {
                link.arp_ignore = 1;
                link.is_asked_by_arp = false;
            }),
            link("cni0", |_| ()),
            link("veth1", |link| link.is_port = true),
            link("cali1", |link| link.proxy_arp = true),
        ];
        let finding = arp(&links, &[("cni0", 24)]);
        assert_eq!(finding.level, Level::Ok, "{finding:?}");
        assert!(finding.what.contains("cni0"), "{finding:?}");
        assert_eq!(arp(&[link("cni0", |_| ())], &[]).level, Level::Ok);
    }

    #[test]
    fn arp_ignore_harms_where_the_link_has_no_address_of_its_own() {
        let links =
            [link("all", |link| link.is_asked_by_arp = false), link("pod.1", |link| link.arp_ignore = 1)];
        let finding = arp(&links, &[("eth0", 24)]);
        assert_eq!(finding.level, Level::Warning, "{finding:?}");
        assert!(finding.mend.starts_with("sysctl net.ipv4.conf.pod/1.arp_ignore\n"), "{finding:?}");
        assert!(finding.mend.contains("\n#   sysctl -w net.ipv4.conf.pod/1.arp_ignore=0\n"), "{finding:?}");
        assert!(!finding.mend.contains("conf.all"), "{finding:?}");
        let of_all = [link("all", |link| link.arp_ignore = 1), link("pod1", |_| ())];
        for found in [finding, arp(&of_all, &[])] {
            let looks =
                |line: &str| ["#", "sysctl net.", "ip -4 address show"].iter().any(|by| line.starts_with(by));
            assert!(found.mend.lines().all(looks), "others may need it: {found:?}");
        }
    }

    #[test]
    fn a_setting_is_written_down_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sysctl.conf");
        let lines = set("net.core.rmem_max", 7).replace(FILE, file.to_str().unwrap());
        let write = lines.lines().nth(1).unwrap();
        for _ in 0..2 {
            assert!(std::process::Command::new("sh").args(["-e", "-c", write]).status().unwrap().success());
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "net.core.rmem_max = 7\n");
    }

    #[test]
    fn a_link_whose_name_is_a_pattern_is_in_no_key() {
        for name in ["p*", "a;id", "[a]", "x y", "e?"] {
            assert!(set_of_link("ipv6", name, "disable_ipv6", 0).starts_with("# "), "{name}");
        }
    }

    #[test]
    fn a_link_that_leads_to_nobody_is_passed_over() {
        let spare = link("eth1", |link| {
            link.arp_ignore = 1;
            link.has_routes = false;
        });
        assert_eq!(arp(&[spare], &[]).level, Level::Ok);
    }

    #[test]
    fn each_value_of_arp_ignore_harms_in_its_own_way() {
        let level =
            |value, prefix| arp(&[link("veth1", |link| link.arp_ignore = value)], &[("veth1", prefix)]).level;
        assert_eq!(
            [1, 2, 3, 8].map(|value| level(value, 24)),
            [Level::Ok, Level::Ok, Level::Ok, Level::Warning]
        );
        assert_eq!([1, 2, 3].map(|value| level(value, 32)), [Level::Ok, Level::Warning, Level::Ok]);
    }

    #[test]
    fn arp_ignore_without_the_links_addresses_is_not_judged() {
        let links = [link("veth1", |link| link.arp_ignore = 1)];
        let finding = arp_ignore(&Config::default(), &links, &Err(Unseen::new("no netlink", ""))).unwrap();
        assert_eq!(finding.level, Level::Unknown);
        let config = Config { listen: vec!["127.0.0.1:53".parse().unwrap()], ..Config::default() };
        assert_eq!(arp_ignore(&config, &links, &Ok(vec![])), None);
    }

    #[test]
    fn a_strict_rp_filter_is_a_warning_once_it_has_dropped() {
        let strict = [link("all", |_| ()), link("eth0", |link| link.rp_filter = 1)];
        assert_eq!(rp_filter(&strict, &Ok(0)).level, Level::Ok);
        let finding = rp_filter(&strict, &Ok(7));
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.what.contains("eth0") && finding.what.contains("7 packets"), "{finding:?}");
        assert!(finding.mend.contains("\n#   sysctl -w net.ipv4.conf.all.rp_filter=2\n"), "{finding:?}");
        assert!(finding.mend.lines().all(|line| line.starts_with('#') || line.starts_with("nstat ")));
        assert_eq!(rp_filter(&strict, &Err(Unseen::new("", ""))).level, Level::Unknown);
        // The larger value holds: loose on all makes it loose everywhere.
        let loose = [link("all", |link| link.rp_filter = 2), link("eth0", |link| link.rp_filter = 1)];
        assert_eq!(rp_filter(&loose, &Ok(7)).level, Level::Ok);
        let of_all = [link("all", |link| link.rp_filter = 1), link("eth0", |_| ())];
        assert_eq!(rp_filter(&of_all, &Ok(7)).level, Level::Warning);
    }

    fn with_ipv6(on: Option<&str>) -> Config {
        let mut config = Config::default();
        config.listen.push("[fd00::a]:53".parse().unwrap());
        config.network.address_on = on.map(str::to_owned);
        config
    }

    #[test]
    fn ipv6_has_to_be_on_where_its_addresses_go() {
        let off = |link: &mut Link| link.disable_ipv6 = Some(1);
        let links = [link("all", |_| ()), link("lo", |_| ()), link("nodelocaldns", off)];
        let finding = disable_ipv6(&with_ipv6(Some("nodelocaldns")), &links).unwrap();
        assert_eq!(finding.level, Level::Problem);
        assert!(
            finding.mend.starts_with("sysctl -w net.ipv6.conf.nodelocaldns.disable_ipv6=0\n"),
            "{finding:?}"
        );
        // Another link's does not matter, and a link that is not there has lo in its place.
        assert_eq!(disable_ipv6(&with_ipv6(None), &links).unwrap().level, Level::Ok);
        assert_eq!(disable_ipv6(&with_ipv6(Some("other")), &links).unwrap().level, Level::Ok);
        let lo_off = [link("lo", off)];
        assert_eq!(disable_ipv6(&with_ipv6(Some("other")), &lo_off).unwrap().level, Level::Problem);
        assert_eq!(disable_ipv6(&Config::default(), &lo_off), None);
        let mut intercepting = Config::default();
        intercepting.network.intercept = vec!["fd00:10::a".parse().unwrap()];
        assert_eq!(disable_ipv6(&intercepting, &lo_off).unwrap().level, Level::Problem);
        let none = [link("all", |link| link.disable_ipv6 = None)];
        assert_eq!(disable_ipv6(&with_ipv6(None), &none).unwrap().level, Level::Problem);
    }

    #[test]
    fn tcp_migrate_req_is_wanted_where_the_kernel_has_it() {
        let finding = tcp_migrate_req(&Ok(Some(0)), false);
        assert_eq!(finding.level, Level::Warning);
        assert_eq!(finding.mend.lines().next(), Some("sysctl -w net.ipv4.tcp_migrate_req=1"));
        assert_eq!(tcp_migrate_req(&Ok(Some(0)), true).level, Level::Ok);
        assert_eq!(tcp_migrate_req(&Ok(Some(1)), false).level, Level::Ok);
        assert_eq!(tcp_migrate_req(&Ok(None), false).level, Level::Ok);
        assert_eq!(tcp_migrate_req(&Err(Unseen::new("", "")), false).level, Level::Unknown);
    }

    #[test]
    fn links_that_cannot_be_read_are_not_judged() {
        let unseen = || Unseen::new("not there", "");
        let sysctls = Sysctls { rmem_max: Err(unseen()), tcp_migrate_req: Ok(Some(1)), links: Err(unseen()) };
        let levels: Vec<Level> = judge(&Config::default(), &sysctls, &Err(unseen()), &Err(unseen()))
            .iter()
            .map(|finding| finding.level)
            .collect();
        assert_eq!(levels, [Level::Unknown]);
    }
}
