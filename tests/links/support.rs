//! What the black-box tests share with these.

#[path = "../support/namespace.rs"]
mod namespace;
#[expect(dead_code, reason = "other crates of tests use the rest")]
#[path = "../support/ports.rs"]
mod ports;
#[expect(dead_code, reason = "other crates of tests use the rest")]
#[path = "../support/process.rs"]
mod process;
#[expect(dead_code, reason = "other crates of tests use the rest")]
#[path = "../support/waiting.rs"]
mod waiting;

pub(crate) use namespace::{Namespace, inside};
pub(crate) use ports::run;
pub(crate) use process::missing;
pub(crate) use waiting::wait_until;
