//! What an upstream can do wrong: the tables, and the stage on which they are played.

use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};

use crate::support::edit::{self, CNAME, OPT, PTR, Section, flag, plain_name, record};
use crate::support::{
    Agent, Reaction, Step, Transport, Upstream, address_reply, ask_udp, framed, framed_as, half, message,
    millis, nodens, option, pieces, query, seconds, wait_until, with_edns,
};

/// The address in good answers.
pub(crate) const GOOD: &str = "192.0.2.1";
/// The address in bad ones; no client may ever see it.
pub(crate) const BAD: &str = "192.0.2.66";
/// A name for which only bad answers give an address without being asked.
pub(crate) const STOLEN: &str = "stolen.example.";
/// Connections to one upstream at most (`connections.max`).
const CONNECTIONS: usize = 16;

/// What a fault does to the try that meets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is no answer to our query: we go on waiting, and ask again after a second.
    Waits,
    /// The try fails at once, and the next one begins.
    Fails,
    /// It is a failure RCODE: the same server is not asked again.
    Refuses,
}

pub(crate) use Fate::{Fails, Refuses, Waits};

/// One thing that an upstream does wrong.
pub(crate) struct Fault {
    pub(crate) what: &'static str,
    /// What is written in place of an answer, made of one with [`BAD`] and one with [`GOOD`].
    steps: fn(bad: &[u8], good: &[u8]) -> Vec<Step>,
    pub(crate) fate: Fate,
}

const fn fault(what: &'static str, fate: Fate, steps: fn(&[u8], &[u8]) -> Vec<Step>) -> Fault {
    Fault { what, steps, fate }
}

fn one(message: Vec<u8>) -> Vec<Step> {
    vec![Step::Message(message)]
}

fn octets(octets: Vec<u8>) -> Vec<Step> {
    vec![Step::Octets(octets)]
}

/// Whole messages that are no good answer, the same over UDP and TCP.
pub(crate) const MESSAGES: &[Fault] = &[
    fault("nothing", Waits, |_, _| Vec::new()),
    fault("an answer after the deadline", Waits, |_, good| {
        vec![Step::Pause(millis(4_500)), Step::Message(good.to_vec())]
    }),
    fault("another ID", Waits, |bad, _| one(edit::wrong_id(bad))),
    fault("another name", Waits, |bad, _| one(edit::wrong_name(bad, STOLEN))),
    fault("another type", Waits, |bad, _| one(edit::wrong_type(bad, 28))),
    fault("another class", Waits, |bad, _| one(edit::wrong_class(bad, 3))),
    fault("no question", Waits, |bad, _| one(edit::without_question(bad))),
    fault("NXDOMAIN without question", Waits, |bad, _| one(edit::header_only(bad, 3))),
    fault("two questions by count", Waits, |bad, _| {
        let mut bytes = bad.to_vec();
        bytes[5] = 2;
        one(bytes)
    }),
    fault("a query", Waits, |bad, _| one(edit::flipped(bad, flag::QR))),
    fault("another opcode", Waits, |bad, _| one(edit::flipped(bad, flag::STATUS))),
    fault("three octets", Waits, |bad, _| one(bad[..3].to_vec())),
    fault("eleven octets", Waits, |bad, _| one(bad[..11].to_vec())),
    fault("forty times 0xff", Waits, |_, _| one(vec![0xff; 40])),
    fault("forty unmatched IDs", Waits, |bad, _| flood(bad, 40)),
    fault("ANCOUNT too large", Fails, |bad, _| one(edit::counted(bad, Section::Answer, 2))),
    fault("ANCOUNT 65535", Fails, |bad, _| one(edit::counted(bad, Section::Answer, 65_535))),
    fault("ANCOUNT 0", Fails, |bad, _| one(edit::counted(bad, Section::Answer, 0))),
    fault("NSCOUNT too large", Fails, |bad, _| one(edit::counted(bad, Section::Authority, 3))),
    fault("ARCOUNT too large", Fails, |bad, _| one(edit::counted(bad, Section::Additional, 9))),
    fault("ARCOUNT 0", Fails, |bad, _| one(edit::counted(bad, Section::Additional, 0))),
    fault("cut inside its last record", Fails, |bad, _| one(bad[..bad.len() - 3].to_vec())),
    fault("cut inside its first record", Fails, |bad, _| one(bad[..bad.len() - 20].to_vec())),
    fault("octets behind the last record", Fails, |bad, _| one([bad, &[0; 7]].concat())),
    fault("an owner that points to itself", Fails, |bad, _| one(edit::owner_loop(bad))),
    fault("an alias that points to itself", Fails, |bad, _| one(edit::rdata_loop(bad, CNAME, &[]))),
    fault("a second OPT", Fails, |bad, _| one(edit::with_record(bad, Section::Additional, &edit::opt(0, 0)))),
    fault("an OPT among the answers", Fails, |bad, _| {
        one(edit::with_record(bad, Section::Answer, &record(&[0], OPT, 0, &[])))
    }),
    fault("TC over TCP", Fails, |bad, _| one(edit::flipped(bad, flag::TC))),
    fault("SERVFAIL without question", Refuses, |bad, _| one(edit::header_only(bad, 2))),
    fault("BADVERS by the OPT's high bits", Refuses, |bad, _| {
        one(edit::with_record(&edit::without_records(bad), Section::Additional, &edit::opt(1, 0)))
    }),
];

/// What goes wrong below the messages, over TCP only.
pub(crate) const STREAMS: &[Fault] = &[
    fault("length 0", Fails, |_, _| octets(vec![0, 0])),
    fault("length 0, then the answer", Fails, |_, good| octets([&[0, 0], &framed(good)[..]].concat())),
    fault("half a message, then the end", Fails, |bad, _| half(&framed(bad), Step::Close)),
    fault("half a message, then RST", Fails, |bad, _| half(&framed(bad), Step::Reset)),
    fault("one octet, then the end", Fails, |_, _| vec![Step::Octets(vec![0]), Step::Close]),
    fault("the end", Fails, |_, _| vec![Step::Close]),
    fault("RST", Fails, |_, _| vec![Step::Reset]),
    fault("a length too small", Fails, |bad, _| octets(framed_as(shifted(bad, -12), bad))),
    fault("a length too large", Waits, |bad, _| octets(framed_as(shifted(bad, 40), bad))),
    fault("length 65535, then silence", Waits, |_, _| octets(vec![0xff, 0xff])),
    fault("length 65535, then one octet in 100 ms", Waits, |bad, _| {
        pieces(&framed_as(65_535, &bad.repeat(2)), 1, millis(100))
    }),
    fault("one octet in 100 ms", Waits, |_, good| pieces(&framed(good), 1, millis(100))),
];

/// What is done, and the steps that do it with a good answer.
pub(crate) type Oddity = (&'static str, fn(&[u8]) -> Vec<Step>);

/// Odd ways over TCP that still bring the right answer.
pub(crate) const ODD: &[Oddity] = &[
    ("octet by octet", |good| pieces(&framed(good), 1, millis(1))),
    ("the length's halves apart", |good| {
        let octets = framed(good);
        let (first, rest) = octets.split_at(1);
        vec![Step::Octets(first.to_vec()), Step::Pause(millis(20)), Step::Octets(rest.to_vec())]
    }),
    ("four messages in one segment", |good| {
        let other = framed(&edit::wrong_id(good));
        octets([&other[..], &framed(good), &framed(good), &other].concat())
    }),
    ("the answer, then length 0", |good| octets([&framed(good)[..], &[0, 0]].concat())),
    ("the answer, then the end", |good| vec![Step::Message(good.to_vec()), Step::Close]),
    ("the question's letters in other case", |good| one(edit::other_case(good))),
];

/// The same over UDP and TCP.
pub(crate) const ODD_MESSAGES: &[Oddity] = &[
    ("the answer three times", |good| [good; 3].map(|good| Step::Message(good.to_vec())).to_vec()),
    ("the answer, then one that nobody asked for", |good| {
        let other = edit::wrong_name(good, STOLEN);
        vec![
            Step::Message(good.to_vec()),
            Step::Message(other.clone()),
            Step::Message(edit::wrong_id(&other)),
        ]
    }),
    ("every flag set or missing", |good| {
        one(edit::flipped(good, flag::AA | flag::RD | flag::RA | flag::Z | flag::AD | flag::CD))
    }),
    ("an OPT of version 1", |good| {
        one(edit::with_record(
            &edit::counted(&good[..good.len() - 11], Section::Additional, 0),
            Section::Additional,
            &edit::opt(0, 1),
        ))
    }),
    ("no OPT", |good| one(edit::counted(&good[..good.len() - 11], Section::Additional, 0))),
    ("records that nobody asked for", |good| {
        let owner = plain_name(STOLEN);
        let mut bytes = good.to_vec();
        for section in [Section::Answer, Section::Authority, Section::Additional] {
            bytes = edit::with_record(&bytes, section, &record(&owner, edit::A, 300, &[192, 0, 2, 67]));
            bytes = edit::with_record(&bytes, section, &record(&owner, PTR, 300, &[0]));
        }
        one(bytes)
    }),
];

fn shifted(message: &[u8], by: isize) -> u16 {
    u16::try_from(message.len().saturating_add_signed(by)).expect("a short message")
}

/// As many messages of IDs that we have not used.
pub(crate) fn flood(bad: &[u8], count: u16) -> Vec<Step> {
    let own = u16::from_be_bytes([bad[0], bad[1]]);
    (1..=count).map(|n| Step::Message(edit::with_id(bad, own.wrapping_add(n)))).collect()
}

impl Fault {
    /// What is done in place of an answer to this query.
    pub(crate) fn reaction(&self, query: &Message) -> Reaction {
        let bad = message(&address_reply(query, 300, BAD));
        Reaction::Steps((self.steps)(&bad, &message(&address_reply(query, 300, GOOD))))
    }

    /// The same, and the right answer right behind it.
    pub(crate) fn then_good(&self, query: &Message) -> Reaction {
        let (bad, good) =
            (message(&address_reply(query, 300, BAD)), message(&address_reply(query, 300, GOOD)));
        Reaction::Steps([(self.steps)(&bad, &good), one(good)].concat())
    }
}

/// The number in a name `c7.bad.example.`, or behind one more label: which fault it meets.
pub(crate) fn case_of(query: &Message) -> Option<usize> {
    let owner = query.queries.first()?.name.to_ascii().to_ascii_lowercase();
    let label = owner.strip_suffix(".bad.example.")?.rsplit('.').next()?;
    label.strip_prefix('c')?.parse().ok()
}

pub(crate) fn good_answer(query: &Message) -> Reaction {
    Reaction::Answer(address_reply(query, 300, GOOD))
}

/// A reply as these tests look at it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: ResponseCode,
    pub(crate) addresses: Vec<String>,
    /// The extended error, if there is one.
    pub(crate) error: Option<u16>,
    pub(crate) took: Duration,
}

impl Outcome {
    pub(crate) fn is_right(&self) -> bool {
        self.code == ResponseCode::NoError && self.addresses == [GOOD]
    }
}

/// The agent, and what it was like before.
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    descriptors: usize,
    resident_kib: u64,
}

impl Stage {
    /// One zone with these servers and these further keys of its `upstream`.
    #[track_caller]
    pub(crate) fn set(servers: &[String], more: &str) -> Self {
        let quoted: Vec<String> = servers.iter().map(|server| format!("\"{server}\"")).collect();
        let agent = Agent::start(&format!(
            "zones:\n  - match: [\".\"]\n    upstream: {{ servers: [{}]{more} }}\n",
            quoted.join(", ")
        ));
        let (descriptors, resident_kib) = (agent.descriptors(), agent.resident_kib());
        Self { agent, descriptors, resident_kib }
    }

    /// Asks for an address with OPT; an answer must come, and before stub resolvers give up.
    #[track_caller]
    pub(crate) fn ask(&self, owner: &str) -> Outcome {
        let started = Instant::now();
        let reply = ask_udp(self.agent.address, &with_edns(query(owner, "A"), 1232));
        let took = started.elapsed();
        let reply = reply.unwrap_or_else(|| panic!("no reply to {owner}"));
        let answers = reply.answers.iter();
        let outcome = Outcome {
            code: reply.metadata.response_code,
            addresses: answers.map(|record| record.data.to_string()).collect(),
            error: option(&reply, 15).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]])),
            took,
        };
        assert!(!outcome.addresses.contains(&BAD.to_owned()), "{owner}: {outcome:?}");
        assert!(took < millis(4_800), "{owner}: glibc gives up at 5 s: {outcome:?}");
        outcome
    }

    /// Afterwards: the next name is answered, and nothing of the bad answers is left. What they said of
    /// another name is not believed: that name is asked upstream.
    #[track_caller]
    pub(crate) fn is_sound(&self, what: &str, upstreams: &[&Upstream]) {
        let after = self.ask("after.good.example.");
        assert!(after.is_right(), "{what}: {after:?}");
        let dump = nodens(&["cache", "dump", "--control", &self.agent.control()]);
        assert!(dump.code == 0 && !dump.stdout.contains(BAD), "{what}: {}", dump.text());
        let stolen = self.ask(STOLEN);
        assert!(stolen.is_right(), "{what}: {stolen:?}");
        let asked: usize = upstreams.iter().map(|upstream| upstream.count_of(STOLEN)).sum();
        assert!(asked >= 1, "{what}: {STOLEN} was answered without being asked upstream");
        self.agent.wait_without_flights();
        self.has_at_most(upstreams.len() * CONNECTIONS);
        let grown = self.agent.resident_kib().saturating_sub(self.resident_kib);
        assert!(grown < 8 * 1024, "{what}: {grown} KiB more than before");
    }

    /// Once idle connections are closed, no descriptor is left of them.
    #[track_caller]
    pub(crate) fn is_as_before(&self) {
        self.has_at_most(0);
    }

    /// Waits until no more than this many descriptors were added, and one for HTTP. Connections that were given up stay for
    /// 10 s.
    #[track_caller]
    fn has_at_most(&self, more: usize) {
        let limit = self.descriptors + more + 1;
        wait_until("few descriptors are open", seconds(15), || self.agent.descriptors() <= limit);
    }
}

/// As the config writes it.
pub(crate) fn server(upstream: &Upstream, transport: Transport) -> String {
    match transport {
        Transport::Udp => upstream.udp(),
        Transport::Tcp => upstream.tcp(),
    }
}

/// Does it for all at once, `width` at a time.
pub(crate) fn for_all<'a, T: Sync>(items: &'a [T], width: usize, each: impl Fn(usize, &'a T) + Sync) {
    for (start, chunk) in items.chunks(width).enumerate() {
        thread::scope(|scope| {
            for (n, item) in chunk.iter().enumerate() {
                let each = &each;
                scope.spawn(move || each(start * width + n, item));
            }
        });
    }
}
