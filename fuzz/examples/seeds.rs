//! Writes the honest messages of `tests/fuzz_targets/seeds.rs` as files: `cargo run --example seeds -- DIR`.

use std::path::Path;
use std::{env, fs, io};

#[path = "../../tests/fuzz_targets/seeds.rs"]
mod seeds;

fn main() -> io::Result<()> {
    let dir = env::args_os().nth(1).ok_or_else(|| io::Error::other("name a directory"))?;
    let targets = [
        ("query", seeds::queries()),
        ("response", seeds::responses()),
        ("framing", seeds::streams()),
        ("snapshot", seeds::snapshots()),
    ];
    for (target, seeds) in targets {
        let dir = Path::new(&dir).join(target);
        fs::create_dir_all(&dir)?;
        for (name, bytes) in seeds {
            fs::write(dir.join(name), bytes)?;
        }
    }
    Ok(())
}
