//! `nodens demo`, as a new user meets it: every command that it prints is run as printed.

use std::process::Command;

use crate::support::{Demo, run, seconds, wait_until};

#[test]
fn every_command_that_the_demo_prints_works_as_printed() {
    let demo = Demo::start();
    let mut commands = Vec::new();
    wait_until("the demo prints its commands", seconds(10), || {
        let output = demo.output();
        let lines: Vec<&str> = output.lines().collect();
        let pairs = lines.windows(2).filter(|pair| pair[1].starts_with("      "));
        commands = pairs.map(|pair| (pair[0].trim().to_owned(), pair[1].trim().to_owned())).collect();
        commands.last().is_some_and(|(command, _)| command.starts_with("curl"))
    });
    assert!(commands.len() >= 20, "{commands:?}");
    for (command, shows) in commands {
        let output = run(Command::new("sh").args(["-c", &command])).expect("sh");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        for expected in expected(&command, &shows) {
            assert!(printed.contains(&expected), "{command} shows no {expected}:\n{printed}");
        }
    }
}

/// What the printed promise says that must be seen: every address and name in it.
fn expected(command: &str, shows: &str) -> Vec<String> {
    let fixed: &[&str] = match command {
        _ if shows.contains("NXDOMAIN") => &["status: NXDOMAIN", "SOA"],
        _ if shows.contains("NODATA") => &["status: NOERROR", "ANSWER: 0", "SOA"],
        _ if shows.contains("Truncated") => &["Truncated, retrying in TCP mode", "01 of 10", "10 of 10"],
        _ if command.contains(" cache get ") => &["webapp.default.svc.cluster.local. A", "10.96.46.232"],
        _ if command.contains(" stats ") => &["hits", "misses", "connections"],
        _ if command.starts_with("curl") => &["nodens_queries_total{", "nodens_cache_entries{"],
        _ => &[],
    };
    if !fixed.is_empty() {
        return fixed.iter().map(|&text| text.to_owned()).collect();
    }
    let words = shows.split([' ', ',']).map(|word| word.trim_end_matches([':', '.']));
    let found: Vec<String> =
        words.filter(|word| word.contains(['.', ':']) && word.len() > 4).map(str::to_owned).collect();
    assert!(!found.is_empty(), "nothing to look for in: {shows}");
    found
}
