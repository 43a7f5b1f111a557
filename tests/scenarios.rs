//! Scenarios: what a query gets, told in small text files and played through the real resolve path.
//!
//! `tests/scenarios/*.txt` say what is asked, what servers say to it, what is expected, and how time
//! passes; README.md beside them is the language. Resolver, flights, pools and connections are the
//! agent's own. Only the network below them is in memory, and the clock is the test's.

#[path = "scenarios/engine/check.rs"]
mod check;
#[path = "scenarios/engine/network.rs"]
mod network;
#[path = "scenarios/engine/random.rs"]
mod random;
#[path = "scenarios/engine/records.rs"]
mod records;
#[path = "scenarios/engine/saying.rs"]
mod saying;
#[path = "scenarios/engine/script.rs"]
mod script;
#[path = "scenarios/engine/world.rs"]
mod world;
#[path = "scenarios/engine/wrong.rs"]
mod wrong;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("tests/scenarios")
        .map(|entry| entry.expect("a readable entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    let mut trials =
        vec![Trial::test("engine::wrong_scenarios_fail", || wrong::all_fail().map_err(Into::into))];
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a readable file");
        let stem = file.file_stem().and_then(|stem| stem.to_str()).expect("a file name").to_owned();
        match script::parse(&text) {
            Ok(scenarios) => {
                for scenario in scenarios {
                    assert!(
                        names.insert(scenario.name.clone()),
                        "two scenarios are called {}",
                        scenario.name
                    );
                    let name = format!("{stem}::{}", scenario.name);
                    let file = format!("tests/scenarios/{stem}.txt");
                    trials.push(Trial::test(name, move || {
                        world::play(&scenario).map_err(|error| format!("{file}:{error}").into())
                    }));
                }
            }
            Err(error) => {
                let error = format!("tests/scenarios/{stem}.txt:{error}");
                trials.push(Trial::test(format!("{stem}::can_be_read"), move || Err(error.into())));
            }
        }
    }
    let seeds: u64 = std::env::var("SCENARIO_SEEDS").map_or(200, |seeds| seeds.parse().expect("a number"));
    for first in (0..seeds).step_by(25) {
        trials.push(Trial::test(format!("random::seeds_from_{first}"), move || {
            (first..seeds.min(first + 25)).try_for_each(random::play).map_err(Into::into)
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
