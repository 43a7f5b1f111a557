//! Memory: the limit of the agent's cgroup against what its configuration lets it take.

use crate::config::Config;
use crate::doctor::Patient;
use crate::doctor::finding::{Finding, Seen};
use crate::doctor::look::memory::{Limit, limit};

const CHECK: &str = "memory";

/// Looks, and judges.
pub fn check(patient: &Patient) -> Vec<Finding> {
    let process = patient.agent.pid.map_or("self".to_owned(), |pid| pid.to_string());
    vec![judge(&patient.config, &limit(&patient.sources, &process))]
}

fn judge(_config: &Config, limit: &Seen<Option<Limit>>) -> Finding {
    match limit {
        Err(unseen) => Finding::unknown(CHECK, "the memory limit could not be read", unseen),
        Ok(None) => Finding::ok(CHECK, "no memory limit"),
        Ok(Some(limit)) => Finding::ok(CHECK, format!("the limit is {} bytes", limit.bytes)),
    }
}
