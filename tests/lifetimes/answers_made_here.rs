//! Queries that need neither cache nor upstream: rules, static records, refusals.

use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use nodens::config::{Config, Hosts};
use nodens::metrics::Source;

use super::agent::{
    Agent, Outcome, a, config, in_class, name, query, record, response, ttls, with_opt, zone,
};

/// The RDATA of the answer section, as text.
fn data(reply: &Message) -> Vec<String> {
    reply.answers.iter().map(|record| record.data.to_string()).collect()
}

#[test]
fn special_names_are_answered_by_rule() {
    use ResponseCode::{NXDomain, NoError};
    let agent = Agent::plain();
    for (owner, qtype, code, expected) in [
        ("localhost.", 1, NoError, vec!["127.0.0.1"]),
        ("LocalHost.", 28, NoError, vec!["::1"]),
        ("a.b.localhost.", 1, NoError, vec!["127.0.0.1"]),
        ("localhost.", 16, NoError, vec![]),
        ("invalid.", 1, NXDomain, vec![]),
        ("a.invalid.", 255, NXDomain, vec![]),
        ("_probe.nodens.invalid.", 1, NoError, vec!["127.0.0.1"]),
        ("_probe.nodens.invalid.", 28, NoError, vec![]),
        ("nodens.invalid.", 1, NXDomain, vec![]),
        ("_dns.resolver.arpa.", 64, NoError, vec![]),
        ("resolver.arpa.", 1, NoError, vec![]),
    ] {
        let (source, reply) = agent.ask(0.0, &query(owner, qtype)).reply();
        assert_eq!((source, reply.metadata.response_code), (Source::Local, code), "{owner}");
        assert_eq!(data(&reply), expected, "{owner} {qtype}");
        assert!(reply.queries[0].name().eq_case(&name(owner)), "in the client's letters");
    }
    for owner in ["xlocalhost.", "localhost.test.", "arpa.", "notinvalid."] {
        assert!(agent.ask(0.0, &query(owner, 1)).waits(), "{owner} is nothing special");
    }
}

#[test]
fn static_records_are_answered_both_ways_and_hide_the_zone() {
    let hosts = Hosts {
        ttl: Duration::from_secs(42),
        records: vec![
            ("10.1.2.3".parse().expect("IPv4"), vec![name("registry.test."), name("Mirror.test.")]),
            ("10.1.2.4".parse().expect("IPv4"), vec![name("registry.test.")]),
            ("fd00::3".parse().expect("IPv6"), vec![name("registry.test.")]),
        ],
    };
    let agent = Agent::new(&Config { hosts, zones: vec![zone(".")], ..Config::default() });
    for (owner, qtype, expected) in [
        ("REGISTRY.test.", 28, vec!["fd00::3"]),
        ("mirror.test.", 1, vec!["10.1.2.3"]),
        ("mirror.test.", 28, vec![]),
        ("registry.test.", 16, vec![]),
        ("3.2.1.10.in-addr.arpa.", 12, vec!["registry.test.", "mirror.test."]),
        ("3.2.1.10.in-addr.arpa.", 1, vec![]),
    ] {
        let (source, reply) = agent.ask(9.0, &query(owner, qtype)).reply();
        assert_eq!(
            (source, data(&reply)),
            (Source::Hosts, expected.iter().map(|s| (*s).to_owned()).collect())
        );
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert_eq!(ttls(&reply), vec![42; expected.len()]);
    }
    let mut addresses = data(&agent.ask(0.0, &query("registry.test.", 1)).reply().1);
    addresses.sort();
    assert_eq!(addresses, ["10.1.2.3", "10.1.2.4"]);
    for owner in ["www.registry.test.", "test.", "4.3.2.1.in-addr.arpa."] {
        assert!(agent.ask(0.0, &query(owner, 1)).waits(), "{owner} is not in the table");
    }
    assert!(agent.ask(0.0, &in_class(query("registry.test.", 1), 4)).waits(), "nor in another class");
}

/// Refused, or answered by a header, whatever the cache holds.
#[test]
fn what_is_never_looked_up_is_refused_in_a_way_that_says_why() {
    let agent = Agent::plain();
    let any = query("web.test.", 255);
    let mut badvers = with_opt(query("web.test.", 1));
    badvers.edns.as_mut().map(|edns| edns.set_version(1)).expect("an OPT");
    let mut notify = query("web.test.", 6);
    notify.metadata.op_code = OpCode::Notify;
    let mut two = query("web.test.", 1);
    two.add_query(two.queries[0].clone());
    for (what, asked, code) in [
        ("version.bind", in_class(query("version.bind.", 16), 3), ResponseCode::Refused),
        ("CH", in_class(query("web.test.", 1), 3), ResponseCode::Refused),
        ("AXFR", query("web.test.", 252), ResponseCode::Refused),
        ("IXFR", query("web.test.", 251), ResponseCode::Refused),
        ("EDNS 1", badvers, ResponseCode::BADVERS),
        ("NOTIFY", notify, ResponseCode::NotImp),
        ("two questions", two, ResponseCode::FormErr),
    ] {
        let (source, reply) = agent.ask(0.0, &asked).reply();
        // 16 has two names.
        let got = u16::from(reply.metadata.response_code);
        assert_eq!((source, got), (Source::Local, u16::from(code)), "{what}");
        assert_eq!(reply.metadata.id, asked.metadata.id, "{what}");
        assert!(reply.answers.is_empty());
        let with_question = !matches!(code, ResponseCode::NotImp | ResponseCode::FormErr);
        assert_eq!(reply.edns.is_some(), asked.edns.is_some() && with_question, "{what}");
    }
    // ANY is a type like others, with an answer of its own (RFC 8482).
    assert!(agent.ask(0.0, &any).waits());
    agent.learn(&any, &response(&any, vec![record("web.test.", 30, a(1))], vec![]));
    assert_eq!(agent.ask(1.0, &any).reply().0, Source::Hit);
    assert!(agent.ask(1.0, &query("web.test.", 1)).waits(), "not made of ANY's answer");
}

#[test]
fn what_is_no_query_gets_no_answer() {
    let agent = Agent::plain();
    let mut response = query("web.test.", 1).to_vec().expect("it fits");
    response[2] |= 0x80;
    for packet in [&[][..], &[0; 11], &response] {
        assert!(matches!(agent.ask_bytes(0.0, packet), Outcome::Drop));
    }
}

#[test]
fn strangers_are_refused_with_no_more_bytes_than_they_sent() {
    let mut agent = Agent::new(&config(|_| {}));
    let asked = query("web.test.", 1);
    agent.learn(&asked, &response(&asked, vec![record("web.test.", 30, a(1))], vec![]));
    agent.client.allowed = false;
    let mut transfer = with_opt(query("web.test.", 252));
    transfer.metadata.checking_disabled = true;
    for asked in [
        asked.clone(),
        with_opt(asked),
        query(".", 2),
        query("localhost.", 1),
        in_class(with_opt(query("version.bind.", 16)), 3),
        transfer,
    ] {
        let sent = asked.to_vec().expect("it fits").len();
        let Outcome::Reply(source, reply, length) = agent.ask(1.0, &asked) else { panic!("no reply") };
        assert_eq!((source, reply.metadata.response_code), (Source::Local, ResponseCode::Refused));
        assert!(length <= sent, "{length} bytes for {sent}");
        assert!(reply.answers.is_empty());
    }
}
