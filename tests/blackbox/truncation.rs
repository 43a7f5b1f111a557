//! What does not fit into a datagram.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, Record};

use crate::support::{
    Agent, Nsd, Reaction, Transport, Upstream, address_reply, ask_tcp, ask_udp, datagram_reply, dig, kdig,
    message, name, query, seconds, with_edns,
};

/// Size of a reply by UDP, its TC bit and its number of answers.
fn shape(agent: &Agent, asked: &hickory_proto::op::Message) -> (usize, bool, usize) {
    let bytes = datagram_reply(agent.address, &message(asked), seconds(6)).expect("reply");
    let reply = hickory_proto::op::Message::from_vec(&bytes).expect("a whole message");
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    (bytes.len(), reply.metadata.truncation, reply.answers.len())
}

#[test]
fn a_datagram_holds_512_bytes_or_what_the_client_says_up_to_1232() {
    let nsd = Nsd::cluster();
    let agent = Agent::before(format!("tcp://{}", nsd.address));
    let big = "big.default.svc.cluster.local."; // 40 records
    let huge = "huge.default.svc.cluster.local."; // 200 records
    for _ in 0..2 {
        let (length, truncated, answers) = shape(&agent, &query(big, "A"));
        assert!(truncated && length <= 512 && answers < 40, "{length} {answers}");
        assert!(answers >= 20, "the records that fit are there: {answers}");
        let (length, truncated, answers) = shape(&agent, &with_edns(query(big, "A"), 512));
        assert!(truncated && length <= 512 && answers < 40, "{length} {answers}");
        // Below 512 means 512.
        let (length, truncated, answers) = shape(&agent, &with_edns(query(big, "A"), 100));
        assert!(truncated && length <= 512 && answers >= 20, "{length} {answers}");
        let (length, truncated, answers) = shape(&agent, &with_edns(query(big, "A"), 1232));
        assert!(!truncated && length <= 1232 && answers == 40, "{length} {answers}");
        for size in [1232, 4096, 65_535] {
            let (length, truncated, answers) = shape(&agent, &with_edns(query(huge, "A"), size));
            assert!(truncated && length <= 1232 && answers >= 60, "{length} {answers}");
        }
        for asked in [query(huge, "A"), with_edns(query(huge, "A"), 512)] {
            let reply = ask_tcp(agent.address, &asked);
            assert!(!reply.metadata.truncation);
            assert_eq!(reply.answers.len(), 200);
        }
    }
}

#[test]
fn edns_size_lowers_our_own_limit() {
    let nsd = Nsd::cluster();
    let agent = Agent::start(&format!(
        "edns_size: 600\nzones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"tcp://{}\"] }}\n",
        nsd.address
    ));
    let asked = with_edns(query("big.default.svc.cluster.local.", "A"), 4096);
    let (length, truncated, answers) = shape(&agent, &asked);
    assert!(truncated && length <= 600 && answers > 20, "{length} {answers}");
    let reply = ask_udp(agent.address, &asked).expect("reply");
    assert_eq!(reply.edns.expect("OPT").max_payload(), 600);
}

#[test]
fn dig_and_kdig_come_back_by_tcp() {
    let nsd = Nsd::cluster();
    let agent = Agent::before(format!("tcp://{}", nsd.address));
    for client in [dig, kdig] {
        let printed = client(agent.address, &["huge.default.svc.cluster.local", "A"]);
        assert!(printed.by_tcp, "{}", printed.text);
        assert!(!printed.has_flag("tc"), "{}", printed.text);
        assert_eq!(printed.data("A").len(), 200, "{}", printed.text);
    }
    let printed = dig(agent.address, &["+ignore", "huge.default.svc.cluster.local", "A"]);
    assert!(printed.has_flag("tc") && !printed.by_tcp, "{}", printed.text);
}

#[test]
fn leaving_out_additional_records_is_no_truncation() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = address_reply(query, 30, "192.0.2.1");
        for n in 0..60 {
            let data = RData::from(IpAddr::from([198, 51, 100, n]));
            reply.add_additional(Record::from_rdata(name(&format!("glue{n}.example.")), 30, data));
        }
        Reaction::Answer(reply)
    });
    let agent = Agent::before(upstream.tcp());
    for _ in 0..2 {
        let (length, truncated, answers) = shape(&agent, &query("glue.example.", "A"));
        assert!(length <= 512 && !truncated && answers == 1, "{length} {truncated} {answers}");
    }
    let whole = ask_tcp(agent.address, &query("glue.example.", "A"));
    assert_eq!(whole.additionals.len(), 60);
}

#[test]
fn a_truncated_upstream_answer_is_fetched_by_tcp_and_never_cached() {
    let upstream = Upstream::start(|query, transport| {
        let mut reply = address_reply(query, 30, "192.0.2.1");
        if transport == Transport::Udp {
            reply.metadata.truncation = true;
            reply.answers.clear();
        }
        Reaction::Answer(reply)
    });
    let agent = Agent::before(upstream.udp());
    for _ in 0..3 {
        let reply = ask_udp(agent.address, &query("cut.example.", "A")).expect("reply");
        assert!(!reply.metadata.truncation);
        assert_eq!(reply.answers.len(), 1);
    }
    let transports: Vec<_> = upstream.seen("cut.example.").iter().map(|seen| seen.transport).collect();
    assert_eq!(transports, [Transport::Udp, Transport::Tcp]);
}

#[test]
fn a_large_name_comes_whole_through_an_upstream_asked_by_udp() {
    let nsd = Nsd::cluster();
    let agent = Agent::before(format!("udp://{}", nsd.address));
    let printed = kdig(agent.address, &["+tcp", "huge.default.svc.cluster.local", "A"]);
    assert_eq!(printed.data("A").len(), 200, "{}", printed.text);
    let count = |transport| agent.admin.count("nodens_upstream_requests_total", &[("transport", transport)]);
    assert!(count("udp") >= 1.0 && count("tcp") >= 1.0, "{} {}", count("udp"), count("tcp"));
}
