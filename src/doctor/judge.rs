//! What the facts mean, one module a check. Each has a `check`, which looks, and a pure function from facts to findings.

pub mod buffers;
pub mod kubelet;
pub mod memory;
pub mod resolv;
pub mod sysctls;
pub mod upstreams;

use super::Patient;
use super::finding::Unseen;

/// Why files of our own network namespace would say nothing of the agent's; `None` where they do, or where that is not
/// known.
fn elsewhere(patient: &Patient) -> Option<Unseen> {
    if patient.agent.is_in_our_network != Ok(false) {
        return None;
    }
    let enter = patient.agent.pid.map(|pid| format!("nsenter --net --target {pid} nodens doctor"));
    Some(Unseen::new("The agent is in another network namespace.", enter.unwrap_or_default()))
}
