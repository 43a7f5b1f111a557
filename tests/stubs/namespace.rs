//! A network namespace as a pod has it, with files of its own in `/etc`, and tests that run inside.

use std::process::Command;

use crate::support::stubs::{self, programs};
use crate::support::{Namespace, inside};

/// The agent's address in every namespace.
pub(crate) const ADDRESS: &str = "169.254.20.10";
/// A second family, as a pod of a dual-stack cluster has it: without one, stub resolvers with
/// AI_ADDRCONFIG do not ask for AAAA.
const POD_IPV6: &str = "fd00:10::10";

/// Runs `body`, a closure written in the calling test, as that test in a process and a namespace of its own.
#[track_caller]
pub(crate) fn in_a_namespace<F: Fn()>(body: F) {
    let prepare = |namespace: &Namespace, command: &mut Command| {
        stubs::write_files(&namespace.name, &[ADDRESS.parse().expect("an address")]);
        namespace.ip(&["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"]);
        namespace.ip(&["address", "add", &format!("{POD_IPV6}/128"), "dev", "lo", "nodad"]);
        command.env(programs::DIRECTORY, programs::built(|_| true));
    };
    inside(prepare, body);
}
