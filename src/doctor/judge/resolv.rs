//! What `system` stands for: whether the servers of resolv.conf are others than ourselves, and answer.

use std::net::{IpAddr, Ipv4Addr};

use crate::config::{Config, Server};
use crate::doctor::Patient;
use crate::doctor::finding::Finding;
use crate::doctor::look::resolv::{OF_RESOLVED, OWN, Resolv, resolv};
use crate::doctor::look::upstreams::{self, Trouble};

const CHECK: &str = "resolv.conf";

/// Where systemd-resolved listens (systemd-resolved.service(8)).
const STUBS: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)];

/// Looks, asks those that are link-local, and judges.
pub async fn check(patient: &Patient) -> Vec<Finding> {
    let Patient { config, sources, agent, .. } = patient;
    let resolv = resolv(sources, agent.pid);
    let servers = resolv.servers.as_deref().unwrap_or_default();
    let ours = own(config);
    let near: Vec<IpAddr> =
        servers.iter().copied().filter(|ip| is_link_local_v4(ip) && !ours.contains(ip)).collect();
    let mut silent = Vec::new();
    if !zones(config).is_empty() {
        for ip in near {
            silent.extend(upstreams::ask_by_udp(config, ip).await.err().map(|trouble| (ip, trouble)));
        }
    }
    judge(config, &resolv, &silent)
}

fn is_link_local_v4(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.is_link_local())
}

/// The zones that ask `system`, by their first suffix.
fn zones(config: &Config) -> Vec<String> {
    let system = config.zones.iter().filter(|zone| zone.upstream.servers.contains(&Server::System));
    system.map(|zone| upstreams::shown(&zone.matches[0])).collect()
}

/// Addresses that lead here.
fn own(config: &Config) -> Vec<IpAddr> {
    let listen = config.listen.iter().map(|addr| addr.ip());
    listen.chain(config.network.intercept.iter().copied()).collect()
}

fn judge(config: &Config, resolv: &Resolv, silent: &[(IpAddr, Trouble)]) -> Vec<Finding> {
    let zones = zones(config);
    if zones.is_empty() {
        return vec![Finding::ok(CHECK, "no zone asks `system`: resolv.conf is not used")];
    }
    let zones = zones.join(", ");
    let path = &resolv.path;
    let servers = match &resolv.servers {
        Ok(servers) => servers,
        Err(unseen) => {
            let what = format!("the servers that zone {zones} asks (`system`) could not be read");
            return vec![Finding::unknown(CHECK, what, unseen)];
        }
    };
    if servers.is_empty() {
        let what = format!("{path} names no server, and zone {zones} asks `system`");
        let why = "There is nobody to ask: what is not cached gets SERVFAIL.";
        return vec![Finding::problem(CHECK, what, why, name_servers(resolv))];
    }
    let mut findings: Vec<Finding> = servers
        .iter()
        .filter_map(|&ip| itself(config, resolv, servers, ip).or_else(|| stub(config, resolv, ip)))
        .collect();
    findings.extend(scoped(path, servers));
    findings.extend(silent.iter().map(|(ip, trouble)| {
        let what = format!("{path}: {ip} is link-local and does not answer here ({trouble})");
        let why = format!(
            "Such an address means something on one link alone; what zone {zones} asks there is lost, or waits for the \
             next server."
        );
        let mend = format!("ip route get {ip}\n{}", name_servers(resolv));
        match servers.len() {
            1 => Finding::problem(CHECK, what, why, mend),
            _ => Finding::warning(CHECK, what, why, mend),
        }
    }));
    if findings.is_empty() {
        let servers: Vec<String> = servers.iter().map(IpAddr::to_string).collect();
        findings.push(Finding::ok(CHECK, format!("{path}: zone {zones} asks {}", servers.join(", "))));
    }
    findings
}

/// A server that is this agent.
fn itself(config: &Config, resolv: &Resolv, servers: &[IpAddr], ip: IpAddr) -> Option<Finding> {
    let path = &resolv.path;
    let mend = name_servers(resolv);
    if config.network.intercept.contains(&ip) {
        let what = format!("{path} names {ip}, which this agent intercepts");
        let why = "The agent's own queries pass by its rules and reach the cluster's DNS. That one, as a rule, asks the \
                   node's resolv.conf for names that are not the cluster's: itself, in a loop.";
        return Some(Finding::problem(CHECK, what, why, mend));
    }
    config.listen.iter().find(|addr| addr.ip() == ip)?;
    let what = format!("{path} names {ip}, where this agent listens");
    if servers.iter().all(|ip| config.listen.iter().any(|addr| addr.ip() == *ip)) {
        let why = "To ask itself would be a loop, so the agent passes this address over, and nobody is left to ask.";
        return Some(Finding::problem(CHECK, what, why, mend));
    }
    let why = "To ask itself would be a loop, so the agent passes this address over and asks the others. Other programs of \
               this node that ask them, the cluster's DNS for one, may still lead back here.";
    Some(Finding::warning(CHECK, what, why, mend))
}

/// systemd-resolved's stub.
fn stub(config: &Config, resolv: &Resolv, ip: IpAddr) -> Option<Finding> {
    if !matches!(ip, IpAddr::V4(v4) if STUBS.contains(&v4)) {
        return None;
    }
    let path = &resolv.path;
    let mend = name_servers(resolv);
    let behind = resolv.of_resolved.as_deref().unwrap_or_default();
    if let Some(back) = behind.iter().find(|ip| own(config).contains(ip)) {
        let what = format!("{path} names {ip}, systemd-resolved, which asks {back}: this agent");
        let why = "The agent asks systemd-resolved, which asks the agent: a loop.";
        let mend = "# give systemd-resolved a server that is not this agent: DNS= in /etc/systemd/resolved.conf, or\n\
                    resolvectl status\n\
                    # then\n\
                    systemctl restart systemd-resolved";
        return Some(Finding::problem(CHECK, what, why, mend));
    }
    let behind: Vec<String> = behind.iter().map(IpAddr::to_string).collect();
    let servers =
        if behind.is_empty() { String::new() } else { format!(", which asks {}", behind.join(", ")) };
    let what = format!("{path} names {ip}, systemd-resolved{servers}");
    let why = "Each miss goes through a second cache, which is in this network alone: a pod without the host's network \
               finds nobody there. If systemd-resolved is ever given this agent as its server, that is a loop.";
    Some(Finding::warning(CHECK, what, why, mend))
}

/// Servers that can only be asked with a link's name, which is left out.
fn scoped(path: &str, servers: &[IpAddr]) -> Option<Finding> {
    let is_scoped = |ip: &&IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let ip = servers.iter().find(is_scoped)?;
    let what = format!("{path} names {ip}, which is link-local");
    let why =
        "The agent asks by address alone, and this one means nothing without a link: it cannot be asked.";
    let mend = "# name servers by other addresses, in the agent's configuration or in resolv.conf";
    Some(match servers.iter().all(|ip| is_scoped(&ip)) {
        true => Finding::problem(CHECK, what, why, mend),
        false => Finding::warning(CHECK, what, why, mend),
    })
}

/// How other servers get there.
fn name_servers(resolv: &Resolv) -> String {
    let own_servers = resolv.of_resolved.as_deref().unwrap_or_default();
    if own_servers.is_empty() {
        return "# in the agent's configuration, in place of `system`, servers that are not on this node:\n\
                #   servers: [\"udp://ADDRESS\"]"
            .to_owned();
    }
    let servers: Vec<String> = own_servers.iter().map(|ip| quoted(*ip)).collect();
    let config = format!(
        "# in the agent's configuration, in place of `system`:\n#   servers: [{}]",
        servers.join(", ")
    );
    if resolv.path != OWN {
        return config;
    }
    format!(
        "{config}\nls -l {OWN}\n# or, for all programs of this node, in place of what is there:\n#   ln -sf {OF_RESOLVED} {OWN}"
    )
}

fn quoted(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => format!("\"udp://{v4}\""),
        IpAddr::V6(v6) => format!("\"udp://[{v6}]\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::{Level, Unseen};

    fn config() -> Config {
        let mut config = Config::default();
        config.network.intercept = vec!["10.96.0.10".parse().unwrap()];
        config
    }

    fn names(servers: &[&str], of_resolved: Option<&[&str]>) -> Resolv {
        let parsed = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        Resolv {
            path: "/etc/resolv.conf".into(),
            servers: Ok(parsed(servers)),
            of_resolved: of_resolved.map(parsed),
        }
    }

    /// The one finding.
    fn one(resolv: &Resolv, silent: &[(IpAddr, Trouble)]) -> Finding {
        let findings = judge(&config(), resolv, silent);
        assert_eq!(findings.len(), 1, "{findings:?}");
        findings.into_iter().next().unwrap()
    }

    #[test]
    fn servers_elsewhere_are_good_and_named_with_their_zone() {
        let finding = one(&names(&["192.0.2.1", "2001:db8::1"], None), &[]);
        assert_eq!(finding.level, Level::Ok);
        assert_eq!(finding.what, "/etc/resolv.conf: zone . asks 192.0.2.1, 2001:db8::1");
    }

    #[test]
    fn nothing_is_asked_of_a_resolv_conf_that_no_zone_uses() {
        let mut config = config();
        config.zones[0].upstream.servers = vec![Server::Tcp("10.96.0.10:53".parse().unwrap())];
        let findings = judge(&config, &names(&["169.254.20.10"], None), &[]);
        assert_eq!((findings.len(), findings[0].level), (1, Level::Ok));
    }

    #[test]
    fn no_server_and_only_ourselves_are_problems() {
        assert_eq!(one(&names(&[], None), &[]).level, Level::Problem);
        let finding = one(&names(&["169.254.20.10"], None), &[]);
        assert_eq!(finding.level, Level::Problem);
        assert!(finding.why.contains("nobody is left"), "{finding:?}");
        assert_eq!(one(&names(&["169.254.20.10", "192.0.2.1"], None), &[]).level, Level::Warning);
    }

    #[test]
    fn an_intercepted_address_is_a_loop_by_the_cluster_dns() {
        let finding = one(&names(&["10.96.0.10", "192.0.2.1"], None), &[]);
        assert_eq!(finding.level, Level::Problem);
        assert!(finding.why.contains("loop"), "{finding:?}");
    }

    #[test]
    fn systemd_resolved_is_a_warning_with_its_own_servers_as_the_mend() {
        let finding = one(&names(&["127.0.0.53"], Some(&["192.0.2.1", "2001:db8::1"])), &[]);
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.what.contains("which asks 192.0.2.1, 2001:db8::1"), "{finding:?}");
        assert!(
            finding.mend.contains(r#"servers: ["udp://192.0.2.1", "udp://[2001:db8::1]"]"#),
            "{finding:?}"
        );
        assert!(
            finding.mend.contains("\n#   ln -sf /run/systemd/resolve/resolv.conf /etc/resolv.conf"),
            "{finding:?}"
        );
        let unseen = one(&names(&["127.0.0.53"], None), &[]);
        assert_eq!(unseen.level, Level::Warning);
        assert!(!unseen.mend.contains("ln -sf"), "{unseen:?}");
    }

    #[test]
    fn systemd_resolved_that_asks_us_is_a_loop() {
        for back in ["169.254.20.10", "10.96.0.10"] {
            let finding = one(&names(&["127.0.0.53"], Some(&[back])), &[]);
            assert_eq!(finding.level, Level::Problem);
            assert!(finding.what.contains(back) && finding.why.contains("loop"), "{finding:?}");
        }
    }

    #[test]
    fn a_silent_link_local_server_is_a_problem_unless_there_is_another() {
        let ip: IpAddr = "169.254.169.253".parse().unwrap();
        let alone = one(&names(&["169.254.169.253"], None), &[(ip, Trouble::Silent)]);
        assert_eq!(alone.level, Level::Problem);
        let beside = one(&names(&["169.254.169.253", "192.0.2.1"], None), &[(ip, Trouble::Silent)]);
        assert_eq!(beside.level, Level::Warning);
        assert_eq!(one(&names(&["169.254.169.253"], None), &[]).level, Level::Ok);
        assert_eq!(one(&names(&["fe80::1"], None), &[]).level, Level::Problem);
        assert_eq!(one(&names(&["fe80::1", "192.0.2.1"], None), &[]).level, Level::Warning);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_seen() {
        let resolv = Resolv { servers: Err(Unseen::new("for root alone", "")), ..names(&[], None) };
        assert_eq!(one(&resolv, &[]).level, Level::Unknown);
    }
}
