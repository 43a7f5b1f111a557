//! docs/rfc.md is true: each rule names tests that exist, and each scenario stands behind a rule.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Far fewer than there are: a reader that finds so few is broken.
const RULES: usize = 120;
const SCENARIOS: usize = 300;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Calls `read` with the text of each file below `folder` that has this extension.
fn each_file(folder: &Path, extension: &str, read: &mut impl FnMut(&str)) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            each_file(&path, extension, read);
        } else if path.extension().is_some_and(|known| known == extension) {
            read(&fs::read_to_string(&path).expect("a readable file"));
        }
    }
}

/// The functions behind `#[test]` and its like in a text, but for those that are ignored or commented out.
fn tests_in(text: &str) -> Vec<String> {
    let mut tests = Vec::new();
    let (mut is_test, mut is_ignored) = (false, false);
    // Inside of proptest! the attribute stands alone on its line as well.
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")) {
        if line.starts_with("#[") {
            is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
            is_ignored |= line.starts_with("#[ignore");
            continue;
        }
        let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        let name = function.and_then(|rest| rest.split('(').next()).filter(|_| is_test && !is_ignored);
        tests.extend(name.map(str::to_owned));
        (is_test, is_ignored) = (false, false);
    }
    tests
}

fn tests() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for folder in ["src", "tests"] {
        each_file(&root().join(folder), "rs", &mut |text| tests.extend(tests_in(text)));
    }
    tests
}

fn scenarios() -> BTreeSet<String> {
    let mut scenarios = BTreeSet::new();
    each_file(&root().join("tests/scenarios"), "txt", &mut |text| {
        let names = text.lines().filter_map(|line| line.strip_prefix("scenario "));
        scenarios.extend(names.map(|name| name.trim().to_owned()));
    });
    scenarios
}

/// The rules of the tables, each with the tests that it names.
fn rules() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(root().join("docs/rfc.md")).expect("docs/rfc.md");
    let rows = text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    rows.filter(|row| *row != "| Rule | Source | Default | Tests |")
        .map(|row| {
            let inner = row.strip_prefix("| ").and_then(|row| row.strip_suffix(" |"));
            let cells: Vec<&str> = inner.expect("a row of a table").split(" | ").collect();
            let &[rule, source, default, tests] = &cells[..] else {
                panic!("not rule, source, default, tests: {row}")
            };
            assert!(
                [rule, source, default].iter().all(|cell| !cell.trim().is_empty()),
                "an empty cell: {row}"
            );
            let names: Vec<&str> = tests.split(", ").map(|name| name.trim_matches('`')).collect();
            assert_eq!(format!("`{}`", names.join("`, `")), tests, "names in backticks: {row}");
            (rule.to_owned(), names.into_iter().map(str::to_owned).collect())
        })
        .collect()
}

#[test]
fn every_rule_names_tests_that_exist() {
    let mut known = tests();
    known.extend(scenarios());
    let rules = rules();
    assert!(rules.len() > RULES, "only {} rules", rules.len());
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for (rule, tests) in &rules {
        assert!(seen.insert(rule), "stands there twice: {rule}");
        let different: BTreeSet<_> = tests.iter().collect();
        assert_eq!(different.len(), tests.len(), "a test is named twice: {rule}");
        wrong
            .extend(tests.iter().filter(|test| !known.contains(*test)).map(|test| format!("{test}: {rule}")));
    }
    assert!(wrong.is_empty(), "no test has this name, or it is ignored: {wrong:#?}");
}

#[test]
fn every_scenario_stands_behind_a_rule() {
    let named: BTreeSet<String> = rules().into_iter().flat_map(|(_, tests)| tests).collect();
    let scenarios = scenarios();
    assert!(scenarios.len() > SCENARIOS, "only {} scenarios", scenarios.len());
    let missing: Vec<_> = scenarios.difference(&named).collect();
    assert!(missing.is_empty(), "not in docs/rfc.md: {missing:#?}");
}

#[test]
fn only_functions_that_run_are_tests() {
    let text = "#[test]\nfn plain() {}\n#[tokio::test(start_paused = true)]\nasync fn waits() {}\n\
                fn helper() {}\n// #[test]\n// fn gone() {}\n#[test]\n#[ignore = \"slow\"]\nfn ignored() {}\n\
                #[cfg(test)]\nfn no_test() {}\n#[test]\n/// Explained.\n\nfn explained() {}\n";
    assert_eq!(tests_in(text), ["plain", "waits", "explained"]);
}
