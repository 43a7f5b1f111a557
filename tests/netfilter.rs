//! Our rules in the kernel, with packets that meet them, and what is read of the rules of others.
//!
//! Each test runs itself again inside of a network namespace that is a node, with connection tracking, and with a pod
//! beside it in a namespace of its own. This needs root. Debian packages: bash, iproute2, nftables, conntrack,
//! iptables.

#[path = "netfilter/connections.rs"]
mod connections;
#[path = "netfilter/firewall.rs"]
mod firewall;
#[path = "netfilter/intercept.rs"]
mod intercept;
#[path = "netfilter/leaving.rs"]
mod leaving;
#[path = "netfilter/node.rs"]
mod node;
#[path = "netfilter/notrack.rs"]
mod notrack;
#[path = "netfilter/seen.rs"]
mod seen;
#[path = "netfilter/support.rs"]
mod support;
#[path = "netfilter/table.rs"]
mod table;
#[path = "netfilter/upstream.rs"]
mod upstream;
