//! The running agent: what it says by its control socket, and what `/proc` says of it.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::admin::control::Request;
use crate::doctor::finding::{Seen, Unseen};
use crate::doctor::sources::{AS_ROOT, Sources};

/// An agent that works answers at once.
const PATIENCE: Duration = Duration::from_secs(3);

/// The agent that answers at a control socket.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its number, where it is in a PID namespace that we see.
    pub pid: Option<u32>,
    /// Its answer to a probe.
    pub probe: Seen<Probe>,
    /// What it may do.
    pub capabilities: Seen<Capabilities>,
    /// Whether it is in our network namespace.
    pub is_in_our_network: Seen<bool>,
}

/// An answer to a probe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probe {
    /// It answers its own name, and its threads make progress.
    pub is_ok: bool,
    /// Why it is not ready; empty when it is.
    pub reasons: Vec<String>,
}

/// Bit sets of capabilities(7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Those in force.
    pub effective: u64,
    /// Those that it can put in force.
    pub permitted: u64,
}

/// Asks it.
pub async fn agent(sources: &Sources, control: &Path) -> Agent {
    let conversation = timeout(PATIENCE, converse(control)).await;
    let (pid, probe) = match conversation {
        Ok(Ok((pid, probe))) => (pid, Ok(probe)),
        Ok(Err(error)) => (None, Err(silent(control, &error))),
        Err(_) => (None, Err(Unseen::new(format!("no answer within {} s", PATIENCE.as_secs()), ""))),
    };
    let of =
        pid.ok_or_else(|| Unseen::new("the agent's process is not to be seen from here", SEES_PROCESSES));
    Agent {
        pid,
        probe,
        capabilities: of.clone().and_then(|pid| capabilities(sources, pid)),
        is_in_our_network: of.and_then(|pid| {
            let network = |process: &str| sources.link(format!("/proc/{process}/ns/net"));
            Ok(network(&pid.to_string())? == network("self")?)
        }),
    }
}

/// What lets one look at all processes of the node.
pub const SEES_PROCESSES: &str =
    "# run it on the node itself, or in a pod with hostPID: true\nsudo nodens doctor";

fn silent(control: &Path, error: &std::io::Error) -> Unseen {
    let mend = if error.kind() == std::io::ErrorKind::PermissionDenied { AS_ROOT } else { "" };
    Unseen::new(format!("{}: {error}", control.display()), mend)
}

async fn converse(control: &Path) -> std::io::Result<(Option<u32>, Probe)> {
    let mut stream = UnixStream::connect(control).await?;
    let pid = stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid != 0);
    let mut line = serde_json::to_vec(&Request::Probe)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer: Value = serde_json::from_slice(&answer)?;
    let reasons = answer["ready"].as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok((pid, Probe { is_ok: answer["ok"] == true, reasons: reasons.map(str::to_owned).collect() }))
}

fn capabilities(sources: &Sources, pid: u32) -> Seen<Capabilities> {
    let text = sources.read(format!("/proc/{pid}/status"))?;
    let of = |key: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(key))?;
        u64::from_str_radix(value.trim(), 16).ok()
    };
    match (of("CapEff:"), of("CapPrm:")) {
        (Some(effective), Some(permitted)) => Ok(Capabilities { effective, permitted }),
        _ => Err(Unseen::new(format!("/proc/{pid}/status has no capabilities"), "")),
    }
}
