//! What the agent's queries to upstreams cost in the kernel's connection tracking, and its rules that spare it.
//!
//! Each test runs itself again inside of a network namespace that is a node: conntrack is on, and a ClusterIP leads
//! to the cluster's DNS by DNAT, as kube-proxy does it. That DNS, NSD, is in a namespace of its own, as a pod is.
//! This needs root. Debian packages: iproute2, nftables, conntrack, nsd, dnsperf, util-linux, procps.

#[path = "conntrack/agent.rs"]
mod agent;
#[path = "conntrack/bypass.rs"]
mod bypass;
#[path = "conntrack/misses.rs"]
mod misses;
#[path = "conntrack/node.rs"]
mod node;
#[path = "conntrack/owner.rs"]
mod owner;
#[path = "conntrack/support.rs"]
mod support;
