//! Names that are answered here: static hosts, and those that no upstream should ever be asked.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use hickory_proto::rr::Name;

use crate::cache::entry::Entry;
use crate::cache::lifetime::{Bounds, MAX_TTL};
use crate::config;
use crate::wire::key::Key;
use crate::wire::query::Query;
use crate::wire::response::Answer;
use crate::wire::{Malformed, class, flag, rcode, rtype};

/// TTL of names answered by rule, seconds: long, since the rule does not change.
const TTL: u32 = 3600;
/// The bounds of records made here: none.
const UNBOUNDED: Bounds =
    Bounds { min_ttl: 0, max_ttl: MAX_TTL, negative_max_ttl: MAX_TTL, negative_no_soa_ttl: MAX_TTL };

/// The name that asks this agent itself, for probes.
pub const PROBE: &[u8] = b"\x06_probe\x06nodens\x07invalid\x00";

/// A suffix that is answered by rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Local {
    /// Loopback addresses (RFC 6761 §6.3).
    Localhost,
    /// Names that do not exist (RFC 6761 §6.4).
    Invalid,
    /// No encrypted resolver is designated (RFC 9462 §6.4).
    ResolverArpa,
    /// This agent answers.
    Probe,
}

impl Local {
    /// All suffixes, plain.
    pub const SUFFIXES: [(&'static [u8], Self); 4] = [
        (b"\x09localhost\x00", Self::Localhost),
        (b"\x07invalid\x00", Self::Invalid),
        (b"\x08resolver\x04arpa\x00", Self::ResolverArpa),
        (PROBE, Self::Probe),
    ];

    /// The answer.
    pub fn entry(self, query: &Query<'_>, key: &Key, now: Instant) -> Option<Entry> {
        let v4: &[u8] = &[127, 0, 0, 1];
        let v6: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let (code, records) = match (self, query.qtype) {
            (Self::Localhost | Self::Probe, rtype::A) => (rcode::NOERROR, vec![v4]),
            (Self::Localhost, rtype::AAAA) => (rcode::NOERROR, vec![v6]),
            (Self::Localhost | Self::Probe | Self::ResolverArpa, _) => (rcode::NOERROR, vec![]),
            (Self::Invalid, _) => (rcode::NXDOMAIN, vec![]),
        };
        synthesize(query, key, code, TTL, &records, now).ok()
    }
}

/// Static addresses and their reverse names.
#[derive(Debug, Default)]
pub struct Hosts {
    ttl: u32,
    addresses: HashMap<Box<[u8]>, Vec<IpAddr>>,
    names: HashMap<Box<[u8]>, Vec<Box<[u8]>>>,
}

impl Hosts {
    /// The table of a configuration.
    pub fn new(config: &config::Hosts) -> Self {
        let mut hosts = Self { ttl: config.ttl.as_secs() as u32, ..Self::default() };
        for (address, names) in &config.records {
            for name in names {
                let name = plain(name);
                hosts.addresses.entry(name.clone()).or_default().push(*address);
                hosts.names.entry(plain(&Name::from(*address))).or_default().push(name);
            }
        }
        hosts
    }

    /// The answer, if the table knows the name. Another type than it has is NODATA.
    pub fn entry(&self, query: &Query<'_>, key: &Key, now: Instant) -> Option<Entry> {
        let mut records: Vec<Vec<u8>> = Vec::new();
        if let Some(addresses) = self.addresses.get(key.name()) {
            records.extend(addresses.iter().filter_map(|address| match (address, query.qtype) {
                (IpAddr::V4(address), rtype::A) => Some(address.octets().to_vec()),
                (IpAddr::V6(address), rtype::AAAA) => Some(address.octets().to_vec()),
                _ => None,
            }));
        } else {
            let names = self.names.get(key.name())?;
            if query.qtype == rtype::PTR {
                records.extend(names.iter().map(|name| name.to_vec()));
            }
        }
        let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        synthesize(query, key, rcode::NOERROR, self.ttl, &records, now).ok()
    }

    /// Whether there is nothing to look up.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Whether it may know this question.
    pub fn has(&self, query: &Query<'_>, lower: &[u8]) -> bool {
        query.qclass == class::IN && (self.addresses.contains_key(lower) || self.names.contains_key(lower))
    }
}

/// A name in plain wire form, lower-cased.
pub fn plain(name: &Name) -> Box<[u8]> {
    let mut plain: Vec<u8> = Vec::with_capacity(name.len() + 1);
    for label in name.iter() {
        plain.push(label.len() as u8);
        plain.extend(label.iter().map(u8::to_ascii_lowercase));
    }
    plain.push(0);
    plain.into()
}

/// An entry with these RDATA under the question's own name and type.
fn synthesize(
    query: &Query<'_>,
    key: &Key,
    rcode: u16,
    ttl: u32,
    records: &[&[u8]],
    now: Instant,
) -> Result<Entry, Malformed> {
    let mut message = Vec::with_capacity(64 + 32 * records.len());
    for part in [0, flag::QR | flag::AA | rcode, 1, records.len() as u16, 0, 0] {
        message.extend(part.to_be_bytes());
    }
    query.write_question(&mut message);
    for rdata in records {
        message.extend([0xc0, 12]);
        message.extend(query.qtype.to_be_bytes());
        message.extend(class::IN.to_be_bytes());
        message.extend(ttl.to_be_bytes());
        message.extend((rdata.len() as u16).to_be_bytes());
        message.extend_from_slice(rdata);
    }
    Ok(Entry::new(Answer::read(message, key)?, &UNBOUNDED, now))
}
