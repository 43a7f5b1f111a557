//! Which capabilities the program keeps, what it says when one is missing, and what still works without the others.
//!
//! Where a setting changes the network or a port is a well-known one, the test runs itself again inside of a network
//! namespace. This needs root. Debian packages: iproute2, util-linux, procps.

#[path = "privileges/agent.rs"]
mod agent;
#[path = "privileges/files.rs"]
mod files;
#[path = "privileges/kept.rs"]
mod kept;
#[path = "privileges/missing.rs"]
mod missing;
#[path = "privileges/support.rs"]
mod support;
