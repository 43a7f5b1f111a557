//! What the facts mean, one module a check. Each has a `check`, which looks, and a pure function from facts to findings.

pub mod buffers;
pub mod kubelet;
pub mod memory;
pub mod resolv;
pub mod sysctls;
pub mod upstreams;
