//! Child processes that end with the value that holds them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::ports::{run, spawn};

/// A running child whose output goes to a file. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    output: PathBuf,
    name: String,
}

impl Process {
    /// Starts `command`; `package` is the Debian package to name when the program is missing.
    pub(crate) fn start(command: Command, package: &str, output: &Path) -> Self {
        let file = File::create(output).expect("output file");
        let errors = file.try_clone().expect("output file");
        Self::start_into(command, package, output, file, errors)
    }

    /// As [`Process::start`], with the two streams kept apart; `output` is the one to print.
    pub(crate) fn start_into(
        mut command: Command,
        package: &str,
        output: &Path,
        file: File,
        errors: File,
    ) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = spawn(command.stdin(Stdio::null()).stdout(file).stderr(errors))
            .unwrap_or_else(|error| panic!("{}", missing(&name, package, &error)));
        Self { child, output: output.to_owned(), name }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// The exit status, when it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for a child")
    }

    /// Waits for the end, `None` when it has not come within `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= end {
                return None;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal by name, `TERM` for one.
    pub(crate) fn signal(&self, signal: &str) {
        let output = run(Command::new("kill").arg(format!("-{signal}")).arg(self.id().to_string()))
            .unwrap_or_else(|error| panic!("{}", missing("kill", "procps", &error)));
        assert!(output.status.success(), "kill -{signal} {} failed", self.name);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Not an error: it may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("---- output of {} ----\n{}", self.name, self.output());
        }
    }
}

/// The binary that cargo has built, or the one that `NODENS_UNDER_TEST` names: a release build,
/// or the one out of the image.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("NODENS_UNDER_TEST")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_nodens")), PathBuf::from)
}

/// What to say when a program can't be started.
pub(crate) fn missing(program: &str, package: &str, error: &std::io::Error) -> String {
    format!("cannot run `{program}` ({error}): install the Debian package `{package}`")
}
