//! nodens: the DNS cache agent of a Kubernetes node.

pub mod cache;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod metrics;
pub mod resolve;
pub mod upstream;
pub mod wire;
pub mod zone;
