//! In what two replies to one query differ.

use std::cell::OnceCell;

use super::message::{Query, Record, Reply, flag};

/// One thing in which two replies may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Aspect {
    Rcode,
    Aa,
    Tc,
    Rd,
    Ra,
    Z,
    Ad,
    Cd,
    Question,
    /// Presence or content of the OPT.
    Opt,
    /// The records of some section, whatever their order, TTLs and letters.
    Records,
    /// Letter case in owner names or names in RDATA, of equal records.
    Letters,
    /// The order of equal records.
    Order,
    /// TTLs of equal records.
    Ttls,
}

use Aspect::{Aa, Ad, Cd, Letters, Opt, Order, Question, Ra, Rcode, Rd, Records, Tc, Ttls, Z};

/// A query with what two servers made of it.
pub(crate) struct Pair<'a> {
    pub(crate) query: &'a Query,
    /// The upstream's own reply to the same query.
    pub(crate) theirs: &'a Reply,
    /// The upstream's reply to the query that the agent sends it for this one, asked for when it is needed.
    pub(crate) source: OnceCell<Reply>,
    pub(crate) ask_source: &'a dyn Fn() -> Reply,
    pub(crate) ours: &'a Reply,
    /// Seconds since the question was first sent, rounded up.
    pub(crate) age: u32,
    /// Seconds that the answer has been in the cache at least, if it is there for certain.
    pub(crate) cached: Option<u32>,
}

impl Pair<'_> {
    pub(crate) fn source(&self) -> &Reply {
        self.source.get_or_init(self.ask_source)
    }
}

/// Everything in which ours differs from theirs. TTLs that should have aged count as different.
pub(crate) fn differences(pair: &Pair<'_>) -> Vec<Aspect> {
    let Pair { theirs, ours, .. } = *pair;
    let mut found = Vec::new();
    let bits = [
        (Aa, flag::AA),
        (Tc, flag::TC),
        (Rd, flag::RD),
        (Ra, flag::RA),
        (Z, flag::Z),
        (Ad, flag::AD),
        (Cd, flag::CD),
    ];
    found.extend(bits.into_iter().filter(|(_, bit)| theirs.has(*bit) != ours.has(*bit)).map(|(a, _)| a));
    let parts = [
        (Rcode, theirs.rcode == ours.rcode),
        (Question, theirs.question == ours.question),
        (Opt, theirs.opt == ours.opt),
    ];
    found.extend(parts.into_iter().filter(|(_, same)| !same).map(|(aspect, _)| aspect));
    found.extend(record_differences(theirs, ours));
    let has_aged = pair.cached.is_some_and(|age| age > 0) && !ours.is_empty();
    if has_aged && !found.contains(&Records) {
        found.push(Ttls);
    }
    found.sort();
    found.dedup();
    found
}

/// Of the records alone: [`Records`], or any of [`Letters`], [`Order`] and [`Ttls`].
pub(crate) fn record_differences(theirs: &Reply, ours: &Reply) -> Vec<Aspect> {
    let mut found = Vec::new();
    for (theirs, ours) in theirs.sections.iter().zip(&ours.sections) {
        let (left, right) = (sorted(theirs), sorted(ours));
        if !left.iter().map(|record| record.identity()).eq(right.iter().map(|record| record.identity())) {
            return vec![Records];
        }
        let letters = |records: &[&Record]| {
            let mut letters: Vec<_> = records.iter().map(|record| record.letters()).collect();
            letters.sort();
            letters
                .iter()
                .map(|&(owner, a, b, data)| (owner.to_vec(), a, b, data.to_vec()))
                .collect::<Vec<_>>()
        };
        if letters(&left) != letters(&right) {
            found.push(Letters);
        }
        if !theirs.iter().map(Record::identity).eq(ours.iter().map(Record::identity)) {
            found.push(Order);
        }
        if !left.iter().map(|record| record.ttl).eq(right.iter().map(|record| record.ttl)) {
            found.push(Ttls);
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The records of a section in an order that does not depend on the message's.
pub(crate) fn sorted(records: &[Record]) -> Vec<&Record> {
    let mut sorted: Vec<&Record> = records.iter().collect();
    sorted.sort_by(|a, b| a.identity().cmp(&b.identity()));
    sorted
}
