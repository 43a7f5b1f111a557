//! What the black-box tests share with these.

#[path = "../support/namespace.rs"]
mod namespace;
#[path = "../support/waiting.rs"]
mod waiting;

pub(crate) use namespace::{Namespace, inside};
pub(crate) use process::missing;
pub(crate) use waiting::{seconds, wait_until};

/// Of the module that the others share: these tests start no servers.
mod process {
    /// What to say when a program can't be started.
    pub(crate) fn missing(program: &str, package: &str, error: &std::io::Error) -> String {
        format!("cannot run `{program}` ({error}): install the Debian package `{package}`")
    }
}
