//! Links, addresses, rules and routes, with `ip` to judge what the kernel has.
//!
//! Each test runs itself again inside of a network namespace of its own, and calls the library there. This needs root.
//! Debian packages: iproute2, procps, util-linux.

#[path = "links/events.rs"]
mod events;
#[path = "links/hold.rs"]
mod hold;
#[path = "links/node.rs"]
mod node;
#[path = "links/refused.rs"]
mod refused;
#[path = "links/release.rs"]
mod release;
#[path = "links/route.rs"]
mod route;
#[path = "links/support.rs"]
mod support;
