//! kube-proxy's iptables mode, and a firewall in iptables.

use std::fmt::Write as _;

use crate::kernel::feed;
use crate::kube_proxy::{MASQUERADE, Service, states};
use crate::topology::{Firewall, Proxy};

/// One of the four restoring programs.
pub(crate) fn program_of(proxy: Proxy, v6: bool) -> String {
    let family = if v6 { "ip6tables" } else { "iptables" };
    let kind = if proxy == Proxy::IptablesLegacy { "legacy" } else { "nft" };
    format!("{family}-{kind}")
}

/// The chains that are only entered once, and those that [`replace`] fills.
#[track_caller]
pub(crate) fn install(program: &str, service: Service, firewall: Firewall) {
    let mut base = String::from(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-NODEPORTS - [0:0]\n\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         COMMIT\n*filter\n:KUBE-SERVICES - [0:0]\n:KUBE-FORWARD - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n\
         -A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" \
         -j KUBE-EXTERNAL-SERVICES\n\
         -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
         -A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n",
    );
    base.push_str(&guard(service.v6, firewall));
    base.push_str("COMMIT\n");
    restore(program, &base);
    replace(program, service);
}

/// What comes in is dropped, but for a few kinds.
fn guard(v6: bool, firewall: Firewall) -> String {
    let Some(states) = states(firewall) else { return String::new() };
    let states = states.join(",").to_uppercase();
    let icmp = if v6 { "ipv6-icmp" } else { "icmp" };
    let mut rules = format!(
        "-A INPUT -i lo -j ACCEPT\n-A INPUT -p {icmp} -j ACCEPT\n\
         -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
    );
    for protocol in ["udp", "tcp"] {
        let _ = writeln!(
            rules,
            "-A INPUT -i pod+ -p {protocol} -m {protocol} --dport 53 -m conntrack --ctstate {states} -j ACCEPT"
        );
    }
    format!(":INPUT DROP [0:0]\n{rules}")
}

/// Fills the chains of the Service anew.
#[track_caller]
pub(crate) fn replace(program: &str, service: Service) {
    let (mut chains, mut nat, mut filter) = (String::new(), String::new(), String::new());
    for (protocol, port, hash) in [("udp", "dns", "TCOU7JCQXEZGVUNU"), ("tcp", "dns-tcp", "ERIFXISQEP7F7OF4")]
    {
        let (chain, name) = (format!("KUBE-SVC-{hash}"), format!("kube-system/kube-dns:{port}"));
        let to = format!("-d {}/{}", service.cluster_ip, if service.v6 { 128 } else { 32 });
        let dns = format!("-p {protocol} -m {protocol} --dport 53");
        let _ = writeln!(chains, ":{chain} - [0:0]");
        if service.endpoints.is_empty() {
            let icmp = if service.v6 { "icmp6-port-unreachable" } else { "icmp-port-unreachable" };
            let _ = writeln!(
                filter,
                "-A KUBE-SERVICES {to} {dns} -m comment --comment \"{name} has no endpoints\" \
                 -j REJECT --reject-with {icmp}"
            );
            continue;
        }
        let _ = writeln!(
            nat,
            "-A KUBE-SERVICES {to} {dns} -m comment --comment \"{name} cluster IP\" -j {chain}\n\
             -A {chain} ! -s {} {to} {dns} -m comment --comment \"{name} cluster IP\" -j KUBE-MARK-MASQ",
            service.pods
        );
        for (number, endpoint) in service.endpoints.iter().enumerate() {
            let one = format!("KUBE-SEP-{}{number}", &hash[..12]);
            let left = service.endpoints.len() - number;
            let odds = match left {
                1 => String::new(),
                left => format!("-m statistic --mode random --probability {:.11}", 1.0 / left as f64),
            };
            let target = if service.v6 { format!("[{endpoint}]:53") } else { format!("{endpoint}:53") };
            let _ = writeln!(chains, ":{one} - [0:0]");
            let _ = writeln!(
                nat,
                "-A {chain} -m comment --comment \"{name} -> {target}\" {odds} -j {one}\n\
                 -A {one} -s {endpoint} -m comment --comment \"{name}\" -j KUBE-MARK-MASQ\n\
                 -A {one} -p {protocol} -m comment --comment \"{name}\" -m {protocol} \
                 -j DNAT --to-destination {target}"
            );
        }
    }
    let common = format!(
        "-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE}\n\
         -A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE}/{MASQUERADE} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE}\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" \
         -j MASQUERADE --random-fully\n\
         -A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" \
         -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n"
    );
    let forward = format!(
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark {MASQUERADE}/{MASQUERADE} \
         -j ACCEPT\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack \
         --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
    );
    restore(
        program,
        &format!(
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n{chains}{nat}{common}\
             COMMIT\n*filter\n:KUBE-SERVICES - [0:0]\n:KUBE-FORWARD - [0:0]\n{filter}{forward}COMMIT\n"
        ),
    );
}

/// All of it at once. Chains that it declares are emptied, others stay as they are.
#[track_caller]
fn restore(program: &str, rules: &str) {
    // The lock is one for all namespaces.
    feed(&format!("{program}-restore"), "iptables", &["--noflush", "-w", "20"], rules);
}
