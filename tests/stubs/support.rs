//! What the black-box tests share with these.

#[path = "../support/datagram.rs"]
mod datagram;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/namespace.rs"]
mod namespace;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/servers.rs"]
mod servers;
#[path = "../support/stubs.rs"]
pub(crate) mod stubs;
#[path = "../support/waiting.rs"]
mod waiting;
#[path = "../support/zones.rs"]
mod zones;

pub(crate) use datagram::{ask_udp, query};
pub(crate) use http::Http;
pub(crate) use namespace::{Namespace, inside};
pub(crate) use ports::free_port;
pub(crate) use process::{Process, program};
pub(crate) use servers::{Nsd, Unbound};
pub(crate) use waiting::{seconds, wait_until};
pub(crate) use zones::{CLUSTER_ZONE, REVERSE_ZONE};
