//! The one clock.

use std::time::Instant;

/// The time now. It is tokio's, which is the system's unless a test holds it; whoever does not read a
/// clock but takes `now` as an argument can be tested without either.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
