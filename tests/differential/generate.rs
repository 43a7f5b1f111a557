//! The queries: from one seed, the same on every machine.

use super::message::{Opt, Query, flag};
use super::zone::{self, CLUSTER, LARGE, ODD, SERVER};

/// A sequence that is the same for the same seed (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// What is asked, before letters, flags and OPT.
type Question = (Vec<u8>, u16, u16);

/// `count` queries. Each question is asked twice at least, in other letters, with other flags.
pub(crate) fn queries(seed: u64, count: usize) -> Vec<Query> {
    let mut random = Random::new(seed);
    let names = names();
    let questions: Vec<Question> = (0..2 * count / 5).map(|_| question(&mut random, &names)).collect();
    let mut queries = Vec::with_capacity(count);
    for question in questions.iter().chain(&questions) {
        queries.push(query(&mut random, question));
    }
    while queries.len() < count {
        let again = random.below(questions.len());
        queries.push(query(&mut random, &questions[again]));
    }
    random.shuffle(&mut queries);
    queries
}

/// How often a name with much to say is among the names: most others never come near a limit.
const OFTEN: usize = 4;

/// Names that there are, in wire form.
fn names() -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    for suffix in ODD {
        for owner in zone::owners() {
            let dot = if owner.is_empty() { "" } else { "." };
            names.push(wire(&format!("{owner}{dot}{suffix}")));
        }
        for owner in LARGE {
            names.extend(std::iter::repeat_n(wire(&format!("{owner}.{suffix}")), OFTEN));
        }
    }
    names.extend(CLUSTER.iter().map(|name| wire(name)));
    names.extend(
        zone::outside()
            .iter()
            .map(|record| wire(record.split_whitespace().next().unwrap_or_default().trim_end_matches('.'))),
    );
    names.push(vec![0]);
    names
}

/// A name from its presentation form (RFC 1035 §5.1), without the final dot.
fn wire(text: &str) -> Vec<u8> {
    let (mut wire, mut label) = (Vec::new(), Vec::new());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next().expect("something behind a backslash") {
                digit @ b'0'..=b'9' => {
                    let digits = [digit, bytes.next().expect("digit"), bytes.next().expect("digit")];
                    label.push(digits.iter().fold(0, |number, digit| number * 10 + (digit - b'0')));
                }
                other => label.push(other),
            },
            b'.' => {
                wire.push(label.len() as u8);
                wire.append(&mut label);
            }
            byte => label.push(byte),
        }
    }
    wire.push(label.len() as u8);
    wire.append(&mut label);
    wire.push(0);
    wire
}

const TYPES: [u16; 40] = [
    1, 1, 1, 1, 1, 28, 28, 28, 16, 16, 33, 15, 5, 5, 2, 6, 12, 39, 255, 65280, 65, 64, 257, 43, 47, 46, 48,
    13, 35, 29, 0, 10, 999, 41, 249, 250, 251, 252, 253, 254,
];
/// As many at the end of [`TYPES`].
const REFUSED_OUTSIDE: usize = 7;

/// What NSD answers for.
const LOCAL: [&[u8]; 4] =
    [b"\x03tcp\x04test\0", b"\x03udp\x04test\0", b"\x07cluster\x05local\0", b"\x0210\x07in-addr\x04arpa\0"];

fn question(random: &mut Random, names: &[Vec<u8>]) -> Question {
    if random.below(500) == 0 {
        return (wire(SERVER[random.below(SERVER.len())]), 16, 3);
    }
    let mut name = random.choose(names).clone();
    match random.below(10) {
        // Below it, beside it, above it.
        0 | 1 => name = [label(random), name].concat(),
        2 => name = [label(random), label(random), name].concat(),
        3 if name.len() > 1 => name = [&label(random), &name[usize::from(name[0]) + 1..]].concat(),
        4 if name.len() > 1 => name = name[usize::from(name[0]) + 1..].to_vec(),
        _ => {}
    }
    if name.len() > 255 {
        name.clone_from(&names[0]);
    }
    let outside = !LOCAL.iter().any(|suffix| name.to_ascii_lowercase().ends_with(suffix));
    let qtype = match random.below(100) {
        0..6 => random.below(65_536) as u16,
        // Unbound refuses these, and drops what it refuses beyond 100 queries a second.
        _ if outside => *random.choose(&TYPES[..TYPES.len() - REFUSED_OUTSIDE]),
        _ => *random.choose(&TYPES),
    };
    // Unbound would look for other classes outside of this machine.
    let qclass = match random.below(100) {
        0..94 => 1,
        94.. if outside => *random.choose(&[1, 3]),
        94..96 => 3,
        96..98 => 255,
        98 => 42,
        _ => *random.choose(&[0, 4, 254, 65_535]),
    };
    (name, qtype, qclass)
}

/// A label of common letters, or of any octets; sometimes one that is there.
fn label(random: &mut Random) -> Vec<u8> {
    let known: [&[u8]; 6] = [b"*", b"www", b"deep", b"fixed", b"ns1", b"types"];
    let text = match random.below(4) {
        0 => random.choose(&known).to_vec(),
        1 => (0..=random.below(20)).map(|_| random.below(256) as u8).collect(),
        _ => format!("n{}", random.below(500)).into_bytes(),
    };
    [vec![text.len() as u8], text].concat()
}

fn query(random: &mut Random, (name, qtype, qclass): &Question) -> Query {
    let mut name = name.clone();
    if random.percent(50) {
        recase(random, &mut name);
    }
    let mut flags = if random.percent(93) { flag::RD } else { 0 };
    for (chance, flag) in [(8, flag::CD), (12, flag::AD), (3, flag::Z)] {
        flags |= if random.percent(chance) { flag } else { 0 };
    }
    let opt = random.percent(60).then(|| opt(random));
    Query { name, qtype: *qtype, qclass: *qclass, flags, opt, tcp: random.percent(10) }
}

/// Other letters, label by label, so that lengths stay what they are.
fn recase(random: &mut Random, name: &mut [u8]) {
    let mut at = 0;
    while name[at] > 0 {
        let end = at + 1 + usize::from(name[at]);
        for byte in &mut name[at + 1..end] {
            if byte.is_ascii_alphabetic() && random.percent(50) {
                *byte ^= 0x20;
            }
        }
        at = end;
    }
}

const SIZES: [u16; 14] = [0, 1, 511, 512, 513, 700, 1000, 1001, 1220, 1232, 1233, 1400, 4096, 65_535];

fn opt(random: &mut Random) -> Opt {
    let mut options = Vec::new();
    if random.percent(20) {
        // An unknown one, NSID, a client subnet, a cookie, keepalive, padding.
        let some: [(u16, &[u8]); 6] = [
            (65_001, b"what"),
            (3, b""),
            (8, &[0, 1, 24, 0, 192, 0, 2]),
            (10, &[1, 2, 3, 4, 5, 6, 7, 8]),
            (11, b""),
            (12, &[0; 30]),
        ];
        for _ in 0..=random.below(2) {
            let (code, content) = *random.choose(&some);
            options.push((code, content.to_vec()));
        }
    }
    Opt {
        size: *random.choose(&SIZES),
        version: if random.percent(3) { *random.choose(&[1, 1, 7, 255]) } else { 0 },
        flags: if random.percent(25) { 0x8000 } else { 0 } | if random.percent(3) { 0x4001 } else { 0 },
        options,
    }
}

#[test]
fn names_are_read_with_their_escapes() {
    assert_eq!(wire(r"a\.b.\000\255.c"), b"\x03a.b\x02\x00\xff\x01c\x00");
}
