//! What the other suites share with this one, and who runs when.

use std::env;
use std::sync::{Mutex, PoisonError};

#[path = "../support/http.rs"]
mod http;
#[path = "../support/namespace.rs"]
mod namespace;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/waiting.rs"]
mod waiting;

pub(crate) use http::Http;
pub(crate) use namespace::inside;
pub(crate) use ports::run;
pub(crate) use process::{Process, program};
pub(crate) use waiting::{seconds, wait_until};

/// Queries by UDP in a second, where `NEVER_RATE` says nothing: a debug build on two busy cores takes them.
const RATE: u64 = 2_000;

/// Each of these tests wants the machine for itself.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs `body`, a closure written in the calling test, as that test in a namespace of its own, while no other runs.
#[track_caller]
pub(crate) fn on_a_node<F: Fn()>(body: F) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    inside(|node, _| node.ip(&["link", "set", "lo", "up"]), body);
}

/// Queries by UDP in a second.
pub(crate) fn rate() -> u64 {
    number("NEVER_RATE").unwrap_or(RATE)
}

/// A number in the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// The bound for the slowest answer: the one that is wanted, or the one that holds on a machine that has more to do.
pub(crate) fn bound_ms(wanted: u64, busy: u64) -> u64 {
    if number("NEVER_STRICT").is_some_and(|strict| strict > 0) { wanted } else { busy }
}
