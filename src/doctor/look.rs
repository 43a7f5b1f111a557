//! Gathering facts, one module a source. What they mean is said in [`super::judge`].

pub mod agent;
pub mod answers;
pub mod counters;
pub mod iptables;
pub mod kubelet;
pub mod memory;
pub mod node;
pub mod processes;
pub mod resolv;
pub mod sockets;
pub mod sysctls;
pub mod upstreams;
