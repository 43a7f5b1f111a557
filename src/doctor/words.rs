//! Words that come from outside: names of processes, units, links, tables and chains, which whoever makes them chooses.
//! Everything of that kind goes through here before it is printed, and before it stands in a line for a shell.

use std::fmt::Write as _;

/// A text without control characters: these are shown as Rust writes them, so that none ends a line, begins a command or
/// moves a terminal's cursor.
pub fn shown(text: &str) -> String {
    escaped(text, |_| false)
}

/// The same for a text of several lines.
pub fn lines_shown(text: &str) -> String {
    escaped(text, |letter| letter == '\n')
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_plain_text(letter) || stays(letter) {
            safe.push(letter);
        } else {
            let _ = write!(safe, "{}", letter.escape_default());
        }
    }
    safe
}

/// Neither a control character nor one that has what is behind it shown elsewhere (Unicode, UAX #9, and the line and
/// paragraph separators).
fn is_plain_text(letter: char) -> bool {
    !letter.is_control()
        && !matches!(letter, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// One word of a shell's line, whatever is in it. With a control character in it, it is the word as it is shown, which
/// names nothing: whoever has that in a name is not found by the line, and nobody else is.
pub fn quoted(word: &str) -> String {
    let word = shown(word);
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-:@%+,".contains(letter);
    // A first `=` or `~` means something to shells.
    if !word.is_empty() && word.chars().all(plain) {
        word
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Whether nft(8) takes a name as it is, and for a name alone. It reads all of its words as one line of a language of
/// its own, in which names cannot be quoted.
pub fn is_nft_name(name: &str) -> bool {
    let inside = |letter: char| letter.is_ascii_alphanumeric() || "/_.-".contains(letter);
    name.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_') && name.chars().all(inside)
}

/// A command of nft(8) about something of these names; where nft does not take one of them, how to look.
pub fn nft(names: &[&str], command: impl FnOnce() -> String) -> String {
    match names.iter().find(|name| !is_nft_name(name)) {
        None => command(),
        Some(odd) => {
            format!("# nft takes no name such as {}: look at it by\nnft -a list ruleset", quoted(odd))
        }
    }
}

/// The words of iptables-save(8), rule by rule: a blank or a line's end in quotes is part of a word. A rule whose quotes
/// do not end is left out.
pub fn saved_lines(text: &str) -> Vec<Vec<String>> {
    let (mut lines, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
    let (mut in_quotes, mut letters) = (false, text.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if in_quotes => word.get_or_insert_default().extend(letters.next()),
            '"' => {
                in_quotes = !in_quotes;
                word.get_or_insert_default();
            }
            ' ' | '\n' if !in_quotes => {
                words.extend(word.take());
                if letter == '\n' {
                    lines.extend(Some(std::mem::take(&mut words)).filter(|words| !words.is_empty()));
                }
            }
            _ => word.get_or_insert_default().push(letter),
        }
    }
    if !in_quotes {
        words.extend(word);
        lines.extend(Some(words).filter(|words| !words.is_empty()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    /// What a shell makes of a word.
    fn by_a_shell(line: &str) -> String {
        let output = Command::new("sh").args(["-c", &format!("printf %s {line}")]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_word_is_one_word_to_a_shell() {
        for word in
            ["eth0", "", "a;id>&2;b", "p$(id)", "`id`", "it's", "a\\x2db", "-rf", "*", "~", "a b", "#a", "ä"]
        {
            assert_eq!(by_a_shell(&quoted(word)), word);
        }
        assert_eq!(quoted("nodens-7@a.service"), "nodens-7@a.service");
    }

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        assert_eq!(shown("x\nreboot"), "x\\nreboot");
        assert_eq!(shown("\u{1b}[2J\u{9b}\u{202e}"), "\\u{1b}[2J\\u{9b}\\u{202e}");
        assert_eq!(lines_shown("a\nb\r"), "a\nb\\r");
        assert_eq!(quoted("x\nreboot"), "'x\\nreboot'");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_is_in_a_word_it_stays_one_line(word in "\\PC*|.{0,8}[\n\r\u{1b};$`'\"].{0,8}") {
            let line = quoted(&word);
            prop_assert!(!line.chars().any(char::is_control), "{line:?}");
            prop_assert_eq!(by_a_shell(&line), shown(&word));
        }
    }

    #[test]
    fn nft_gets_names_that_are_names_to_it() {
        for name in ["filter", "KUBE-SERVICES", "_a.b/c", "nodens-7"] {
            assert_eq!(nft(&[name], || "yes".to_owned()), "yes");
        }
        for name in ["a;flush ruleset", "a b", "", "{", "7", "x\ny", "\"a\"", "a$b"] {
            let look = nft(&["filter", name], || panic!("{name}"));
            assert!(look.starts_with("# ") && look.ends_with("\nnft -a list ruleset"), "{look}");
            assert_eq!(look.lines().count(), 2, "{look:?}");
        }
    }

    #[test]
    fn what_iptables_saves_is_read_by_its_quotes() {
        let text =
            "*raw\n-A X --comment \"a \\\"b\\\"\nc\" -j Y\n-A Z --comment \"\"\nCOMMIT\n-A \"cut\n-A W";
        let lines = saved_lines(text);
        assert_eq!(lines[1], ["-A", "X", "--comment", "a \"b\"\nc", "-j", "Y"]);
        assert_eq!(lines[2], ["-A", "Z", "--comment", ""]);
        assert_eq!((lines.len(), lines[3].as_slice()), (4, &["COMMIT".to_owned()][..]));
    }
}
