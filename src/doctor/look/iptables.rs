//! Rules of iptables, in the words of iptables: only its own programs can list them so, and those of iptables-legacy
//! nothing else can list at all.

use std::process::{Command, Stdio};

use crate::doctor::finding::{Seen, Unseen};
use crate::doctor::sources::Sources;

/// Rules of one family.
#[derive(Debug, Clone)]
pub struct Saved {
    /// What manages them: `iptables-legacy`, `ip6tables-nft`.
    pub program: &'static str,
    /// As its `-save` prints them; empty where there are no tables.
    pub rules: Seen<String>,
}

/// Those of iptables-legacy, of both families.
pub fn legacy(sources: &Sources) -> Vec<Saved> {
    let of = |(program, names): (&'static str, &str)| {
        // Without the kernel's module there are no tables, and to ask the program would load it.
        let tables = sources.read_if_there(format!("/proc/self/net/{names}"));
        let rules = tables.and_then(|tables| match tables.unwrap_or_default().trim() {
            "" => Ok(String::new()),
            _ => save(program),
        });
        Saved { program, rules }
    };
    [("iptables-legacy", "ip_tables_names"), ("ip6tables-legacy", "ip6_tables_names")].map(of).into()
}

/// What its saving program prints.
///
/// # Errors
/// Why it cannot be run.
pub fn save(program: &str) -> Seen<String> {
    let save = format!("{program}-save");
    let unseen = |why: String| {
        Unseen::new(
            format!("there are rules of {program}, and {why}"),
            format!(
                "{save} | grep NodeLocal   # Debian package iptables; on the node where a container lacks it"
            ),
        )
    };
    match Command::new(&save).stdin(Stdio::null()).output() {
        Ok(listed) if listed.status.success() => Ok(String::from_utf8_lossy(&listed.stdout).into_owned()),
        Ok(listed) => Err(unseen(format!("{save}: {}", String::from_utf8_lossy(&listed.stderr).trim()))),
        Err(error) => Err(unseen(format!("{save} cannot be run: {error}"))),
    }
}
