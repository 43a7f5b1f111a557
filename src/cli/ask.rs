//! `nodens stats` and `nodens cache`: questions to a running agent, by its control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::Value;

use super::CONTROL;
use crate::admin::control::Request;
use crate::admin::upstreams;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(45);

#[derive(Debug, clap::Args)]
#[group(id = "ask")]
pub(super) struct Options {
    /// The agent's control socket.
    #[arg(long, value_name = "PATH", default_value = CONTROL, global = true)]
    pub(super) control: PathBuf,
    /// Print JSON, one object a line.
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum CacheAction {
    /// The entries of one name, all types.
    Get {
        /// The name.
        name: String,
    },
    /// Every entry.
    Dump,
    /// Drop the entries of a name, of a zone, or all.
    Flush {
        /// Only this name.
        name: Option<String>,
        /// Only this name and all below it.
        #[arg(long, conflicts_with = "name")]
        zone: Option<String>,
    },
}

/// Asks the agent, and hands each line of its answer to `each`.
pub(super) fn ask(
    control: &Path,
    request: &Request,
    mut each: impl FnMut(Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(control).with_context(|| {
        format!("no agent answers at {}: is one running, and is this its `control`?", control.display())
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    for line in BufReader::new(stream).lines() {
        let value: Value = serde_json::from_str(&line?)?;
        if let Some(error) = value.get("error").and_then(Value::as_str) {
            bail!("the agent says: {error}");
        }
        each(value)?;
    }
    Ok(())
}

pub(super) fn stats(options: &Options) -> anyhow::Result<()> {
    ask(&options.control, &Request::Stats, |stats| {
        if options.json {
            println!("{stats}");
            return Ok(());
        }
        println!(
            "version {}   queries {}   ready {}",
            text(&stats["version"]),
            stats["queries"],
            stats["ready"]
        );
        let cache = &stats["cache"];
        println!(
            "cache   {} positive, {} negative, {} failures, {} bytes, {} evicted",
            cache["positive"], cache["negative"], cache["failures"], cache["bytes"], cache["evictions"]
        );
        println!("flights {}   waiters {}", stats["flights"], stats["waiters"]);
        for zone in stats["zones"].as_array().into_iter().flatten() {
            println!(
                "zone {}   hits {}   misses {}   stale {}   failures {}",
                text(&zone["zone"]),
                zone["hits"],
                zone["misses"],
                zone["stale"],
                zone["failures"]
            );
            for server in zone["servers"].as_array().into_iter().flatten() {
                println!("  {}", upstreams::line(server));
            }
        }
        Ok(())
    })
}

pub(super) fn cache(action: CacheAction, options: &Options) -> anyhow::Result<()> {
    let request = match action {
        CacheAction::Get { name } => Request::CacheGet { name },
        CacheAction::Dump => Request::CacheDump,
        CacheAction::Flush { name, zone } => Request::CacheFlush { name, zone },
    };
    let mut entries = 0;
    ask(&options.control, &request, |value| {
        entries += 1;
        if options.json {
            println!("{value}");
        } else if let Some(flushed) = value.get("flushed") {
            println!("{flushed} entries dropped");
        } else {
            print_entry(&value);
        }
        Ok(())
    })?;
    if entries == 0 && matches!(request, Request::CacheGet { .. }) {
        bail!("not in the cache");
    }
    Ok(())
}

fn print_entry(entry: &Value) {
    let left = match entry["remaining_s"].as_f64() {
        Some(left) => format!("{left:.1} s of {} s left", entry["life_s"]),
        None => "expired".to_owned(),
    };
    println!("{} {}   {}   {left}", text(&entry["name"]), text(&entry["type"]), text(&entry["kind"]));
    for record in entry["records"].as_array().into_iter().flatten() {
        println!("    {}", text(record));
    }
}

/// Whether the agent can answer: its workers make progress, and it answers its own name.
pub(super) fn probe(options: &Options) -> anyhow::Result<()> {
    ask(&options.control, &Request::Probe, |answer| {
        if options.json {
            println!("{answer}");
        }
        if answer["ok"] == true { Ok(()) } else { bail!("the agent does not answer: {answer}") }
    })
}

/// A JSON string without its quotes.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}
