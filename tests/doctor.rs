//! `nodens doctor` on nodes that are well and on nodes that are not: each finding is named, and its own commands end it.
//!
//! Each test runs itself again inside of a network namespace that is a node, as `tests/netns` has it. This needs root.
//! Debian packages: iproute2, iptables, nftables, conntrack, nsd, procps, util-linux, python3.

#[path = "doctor/agent_itself.rs"]
mod agent_itself;
#[path = "doctor/client_ways.rs"]
mod client_ways;
#[path = "netns/cluster_dns.rs"]
mod cluster_dns;
#[path = "doctor/examine.rs"]
mod examine;
#[path = "doctor/firewalls.rs"]
mod firewalls;
#[path = "doctor/healthy.rs"]
mod healthy;
#[path = "doctor/home.rs"]
mod home;
#[path = "netns/iptables.rs"]
mod iptables;
#[path = "netns/kernel.rs"]
#[expect(dead_code, reason = "tests/netns asks for more")]
mod kernel;
#[path = "netns/kube_proxy.rs"]
mod kube_proxy;
#[path = "doctor/left_behind.rs"]
mod left_behind;
#[path = "netns/nftables.rs"]
mod nftables;
#[path = "doctor/places.rs"]
mod places;
#[path = "doctor/ports.rs"]
mod ports;
#[path = "doctor/rest.rs"]
mod rest;
#[path = "doctor/support.rs"]
mod support;
#[path = "netns/topology.rs"]
#[expect(dead_code, reason = "tests/netns asks for more")]
mod topology;
#[path = "netns/topology_links.rs"]
mod topology_links;
#[path = "doctor/unprivileged.rs"]
mod unprivileged;
