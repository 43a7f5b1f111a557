//! The `nodens` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    nodens::cli::run()
}
