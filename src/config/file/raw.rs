//! The keys as they may be written. Leaves stay text, so that [`super::build`] can say where each wrong one
//! stands and go on to the next; unknown and repeated keys end the reading here.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A scalar and where it stands.
pub(super) type Text = Spanned<String>;

/// What was written at a key, if the key is there. A key with no value is an error and not an absent key.
#[derive(Debug)]
pub(super) struct Key<T>(pub(super) Option<Spanned<T>>);

impl<T> Key<T> {
    /// Line of the value, if the key is there.
    pub(super) fn line(&self) -> Option<u64> {
        self.0.as_ref().map(|value| value.referenced.line())
    }
}

impl<T> Default for Key<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Key<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(|value| Self(Some(value)))
    }
}

/// Either a word such as `off` or `auto`, or a list or mapping.
#[derive(Debug)]
pub(super) enum WordOr<T> {
    /// Any scalar, as text.
    Word(String),
    /// Anything else.
    Value(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for WordOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOrVisitor(PhantomData))
    }
}

struct WordOrVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for WordOrVisitor<T> {
    type Value = WordOr<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word, a list or a mapping")
    }

    fn visit_str<E>(self, word: &str) -> Result<Self::Value, E> {
        Ok(WordOr::Word(word.to_owned()))
    }

    fn visit_bool<E>(self, word: bool) -> Result<Self::Value, E> {
        Ok(WordOr::Word(word.to_string()))
    }

    fn visit_i64<E>(self, word: i64) -> Result<Self::Value, E> {
        Ok(WordOr::Word(word.to_string()))
    }

    fn visit_u64<E>(self, word: u64) -> Result<Self::Value, E> {
        Ok(WordOr::Word(word.to_string()))
    }

    fn visit_f64<E>(self, word: f64) -> Result<Self::Value, E> {
        Ok(WordOr::Word(word.to_string()))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(WordOr::Word(String::new()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        T::deserialize(SeqAccessDeserializer::new(list)).map(WordOr::Value)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(WordOr::Value)
    }
}

/// The file.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    pub(super) listen: Key<Vec<Text>>,
    pub(super) allow_from: Key<WordOr<Vec<Text>>>,
    pub(super) admin: Key<String>,
    pub(super) control: Key<String>,
    pub(super) workers: Key<String>,
    pub(super) reload: Key<String>,
    pub(super) edns_size: Key<String>,
    pub(super) coredns_names: Key<String>,
    pub(super) cache: Cache,
    pub(super) zones: Key<Vec<Spanned<Zone>>>,
    pub(super) hosts: Hosts,
    pub(super) network: Network,
    pub(super) keep: Keep,
    pub(super) limits: Limits,
    pub(super) log: Log,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Cache {
    pub(super) size: Key<String>,
    pub(super) rotate: Key<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Zone {
    #[serde(rename = "match")]
    pub(super) matches: Key<Vec<Text>>,
    pub(super) upstream: Upstream,
    pub(super) cache: ZoneCache,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Upstream {
    pub(super) servers: Key<Vec<Text>>,
    pub(super) bootstrap: Key<Vec<Text>>,
    pub(super) connections: Connections,
    pub(super) policy: Key<String>,
    pub(super) timeout: Key<String>,
    pub(super) mixed_case: Key<String>,
    pub(super) hedge: Key<WordOr<Hedge>>,
    pub(super) ca: Key<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Hedge {
    pub(super) budget: Key<String>,
    pub(super) burst: Key<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Connections {
    pub(super) min: Key<String>,
    pub(super) max: Key<String>,
    pub(super) in_flight: Key<String>,
    pub(super) idle: Key<String>,
    pub(super) max_age: Key<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ZoneCache {
    pub(super) min_ttl: Key<String>,
    pub(super) max_ttl: Key<String>,
    pub(super) negative_max_ttl: Key<String>,
    pub(super) negative_no_soa_ttl: Key<String>,
    pub(super) failure: Failure,
    pub(super) stale: Key<WordOr<Stale>>,
    pub(super) prefetch: Key<WordOr<Prefetch>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Failure {
    pub(super) transport: Key<String>,
    pub(super) servfail: Key<String>,
    pub(super) servfail_max: Key<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Stale {
    #[serde(rename = "for")]
    pub(super) max_age: Key<String>,
    pub(super) answer_ttl: Key<String>,
    pub(super) client_response: Key<String>,
    pub(super) failure_recheck: Key<String>,
    pub(super) mode: Key<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Prefetch {
    pub(super) hits: Key<String>,
    pub(super) at: Key<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Hosts {
    pub(super) ttl: Key<String>,
    pub(super) records: Records,
}

/// Addresses and their names, in the order in which they were written.
#[derive(Debug, Default)]
pub(super) struct Records(pub(super) Vec<(Text, Spanned<Vec<Text>>)>);

impl<'de> Deserialize<'de> for Records {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RecordsVisitor)
    }
}

struct RecordsVisitor;

impl<'de> Visitor<'de> for RecordsVisitor {
    type Value = Records;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping of addresses to lists of names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Records, A::Error> {
        let mut records = Vec::new();
        while let Some(record) = map.next_entry()? {
            records.push(record);
        }
        Ok(Records(records))
    }
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Network {
    pub(super) address_on: Key<String>,
    pub(super) keep_address: Key<String>,
    pub(super) notrack: Key<String>,
    pub(super) accept_untracked: Key<String>,
    pub(super) intercept: Key<Vec<Text>>,
    pub(super) upstream_notrack: Key<String>,
    pub(super) mark: Mark,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Mark {
    pub(super) intercept: Key<String>,
    pub(super) own: Key<String>,
    pub(super) mask: Key<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Keep {
    pub(super) handover: Key<String>,
    pub(super) watchdog: Key<String>,
    pub(super) receive_buffer: Key<String>,
    pub(super) cache: Key<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) tcp_connections: Key<String>,
    pub(super) tcp_connections_per_address: Key<String>,
    pub(super) tcp_in_flight: Key<String>,
    pub(super) tcp_idle: Key<String>,
    pub(super) flights: Key<String>,
    pub(super) waiters: Key<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    pub(super) format: Key<String>,
    pub(super) level: Key<String>,
    pub(super) queries: Key<String>,
}
