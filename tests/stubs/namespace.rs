//! A network namespace as a pod has it, with files of its own in `/etc`, and tests that run inside.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::programs;
use crate::support::{Namespace, inside};

/// The agent's address in every namespace.
pub(crate) const ADDRESS: &str = "169.254.20.10";
/// A second family, as a pod of a dual-stack cluster has it: without one, stub resolvers with
/// AI_ADDRCONFIG do not ask for AAAA.
const POD_IPV6: &str = "fd00:10::10";

/// What `ip netns exec` mounts over the files of the same names in `/etc`.
const FILES: [(&str, &str); 3] = [
    (
        "resolv.conf",
        "nameserver 169.254.20.10\nsearch default.svc.cluster.local svc.cluster.local cluster.local\n\
         options ndots:5\n",
    ),
    ("nsswitch.conf", "hosts: files dns\n"),
    ("hosts", "127.0.0.1 localhost\n"),
];

/// Runs `body`, a closure written in the calling test, as that test in a process and a namespace of its own.
#[track_caller]
pub(crate) fn in_a_namespace<F: Fn()>(body: F) {
    let prepare = |namespace: &Namespace, command: &mut Command| {
        let files = Path::new("/etc/netns").join(&namespace.name);
        fs::create_dir_all(&files).expect("/etc/netns");
        for (file, content) in FILES {
            fs::write(files.join(file), content).expect("a file of the namespace");
        }
        namespace.ip(&["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"]);
        namespace.ip(&["address", "add", &format!("{POD_IPV6}/128"), "dev", "lo", "nodad"]);
        command.env(programs::DIRECTORY, programs::built());
    };
    inside(prepare, body);
}
