//! Why the agent's reply may differ from the upstream's: each rule by its name and its source.

use super::compare::Aspect::{self, Aa, Ad, Cd, Opt, Order, Question, Ra, Rcode, Records, Tc, Ttls, Z};
use super::compare::{Pair, record_differences, sorted};
use super::message::{Record, Reply, flag};

/// What the agent of this test says that it takes by UDP (`edns_size`).
pub(crate) const OUR_SIZE: u16 = 1000;
/// `max_ttl` and `negative_max_ttl`, which are left at their defaults, seconds.
const MAX_TTL: u32 = 3600;
const NEGATIVE_MAX_TTL: u32 = 30;

/// RCODEs, types, classes.
const SERVFAIL: u16 = 2;
const REFUSED: u16 = 5;
const ANY: u16 = 255;
const CH: u16 = 3;

/// One explanation. It answers for the aspects it names, and for no other.
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    pub(crate) aspects: &'static [Aspect],
    pub(crate) holds: fn(&Pair<'_>) -> bool,
}

/// All of a reply that says no more than an RCODE.
const REPLY: &[Aspect] = &[Rcode, Aa, Tc, Ad, Z, Records];
/// All that truncation and the choice of the upstream's message concern.
const CONTENT: &[Aspect] = &[Aa, Tc, Records];

const fn rule(name: &'static str, aspects: &'static [Aspect], holds: fn(&Pair<'_>) -> bool) -> Rule {
    Rule { name, aspects, holds }
}

/// The table. The first rule that holds for an aspect is the one that is counted.
pub(crate) const RULES: &[Rule] = &[
    // RFC 1035 §4.1.1: we are a recursive server whatever stands behind us.
    rule("ra_is_set", &[Ra], |pair| pair.ours.has(flag::RA)),
    // RFC 4035 §3.2.2: copied from the query by a security-aware server.
    rule("cd_is_echoed", &[Cd], |pair| pair.ours.has(flag::CD) == pair.query.has(flag::CD)),
    // RFC 1035 §4.1.1: must be zero.
    rule("z_is_zero", &[Z], |pair| !pair.ours.has(flag::Z)),
    // dns-rules, From clients: the question comes back, where an upstream may send a header alone.
    rule("the_question_comes_back", &[Question], |pair| {
        pair.theirs.question.is_empty() && pair.ours.question == pair.query.question()
    }),
    // RFC 6891 §6.1.1, §7: hop by hop. Present as in the query, our size, DO echoed, our options.
    rule("opt_is_our_own", &[Opt], opt_is_our_own),
    // dns-rules, From clients: class CH is about the server itself.
    rule("class_ch_is_refused", REPLY, |pair| pair.query.qclass == CH && is_empty_with(pair, REFUSED)),
    // dns-rules, From clients: AXFR and IXFR.
    rule("transfers_are_refused", REPLY, |pair| {
        matches!(pair.query.qtype, 251 | 252) && is_empty_with(pair, REFUSED)
    }),
    // dns-rules, From clients: answered from the cache, else REFUSED, never forwarded.
    rule("rd0_is_refused_unless_cached", REPLY, |pair| {
        !pair.query.has(flag::RD) && pair.cached.is_none() && is_empty_with(pair, REFUSED)
    }),
    // RFC 9520: a failure is the agent's own answer. REFUSED stays what it was, all others are SERVFAIL.
    rule("failures_are_answered_here", REPLY, |pair| match pair.source().rcode {
        0 | 3 => false,
        REFUSED => is_empty_with(pair, REFUSED),
        _ => is_empty_with(pair, SERVFAIL),
    }),
    // dns-rules, To upstreams: their answer to ANY over UDP is TC (RFC 8482), so ours came by TCP.
    rule("any_over_tcp_upstream", CONTENT, |pair| {
        pair.query.qtype == ANY && !pair.query.tcp && pair.theirs.has(flag::TC) && is_source_cut_to_size(pair)
    }),
    // RFC 6891 §6.2.5: the smaller of the client's size and ours.
    rule("udp_limit_is_ours", CONTENT, |pair| {
        !pair.query.tcp && pair.theirs.length > usize::from(OUR_SIZE) && is_source_cut_to_size(pair)
    }),
    // RFC 2181 §9, dns-rules: whole records that fit, where the upstream leaves out whole RRsets.
    rule("truncation_keeps_whole_records", CONTENT, |pair| {
        !pair.query.tcp && pair.theirs.has(flag::TC) && is_source_cut_to_size(pair)
    }),
    // dns-rules, From clients: only additional records go without TC. The upstream left its authority section
    // out for the client, and had room for it in the message to us.
    rule("authority_that_does_not_fit_sets_tc", CONTENT, |pair| {
        let missing =
            |section: usize| pair.ours.sections[section].len() < pair.source().sections[section].len();
        !missing(0) && missing(1) && is_source_cut_to_size(pair)
    }),
    // RFC 2181 §9: additional records are optional, and how many come depends on the size that was offered.
    rule("additional_records_are_as_offered_to_us", &[Records], |pair| {
        let [theirs, ours] = [pair.theirs, pair.ours].map(|reply| without_additional(reply.clone()));
        only_explained(pair, &theirs, &ours) && is_source_cut_to_size(pair)
    }),
    // dns-rules, The cache: address RRsets are rotated on every hit; nothing else changes place.
    rule("address_rrset_is_rotated", &[Order], |pair| is_rotated(pair.theirs, pair.ours)),
    // RFC 2181 §8, dns-rules: all TTLs age together.
    rule("ttls_have_aged", &[Ttls], |pair| have_aged(pair, |record, _| record.ttl)),
    // RFC 8767 §4 and `max_ttl`.
    rule("max_ttl", &[Ttls], |pair| have_aged(pair, |record, _| record.ttl.min(MAX_TTL))),
    // RFC 2308 §5 and `negative_max_ttl`: the SOA of a negative answer.
    rule("negative_ttl_is_min_of_soa", &[Ttls], |pair| have_aged(pair, delivered_ttl)),
];

/// The rules that explain a pair's differences, or the differences that none explains.
pub(crate) fn explain(pair: &Pair<'_>, differences: &[Aspect]) -> Result<Vec<&'static str>, Vec<Aspect>> {
    let mut used = Vec::new();
    let mut left = Vec::new();
    for aspect in differences {
        match RULES.iter().find(|rule| rule.aspects.contains(aspect) && (rule.holds)(pair)) {
            Some(rule) => used.push(rule.name),
            None => left.push(*aspect),
        }
    }
    used.sort();
    used.dedup();
    if left.is_empty() { Ok(used) } else { Err(left) }
}

/// Whether the agent's reply is nothing but this RCODE and the question.
fn is_empty_with(pair: &Pair<'_>, rcode: u16) -> bool {
    let ours = pair.ours;
    ours.rcode == rcode && ours.is_empty() && !ours.has(flag::AA | flag::TC | flag::AD | flag::Z)
}

fn opt_is_our_own(pair: &Pair<'_>) -> bool {
    let (Some(asked), Some(ours)) = (&pair.query.opt, &pair.ours.opt) else {
        return pair.query.opt.is_none() && pair.ours.opt.is_none();
    };
    let known = |(code, content): &(u16, Vec<u8>)| match code {
        // RFC 7828 §3.3: only over TCP, and only if asked.
        11 => pair.query.tcp && content.len() == 2 && asked.options.iter().any(|(code, _)| *code == 11),
        // RFC 8914: with failures and refusals only.
        15 => content.len() == 2 && matches!(pair.ours.rcode, SERVFAIL | REFUSED),
        _ => false,
    };
    ours.size == OUR_SIZE
        && ours.version == 0
        && ours.flags == asked.flags & 0x8000
        && ours.options.iter().all(known)
}

/// Whether the agent's reply is the upstream's message to the agent, cut where the next record would not
/// have fitted, with TC if more than additional records are missing.
fn is_source_cut_to_size(pair: &Pair<'_>) -> bool {
    let (source, ours) = (pair.source(), pair.ours);
    let limit = if pair.query.tcp {
        65_535
    } else {
        usize::from(pair.query.opt.as_ref().map_or(512, |opt| opt.size.clamp(512, OUR_SIZE)))
    };
    let mut cut = source.clone();
    let mut kept = ours.sections.iter().map(Vec::len);
    let mut next = None;
    for records in &mut cut.sections {
        let kept = kept.next().unwrap_or(0);
        if kept > records.len() || (next.is_some() && kept > 0) {
            return false;
        }
        next = next.or(records.get(kept).map(|record| record.wire));
        records.truncate(kept);
    }
    // A rotated RRset is cut as well: which of its addresses are left is not said by their order.
    let rotated = source.sections[0].len() > cut.sections[0].len() && is_part_of(&ours.sections[0], source);
    if rotated {
        cut.sections[0].clone_from(&ours.sections[0]);
    }
    let missing = |section: usize| cut.sections[section].len() < source.sections[section].len();
    ours.rcode == source.rcode
        && ours.has(flag::AA) == source.has(flag::AA)
        && ours.has(flag::TC) == (missing(0) || missing(1))
        && ours.length <= limit
        && next.is_none_or(|next| ours.length + next > limit)
        && only_explained(pair, &cut, ours)
}

/// Whether these records are addresses of the answer, each at most as often as there.
fn is_part_of(records: &[Record], source: &Reply) -> bool {
    let mut rest = sorted(&source.sections[0]);
    records.iter().all(|record| {
        let at = rest.iter().position(|other| other.identity() == record.identity());
        at.map(|at| rest.remove(at)).is_some_and(|other| matches!(other.rtype, 1 | 28 | 5))
    })
}

/// Whether what is left between these two is age and rotation.
fn only_explained(pair: &Pair<'_>, theirs: &Reply, ours: &Reply) -> bool {
    let pair = Pair { theirs, ours, source: pair.source.clone(), ..*pair };
    let found = record_differences(theirs, ours);
    !found.contains(&Records) && explain(&pair, &found).is_ok()
}

fn without_additional(mut reply: Reply) -> Reply {
    reply.sections[2].clear();
    reply
}

/// Whether the sections differ in order only by a rotation of the answer's addresses, with everything in
/// front of them and behind them where it was.
fn is_rotated(theirs: &Reply, ours: &Reply) -> bool {
    let is_address = |record: &Record| matches!(record.rtype, 1 | 28);
    let identities = |records: &[Record]| -> Vec<(Vec<u8>, u16, u16, Vec<u8>)> {
        let own =
            |(owner, rtype, class, data): (Vec<u8>, u16, u16, &[u8])| (owner, rtype, class, data.to_vec());
        records.iter().map(|record| own(record.identity())).collect()
    };
    let [(theirs, behind), (ours, ours_behind)] = [theirs, ours].map(|reply| {
        let [answer, authority, additional] = &reply.sections;
        (answer, [identities(authority), identities(additional)])
    });
    let first = theirs.iter().position(is_address).unwrap_or(theirs.len());
    let run = theirs[first..].iter().take_while(|record| is_address(record)).count();
    let (left, right) = (identities(theirs), identities(ours));
    let mut addresses = left[first..first + run].to_vec();
    let turned = (0..run).any(|_| {
        addresses.rotate_left(1);
        addresses == right[first..first + run]
    });
    turned
        && left[..first] == right[..first]
        && left[first + run..] == right[first + run..]
        && behind == ours_behind
}

/// Whether there is one age that makes ours of theirs, after each TTL became `delivered`.
fn have_aged(pair: &Pair<'_>, delivered: fn(&Record, &Reply) -> u32) -> bool {
    let ttls: Vec<(u32, u32)> = (0..3)
        .flat_map(|section| {
            let theirs = sorted(&pair.theirs.sections[section]);
            let ours = sorted(&pair.ours.sections[section]);
            theirs.into_iter().zip(ours).map(|(theirs, ours)| (delivered(theirs, pair.theirs), ours.ttl))
        })
        .collect();
    (pair.cached.unwrap_or(0)..=pair.age)
        .any(|age| ttls.iter().all(|(theirs, ours)| theirs.saturating_sub(age) == *ours))
}

/// The TTL under which the agent delivers a record (dns-rules, The cache).
fn delivered_ttl(record: &Record, reply: &Reply) -> u32 {
    let [answer, authority, _] = &reply.sections;
    let asked = reply
        .question
        .len()
        .checked_sub(4)
        .map(|at| u16::from_be_bytes([reply.question[at], reply.question[at + 1]]));
    let positive =
        reply.rcode == 0 && answer.iter().any(|found| Some(found.rtype) == asked || asked == Some(ANY));
    let is_soa = record.rtype == 6 && authority.iter().any(|other| other == record);
    let ttl = record.ttl.min(MAX_TTL);
    match record.rdata.last_chunk::<4>() {
        Some(minimum) if is_soa && !positive => ttl.min(u32::from_be_bytes(*minimum)).min(NEGATIVE_MAX_TTL),
        _ => ttl,
    }
}
