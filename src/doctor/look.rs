//! Gathering facts, one module a source. What they mean is said in [`super::judge`].

pub mod agent;
pub mod answers;
pub mod counters;
pub mod kubelet;
pub mod legacy;
pub mod memory;
pub mod processes;
pub mod resolv;
pub mod sockets;
pub mod sysctls;
pub mod upstreams;
