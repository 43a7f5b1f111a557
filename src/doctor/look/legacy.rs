//! Rules of iptables-legacy, which only its own program can list.

use std::process::{Command, Stdio};

use crate::doctor::finding::{Seen, Unseen};
use crate::doctor::sources::Sources;

/// Rules of one family.
#[derive(Debug, Clone)]
pub struct Legacy {
    /// What manages them: `iptables-legacy`, `ip6tables-legacy`.
    pub program: &'static str,
    /// As its `-save` prints them; empty where there are no tables.
    pub rules: Seen<String>,
}

/// Of both families.
pub fn legacy(sources: &Sources) -> Vec<Legacy> {
    [("iptables-legacy", "ip_tables_names"), ("ip6tables-legacy", "ip6_tables_names")]
        .map(|(program, names)| Legacy { program, rules: rules(sources, program, names) })
        .into()
}

fn rules(sources: &Sources, program: &str, names: &str) -> Seen<String> {
    // Without the kernel's module there are no tables, and to ask the program would load it.
    let tables = sources.read_if_there(format!("/proc/self/net/{names}"))?.unwrap_or_default();
    if tables.trim().is_empty() {
        return Ok(String::new());
    }
    let save = format!("{program}-save");
    let listed = Command::new(&save).stdin(Stdio::null()).output();
    let tables = tables.split_whitespace().collect::<Vec<_>>().join(", ");
    let unseen = |why: String| {
        Unseen::new(
            format!("the kernel has tables of {program} ({tables}), and {why}"),
            format!("{save} | grep -e NodeLocal -e NOTRACK   # Debian package iptables"),
        )
    };
    match listed {
        Ok(listed) if listed.status.success() => Ok(String::from_utf8_lossy(&listed.stdout).into_owned()),
        Ok(listed) => Err(unseen(format!("{save}: {}", String::from_utf8_lossy(&listed.stderr).trim()))),
        Err(error) => Err(unseen(format!("{save} cannot be run: {error}"))),
    }
}
