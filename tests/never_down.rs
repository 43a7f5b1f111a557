//! Never down: what becomes of every query while agents and their keepers are killed, stopped, replaced and reloaded.
//!
//! Each test runs itself again inside of a network namespace that is a node, and a client asks there all the time, no query
//! twice. What it lost, and how long the slowest answer took, is printed for each event. This needs root. Debian packages:
//! iproute2, iptables, nftables, conntrack, nsd, procps, util-linux, python3.
//!
//! `NEVER_RATE` is how many queries there are by UDP in a second, `NEVER_SOAK` how many seconds the mix of all events lasts,
//! and `NEVER_SEED` repeats one. With `NEVER_STRICT=1` latencies are held against the bounds
//! that are wanted of a release build on a quiet machine (`NODENS_UNDER_TEST` names it), and not against looser ones.

#[path = "never_down/asking.rs"]
mod asking;
#[path = "never_down/client.rs"]
mod client;
#[path = "never_down/client_ways.rs"]
mod client_ways;
#[path = "netns/cluster_dns.rs"]
mod cluster_dns;
#[path = "never_down/container.rs"]
mod container;
#[path = "never_down/crash_loop.rs"]
mod crash_loop;
#[path = "never_down/halfway.rs"]
mod halfway;
#[path = "never_down/handover.rs"]
mod handover;
#[path = "never_down/home.rs"]
mod home;
#[path = "never_down/intercept.rs"]
mod intercept;
#[path = "netns/iptables.rs"]
mod iptables;
#[path = "netns/kernel.rs"]
#[expect(dead_code, reason = "another suite needs the rest")]
mod kernel;
#[path = "never_down/kill.rs"]
mod kill;
#[path = "netns/kube_proxy.rs"]
mod kube_proxy;
#[path = "netns/nftables.rs"]
mod nftables;
#[path = "never_down/reload.rs"]
mod reload;
#[path = "never_down/seen.rs"]
mod seen;
#[path = "never_down/soak.rs"]
mod soak;
#[path = "never_down/stop.rs"]
mod stop;
#[path = "never_down/streams.rs"]
mod streams;
#[path = "never_down/support.rs"]
mod support;
#[path = "never_down/systemd.rs"]
mod systemd;
#[path = "never_down/tcp.rs"]
mod tcp;
#[path = "netns/topology.rs"]
#[expect(dead_code, reason = "another suite needs the rest")]
mod topology;
#[path = "netns/topology_links.rs"]
mod topology_links;
#[path = "never_down/upstream.rs"]
mod upstream;
