//! `nodens doctor`: what is wrong on this node, why it matters, and the command that mends it.
//!
//! [`look`] gathers facts and says nothing about them; [`judge`] says what they mean for this configuration, one
//! module a check, without looking at anything itself. It reads, and asks questions that any client may ask; it
//! changes nothing.

pub mod finding;
pub mod judge;
pub mod look;
pub mod sources;

use std::path::PathBuf;

use crate::config::Config;
use finding::Finding;
use look::agent::{Agent, agent};
use sources::Sources;

/// The node that is examined.
#[derive(Debug)]
pub struct Patient {
    /// What the agent is configured to do.
    pub config: Config,
    /// Where facts are read.
    pub sources: Sources,
    /// The agent that runs, or why none is seen.
    pub agent: Agent,
}

/// Examines a node, one check after the other, and hands over each finding as it is made.
pub async fn examine(config: Config, sources: Sources, control: PathBuf, mut each: impl FnMut(Finding)) {
    let agent = agent(&sources, &control).await;
    let patient = Patient { config, sources, agent };
    judge::kubelet::check(&patient).into_iter().for_each(&mut each);
    judge::resolv::check(&patient).await.into_iter().for_each(&mut each);
    judge::upstreams::check(&patient).await.into_iter().for_each(&mut each);
    judge::buffers::check(&patient).await.into_iter().for_each(&mut each);
    judge::sysctls::check(&patient).into_iter().for_each(&mut each);
    judge::memory::check(&patient).into_iter().for_each(&mut each);
}
