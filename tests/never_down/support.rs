//! What the other suites share with this one, and who runs when.

use std::env;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[path = "../support/http.rs"]
mod http;
#[path = "../support/namespace.rs"]
mod namespace;
#[path = "../support/ports.rs"]
#[expect(dead_code, reason = "ports are free in a namespace of one's own")]
mod ports;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/stubs.rs"]
#[expect(dead_code, reason = "nothing here but queries of our own")]
pub(crate) mod stubs;
#[path = "../support/waiting.rs"]
mod waiting;
#[path = "../support/zones.rs"]
mod zones;

pub(crate) use http::Http;
pub(crate) use namespace::{Namespace, inside};
pub(crate) use ports::run;
pub(crate) use process::{Process, missing, program};
pub(crate) use waiting::{seconds, wait_until};
pub(crate) use zones::{CLUSTER_ZONE, REVERSE_ZONE};

/// Queries by UDP in a second, where `NEVER_RATE` says nothing: a debug build on two busy cores takes them.
const RATE: u64 = 2_000;

/// Addresses and ports that queries by UDP come from.
pub(crate) const PODS: usize = 8;

/// Each of these tests wants the machine for itself.
static ALONE: Mutex<()> = Mutex::new(());

/// The machine, for as long as this is held.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `body`, a closure written in the calling test, as that test in a namespace of its own, while no other runs.
#[track_caller]
pub(crate) fn on_a_node<F: Fn()>(body: F) {
    let _alone = alone();
    let add = |node: &Namespace| {
        (0..PODS)
            .for_each(|number| node.ip(&["address", "add", &format!("{}/32", pod(number)), "dev", "lo"]));
    };
    inside(|node, _| add(node), body);
}

/// The address of a pod, which the node itself has here.
pub(crate) fn pod(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 7, 1 + number as u8)
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

/// Whether what is wanted is asserted of a release build on a quiet machine.
pub(crate) fn is_strict() -> bool {
    number("NEVER_STRICT").is_some_and(|strict| strict > 0)
}

/// The bound for the slowest answer: the one that is wanted, or the one that holds on a machine that has more to do.
pub(crate) fn bound_ms(wanted: u64, busy: u64) -> u64 {
    if is_strict() { wanted } else { busy }
}
