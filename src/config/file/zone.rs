//! One zone: its suffixes and how long answers live.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::problem::{Fault, shown};
use super::raw::{self, Key, Text, WordOr};
use super::reader::Reader;
use super::upstream::upstream;
use super::value::{self, spoken};
use crate::config::{Failure, Policy, Prefetch, Stale, StaleMode, Zone};

/// RFC 8767 §4: a TTL of more than seven days is capped there, so no configured one may exceed it.
pub(super) const TTL: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(7 * 24 * 3600);

/// How long past its life an answer may be kept. RFC 8767 §5 suggests one to three days; seven are as long as
/// the longest TTL. Zero is `stale: off`.
const STALE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);

/// RFC 8767 §4: the TTL of a stale answer is greater than 0, 30 s recommended.
const STALE_TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);

/// RFC 9520 §3.2: failures are not remembered for more than 5 min. That section asks for at least 1 s as
/// well; less is left to operators who know their upstream.
const FAILURE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(5 * 60);

/// A client that waits for nothing is `mode: immediate`, and the bound above is that of `upstream.timeout`.
const CLIENT_RESPONSE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(30);

/// An entry must have been asked for at least once; above, a number of hits that no entry reaches in its
/// life.
const PREFETCH_HITS: RangeInclusive<u32> = 1..=1_000_000;

/// Above 90 % an entry would be refreshed as soon as it was stored (CoreDNS `cache` has the same bound).
const PREFETCH_AT: RangeInclusive<u8> = 1..=90;

/// The zones, if any were written. `listen` are our own addresses, which no zone may ask.
pub(super) fn zones(
    raw: &Key<Vec<serde_saphyr::Spanned<raw::Zone>>>,
    listen: &[SocketAddr],
    reader: &mut Reader<'_>,
) -> Option<Vec<Zone>> {
    let raw = raw.0.as_ref()?;
    if raw.value.is_empty() {
        let fault = Fault::new("is empty", "write at least one zone, or leave the key out");
        reader.refuse("zones", raw.referenced.line(), fault);
    }
    let mut suffixes = Vec::new();
    let mut zones = Vec::new();
    for (index, zone) in raw.value.iter().enumerate() {
        let (key, line) = (format!("zones[{index}]"), zone.referenced.line());
        let zone = &zone.value;
        let matches_key = format!("{key}.match");
        let matches = filled(&matches_key, &zone.matches, line, "[cluster.local] or [\".\"]", reader);
        let matches = reader.items(&matches_key, matches, value::name);
        let names: Vec<_> = matches.iter().map(|item| item.value.clone()).collect();
        suffixes.extend(matches);
        zones.push(Zone {
            upstream: upstream(&format!("{key}.upstream"), &zone.upstream, line, listen, reader),
            policy: policy(&format!("{key}.cache"), &zone.cache, Policy::of(&names), reader),
            matches: names,
        });
    }
    reader.refuse_repeats(&suffixes, PartialEq::eq);
    Some(zones)
}

/// The items of a list that must be there and hold something. `line` is where its zone begins.
pub(super) fn filled<'r>(
    key: &str,
    raw: &'r Key<Vec<Text>>,
    line: u64,
    example: &str,
    reader: &mut Reader<'_>,
) -> &'r [Text] {
    let (what, line, items) = match &raw.0 {
        Some(items) => ("is empty", items.referenced.line(), items.value.as_slice()),
        None => ("is missing", line, [].as_slice()),
    };
    if items.is_empty() {
        reader.refuse(key, line, Fault::new(what, format!("write a list such as {example}")));
    }
    items
}

fn policy(key: &str, raw: &raw::ZoneCache, default: Policy, reader: &mut Reader<'_>) -> Policy {
    let ttl = |text: &str| value::ttl(text, &TTL);
    let policy = Policy {
        min_ttl: reader.value(&format!("{key}.min_ttl"), &raw.min_ttl, default.min_ttl, ttl),
        max_ttl: reader.value(&format!("{key}.max_ttl"), &raw.max_ttl, default.max_ttl, ttl),
        negative_max_ttl: reader.value(
            &format!("{key}.negative_max_ttl"),
            &raw.negative_max_ttl,
            default.negative_max_ttl,
            ttl,
        ),
        negative_no_soa_ttl: reader.value(
            &format!("{key}.negative_no_soa_ttl"),
            &raw.negative_no_soa_ttl,
            default.negative_no_soa_ttl,
            ttl,
        ),
        failure: failure(&format!("{key}.failure"), &raw.failure, reader),
        stale: section(&format!("{key}.stale"), &raw.stale, default.stale, reader, stale),
        prefetch: section(&format!("{key}.prefetch"), &raw.prefetch, default.prefetch, reader, prefetch),
    };
    if policy.min_ttl > policy.max_ttl {
        let (min, max) = (spoken(policy.min_ttl), spoken(policy.max_ttl));
        let fault = Fault::new(
            format!("{min} is more than max_ttl, {max}"),
            format!("write at most {max}, or raise max_ttl"),
        );
        refuse_pair(key, ("min_ttl", &raw.min_ttl), ("max_ttl", &raw.max_ttl), fault, reader);
    }
    policy
}

/// Refuses a lower bound above its upper one, in the line of whichever was written.
pub(super) fn refuse_pair(
    key: &str,
    (lower, raw_lower): (&str, &Key<String>),
    (upper, raw_upper): (&str, &Key<String>),
    fault: Fault,
    reader: &mut Reader<'_>,
) {
    match (raw_lower.line(), raw_upper.line()) {
        (Some(line), _) => reader.refuse(&format!("{key}.{lower}"), line, fault),
        (None, line) => {
            let what = format!("is below the default of {lower}");
            let fault = Fault::new(what, format!("raise it, or lower {lower} as well"));
            reader.refuse(&format!("{key}.{upper}"), line.unwrap_or_default(), fault);
        }
    }
}

fn failure(key: &str, raw: &raw::Failure, reader: &mut Reader<'_>) -> Failure {
    let default = Failure::default();
    let time = |text: &str| value::duration(text, &FAILURE);
    let failure = Failure {
        transport: reader.value(&format!("{key}.transport"), &raw.transport, default.transport, time),
        servfail: reader.value(&format!("{key}.servfail"), &raw.servfail, default.servfail, time),
        servfail_max: reader.value(
            &format!("{key}.servfail_max"),
            &raw.servfail_max,
            default.servfail_max,
            time,
        ),
    };
    if failure.servfail > failure.servfail_max {
        let (first, last) = (spoken(failure.servfail), spoken(failure.servfail_max));
        let fault = Fault::new(
            format!("{first} is more than servfail_max, {last}"),
            format!("write at most {last}, or raise servfail_max"),
        );
        let (lower, upper) = (("servfail", &raw.servfail), ("servfail_max", &raw.servfail_max));
        refuse_pair(key, lower, upper, fault, reader);
    }
    failure
}

/// A section that may be `off`. What it leaves out stands at the default of the section.
pub(super) fn section<R, T>(
    key: &str,
    raw: &Key<WordOr<R>>,
    default: Option<T>,
    reader: &mut Reader<'_>,
    read: impl FnOnce(&str, &R, Option<T>, &mut Reader<'_>) -> Option<T>,
) -> Option<T> {
    let Some(written) = &raw.0 else {
        return default;
    };
    match &written.value {
        WordOr::Value(section) => read(key, section, default, reader),
        WordOr::Word(word) => {
            if word != "off" {
                let what = format!("{} is neither off nor a mapping", shown(word));
                let fault = Fault::new(what, "write off, or keys and values below it");
                reader.refuse(key, written.referenced.line(), fault);
            }
            None
        }
    }
}

fn stale(key: &str, raw: &raw::Stale, default: Option<Stale>, reader: &mut Reader<'_>) -> Option<Stale> {
    let default = default?;
    Some(Stale {
        max_age: reader.value(&format!("{key}.for"), &raw.max_age, default.max_age, |text| {
            value::duration(text, &STALE)
        }),
        answer_ttl: reader.value(&format!("{key}.answer_ttl"), &raw.answer_ttl, default.answer_ttl, |text| {
            value::ttl(text, &STALE_TTL)
        }),
        client_response: reader.value(
            &format!("{key}.client_response"),
            &raw.client_response,
            default.client_response,
            |text| value::duration(text, &CLIENT_RESPONSE),
        ),
        failure_recheck: reader.value(
            &format!("{key}.failure_recheck"),
            &raw.failure_recheck,
            default.failure_recheck,
            |text| value::duration(text, &FAILURE),
        ),
        mode: reader.value(&format!("{key}.mode"), &raw.mode, default.mode, |text| {
            value::word(text, &[("timer", StaleMode::Timer), ("immediate", StaleMode::Immediate)])
        }),
    })
}

fn prefetch(
    key: &str,
    raw: &raw::Prefetch,
    default: Option<Prefetch>,
    reader: &mut Reader<'_>,
) -> Option<Prefetch> {
    let default = default?;
    Some(Prefetch {
        hits: reader.value(&format!("{key}.hits"), &raw.hits, default.hits, |text| {
            value::number(text, &PREFETCH_HITS)
        }),
        at: reader.value(&format!("{key}.at"), &raw.at, default.at, |text| {
            value::percent(text, &PREFETCH_AT).map(|percent| f64::from(percent) / 100.0)
        }),
    })
}
