//! What fuzzing has found worth keeping, read again by every test run: each file of `fuzz/corpus/` goes
//! through the target that it was found for. `fuzz/README.md` tells how files come there.

use std::fs;
use std::path::Path;

use nodens::metrics::Source;
use nodens::wire::response::Kind;

#[path = "fuzz_targets/config.rs"]
mod config;
#[path = "fuzz_targets/framing.rs"]
mod framing;
#[path = "fuzz_targets/odd.rs"]
mod odd;
#[path = "fuzz_targets/query.rs"]
mod query;
#[path = "fuzz_targets/response.rs"]
mod response;
#[path = "fuzz_targets/seeds.rs"]
mod seeds;
#[path = "fuzz_targets/snapshot.rs"]
mod snapshot;
#[path = "fuzz_targets/walk.rs"]
mod walk;

/// Fewer files than this are no corpus.
const LEAST: usize = 20;
/// Stack of the main thread, on which the agent reads its configuration. Without optimization the deepest
/// nesting that is read takes more than the 2 MiB of a test's thread.
const MAIN_STACK: usize = 8 * 1024 * 1024;

/// The files of a target's corpus, each through `check`, whose results are returned.
fn replay<T>(target: &str, check: impl Fn(&[u8]) -> T) -> Vec<T> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a readable entry").path()).collect();
    files.sort();
    assert!(files.len() >= LEAST, "{} files in {}", files.len(), dir.display());
    let check = |file: &std::path::PathBuf| {
        println!("{}", file.display()); // shown when the check panics
        check(&fs::read(file).expect("a readable file"))
    };
    files.iter().map(check).collect()
}

#[test]
fn every_query_of_the_corpus_is_answered_as_it_must_be() {
    let answered = replay("query", query::check).concat();
    for source in [Source::Hit, Source::Stale, Source::Failure, Source::Hosts, Source::Local] {
        assert!(answered.contains(&source), "no query in the corpus is answered by {source:?}");
    }
}

#[test]
fn every_response_of_the_corpus_is_delivered_as_it_must_be() {
    let kinds = replay("response", response::check);
    for kind in [Kind::Positive, Kind::NoData, Kind::NxDomain, Kind::Failure(2)] {
        assert!(kinds.contains(&Some(kind)), "no response in the corpus is {kind:?}");
    }
}

#[test]
fn every_stream_of_the_corpus_is_the_same_however_it_is_cut() {
    assert!(replay("framing", framing::check).iter().any(|&messages| messages > 2));
}

#[test]
fn every_text_of_the_corpus_is_a_configuration_or_an_error_with_its_place() {
    let main = std::thread::Builder::new().stack_size(MAIN_STACK);
    let replayed = main.spawn(|| replay("config", config::check)).expect("a thread");
    let accepted = replayed.join().expect("no panic");
    assert!(accepted.contains(&true) && accepted.contains(&false));
}

#[test]
fn every_snapshot_of_the_corpus_is_refused_or_restored_as_it_must_be() {
    let read: Vec<_> = replay("snapshot", snapshot::check).into_iter().flatten().collect();
    assert!(read.iter().any(|read| read.entries > 1), "no snapshot in the corpus has several entries");
    assert!(read.iter().any(|read| read.expired > 0), "none has an entry that has expired");
    assert!(read.iter().any(|read| read.left_out > 0), "none has one of no zone");
    assert!(read.iter().any(|read| read.malformed > 0), "none has one that is no answer");
}

/// Else a check that gives up at once would pass everything.
#[test]
fn what_the_corpora_were_seeded_with_is_read_to_its_end() {
    for (name, packet) in seeds::queries() {
        assert!(!query::check(&packet).is_empty(), "{name} is answered");
    }
    for (name, message) in seeds::responses() {
        assert!(response::check(&message).is_some(), "{name} is an answer");
    }
    for (name, stream) in seeds::streams() {
        assert!(framing::check(&stream) > 0, "{name} holds a message");
    }
    for (name, bytes) in seeds::snapshots() {
        assert!(snapshot::check(&bytes).is_some(), "{name} is a whole snapshot");
    }
    assert!(config::check(include_bytes!("../config/reference.yaml")), "the reference is a configuration");
}
