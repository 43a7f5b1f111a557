//! nodens: the DNS cache agent of a Kubernetes node.

pub mod cache;
pub mod config;
pub mod metrics;
pub mod upstream;
pub mod wire;
pub mod zone;
