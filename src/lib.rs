//! nodens: the DNS cache agent of a Kubernetes node.

pub mod admin;
pub mod app;
pub mod cache;
pub mod cli;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod metrics;
pub mod resolve;
pub mod serve;
pub mod upstream;
pub mod wire;
pub mod zone;
