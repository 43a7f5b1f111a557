//! What the other suites share with this one.

#[path = "../support/http.rs"]
#[expect(dead_code, reason = "other suites ask for more")]
mod http;
#[path = "../support/namespace.rs"]
mod namespace;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/stubs.rs"]
#[expect(dead_code, reason = "other suites ask for more")]
pub(crate) mod stubs;
#[path = "../support/waiting.rs"]
mod waiting;
#[path = "../support/zones.rs"]
mod zones;

pub(crate) use http::Http;
pub(crate) use namespace::{Namespace, inside};
pub(crate) use ports::{free_port, run};
pub(crate) use process::{Process, missing, program};
pub(crate) use waiting::{seconds, wait_until};
pub(crate) use zones::{CLUSTER_ZONE, REVERSE_ZONE};
