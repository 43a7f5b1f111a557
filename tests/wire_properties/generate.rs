//! What the properties are tried on: names, queries, responses, and bytes that are nearly a message.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, NULL, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nodens::cache::entry::{Style, Ttls};
use nodens::cache::lifetime::Bounds;
use nodens::wire::edns::ExtendedError;
use nodens::wire::key::{Key, KeyBuf};
use nodens::wire::query::OurEdns;
use nodens::wire::{name, query, rtype};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// As many inputs as the environment says; what fails is written down by hand as a test of its own.
pub(crate) fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

/// Labels as clients write them, and of any octets at all, up to the longest name.
pub(crate) fn labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let label = prop_oneof![
        6 => vec(select(b"abcXYZ019-_".as_slice()), 1..=12),
        2 => vec(any::<u8>(), 1..=20),
        1 => vec(any::<u8>(), 63),
    ];
    vec(label, 0..=8).prop_map(|mut labels| {
        let mut left = name::MAX_NAME - 1;
        labels.retain(|label| {
            let fits = label.len() < left;
            left -= if fits { label.len() + 1 } else { 0 };
            fits
        });
        labels
    })
}

pub(crate) fn plain(labels: &[Vec<u8>]) -> Vec<u8> {
    let mut plain = Vec::new();
    for label in labels {
        plain.push(label.len() as u8);
        plain.extend(label);
    }
    plain.push(0);
    plain
}

pub(crate) fn hickory(labels: &[Vec<u8>]) -> Name {
    let mut name = Name::from_labels(labels.iter().map(Vec::as_slice)).expect("labels that fit");
    name.set_fqdn(true);
    name
}

/// The name with the case of its letters chosen by `bits`.
pub(crate) fn recased(plain: &[u8], bits: u64) -> Vec<u8> {
    let flip = |(at, octet): (usize, &u8)| match bits >> (at % 64) & 1 {
        1 if octet.is_ascii_uppercase() => octet.to_ascii_lowercase(),
        1 => octet.to_ascii_uppercase(),
        _ => *octet,
    };
    plain.iter().enumerate().map(flip).collect()
}

/// An OPT as anybody may send it.
pub(crate) fn edns() -> impl Strategy<Value = Edns> {
    // hickory reads some options itself, and refuses those that make no sense.
    let code = prop_oneof![select(&[10u16, 12][..]), 16..=u16::MAX];
    let options = vec((code, vec(any::<u8>(), 0..=12)), 0..=3);
    (any::<u16>(), any::<bool>(), options, any::<bool>()).prop_map(|(size, dnssec, options, keepalive)| {
        let mut edns = Edns::new();
        edns.set_max_payload(size).set_dnssec_ok(dnssec);
        for (code, bytes) in options {
            edns.options_mut().insert(EdnsOption::Unknown(code, bytes));
        }
        if keepalive {
            edns.options_mut().insert(EdnsOption::Unknown(11, Vec::new()));
        }
        edns
    })
}

/// Whether an OPT asks for the TCP idle timeout.
pub(crate) fn wants_keepalive(edns: &Edns) -> bool {
    edns.options().as_ref().iter().any(|(code, _)| u16::from(*code) == 11)
}

/// A client: how its query differs from the one that filled the cache.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    pub(crate) id: u16,
    pub(crate) case: u64,
    pub(crate) recursion_desired: bool,
    pub(crate) checking_disabled: bool,
    pub(crate) authentic_data: bool,
    pub(crate) edns: Option<Edns>,
    pub(crate) ours: OurEdns,
    pub(crate) style: Style,
    pub(crate) ttls: Ttls,
}

pub(crate) fn asker() -> impl Strategy<Value = Asker> {
    let ours = prop_oneof![
        3 => select(&[512u16, 1232, 4096][..]).prop_map(|size| OurEdns { size, keepalive: None }),
        1 => Just(OurEdns { size: 1232, keepalive: Some(100) }),
    ];
    let error = option::of(select(&[ExtendedError::StaleAnswer, ExtendedError::StaleNxdomain][..]));
    let ttls = prop_oneof![
        Just(Ttls::Aged(0)),
        (0..4000u32).prop_map(Ttls::Aged),
        any::<u32>().prop_map(Ttls::Aged),
        Just(Ttls::Fixed(30)),
    ];
    let bits = any::<(u16, u64, bool, bool, bool, bool)>();
    (bits, option::of(edns()), ours, error, ttls).prop_map(
        |((id, case, rd, cd, ad, rotate), edns, ours, error, ttls)| Asker {
            id,
            case,
            recursion_desired: rd,
            checking_disabled: cd,
            authentic_data: ad,
            edns,
            ours,
            style: Style { edns: ours, rotate, error },
            ttls,
        },
    )
}

impl Asker {
    /// Its query for the plain `name`, in its own letters.
    pub(crate) fn packet(&self, name: &[u8], qtype: u16) -> Vec<u8> {
        let labels: Vec<Vec<u8>> = name::labels(&recased(name, self.case)).map(<[u8]>::to_vec).collect();
        let mut message = Message::new(self.id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.authentic_data = self.authentic_data;
        message.add_query(Query::query(hickory(&labels), RecordType::from(qtype)));
        if let Some(edns) = &self.edns {
            message.set_edns(edns.clone());
        }
        message.to_vec().expect("a query that fits")
    }

    /// What the reply may measure, by the rules and not by the code.
    pub(crate) fn limit(&self) -> usize {
        if self.ours.keepalive.is_some() {
            return 65_535;
        }
        let theirs = self.edns.as_ref().map_or(512, |edns| edns.max_payload().max(512));
        usize::from(theirs.min(self.ours.size))
    }
}

/// The key of a question.
pub(crate) fn key(name: &[u8], qtype: u16) -> Key {
    let query = query::Query { id: 1, flags: 0, name, qtype, qclass: 1, edns: None };
    KeyBuf::new(&query).to_key()
}

/// A response with the question that it answers.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) name: Vec<u8>,
    pub(crate) qtype: u16,
    pub(crate) message: Message,
}

impl Response {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.message.to_vec().expect("a response that fits")
    }
}

fn ttl() -> impl Strategy<Value = u32> {
    prop_oneof![4 => select(&[0, 1, 5, 30, 300, 3600, 86_400][..]), 1 => any::<u32>()]
}

/// RDATA of the asked type, several.
fn rrset() -> impl Strategy<Value = (u16, Vec<RData>)> {
    let a = vec(any::<u32>(), 1..=40).prop_map(|addresses| {
        (rtype::A, addresses.into_iter().map(|a| RData::A(A(Ipv4Addr::from(a)))).collect())
    });
    let aaaa = vec(any::<u128>(), 1..=40).prop_map(|addresses| {
        (rtype::AAAA, addresses.into_iter().map(|a| RData::AAAA(AAAA(Ipv6Addr::from(a)))).collect())
    });
    let txt = vec(vec(vec(any::<u8>(), 0..=255), 1..=3), 1..=4).prop_map(|texts| {
        let txt =
            |parts: Vec<Vec<u8>>| RData::TXT(TXT::from_bytes(parts.iter().map(Vec::as_slice).collect()));
        (rtype::TXT, texts.into_iter().map(txt).collect())
    });
    let srv = vec((any::<(u16, u16, u16)>(), labels()), 1..=6).prop_map(|targets| {
        let srv = |((priority, weight, port), target): ((u16, u16, u16), Vec<Vec<u8>>)| {
            RData::SRV(SRV::new(priority, weight, port, hickory(&target)))
        };
        (33, targets.into_iter().map(srv).collect())
    });
    // Private use (RFC 6895 §3.1), without those that hickory has taken for itself.
    let unknown = (65_400u16..65_500, vec(vec(any::<u8>(), 1..=400), 1..=6)).prop_map(|(code, rdata)| {
        let unknown = |bytes| RData::Unknown { code: RecordType::from(code), rdata: NULL::with(bytes) };
        (code, rdata.into_iter().map(unknown).collect())
    });
    prop_oneof![3 => a, 3 => aaaa, 1 => txt, 1 => srv, 1 => unknown]
}

/// The responses of an honest server: chains, RRsets, negative answers, with and without OPT.
pub(crate) fn response() -> impl Strategy<Value = Response> {
    let names = (labels(), vec((labels(), ttl()), 0..=3), labels());
    let kind = select(&["positive", "positive", "nodata", "nxdomain"][..]);
    let records = (rrset(), vec(ttl(), 40), kind);
    let soa = option::weighted(0.8, (ttl(), ttl()));
    let beside = (vec((labels(), ttl()), 0..=3), vec((labels(), ttl(), any::<u32>()), 0..=3));
    let rest = (any::<(u16, bool, bool)>(), option::of(edns()), any::<u64>());
    (names, records, soa, beside, rest).prop_map(
        |((name, chain, apex), ((qtype, rdata), ttls, kind), soa, (servers, glue), (flags, edns, case))| {
            let (id, aa, ad) = flags;
            let mut message = Message::new(id, MessageType::Response, OpCode::Query);
            message.metadata.authoritative = aa;
            message.metadata.authentic_data = ad;
            let asked = recased(&plain(&name), case);
            let asked: Vec<Vec<u8>> = name::labels(&asked).map(<[u8]>::to_vec).collect();
            message.add_query(Query::query(hickory(&asked), RecordType::from(qtype)));
            let mut owner = hickory(&name);
            for (target, ttl) in chain {
                let target = hickory(&target);
                message.add_answer(Record::from_rdata(owner, ttl, RData::CNAME(CNAME(target.clone()))));
                owner = target;
            }
            if kind == "positive" {
                for (rdata, ttl) in rdata.into_iter().zip(ttls) {
                    message.add_answer(Record::from_rdata(owner.clone(), ttl, rdata));
                }
                for (server, ttl) in servers {
                    let ns = RData::NS(NS(hickory(&server)));
                    message.add_authority(Record::from_rdata(hickory(&apex), ttl, ns));
                }
            } else if let Some((ttl, minimum)) = soa {
                let soa = SOA::new(hickory(&apex), hickory(&name), 1, 2, 3, 4, minimum);
                message.add_authority(Record::from_rdata(hickory(&apex), ttl, RData::SOA(soa)));
            }
            for (owner, ttl, address) in glue {
                let a = RData::A(A(Ipv4Addr::from(address)));
                message.add_additional(Record::from_rdata(hickory(&owner), ttl, a));
            }
            if kind == "nxdomain" {
                message.metadata.response_code = ResponseCode::NXDomain;
            }
            if let Some(edns) = edns {
                message.set_edns(edns);
            }
            Response { name: plain(&name), qtype, message }
        },
    )
}

/// A zone's rules.
pub(crate) fn bounds() -> impl Strategy<Value = Bounds> {
    let some = |values: &'static [u32]| select(values);
    (some(&[0, 0, 5, 60]), some(&[60, 3600, 604_800]), some(&[5, 30, 3600]), some(&[0, 0, 5])).prop_map(
        |(min_ttl, max_ttl, negative_max_ttl, negative_no_soa_ttl)| Bounds {
            min_ttl,
            max_ttl,
            negative_max_ttl,
            negative_no_soa_ttl,
        },
    )
}

/// What damages a message.
#[derive(Debug, Clone)]
pub(crate) enum Damage {
    Flip(prop::sample::Index, u8),
    Set(prop::sample::Index, u8),
    Pointer(prop::sample::Index, u16),
    Insert(prop::sample::Index, u8),
    Delete(prop::sample::Index),
    Cut(prop::sample::Index),
}

pub(crate) fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let index = any::<prop::sample::Index>;
    let damage = prop_oneof![
        4 => (index(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        2 => (index(), any::<u8>()).prop_map(|(at, octet)| Damage::Set(at, octet)),
        2 => (index(), 0..600u16).prop_map(|(at, to)| Damage::Pointer(at, to)),
        2 => (index(), any::<u8>()).prop_map(|(at, octet)| Damage::Insert(at, octet)),
        2 => index().prop_map(Damage::Delete),
        1 => index().prop_map(Damage::Cut),
    ];
    vec(damage, 1..=4)
}

/// Damages what stands behind the first `from` octets.
pub(crate) fn damage(message: &mut Vec<u8>, from: usize, damages: &[Damage]) {
    for damage in damages {
        let length = message.len() - from.min(message.len());
        if length < 2 {
            return;
        }
        let at = |index: &prop::sample::Index| from + index.index(length);
        match damage {
            Damage::Flip(index, bit) => message[at(index)] ^= 1 << bit,
            Damage::Set(index, octet) => message[at(index)] = *octet,
            Damage::Pointer(index, to) => {
                let at = at(index).min(message.len() - 2);
                message[at..at + 2].copy_from_slice(&(0xc000 | to).to_be_bytes());
            }
            Damage::Insert(index, octet) => message.insert(at(index), *octet),
            Damage::Delete(index) => drop(message.remove(at(index))),
            Damage::Cut(index) => message.truncate(at(index)),
        }
    }
}

/// Bytes that get some way into a reader: a header with small counts, then octets that often are
/// lengths, pointers and types.
pub(crate) fn nearly_a_message() -> impl Strategy<Value = Vec<u8>> {
    let octet = prop_oneof![
        4 => select(&[0u8, 0, 0, 1, 1, 2, 3, 4, 5, 6, 12, 28, 41, 63, 64, 0xc0, 0xc0, 0xff, b'a'][..]),
        1 => any::<u8>(),
    ];
    let counts = vec(prop_oneof![4 => 0..4u16, 1 => any::<u16>()], 4);
    (any::<[u8; 4]>(), counts, vec(octet, 0..200)).prop_map(|(front, counts, body)| {
        let mut message = front.to_vec();
        if front[0] & 1 == 0 {
            message[2] &= 0x87; // opcode QUERY, or nothing else is ever read
        }
        message.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
        message.extend(body);
        message
    })
}
