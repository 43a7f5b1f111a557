//! What the black-box tests share with these.

#[path = "../support/namespace.rs"]
mod namespace;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/waiting.rs"]
mod waiting;

pub(crate) use namespace::{Namespace, inside};
pub(crate) use ports::run;
pub(crate) use process::missing;
pub(crate) use waiting::seconds;
