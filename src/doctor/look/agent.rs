//! The running agent: what it says by its control socket, and what `/proc` says of it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
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

/// The agent at a control socket.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its number, where it is in a PID namespace that we see.
    pub pid: Option<u32>,
    /// How it is.
    pub state: State,
    /// What it may do.
    pub capabilities: Seen<Capabilities>,
    /// Whether it is in our network namespace.
    pub is_in_our_network: Seen<bool>,
}

/// How an agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It answers its own name, and its threads make progress.
    Works {
        /// Why it is not ready; empty when it is.
        reasons: Vec<String>,
    },
    /// It is there and cannot answer, and why.
    Hangs(String),
    /// Nobody is there, and how that shows.
    Absent(String),
    /// It cannot be asked.
    Unseen(Unseen),
}

/// Bit sets of capabilities(7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Those in force.
    pub effective: u64,
    /// Those that it can put in force.
    pub permitted: u64,
}

impl Agent {
    /// Whether it answers queries and has set up what it needs.
    pub fn is_ready(&self) -> bool {
        matches!(&self.state, State::Works { reasons } if reasons.is_empty())
    }

    /// Whether nobody is there.
    pub fn is_absent(&self) -> bool {
        matches!(self.state, State::Absent(_))
    }

    /// Whether what is seen of the network from here is the agent's.
    pub fn is_elsewhere(&self) -> bool {
        self.is_in_our_network == Ok(false)
    }
}

/// Asks it.
pub async fn agent(sources: &Sources, control: &Path) -> Agent {
    let mut pid = None;
    let state = match timeout(PATIENCE, converse(control, &mut pid)).await {
        Ok(Ok(state)) => state,
        Ok(Err(error)) => not_asked(control, &error),
        Err(_) => State::Hangs(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    let of = pid.ok_or_else(|| Unseen::new("its process is not to be seen from here", SEES_PROCESSES));
    Agent {
        pid,
        state,
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

fn not_asked(control: &Path, error: &std::io::Error) -> State {
    let why = format!("{}: {error}", control.display());
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => State::Absent(why),
        ErrorKind::PermissionDenied => State::Unseen(Unseen::new(why, AS_ROOT)),
        _ => State::Hangs(why),
    }
}

async fn converse(control: &Path, pid: &mut Option<u32>) -> std::io::Result<State> {
    let mut stream = UnixStream::connect(control).await?;
    *pid = stream.peer_cred()?.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid != 0);
    let mut line = serde_json::to_vec(&Request::Probe)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer: Value = serde_json::from_slice(&answer)?;
    let reasons = answer["ready"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let reasons: Vec<String> = reasons.map(str::to_owned).collect();
    Ok(match answer["ok"].as_bool() {
        Some(true) => State::Works { reasons },
        _ => State::Hangs(reasons.join("; ")),
    })
}

/// The configuration file that it was started with, where it can be read from here.
///
/// # Errors
/// Why that is not known.
pub fn config_file(sources: &Sources, pid: u32) -> Seen<PathBuf> {
    let words = sources.read(format!("/proc/{pid}/cmdline"))?;
    let mut words = words.split('\0');
    let file = words.find_map(|word| match word.strip_prefix("--config") {
        Some("") => Some(None),
        Some(rest) => rest.strip_prefix('=').map(Some),
        None => None,
    });
    let file = file.and_then(|file| file.or_else(|| words.next()));
    let file = file.ok_or_else(|| Unseen::new("the agent was started without a configuration", ""))?;
    // In a container of its own it has other files than we have.
    let below = if file.starts_with('/') { "root" } else { "cwd" };
    Ok(sources.path(format!("/proc/{pid}/{below}/{}", file.trim_start_matches('/'))))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_agents_configuration_is_found_by_how_it_was_started() {
        let dir = tempfile::tempdir().unwrap();
        let proc = dir.path().join("proc/7");
        fs::create_dir_all(&proc).unwrap();
        let sources = Sources { root: dir.path().to_owned(), kubelet: PathBuf::new() };
        for (words, below) in [
            ("nodens\0run\0--config\0/etc/nodens.yaml\0", "root/etc/nodens.yaml"),
            ("nodens\0run\0--config=nodens.yaml\0", "cwd/nodens.yaml"),
        ] {
            fs::write(proc.join("cmdline"), words).unwrap();
            assert_eq!(config_file(&sources, 7), Ok(proc.join(below)));
        }
        fs::write(proc.join("cmdline"), "nodens\0run\0").unwrap();
        assert!(config_file(&sources, 7).is_err());
    }
}
