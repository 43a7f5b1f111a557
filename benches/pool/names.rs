//! The names that are asked for. Their second label says what becomes of them.

use crate::load::Make;
use crate::packet;

/// The zone of all of them.
pub(crate) const ZONE: &str = "pool.test";
/// What a name below this label is answered with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An address for five minutes.
    Lasting,
    /// An address for a second.
    Short,
    /// An address for no time, two seconds later.
    Slow,
    /// The addresses of the endpoints.
    Endpoints,
}

/// Seconds that an answer lives.
pub(crate) const LASTING: u32 = 300;

impl Kind {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Lasting => "lasting",
            Self::Short => "short",
            Self::Slow => "slow",
            Self::Endpoints => "endpoints",
        }
    }

    pub(crate) fn ttl(self) -> u32 {
        match self {
            Self::Lasting => LASTING,
            Self::Short | Self::Endpoints => 1,
            Self::Slow => 0,
        }
    }

    /// Of the name in a query.
    pub(crate) fn of(query: &[u8]) -> Option<Self> {
        let first = *query.get(12)? as usize;
        let length = *query.get(13 + first)? as usize;
        let label = query.get(14 + first..14 + first + length)?;
        let all = [Self::Lasting, Self::Short, Self::Slow, Self::Endpoints];
        all.into_iter().find(|kind| kind.label().as_bytes() == label)
    }
}

/// Names that nobody asked for before; each `phase` has its own.
pub(crate) fn misses(phase: &'static str) -> Make<'static> {
    Box::new(move |number, id| query(id, &format!("{phase}{number:09}"), Kind::Lasting))
}

/// So many names, one after the other and again.
pub(crate) fn known(count: u64, kind: Kind) -> Make<'static> {
    Box::new(move |number, id| query(id, &format!("known{}", number % count), kind))
}

fn query(id: u16, label: &str, kind: Kind) -> Vec<u8> {
    packet::query(id, &packet::name(&[label, kind.label(), "pool", "test"]), true)
}

/// What an authoritative server has to know of them.
pub(crate) fn zone() -> String {
    let mut zone = "$TTL 300\n@ SOA ns hostmaster 1 3600 600 86400 30\n@ NS ns\nns A 127.0.0.1\n".to_owned();
    for kind in [Kind::Lasting, Kind::Short] {
        zone.push_str(&format!("*.{} {} A 10.9.0.1\n", kind.label(), kind.ttl()));
    }
    zone
}
