//! nodens: the DNS cache agent of a Kubernetes node.

pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
