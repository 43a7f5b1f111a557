//! Packets that are wrong, and a few that only look so.

use std::collections::HashSet;

use hickory_proto::op::{Message, MessageType};

use crate::support::{Agent, Tcp, Transport, Upstream, ask, datagram_reply, message, millis, query, seconds};

/// What must come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Nothing.
    Dropped,
    /// A reply with the query's ID and this RCODE, the OPT's upper bits included.
    Code(u16),
    /// Never wanted: a reply that is malformed itself, or does not belong to the query.
    Unsound,
}

use Expect::{Code, Dropped, Unsound};

const NOERROR: Expect = Code(0);
const FORMERR: Expect = Code(1);
const NOTIMP: Expect = Code(4);
const REFUSED: Expect = Code(5);
const BADVERS: Expect = Code(16);

/// First byte 0x41: read as a label it is no length, so a pointer into the header is wrong.
const ID: [u8; 2] = [0x41, 0x42];
const RD: u16 = 0x0100;
const QR: u16 = 0x8000;
const A: [u8; 4] = [0, 1, 0, 1];
const WWW: &[u8] = b"\x03www\x07example\0";
/// OPT, 1232 bytes, version 0, no options.
const OPT: &[u8] = &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];

const fn opcode(number: u16) -> u16 {
    RD | (number << 11)
}

/// A header with these flags and counts (question, answer, authority, additional), then the parts.
fn packet(flags: u16, counts: [u16; 4], parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = ID.to_vec();
    bytes.extend(flags.to_be_bytes());
    for count in counts {
        bytes.extend(count.to_be_bytes());
    }
    parts.iter().for_each(|part| bytes.extend(*part));
    bytes
}

/// One question, whatever its name's bytes are.
fn question(owner: &[u8]) -> Vec<u8> {
    packet(RD, [1, 0, 0, 0], &[owner, &A])
}

/// `www.example. A` with this type and class.
fn typed(record_type: u16, class: u16) -> Vec<u8> {
    let (record_type, class) = (record_type.to_be_bytes(), class.to_be_bytes());
    packet(RD, [1, 0, 0, 0], &[WWW, &record_type, &class])
}

/// `www.example. A` with records in additional.
fn additional(count: u16, records: &[&[u8]]) -> Vec<u8> {
    let mut bytes = packet(RD, [1, 0, 0, count], &[WWW, &A]);
    records.iter().for_each(|record| bytes.extend(*record));
    bytes
}

/// A name of labels of these lengths.
fn labels(lengths: &[usize]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &length in lengths {
        bytes.push(u8::try_from(length).expect("a label's length"));
        bytes.resize(bytes.len() + length, b'x');
    }
    bytes.push(0);
    bytes
}

pub(crate) fn table() -> Vec<(&'static str, Vec<u8>, Expect)> {
    // An address record with the root as its owner.
    let record: &[u8] = &[0, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 1];
    let tsig: &[u8] =
        &[0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 1, 44, 0, 0, 0x41, 0x42, 0, 0, 0, 0];
    let plain = question(WWW);
    vec![
        // Not even a header, or no query: silence.
        ("empty datagram", vec![], Dropped),
        ("one byte", vec![0x41], Dropped),
        ("eleven bytes", plain[..11].to_vec(), Dropped),
        ("a response", packet(QR | RD, [1, 0, 0, 0], &[WWW, &A]), Dropped),
        ("a response's header alone", packet(QR, [0; 4], &[]), Dropped),
        ("a NOTIFY response", packet(QR | opcode(4), [1, 0, 0, 0], &[WWW, &A]), Dropped),
        ("a malformed response", packet(QR, [1, 0, 0, 0], &[&[0xc0, 0x0c]]), Dropped),
        // The question section.
        ("no question", packet(RD, [0; 4], &[]), FORMERR),
        ("no question but an OPT", packet(RD, [0, 0, 0, 1], &[OPT]), FORMERR),
        ("two questions", packet(RD, [2, 0, 0, 0], &[WWW, &A, WWW, &A]), FORMERR),
        ("65,535 questions", packet(RD, [65_535, 0, 0, 0], &[WWW, &A]), FORMERR),
        ("a question that is not there", packet(RD, [1, 0, 0, 0], &[]), FORMERR),
        ("a name cut inside a label", packet(RD, [1, 0, 0, 0], &[b"\x07exam"]), FORMERR),
        ("a name without its end", packet(RD, [1, 0, 0, 0], &[b"\x07example"]), FORMERR),
        ("no type", packet(RD, [1, 0, 0, 0], &[WWW]), FORMERR),
        ("half a type", packet(RD, [1, 0, 0, 0], &[WWW, &[0]]), FORMERR),
        ("no class", packet(RD, [1, 0, 0, 0], &[WWW, &[0, 1]]), FORMERR),
        ("half a class", packet(RD, [1, 0, 0, 0], &[WWW, &[0, 1, 0]]), FORMERR),
        ("a label of 64", question(&labels(&[64])), FORMERR),
        ("label type 01", question(&[0x41, b'x', 0]), FORMERR),
        ("label type 10", question(&[0x81, b'x', 0]), FORMERR),
        ("a name of 256", question(&labels(&[63, 63, 63, 62])), FORMERR),
        ("a name of 1,281", question(&labels(&[63; 20])), FORMERR),
        ("a pointer to itself", question(&[0xc0, 0x0c]), FORMERR),
        ("two pointers in a circle", question(&[1, b'x', 0xc0, 0x10, 0xc0, 0x0c]), FORMERR),
        ("a label that points back to itself", question(&[1, b'x', 0xc0, 0x0c]), FORMERR),
        ("a pointer beyond the end", question(&[0xc0, 0xff]), FORMERR),
        ("a pointer into the header", question(&[0xc0, 0x00]), FORMERR),
        ("half a pointer", packet(RD, [1, 0, 0, 0], &[&[0xc0]]), FORMERR),
        ("one byte after the question", [&plain[..], &[0]].concat(), FORMERR),
        ("a kilobyte after the question", [&plain[..], &[b'x'; 1_024]].concat(), FORMERR),
        // Records where a query has none.
        ("a record in answer", packet(RD, [1, 1, 0, 0], &[WWW, &A, record]), FORMERR),
        ("an answer that is not there", packet(RD, [1, 1, 0, 0], &[WWW, &A]), FORMERR),
        ("a record in authority", packet(RD, [1, 0, 1, 0], &[WWW, &A, record]), FORMERR),
        ("an OPT in answer", packet(RD, [1, 1, 0, 0], &[WWW, &A, OPT]), FORMERR),
        ("an OPT in authority", packet(RD, [1, 0, 1, 0], &[WWW, &A, OPT]), FORMERR),
        ("a TSIG", additional(1, &[tsig]), FORMERR),
        ("an OPT and a TSIG", additional(2, &[OPT, tsig]), FORMERR),
        // The OPT.
        ("two OPTs", additional(2, &[OPT, OPT]), FORMERR),
        ("an OPT that is not there", additional(1, &[]), FORMERR),
        ("half an OPT", additional(1, &[&OPT[..6]]), FORMERR),
        ("an OPT longer than the packet", additional(1, &[&OPT[..9], &[0, 50]]), FORMERR),
        ("an OPT that is not at the root", additional(1, &[b"\x01x", OPT]), FORMERR),
        ("an option longer than the OPT", additional(1, &[&OPT[..9], &[0, 4, 0, 10, 0, 9]]), FORMERR),
        ("half an option", additional(1, &[&OPT[..9], &[0, 2, 0, 10]]), FORMERR),
        ("one byte after the OPT", additional(1, &[OPT, &[0]]), FORMERR),
        ("EDNS version 1", additional(1, &[&OPT[..6], &[1], &OPT[7..]]), BADVERS),
        ("EDNS version 255", additional(1, &[&OPT[..6], &[255], &OPT[7..]]), BADVERS),
        // The opcode is judged first.
        ("IQUERY", packet(opcode(1), [1, 0, 0, 0], &[WWW, &A]), NOTIMP),
        ("STATUS without a question", packet(opcode(2), [0; 4], &[]), NOTIMP),
        ("NOTIFY", packet(opcode(4), [1, 0, 0, 0], &[WWW, &A]), NOTIMP),
        ("UPDATE", packet(opcode(5), [1, 0, 1, 0], &[WWW, &A, record]), NOTIMP),
        ("UPDATE with rubbish behind", packet(opcode(5), [1, 2, 3, 4], &[&[0xff; 30]]), NOTIMP),
        ("opcode 15", packet(opcode(15), [1, 0, 0, 0], &[WWW, &A]), NOTIMP),
        // Sound, and not for us.
        ("AXFR", typed(252, 1), REFUSED),
        ("IXFR", typed(251, 1), REFUSED),
        ("class CH", typed(16, 3), REFUSED),
        ("not cached, without RD", packet(0, [1, 0, 0, 0], &[b"\x03new\0", &A]), REFUSED),
        // Unusual, and sound.
        ("a label of 63", question(&labels(&[63])), NOERROR),
        ("a name of 255", question(&labels(&[63, 63, 63, 61])), NOERROR),
        ("the root", question(&[0]), NOERROR),
        ("bytes that are no letters", question(b"\x04\x00\xff. \0"), NOERROR),
        ("the Z bit", packet(RD | 0x0040, [1, 0, 0, 0], &[WWW, &A]), NOERROR),
        ("an RCODE in a query", packet(RD | 3, [1, 0, 0, 0], &[WWW, &A]), NOERROR),
        ("OPT size 0", additional(1, &[&OPT[..3], &[0, 0], &OPT[5..]]), NOERROR),
        ("an unknown option", additional(1, &[&OPT[..9], &[0, 6, 0xff, 0xfe, 0, 2, 7, 7]]), NOERROR),
        ("an unknown EDNS flag", additional(1, &[&OPT[..7], &[0x40, 1], &OPT[9..]]), NOERROR),
    ]
}

/// What a reply says, its ID, QR and form checked on the way.
fn found(reply: Option<Vec<u8>>) -> Expect {
    let Some(bytes) = reply else { return Dropped };
    let Ok(reply) = Message::from_vec(&bytes) else {
        return Unsound;
    };
    let is_reply = reply.metadata.message_type == MessageType::Response;
    if reply.metadata.id.to_be_bytes() != ID || !is_reply {
        return Unsound;
    }
    Code(reply.metadata.response_code.into())
}

#[test]
fn malformed_packets_get_what_the_rules_say_and_the_agent_goes_on() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    ask(agent.address, "alive.example.", "A");
    let dropped = agent.admin.count("nodens_dropped_total", &[]);
    let descriptors = agent.descriptors();
    let table = table();
    assert!(table.len() >= 40);
    assert_eq!(table.iter().map(|row| row.0).collect::<HashSet<_>>().len(), table.len());
    let mut wrong = Vec::new();
    for (name, bytes, expected) in &table {
        // 0.2 s of silence is enough: a refusal takes microseconds.
        let limit = if *expected == Dropped { millis(200) } else { seconds(5) };
        let found = found(datagram_reply(agent.address, bytes, limit));
        if found != *expected {
            wrong.push(format!("{name}: {found:?} and not {expected:?}"));
        }
        // The name is cached: this says that the agent lives, not that the upstream does.
        assert_eq!(ask(agent.address, "alive.example.", "A").answers.len(), 1, "after {name}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let silent = table.iter().filter(|row| row.2 == Dropped).count() as f64;
    let counted = agent.admin.count("nodens_dropped_total", &[]) - dropped;
    assert!(counted >= silent, "{silent} were dropped, {counted} counted");
    agent.wait_without_flights();
    assert!(agent.descriptors() <= descriptors + 16, "upstream connections at most");
    assert_eq!(upstream.count(Transport::Udp), 0);
}

#[test]
fn malformed_packets_by_tcp_get_the_same_codes() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    let mut wrong = Vec::new();
    for (name, bytes, expected) in table() {
        if expected == Dropped {
            continue;
        }
        let mut connection = Tcp::connect(agent.address);
        let length = u16::try_from(bytes.len()).expect("short").to_be_bytes();
        connection.send_bytes(&[&length, &bytes[..]].concat());
        let found = found(connection.receive_bytes());
        if found != expected {
            wrong.push(format!("{name}: {found:?} and not {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    agent.wait_without_flights();
}

#[test]
fn broken_framing_harms_only_its_own_connection() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    let mut good = Tcp::connect(agent.address);
    for bytes in
        [&[0_u8, 0][..], &[0, 5, 1, 2, 3, 4, 5], &[0], &[255, 255, 1], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]
    {
        let mut bad = Tcp::connect(agent.address);
        bad.send_bytes(bytes);
        bad.finish();
        assert!(bad.is_closed_within(seconds(12)), "{bytes:?}");
        good.send(&query("www.example.", "A"));
        assert!(good.receive().is_some(), "after {bytes:?}");
    }
}

#[test]
fn ten_thousand_broken_packets_leave_nothing_behind() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    ask(agent.address, "alive.example.", "A");
    let sound = message(&query("www.example.", "A"));
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("client socket");
    // A small generator of our own: the same packets in every run.
    let mut state = 0x2545_f491_u32;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as usize
    };
    let mut spray = |count: usize| {
        for n in 0..count {
            let mut bytes = sound.clone();
            for _ in 0..=next() % 4 {
                let at = next() % bytes.len();
                bytes[at] = next().to_le_bytes()[0];
            }
            bytes.truncate(next() % (bytes.len() + 1));
            socket.send_to(&bytes, agent.address).expect("send");
            if n % 50 == 49 {
                std::thread::sleep(millis(1));
            }
        }
    };
    spray(2_000);
    let (descriptors, memory) = (agent.descriptors(), agent.resident_kib());
    spray(8_000);
    assert_eq!(ask(agent.address, "alive.example.", "A").answers.len(), 1);
    agent.wait_without_flights();
    assert!(agent.descriptors() <= descriptors + 16, "upstream connections at most");
    let grown = agent.resident_kib().saturating_sub(memory);
    assert!(grown < 8 * 1024, "{grown} KiB more");
}
