//! nodens: the DNS cache agent of a Kubernetes node.

pub mod config;
