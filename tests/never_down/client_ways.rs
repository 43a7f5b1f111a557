//! What the cluster's DNS is asked to see whether it is there.

use crate::seen::Kind;

pub(crate) fn question(run: &str, number: u64) -> Vec<u8> {
    crate::client::question(0, Kind::Miss, run, number)
}
