//! Having the program examine the node, and carrying out what it says.

use std::env;
use std::process::{Command, Output};

use serde::Deserialize;

use crate::home::Home;
use crate::rest::Rest;
use crate::support::{program, run, seconds, wait_until};

/// One line of `--json`, with these keys and no other.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Finding {
    pub(crate) check: String,
    pub(crate) level: Level,
    pub(crate) what: String,
    pub(crate) why: String,
    pub(crate) mend: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Ok,
    Warning,
    Unknown,
    Problem,
}

/// What the program says with these words in front of it and this at its end.
#[track_caller]
pub(crate) fn doctor(home: &Home, by: &[&str], more: &[&str]) -> Output {
    let program = program().display().to_string();
    let words = [by, &[&program, "doctor"]].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg("--config").arg(&home.config).arg("--kubelet-config").arg(&home.kubelet);
    run(command.args(more)).expect("the program")
}

/// All that it finds.
#[track_caller]
pub(crate) fn examine(home: &Home) -> Vec<Finding> {
    let output = doctor(home, &[], &["--json"]);
    let findings = findings(&output);
    let fails = findings.iter().any(|finding| finding.level == Level::Problem);
    assert_eq!(output.status.code(), Some(i32::from(fails)), "{findings:#?}");
    findings
}

/// What it printed, line by line.
#[track_caller]
pub(crate) fn findings(output: &Output) -> Vec<Finding> {
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(errors, "", "{text}");
    let read = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let findings: Vec<Finding> = text.lines().map(read).collect();
    assert!(!findings.is_empty());
    for Finding { level, what, why, mend, .. } in &findings {
        let is_ok = *level == Level::Ok;
        assert!(!what.is_empty() && is_ok == why.is_empty() && (!is_ok || mend.is_empty()), "{text}");
    }
    findings
}

/// Those of one check that are not as they should be.
pub(crate) fn wrong<'a>(findings: &'a [Finding], check: &str) -> Vec<&'a Finding> {
    findings.iter().filter(|finding| finding.check == check && finding.level != Level::Ok).collect()
}

/// The one finding of this check and level whose text has all of these.
#[track_caller]
pub(crate) fn named(home: &Home, check: &str, level: Level, parts: &[&str]) -> Finding {
    let all = examine(home);
    let is_it = |finding: &&Finding| {
        finding.check == check
            && finding.level == level
            && parts.iter().all(|part| finding.what.contains(part))
    };
    let found: Vec<&Finding> = all.iter().filter(is_it).collect();
    assert_eq!(found.len(), 1, "{check} {level:?} {parts:?} in {all:#?}");
    found[0].clone()
}

/// Carries out what a finding says, as it says it, and waits until it is no longer found. Nothing of its check may be
/// wrong then, and nothing else of the node may be gone.
#[track_caller]
pub(crate) fn mend(home: &Home, finding: &Finding) {
    eprintln!("{}: {}\n$ {}", finding.check, finding.what, finding.mend.replace('\n', "\n$ "));
    let rest = Rest::now();
    shell(&finding.mend, &[]);
    rest.is_left_alone_by(finding);
    let mut left = String::new();
    wait_until(&format!("`{}` ends: {}", finding.mend, finding.what), seconds(10), || {
        let all = examine(home);
        left = format!("{:#?}", wrong(&all, &finding.check));
        wrong(&all, &finding.check).is_empty()
    });
}

/// Has a shell carry out lines, all of which have to end well. Directories come before those where it looks for
/// programs.
#[track_caller]
pub(crate) fn shell(lines: &str, directories: &[&str]) -> String {
    let path = env::var("PATH").unwrap_or_default();
    let path = directories.iter().map(ToString::to_string).chain([path]).collect::<Vec<_>>().join(":");
    let output = run(Command::new("sh").args(["-e", "-c", lines]).env("PATH", path)).expect("a shell");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{lines}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
