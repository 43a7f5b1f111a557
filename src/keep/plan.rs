//! What is to be held, as a child that reads the configuration says it, line by line:
//!
//! ```text
//! listen 169.254.20.10:53 2
//! intercept 10.96.0.10:53 2
//! relay 10.96.0.10:53
//! allow 10.0.0.0/8
//! handover /run/nodens/handover.sock
//! watchdog 3000
//! receive_buffer 4194304
//! ```

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;
use std::time::Duration;

use super::child::{OURSELVES, exit_code};
use crate::config::AllowFrom;
use crate::serve::socket::Place;

/// What is to be held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where queries are answered, each with how many UDP sockets.
    pub places: Vec<(Place, usize)>,
    /// Servers to pass queries on to while there is no agent.
    pub relay: Vec<SocketAddr>,
    /// Whose queries are passed on.
    pub allow_from: AllowFrom,
    /// Where the next one receives the sockets.
    pub handover: PathBuf,
    /// An agent without a sign of life for this long is replaced.
    pub watchdog: Duration,
    /// Receive buffer of each UDP socket, bytes.
    pub receive_buffer: usize,
}

/// Why there is no plan.
#[derive(Debug)]
pub(super) enum Refused {
    /// The child has said why, and ended with this.
    By(ExitCode),
    /// We cannot ask, or do not understand.
    Because(io::Error),
}

/// Asks a child with these arguments.
pub(super) fn ask(arguments: &[OsString]) -> Result<Plan, Refused> {
    let mut command = Command::new(OURSELVES);
    command.arg("plan").args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit());
    let said = command.output().map_err(Refused::Because)?;
    if !said.status.success() {
        return Err(Refused::By(exit_code(said.status)));
    }
    let text = String::from_utf8_lossy(&said.stdout);
    text.parse().map_err(|line: Odd| Refused::Because(io::Error::new(io::ErrorKind::InvalidData, line.0)))
}

/// A line that says nothing.
#[derive(Debug)]
pub struct Odd(String);

impl Default for Plan {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            relay: Vec::new(),
            allow_from: AllowFrom::Auto,
            handover: PathBuf::new(),
            watchdog: Duration::ZERO,
            receive_buffer: 0,
        }
    }
}

impl FromStr for Plan {
    type Err = Odd;

    fn from_str(text: &str) -> Result<Self, Odd> {
        let mut plan = Self::default();
        for line in text.lines() {
            let odd = || Odd(format!("{line:?} is no line of a plan"));
            let (what, value) = line.split_once(' ').ok_or_else(odd)?;
            match what {
                "listen" | "intercept" => {
                    let (addr, workers) = value.split_once(' ').ok_or_else(odd)?;
                    let addr = addr.parse().map_err(|_| odd())?;
                    let place = Place { addr, intercepted: what == "intercept" };
                    plan.places.push((place, workers.parse().map_err(|_| odd())?));
                }
                "relay" => plan.relay.push(value.parse().map_err(|_| odd())?),
                "allow" => {
                    let prefix = value.parse().map_err(|_| odd())?;
                    match &mut plan.allow_from {
                        AllowFrom::Prefixes(prefixes) => prefixes.push(prefix),
                        AllowFrom::Auto => plan.allow_from = AllowFrom::Prefixes(vec![prefix]),
                    }
                }
                "handover" => plan.handover = value.into(),
                "watchdog" => plan.watchdog = Duration::from_millis(value.parse().map_err(|_| odd())?),
                "receive_buffer" => plan.receive_buffer = value.parse().map_err(|_| odd())?,
                _ => return Err(odd()),
            }
        }
        Ok(plan)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, workers) in &self.places {
            let what = if place.intercepted { "intercept" } else { "listen" };
            writeln!(f, "{what} {} {workers}", place.addr)?;
        }
        for server in &self.relay {
            writeln!(f, "relay {server}")?;
        }
        if let AllowFrom::Prefixes(prefixes) = &self.allow_from {
            prefixes.iter().try_for_each(|prefix| writeln!(f, "allow {prefix}"))?;
        }
        writeln!(f, "handover {}", self.handover.display())?;
        writeln!(f, "watchdog {}", self.watchdog.as_millis())?;
        writeln!(f, "receive_buffer {}", self.receive_buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_as_it_was_written_and_nothing_else_is() {
        let plan = Plan {
            places: vec![
                (Place { addr: "169.254.20.10:53".parse().unwrap(), intercepted: false }, 2),
                (Place { addr: "[fd00::a]:53".parse().unwrap(), intercepted: true }, 1),
            ],
            relay: vec!["10.96.0.10:53".parse().unwrap()],
            allow_from: AllowFrom::Prefixes(vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]),
            handover: "/run/with a blank/h.sock".into(),
            watchdog: Duration::from_millis(1500),
            receive_buffer: 4 << 20,
        };
        assert_eq!(plan.to_string().parse::<Plan>().unwrap(), plan);
        for odd in ["listen 1.2.3.4:53", "listen x 2", "watchdog soon", "more things", "\n"] {
            assert!(odd.parse::<Plan>().is_err(), "{odd:?}");
        }
    }
}
