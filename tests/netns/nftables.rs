//! kube-proxy's nftables mode, and a firewall in nftables.

use crate::kernel::feed;
use crate::kube_proxy::{MASQUERADE, Service, states};
use crate::topology::Firewall;

/// What comes in is dropped, but for a few kinds.
#[track_caller]
pub(crate) fn guard(firewall: Firewall) {
    let Some(states) = states(firewall) else { return };
    let states = states.join(", ");
    load(&format!(
        "table inet firewall {{
           chain input {{
             type filter hook input priority filter; policy drop;
             ct state {{ established, related }} accept
             iifname \"lo\" accept
             meta l4proto {{ icmp, ipv6-icmp }} accept
             iifname \"pod*\" meta l4proto {{ udp, tcp }} th dport 53 ct state {{ {states} }} accept
           }}
         }}\n"
    ));
}

/// Puts the proxy's table there, in place of the one that there was.
#[track_caller]
pub(crate) fn replace(service: Service) {
    let Service { v6, cluster_ip, pods, endpoints } = service;
    let (ip, kind, icmp) = if v6 { ("ip6", "ipv6_addr", "icmpv6") } else { ("ip", "ipv4_addr", "icmp") };
    let (mut served, mut unserved, mut chains) = (Vec::new(), Vec::new(), String::new());
    for (protocol, port) in [("udp", "dns"), ("tcp", "dns-tcp")] {
        let name = format!("kube-system/kube-dns/{protocol}/{port}");
        if endpoints.is_empty() {
            let comment = format!("comment \"{name}\"");
            unserved.push(format!("{cluster_ip} . {protocol} . 53 {comment} : goto reject-chain"));
            continue;
        }
        let hash = if protocol == "udp" { "NWBZK7IH" } else { "FY5PMXPG" };
        served.push(format!("{cluster_ip} . {protocol} . 53 : goto service-{hash}-{name}"));
        let one = |number: usize| format!("endpoint-{hash}{number}-{name}__pod{number}/53");
        let each: Vec<_> =
            (0..endpoints.len()).map(|number| format!("{number} : goto {}", one(number))).collect();
        for (number, endpoint) in endpoints.iter().enumerate() {
            let target = if v6 { format!("[{endpoint}]:53") } else { format!("{endpoint}:53") };
            chains.push_str(&format!(
                "chain {} {{
                   {ip} saddr {endpoint} jump mark-for-masquerade
                   meta l4proto {protocol} dnat to {target}
                 }}\n",
                one(number)
            ));
        }
        chains.push_str(&format!(
            "chain service-{hash}-{name} {{
               {ip} daddr {cluster_ip} {protocol} dport 53 {ip} saddr != {pods} jump mark-for-masquerade
               numgen random mod {} vmap {{ {} }}
             }}\n",
            endpoints.len(),
            each.join(", ")
        ));
    }
    let elements = |list: &[String]| match list {
        [] => String::new(),
        list => format!("elements = {{ {} }}", list.join(", ")),
    };
    load(&format!(
        "table {ip} kube-proxy
         delete table {ip} kube-proxy
         table {ip} kube-proxy {{
           comment \"rules for kube-proxy\"
           set cluster-ips {{ type {kind}; elements = {{ {cluster_ip} }} }}
           map service-ips {{ type {kind} . inet_proto . inet_service : verdict; {served} }}
           map no-endpoint-services {{ type {kind} . inet_proto . inet_service : verdict; {unserved} }}
           chain mark-for-masquerade {{
             meta mark set meta mark | {MASQUERADE}
           }}
           chain masquerading {{
             meta mark & {MASQUERADE} == 0 return
             meta mark set meta mark ^ {MASQUERADE}
             masquerade fully-random
           }}
           chain reject-chain {{
             reject with {icmp} type port-unreachable
           }}
           {chains}
           chain services {{
             {ip} daddr . meta l4proto . th dport vmap @service-ips
           }}
           chain service-endpoints-check {{
             {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services
           }}
           chain cluster-ips-check {{
             {ip} daddr @cluster-ips reject
           }}
           chain filter-input {{
             type filter hook input priority -110; policy accept;
             ct state new jump service-endpoints-check
           }}
           chain filter-forward {{
             type filter hook forward priority -110; policy accept;
             ct state new jump service-endpoints-check
             ct state new jump cluster-ips-check
           }}
           chain filter-output {{
             type filter hook output priority -110; policy accept;
             ct state new jump service-endpoints-check
           }}
           chain filter-output-post-dnat {{
             type filter hook output priority -90; policy accept;
             ct state new jump cluster-ips-check
           }}
           chain nat-prerouting {{
             type nat hook prerouting priority dstnat; policy accept;
             jump services
           }}
           chain nat-output {{
             type nat hook output priority -100; policy accept;
             jump services
           }}
           chain nat-postrouting {{
             type nat hook postrouting priority srcnat; policy accept;
             jump masquerading
           }}
         }}\n",
        served = elements(&served),
        unserved = elements(&unserved),
    ));
}

#[track_caller]
fn load(rules: &str) {
    feed("nft", "nftables", &["-f", "-"], rules);
}
