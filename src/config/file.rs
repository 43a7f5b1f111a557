//! The configuration as it is written in YAML, and the way from there to [`Config`].
//!
//! Text becomes `raw::File`, whose leaves are still text with their places; `build` makes values of them
//! and collects whatever is wrong. Nothing is clamped and nothing is ignored. Limits stand as constants
//! beside the keys that they bound.

mod build;
mod network;
mod problem;
mod raw;
mod reader;
mod server;
mod syntax;
#[cfg(test)]
mod tests;
mod tree;
mod upstream;
mod value;
mod zone;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::Config;
use problem::Fault;
pub use problem::{ConfigError, Problem};
use reader::Reader;

/// Largest file that is read, in bytes. A ConfigMap cannot hold more (kubernetes.io, ConfigMap: 1 MiB).
pub const MAX_FILE: u64 = 1024 * 1024;

/// A configuration together with what tells it from another.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What the file means.
    pub config: Config,
    /// Digest of the file's text, as [`digest`] makes it.
    pub hash: String,
}

/// Reads the configuration in `path`.
///
/// # Errors
///
/// When the file cannot be read, is larger than [`MAX_FILE`], or when [`parse`] refuses its text.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let file = path.display().to_string();
    let text = read(path).map_err(|error| {
        Fault::new(
            format!("cannot be read ({})", error.to_string().escape_debug()),
            "name a YAML file that this user may read",
        )
        .at(&file, 0, "file")
    })?;
    Ok(Loaded { config: parse(&text, &file)?, hash: digest(&text) })
}

/// Reads `text` as a configuration; `file` is the name that errors give it. An empty text is the default.
///
/// # Errors
///
/// The first mistake of YAML or in the shape of its keys; else every value that is wrong.
pub fn parse(text: &str, file: &str) -> Result<Config, ConfigError> {
    let raw: raw::File = serde_saphyr::from_str_with_options(text, options())
        .map_err(|error| syntax::explain(&error, text, file))?;
    let mut reader = Reader::new(file);
    let config = build::config(&raw, &mut reader);
    reader.finish(config)
}

/// Digest of a configuration's text: FNV-1a of 64 bits, as 16 hex digits. It tells versions of a file apart,
/// the same everywhere and in every release; it is no protection against anybody.
#[must_use]
pub fn digest(text: &str) -> String {
    // draft-eastlake-fnv §2: offset basis and prime for 64 bits.
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let hash = text.bytes().fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    format!("{hash:016x}")
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    // One more than allowed, so that a file which grows while it is read is noticed as well.
    File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {MAX_FILE} bytes")));
    }
    Ok(text)
}

/// `true` and `false` are the only booleans, so that `off` stays a word.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! { strict_booleans: true, with_snippet: false }
}
