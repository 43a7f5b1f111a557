//! Whether pods are told to ask this agent: the kubelet's `clusterDNS` against `listen` and `network.intercept`.
//!
//! The kubelet writes it into the resolv.conf of pods with `dnsPolicy: ClusterFirst`, once for each pod. What other pods
//! ask cannot be seen here.

use std::net::IpAddr;

use crate::config::{Config, DNS_PORT};
use crate::doctor::Patient;
use crate::doctor::finding::Finding;
use crate::doctor::look::kubelet::{Kubelet, Place, kubelet};
use crate::doctor::words::quoted;

const CHECK: &str = "kubelet";
/// resolv.conf(5), MAXNS: stub resolvers ask no more servers than these, and the kubelet leaves out what comes after.
const SERVERS_MAX: usize = 3;

/// Looks, and judges.
pub fn check(patient: &Patient) -> Vec<Finding> {
    vec![judge(&patient.config, &kubelet(&patient.sources))]
}

/// How queries to an address get here.
enum Way {
    Listen,
    Intercept,
    None,
}

fn judge(config: &Config, kubelet: &Kubelet) -> Finding {
    let entries = match &kubelet.cluster_dns {
        Ok(entries) => entries,
        Err(unseen) => {
            return Finding::unknown(CHECK, "which servers pods are told to ask could not be read", unseen);
        }
    };
    let place = match &kubelet.place {
        Place::File(path) => path.as_str(),
        Place::Option => "the kubelet's option --cluster-dns",
    };
    if entries.is_empty() {
        return Finding::problem(
            CHECK,
            format!("{place} has no clusterDNS"),
            "Pods with dnsPolicy ClusterFirst then ask the servers of the node's own resolv.conf: nobody's queries reach \
             this agent, and no name of the cluster is found.",
            mend(config, &kubelet.place, entries),
        );
    }
    let ways: Vec<Way> = entries.iter().take(SERVERS_MAX).map(|entry| way(config, entry)).collect();
    let said: Vec<String> = entries.iter().zip(&ways).map(|(entry, way)| spoken(entry, way)).collect();
    let said = format!("{place}: new pods are told to ask {}", said.join(", then "));
    let reaches_us = |way: &Way| !matches!(way, Way::None);
    if ways.iter().all(reaches_us) {
        return Finding::ok(CHECK, said);
    }
    let mend = mend(config, &kubelet.place, entries);
    if !ways.iter().any(reaches_us) {
        let why = "Nobody's queries reach this agent: none of these is in `listen` (port 53) or `network.intercept`.";
        return Finding::problem(CHECK, said, why, mend);
    }
    if !reaches_us(&ways[0]) {
        let why = "Stub resolvers ask the first one, and the next only when it is silent (musl asks all at once): hardly \
                   a query reaches this agent.";
        return Finding::problem(CHECK, said, why, mend);
    }
    let why = "The agent is asked first. What it does not answer in time goes to the others, and musl always asks all of \
               them: those queries are neither cached here nor spared connection tracking.";
    Finding::warning(CHECK, said, why, mend)
}

fn spoken(entry: &str, way: &Way) -> String {
    match way {
        Way::Listen => format!("{entry} (listen)"),
        Way::Intercept => format!("{entry} (intercepted)"),
        Way::None => format!("{entry} (not this agent)"),
    }
}

fn way(config: &Config, entry: &str) -> Way {
    let Ok(ip) = entry.parse::<IpAddr>() else { return Way::None };
    if listening(config).any(|own| own == ip) {
        Way::Listen
    } else if config.network.intercept.contains(&ip) {
        Way::Intercept
    } else {
        Way::None
    }
}

/// Those that a pod can be told of: resolv.conf has no ports.
fn listening(config: &Config) -> impl Iterator<Item = IpAddr> {
    config.listen.iter().filter(|addr| addr.port() == DNS_PORT).map(|addr| addr.ip())
}

/// The lines to change.
fn mend(config: &Config, place: &Place, entries: &[String]) -> String {
    let mut lines = Vec::new();
    let mut ours: Vec<String> = listening(config).map(|ip| ip.to_string()).collect();
    if ours.is_empty() {
        ours = config.network.intercept.iter().map(IpAddr::to_string).collect();
    }
    match (place, ours.is_empty()) {
        (_, true) => lines.push("# first have the agent listen at an address with port 53".to_owned()),
        (Place::File(path), false) => {
            lines.push(format!("# in {}:", quoted(path)));
            lines.push("#   clusterDNS:".to_owned());
            lines.extend(ours.iter().map(|ip| format!("#   - {ip}")));
        }
        (Place::Option, false) => {
            lines.push(
                "# on the kubelet's command line (systemctl cat kubelet shows where it is from):".to_owned(),
            );
            lines.push(format!("#   --cluster-dns={}", ours.join(",")));
        }
    }
    lines.push("systemctl restart kubelet".to_owned());
    lines.push("# pods get it as they are made again".to_owned());
    let others: Vec<String> = entries
        .iter()
        .filter_map(|entry| entry.parse::<IpAddr>().ok())
        .filter(|ip| !listening(config).any(|own| own == *ip) && !config.network.intercept.contains(ip))
        .map(|ip| format!("\"{ip}\""))
        .collect();
    if !others.is_empty() {
        lines.push("# or, where these are ClusterIPs of the cluster's DNS and kube-proxy is not in IPVS mode, without".into());
        lines.push("# touching the kubelet, in the agent's configuration:".into());
        lines.push(format!("#   network: {{ intercept: [{}] }}", others.join(", ")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::{Level, Unseen};

    fn config(listen: &[&str], intercept: &[&str]) -> Config {
        let listen = listen.iter().map(|text| text.parse().unwrap()).collect();
        let mut config = Config { listen, ..Config::default() };
        config.network.intercept = intercept.iter().map(|text| text.parse().unwrap()).collect();
        config
    }

    fn told(entries: &[&str]) -> Kubelet {
        let cluster_dns = Ok(entries.iter().map(|&entry| entry.to_owned()).collect());
        Kubelet { place: Place::File("/var/lib/kubelet/config.yaml".into()), cluster_dns }
    }

    #[test]
    fn a_kubelet_that_names_this_agent_is_good() {
        let finding = judge(&config(&["169.254.20.10:53"], &[]), &told(&["169.254.20.10"]));
        assert_eq!(finding.level, Level::Ok, "{finding:?}");
        assert!(finding.what.contains("169.254.20.10 (listen)"), "{finding:?}");
    }

    #[test]
    fn a_cluster_ip_is_good_where_it_is_intercepted() {
        let finding = judge(&config(&["169.254.20.10:53"], &["10.96.0.10"]), &told(&["10.96.0.10"]));
        assert_eq!(finding.level, Level::Ok, "{finding:?}");
        assert!(finding.what.contains("10.96.0.10 (intercepted)"), "{finding:?}");
    }

    #[test]
    fn a_cluster_ip_that_is_not_ours_is_a_problem_with_the_lines_to_change() {
        let finding = judge(&config(&["169.254.20.10:53", "[fd00::a]:53"], &[]), &told(&["10.96.0.10"]));
        assert_eq!(finding.level, Level::Problem, "{finding:?}");
        let lines: Vec<&str> = finding.mend.lines().collect();
        assert_eq!(
            lines[..5],
            [
                "# in /var/lib/kubelet/config.yaml:",
                "#   clusterDNS:",
                "#   - 169.254.20.10",
                "#   - fd00::a",
                "systemctl restart kubelet"
            ]
        );
        assert!(finding.mend.contains("intercept: [\"10.96.0.10\"]"), "{finding:?}");
    }

    #[test]
    fn both_families_have_to_be_ours() {
        let both = config(&["169.254.20.10:53", "[fd00::a]:53"], &[]);
        assert_eq!(judge(&both, &told(&["169.254.20.10", "fd00::a"])).level, Level::Ok);
        // However they are written.
        assert_eq!(judge(&both, &told(&["169.254.20.10", "FD00:0::000a"])).level, Level::Ok);
        let finding = judge(&config(&["169.254.20.10:53"], &[]), &told(&["169.254.20.10", "fd00:10::a"]));
        assert_eq!(finding.level, Level::Warning, "{finding:?}");
        assert!(finding.what.contains("fd00:10::a (not this agent)"), "{finding:?}");
    }

    #[test]
    fn somebody_else_first_is_a_problem_and_somebody_else_later_a_warning() {
        let config = config(&["169.254.20.10:53"], &[]);
        assert_eq!(judge(&config, &told(&["10.96.0.10", "169.254.20.10"])).level, Level::Problem);
        assert_eq!(judge(&config, &told(&["169.254.20.10", "10.96.0.10"])).level, Level::Warning);
        // A fourth one is never asked.
        let four = ["169.254.20.10", "169.254.20.10", "169.254.20.10", "10.96.0.10"];
        assert_eq!(judge(&config, &told(&four)).level, Level::Ok);
    }

    #[test]
    fn a_port_that_no_pod_can_ask_does_not_count() {
        let finding = judge(&config(&["169.254.20.10:5353"], &[]), &told(&["169.254.20.10"]));
        assert_eq!(finding.level, Level::Problem, "{finding:?}");
        assert!(finding.mend.contains("port 53"), "{finding:?}");
    }

    #[test]
    fn no_list_is_a_problem_and_no_file_is_not_seen() {
        let config = config(&["169.254.20.10:53"], &[]);
        assert_eq!(judge(&config, &told(&[])).level, Level::Problem);
        let unseen =
            Kubelet { cluster_dns: Err(Unseen::new("not there", "ps -o args= -C kubelet")), ..told(&[]) };
        let finding = judge(&config, &unseen);
        assert_eq!((finding.level, finding.mend.as_str()), (Level::Unknown, "ps -o args= -C kubelet"));
    }

    #[test]
    fn a_path_is_no_command() {
        let kubelet = Kubelet { place: Place::File("/x\nreboot".into()), ..told(&["10.96.0.10"]) };
        let finding = judge(&config(&["169.254.20.10:53"], &[]), &kubelet);
        assert_eq!(finding.mend.lines().next(), Some("# in '/x\\nreboot':"), "{finding:?}");
    }

    #[test]
    fn an_option_is_changed_where_it_stands() {
        let kubelet = Kubelet { place: Place::Option, ..told(&["10.96.0.10"]) };
        let finding = judge(&config(&["169.254.20.10:53"], &[]), &kubelet);
        assert!(finding.mend.contains("--cluster-dns=169.254.20.10"), "{finding:?}");
    }
}
