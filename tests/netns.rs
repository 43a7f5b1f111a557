//! The agent at home on a node, among pods, host processes, firewalls and kube-proxy.
//!
//! Each test runs itself again inside of a network namespace that is a node. Pods and the cluster's DNS are in
//! namespaces of their own, and a ClusterIP that no link holds leads to that DNS, as kube-proxy does it. This needs
//! root. Debian packages: iproute2, iptables, nftables, conntrack, nsd, dnsperf, procps, util-linux, gcc, libc6-dev,
//! musl-tools.

#[path = "netns/agent.rs"]
mod agent;
#[path = "netns/client.rs"]
mod client;
#[path = "netns/client_ways.rs"]
mod client_ways;
#[path = "netns/cluster_dns.rs"]
mod cluster_dns;
#[path = "netns/connections.rs"]
mod connections;
#[path = "netns/intercept.rs"]
mod intercept;
#[path = "netns/iptables.rs"]
mod iptables;
#[path = "netns/kernel.rs"]
mod kernel;
#[path = "netns/kill.rs"]
mod kill;
#[path = "netns/kube_proxy.rs"]
mod kube_proxy;
#[path = "netns/left.rs"]
mod left;
#[path = "netns/mended.rs"]
mod mended;
#[path = "netns/migration.rs"]
mod migration;
#[path = "netns/misses.rs"]
mod misses;
#[path = "netns/nftables.rs"]
mod nftables;
#[path = "netns/notrack.rs"]
mod notrack;
#[path = "netns/owner.rs"]
mod owner;
#[path = "netns/reachable.rs"]
mod reachable;
#[path = "netns/resolvers.rs"]
mod resolvers;
#[path = "netns/support.rs"]
mod support;
#[path = "netns/topology.rs"]
mod topology;
#[path = "netns/topology_links.rs"]
mod topology_links;
#[path = "netns/upstream_notrack.rs"]
mod upstream_notrack;
#[path = "netns/waiting.rs"]
mod waiting;
