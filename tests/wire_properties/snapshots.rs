//! What one process leaves of its cache answers in the next one as it would have in the first.

use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nodens::cache::Cache;
use nodens::cache::entry::Entry;
use nodens::cache::lifetime::Bounds;
use nodens::cache::snapshot::{self, HEADER, Rule};
use nodens::wire::key::Key;
use nodens::wire::query::Query;
use nodens::wire::response::Answer;
use proptest::collection::vec;
use proptest::prelude::*;

use super::generate::{
    Asker, Response, asker, bounds, config, damage, damages, key, nearly_a_message, response,
};

const BUDGET: u64 = 1 << 26;

/// A cache of answers, each of its age in milliseconds at `now`.
fn filled(answers: &[(Response, u64)], bounds: &Bounds, now: Instant) -> Cache {
    let cache = Cache::new(BUDGET);
    for (response, age) in answers {
        let key = key(&response.name, response.qtype);
        let answer = Answer::read(response.bytes(), &key).expect("a well-formed response");
        let stored = now.checked_sub(Duration::from_millis(*age)).expect("a clock that goes so far back");
        let entry = Entry::new(answer, bounds, stored);
        if entry.life() > 0 {
            cache.store(key, Arc::new(entry));
        }
    }
    cache
}

fn written(cache: &Cache, rule: Rule, now: Instant, wall: SystemTime) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    snapshot::write(cache, |_| Some(rule), now, wall, BUDGET, &mut out).expect("room for it");
    out.into_inner()
}

fn replies(entry: &Entry, key: &Key, asker: &Asker) -> Vec<u8> {
    let packet = asker.packet(key.name(), key.qtype());
    let query = Query::parse(&packet).expect("a well-formed query");
    let mut out = Vec::new();
    entry.write(&query, asker.ttls, &asker.style, &mut out);
    out
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_restored_answer_is_the_same_to_every_client(
        answers in vec((response(), 0..100_000_000u64), 0..6),
        bounds in bounds(),
        asker in asker(),
        since in (0..100_000u64).prop_map(Duration::from_millis),
    ) {
        let (now, wall) = (Instant::now(), UNIX_EPOCH + Duration::from_secs(1_790_000_000));
        let original = filled(&answers, &bounds, now);
        let rule = Rule { bounds, stale: Duration::from_secs(3600) };
        let bytes = written(&original, rule, now, wall);
        let copy = Cache::new(BUDGET);
        let later = now + since;
        let restored = snapshot::read(&bytes, &copy, |_| Some(rule), later, wall + since).expect("whole");
        prop_assert_eq!((restored.malformed, restored.left_out), (0, 0));
        let mut kept = 0;
        for (key, entry) in original.iter() {
            let of_use = entry.expired_for(later).is_none_or(|since| since < rule.stale);
            let twin = copy.get(&key);
            prop_assert_eq!(twin.is_some(), of_use, "{}", key);
            let Some(twin) = twin else { continue };
            kept += 1;
            prop_assert_eq!(twin.kind(), entry.kind());
            prop_assert_eq!(twin.rcode(), entry.rcode());
            prop_assert_eq!((twin.life(), twin.age(later)), (entry.life(), entry.age(later)));
            prop_assert_eq!(replies(&twin, &key, &asker), replies(&entry, &key, &asker));
        }
        prop_assert_eq!(restored.entries, kept);
        prop_assert_eq!(copy.iter().count(), kept as usize);
    }

    #[test]
    fn any_bytes_are_a_snapshot_or_are_refused(
        header in vec(any::<u8>(), HEADER),
        entries in vec((any::<[u8; 14]>(), nearly_a_message()), 0..4),
    ) {
        super::snapshot::check(&header);
        let mut bytes = header;
        for (front, message) in entries {
            bytes.extend([front[0] % 8, front[1] % 5]);
            bytes.extend((message.len() as u16).to_be_bytes());
            bytes.extend(&front[2..]);
            bytes.extend(message);
        }
        prop_assert!(super::snapshot::check(&bytes).is_some());
    }

    #[test]
    fn a_damaged_snapshot_is_refused_and_its_entries_would_do_no_harm(
        answers in vec((response(), 0..100_000u64), 1..4),
        bounds in bounds(),
        damages in damages(),
    ) {
        let now = Instant::now();
        let cache = filled(&answers, &bounds, now);
        let rule = Rule { bounds, stale: Duration::from_secs(3600) };
        let whole = written(&cache, rule, now, UNIX_EPOCH);
        let mut bytes = whole.clone();
        damage(&mut bytes, 0, &damages);
        let other = Cache::new(BUDGET);
        let result = snapshot::read(&bytes, &other, |_| Some(rule), now, UNIX_EPOCH);
        prop_assert_eq!(result.is_ok(), bytes.starts_with(&whole));
        super::snapshot::check(&bytes);
        let mut inside = whole;
        damage(&mut inside, HEADER, &damages);
        super::snapshot::check(&inside);
    }
}
