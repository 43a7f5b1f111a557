//! Any text as a configuration file.

use nodens::config::describe;
use nodens::config::file::{digest, parse};

/// Longest explanation of an error, in characters: it repeats a bounded piece of the operator's text.
const LONGEST: usize = 500;

/// Reads `input` as a configuration, and says whether it is one. What is refused is told with its place.
pub(crate) fn check(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    assert_eq!(digest(&text), digest(&text.clone()));
    let error = match parse(&text, "fuzz.yaml") {
        Ok(config) => {
            assert!(!config.zones.is_empty() && !config.listen.is_empty());
            assert!(!describe(&config).is_empty());
            assert_eq!(parse(&text, "again.yaml").as_ref(), Ok(&config), "the same text means the same");
            return true;
        }
        Err(error) => error,
    };
    assert!(!error.problems.is_empty(), "an error says what is wrong");
    let last = text.split(['\n', '\r']).count() as u64;
    for problem in &error.problems {
        let line = problem.to_string();
        assert_eq!(problem.file, "fuzz.yaml");
        assert!((1..=last).contains(&problem.line), "line {} of {last}: {line}", problem.line);
        assert!(line.starts_with(&format!("fuzz.yaml:{}: ", problem.line)), "{line}");
        assert!(!problem.what.is_empty() && !problem.fix.is_empty(), "{line}");
        // A key may be empty in the text itself, and is unknown then.
        assert!(!problem.key.is_empty() || problem.what == "unknown key", "{line}");
        assert!(!line.contains(char::is_control), "one printable line: {line:?}");
        let length = problem.what.chars().count() + problem.fix.chars().count();
        assert!(length <= LONGEST, "{length} characters: {line}");
    }
    false
}
