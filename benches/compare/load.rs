//! Load by dnsperf, and whether every query got the answer it had to get.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::authority::program;
use crate::mix::Input;
use crate::process::Process;

/// Between the end of the sending and that of dnsperf: its timeout for answers (5 s by default), and some.
const GRACE: Duration = Duration::from_secs(15);

/// How dnsperf asks.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) tcp: bool,
    /// Sockets.
    pub(crate) clients: u32,
    /// Queries that wait for their answer at once, over all sockets.
    pub(crate) outstanding: u32,
    /// Queries a second, at most.
    pub(crate) rate: Option<u32>,
}

/// When dnsperf ends.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// After so many seconds, the input being read again and again.
    Time(u32),
    /// After so many seconds, or when the input has been read once.
    TimeOrOnce(u32),
    /// When the input has been read twice, which in the second turn asks for what is cached.
    Twice,
    /// When the input has been read once.
    Once,
}

/// What dnsperf saw.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) completed: u64,
    pub(crate) seconds: f64,
    pub(crate) latency_seconds: f64,
    pub(crate) reply_bytes: f64,
    /// Why this run does not count, if so.
    pub(crate) fault: Option<String>,
}

impl Load {
    pub(crate) fn run(
        self,
        server: SocketAddr,
        input: &Input,
        until: Until,
        cpus: &[usize],
        log: &Path,
    ) -> Result<Outcome> {
        let mut command = program("dnsperf");
        command.args(["-s", &server.ip().to_string(), "-p", &server.port().to_string(), "-T", "1"]);
        command.args(["-m", if self.tcp { "tcp" } else { "udp" }, "-c", &self.clients.to_string()]);
        // Its own buffers of 32 KiB would lose answers: 200 at once need 150 KiB in the kernel.
        command.args(["-q", &self.outstanding.to_string(), "-b", "256"]).arg("-d").arg(&input.path);
        if let Some(rate) = self.rate {
            command.args(["-Q", &rate.to_string()]);
        }
        let seconds = match until {
            Until::Time(seconds) | Until::TimeOrOnce(seconds) => {
                command.args(["-l", &seconds.to_string()]);
                seconds
            }
            Until::Twice | Until::Once => 30,
        };
        match until {
            Until::Time(_) => {}
            Until::TimeOrOnce(_) | Until::Once => drop(command.args(["-n", "1"])),
            Until::Twice => drop(command.args(["-n", "2"])),
        }
        let mut dnsperf = Process::start(command, cpus, log.to_owned())?;
        let status = dnsperf.wait(Duration::from_secs(seconds.into()) + GRACE).context("dnsperf")?;
        let output = dnsperf.output()?;
        ensure!(status.success(), "dnsperf: {status}: {}", dnsperf.last_words());
        let whole_file = !matches!(until, Until::Time(_) | Until::TimeOrOnce(_));
        Outcome::read(&output, input, whole_file).with_context(|| format!("output of dnsperf: {output}"))
    }
}

impl Outcome {
    /// Reads dnsperf's statistics. Each query's RCODE is known before, and dnsperf asks in the input's order, so
    /// the counts must match to the last one.
    fn read(output: &str, input: &Input, whole_file: bool) -> Result<Self> {
        let value = |label: &str| {
            let line = output.lines().find_map(|line| line.trim().strip_prefix(label));
            line.map(str::trim).with_context(|| format!("no line {label:?}"))
        };
        let number = |label: &str| -> Result<f64> {
            value(label)?.split(' ').next().unwrap_or_default().parse().with_context(|| label.to_owned())
        };
        let (sent, completed, lost) =
            (number("Queries sent:")?, number("Queries completed:")?, number("Queries lost:")?);
        let (sent, completed) = (sent as u64, completed as u64);
        let mut rcodes = BTreeMap::new();
        for part in value("Response codes:").unwrap_or_default().split(", ").filter(|part| !part.is_empty()) {
            let (rcode, count) = part.split_once(' ').context("Response codes")?;
            rcodes.insert(rcode, count.split(' ').next().unwrap_or_default().parse::<u64>()?);
        }
        let existing = input.existing(sent);
        let mut expected = BTreeMap::from([("NOERROR", existing), ("NXDOMAIN", sent - existing)]);
        expected.retain(|_, count| *count > 0);
        let fault = if lost > 0.0 {
            Some(format!("{lost} of {sent} queries lost"))
        } else if rcodes != expected {
            Some(format!("RCODEs {rcodes:?} instead of {expected:?}"))
        } else if whole_file && sent % input.questions.len() as u64 != 0 {
            Some("dnsperf did not come to the end of its input".into())
        } else {
            None
        };
        let sizes = value("Average packet size:").unwrap_or_default();
        let reply_bytes = sizes.rsplit(' ').next().and_then(|size| size.parse().ok()).unwrap_or_default();
        Ok(Self {
            completed,
            seconds: number("Run time (s):")?,
            latency_seconds: number("Average Latency (s):").unwrap_or_default(),
            reply_bytes,
            fault,
        })
    }
}
