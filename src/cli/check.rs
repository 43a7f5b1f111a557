//! `nodens check`: is this configuration right, and what does it mean?

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::BAD_CONFIG;
use crate::config;
use crate::config::file;

pub(super) fn check(path: &Path, as_json: bool) -> ExitCode {
    match file::load(path) {
        Ok(loaded) => {
            let means = config::describe(&loaded.config);
            if as_json {
                println!("{}", json!({ "ok": true, "hash": loaded.hash, "means": means }));
            } else {
                print!("{means}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            if as_json {
                let problems: Vec<_> = error
                    .problems
                    .iter()
                    .map(|p| json!({ "file": p.file, "line": p.line, "key": p.key, "what": p.what, "fix": p.fix }))
                    .collect();
                println!("{}", json!({ "ok": false, "problems": problems }));
            } else {
                eprintln!("{error}");
            }
            ExitCode::from(BAD_CONFIG)
        }
    }
}
