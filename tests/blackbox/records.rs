//! Every kind of record passes as the upstream has it.

use std::collections::HashSet;
use std::net::{Ipv6Addr, SocketAddr};

use hickory_proto::op::{MessageType, ResponseCode};
use hickory_proto::rr::DNSClass;

use crate::support::{
    Agent, Launch, Nsd, Reaction, Unbound, Upstream, address_reply, ask, ask_udp, dig, free_port, kdig,
    option, query, reply_code, with_edns,
};

/// The cluster's DNS by TCP, the world outside by UDP: a node's usual config.
fn node(nsd: &Nsd, unbound: &Unbound, more: &str) -> String {
    format!(
        "{more}zones:\n  - match: [cluster.local, in-addr.arpa, ip6.arpa]\n    upstream: {{ servers: [\"tcp://{}\"] }}\n  - match: [\".\"]\n    upstream: {{ servers: [\"udp://{}\"] }}\n",
        nsd.address, unbound.address
    )
}

fn with_node(test: impl FnOnce(&Agent)) {
    let nsd = Nsd::cluster();
    let unbound = Unbound::outside();
    test(&Agent::start(&node(&nsd, &unbound, "")));
}

#[test]
fn every_kind_of_cluster_record_is_answered_on_miss_and_on_hit() {
    let table: &[(&str, &str, &[&str])] = &[
        ("webapp.default.svc.cluster.local", "A", &["10.96.46.232"]),
        (
            "_http._tcp.webapp.default.svc.cluster.local",
            "SRV",
            &["0 100 8080 webapp.default.svc.cluster.local."],
        ),
        ("kube-dns.kube-system.svc.cluster.local", "A", &["10.96.0.10"]),
        (
            "_dns._udp.kube-dns.kube-system.svc.cluster.local",
            "SRV",
            &["0 100 53 kube-dns.kube-system.svc.cluster.local."],
        ),
        ("dual.default.svc.cluster.local", "AAAA", &["fd00:96::7"]),
        (
            "nginx.default.svc.cluster.local",
            "A",
            &["10.244.1.11", "10.244.1.12", "10.244.2.21", "10.244.3.31"],
        ),
        ("10-244-3-31.nginx.default.svc.cluster.local", "A", &["10.244.3.31"]),
        ("my-service.prod.svc.cluster.local", "CNAME", &["my.database.example.com."]),
        ("10-244-2-170.default.pod.cluster.local", "A", &["10.244.2.170"]),
        ("10-244-2-170.webapp.default.svc.cluster.local", "A", &["10.244.2.170"]),
        ("232.46.96.10.in-addr.arpa", "PTR", &["webapp.default.svc.cluster.local."]),
        ("10.0.96.10.in-addr.arpa", "PTR", &["kube-dns.kube-system.svc.cluster.local."]),
        ("31.3.244.10.in-addr.arpa", "PTR", &["10-244-3-31.nginx.default.svc.cluster.local."]),
        ("dns-version.cluster.local", "TXT", &["\"1.1.0\""]),
        ("cluster.local", "NS", &["ns.dns.cluster.local."]),
        ("my.database.example.com", "A", &["203.0.113.7"]),
        ("www.example.com", "AAAA", &["2001:db8::80"]),
        ("example.com", "MX", &["10 mail.example.com."]),
    ];
    with_node(|agent| {
        for (owner, record_type, expected) in table {
            for client in [dig, kdig, dig] {
                let printed = client(agent.address, &[owner, record_type]);
                assert_eq!(printed.status, "NOERROR", "{}", printed.text);
                let mut found = printed.data(record_type);
                found.sort_unstable();
                assert_eq!(found, *expected, "{owner} {record_type}\n{}", printed.text);
                assert!(printed.has_flag("ra") && printed.has_flag("qr"), "{}", printed.text);
                assert!(
                    printed.answers.iter().all(|line| line.ttl > 0 && line.ttl <= 60 && line.class == "IN"),
                    "{}",
                    printed.text
                );
            }
        }
        let asked = table.len() as f64;
        assert!(agent.lookups("miss") >= asked);
        assert!(agent.lookups("hit") >= 2.0 * asked, "hits: {}", agent.lookups("hit"));
    });
}

#[test]
fn an_external_name_comes_back_as_its_cname() {
    with_node(|agent| {
        let printed = dig(agent.address, &["my-service.prod.svc.cluster.local", "A"]);
        assert_eq!(printed.status, "NOERROR", "{}", printed.text);
        assert_eq!(printed.data("CNAME"), ["my.database.example.com."], "{}", printed.text);
    });
}

#[test]
fn a_cname_stays_in_front_of_the_addresses_it_leads_to() {
    with_node(|agent| {
        for _ in 0..4 {
            let printed = dig(agent.address, &["alias.default.svc.cluster.local", "A"]);
            let types: Vec<_> = printed.answers.iter().map(|line| line.record_type.as_str()).collect();
            assert_eq!(types, ["CNAME", "A"], "{}", printed.text);
        }
    });
}

#[test]
fn endpoints_of_a_headless_service_are_rotated() {
    with_node(|agent| {
        let printed = dig(agent.address, &["nginx.default.svc.cluster.local", "A"]);
        let all: HashSet<_> = printed.data("A").into_iter().map(str::to_owned).collect();
        assert_eq!(all.len(), 4, "{}", printed.text);
        let mut first = HashSet::new();
        for _ in 0..60 {
            let reply = ask(agent.address, "nginx.default.svc.cluster.local.", "A");
            let addresses: Vec<_> = reply.answers.iter().map(|record| record.data.to_string()).collect();
            assert_eq!(addresses.iter().cloned().collect::<HashSet<_>>(), all, "{reply}");
            assert_eq!(addresses.len(), 4, "{reply}");
            first.extend(addresses.into_iter().next());
        }
        assert_eq!(first.len(), 4, "only these ever came first: {first:?}");
    });
}

#[test]
fn rotation_can_be_switched_off() {
    let nsd = Nsd::cluster();
    let unbound = Unbound::outside();
    let agent = Agent::start(&node(&nsd, &unbound, "cache: { rotate: false }\n"));
    let order = || {
        let printed = dig(agent.address, &["nginx.default.svc.cluster.local", "A"]);
        printed.data("A").iter().map(|&data| data.to_owned()).collect::<Vec<_>>()
    };
    let first = order();
    for _ in 0..10 {
        assert_eq!(order(), first);
    }
}

#[test]
fn an_unknown_type_passes_untouched() {
    with_node(|agent| {
        for _ in 0..2 {
            let printed = dig(agent.address, &["odd.default.svc.cluster.local", "TYPE65280"]);
            assert_eq!(printed.data("TYPE65280"), ["\\# 4 0A000001"], "{}", printed.text);
        }
    });
}

#[test]
fn any_is_cached_under_its_own_key() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = address_reply(query, 30, "192.0.2.1");
        if reply.answers.is_empty() {
            // Whatever the type, one address: enough of an answer to ANY.
            let mut as_address = query.clone();
            as_address.queries[0].query_type = hickory_proto::rr::RecordType::A;
            reply.answers = address_reply(&as_address, 30, "192.0.2.2").answers;
        }
        Reaction::Answer(reply)
    });
    let agent = Agent::before(upstream.tcp());
    for _ in 0..2 {
        let any = ask(agent.address, "both.example.", "ANY");
        assert_eq!(any.answers[0].data.to_string(), "192.0.2.2");
        let address = ask(agent.address, "both.example.", "A");
        assert_eq!(address.answers[0].data.to_string(), "192.0.2.1");
    }
    assert_eq!(upstream.count_of("both.example."), 2);
}

#[test]
fn axfr_ixfr_and_class_ch_are_refused_and_never_forwarded() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    for record_type in ["AXFR", "TYPE251"] {
        let reply = ask(agent.address, "zone.example.", record_type);
        assert_eq!(reply.metadata.response_code, ResponseCode::Refused, "{record_type}");
    }
    let mut chaos = query("version.bind.", "TXT");
    chaos.queries[0].query_class = DNSClass::CH;
    let reply = ask_udp(agent.address, &chaos).expect("reply");
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    assert_eq!(upstream.count_of("zone.example.") + upstream.count_of("version.bind."), 0);
}

#[test]
fn without_rd_only_the_cache_answers() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    let mut plain = query("known.example.", "A");
    plain.metadata.recursion_desired = false;
    let reply = ask_udp(agent.address, &plain).expect("reply");
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    assert!(!reply.metadata.recursion_desired);
    assert_eq!(upstream.count_of("known.example."), 0);
    ask(agent.address, "known.example.", "A");
    let reply = ask_udp(agent.address, &plain).expect("reply");
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(reply.answers.len(), 1);
    assert!(!reply.metadata.recursion_desired, "RD comes back as it was");
    assert_eq!(upstream.count_of("known.example."), 1);
}

#[test]
fn opt_comes_back_only_if_asked_and_is_our_own() {
    with_node(|agent| {
        let owner = "webapp.default.svc.cluster.local.";
        for _ in 0..2 {
            assert!(ask(agent.address, owner, "A").edns.is_none());
            let reply = ask_udp(agent.address, &with_edns(query(owner, "A"), 4096)).expect("reply");
            let edns = reply.edns.expect("OPT");
            assert_eq!((edns.max_payload(), edns.version()), (1232, 0));
        }
        let without = dig(agent.address, &["+noedns", "webapp.default.svc.cluster.local", "A"]);
        assert!(without.edns.is_empty(), "{}", without.text);
    });
}

#[test]
fn flags_are_echoed_and_aa_is_the_upstreams() {
    let upstream = Upstream::start(|query, _| {
        let mut reply = address_reply(query, 30, "192.0.2.1");
        let owner = query.queries[0].name.to_ascii();
        reply.metadata.authoritative = owner.starts_with("aa");
        reply.metadata.authentic_data = true;
        Reaction::Answer(reply)
    });
    let agent = Agent::before(upstream.tcp());
    for _ in 0..2 {
        let mut asked = query("aa.example.", "A");
        asked.metadata.checking_disabled = true;
        let reply = ask_udp(agent.address, &asked).expect("reply").metadata;
        assert_eq!(reply.message_type, MessageType::Response);
        assert!(reply.checking_disabled && reply.recursion_desired && reply.recursion_available);
        assert!(reply.authoritative);
        assert!(!reply.authentic_data, "AD only for those who asked");
        let mut asked = query("other.example.", "A");
        asked.metadata.authentic_data = true;
        let reply = ask_udp(agent.address, &asked).expect("reply").metadata;
        assert!(reply.authentic_data, "AD for those who asked");
        assert!(!reply.authoritative && !reply.checking_disabled);
    }
}

#[test]
fn client_options_stay_with_the_client() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    let printed = dig(
        agent.address,
        &["+cookie=0123456789abcdef", "+subnet=198.51.100.0/24", "+bufsize=4096", "hop.example", "A"],
    );
    assert_eq!(printed.status, "NOERROR", "{}", printed.text);
    let seen = upstream.seen("hop.example.");
    let asked = &seen[0].query;
    let edns = asked.edns.as_ref().expect("our own OPT");
    assert_eq!(edns.max_payload(), 1232);
    for code in [3, 8, 10, 11, 12] {
        assert!(option(asked, code).is_none(), "option {code} went upstream");
    }
    assert!(asked.metadata.recursion_desired);
}

#[test]
fn upstream_queries_carry_rd_ad_our_opt_and_the_clients_do_and_cd() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    ask(agent.address, "plain.example.", "A");
    let seen = &upstream.seen("plain.example.")[0].query;
    assert!(seen.metadata.recursion_desired && seen.metadata.authentic_data);
    assert!(!seen.metadata.checking_disabled);
    let edns = seen.edns.as_ref().expect("our own OPT");
    assert!(edns.max_payload() == 1232 && !edns.flags().dnssec_ok);
    dig(agent.address, &["+dnssec", "+cdflag", "flags.example", "A"]);
    let seen = &upstream.seen("flags.example.")[0].query;
    assert!(seen.metadata.checking_disabled);
    assert!(seen.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok));
}

#[test]
fn queries_with_and_without_do_are_different_entries() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    for _ in 0..2 {
        dig(agent.address, &["+dnssec", "signed.example", "A"]);
        dig(agent.address, &["+nodnssec", "signed.example", "A"]);
    }
    let seen = upstream.seen("signed.example.");
    let mut with_do: Vec<bool> =
        seen.iter().map(|seen| seen.query.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)).collect();
    with_do.sort_unstable();
    assert_eq!(with_do, [false, true]);
}

#[test]
fn static_hosts_are_answered_forward_and_backward() {
    let upstream = Upstream::start(|query, _| Reaction::Answer(reply_code(query, ResponseCode::NXDomain)));
    let agent = Agent::start(&format!(
        "hosts: {{ ttl: 30s, records: {{ \"10.0.0.7\": [db.example.internal], \"fd00::7\": [db.example.internal] }} }}\nzones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"] }}\n",
        upstream.tcp()
    ));
    let printed = dig(agent.address, &["DB.example.internal", "A"]);
    assert_eq!(printed.data("A"), ["10.0.0.7"], "{}", printed.text);
    assert_eq!(printed.answers[0].ttl, 30);
    assert_eq!(printed.question, "DB.example.internal.");
    let printed = dig(agent.address, &["db.example.internal", "AAAA"]);
    assert_eq!(printed.data("AAAA"), ["fd00::7"], "{}", printed.text);
    for address in ["10.0.0.7", "fd00::7"] {
        let printed = dig(agent.address, &["-x", address]);
        assert_eq!(printed.data("PTR"), ["db.example.internal."], "{}", printed.text);
    }
    let printed = dig(agent.address, &["db.example.internal", "MX"]);
    assert_eq!((printed.status.as_str(), printed.answers.len()), ("NOERROR", 0), "{}", printed.text);
    assert_eq!(upstream.count_of("db.example.internal."), 0);
}

#[test]
fn special_names_are_answered_here() {
    let upstream = Upstream::plain(30);
    let agent = Agent::before(upstream.tcp());
    let printed = dig(agent.address, &["localhost", "A"]);
    assert_eq!(printed.data("A"), ["127.0.0.1"], "{}", printed.text);
    let printed = dig(agent.address, &["a.localhost", "AAAA"]);
    assert_eq!(printed.data("AAAA"), ["::1"], "{}", printed.text);
    let printed = dig(agent.address, &["some.invalid", "A"]);
    assert_eq!(printed.status, "NXDOMAIN", "{}", printed.text);
    let printed = dig(agent.address, &["_dns.resolver.arpa", "SVCB"]);
    assert!(printed.answers.is_empty() && !printed.status.is_empty(), "{}", printed.text);
    for suffix in ["localhost.", "invalid.", "resolver.arpa."] {
        assert_eq!(upstream.count_below(suffix), 0, "{suffix}");
    }
}

#[test]
fn an_ipv6_listener_answers_by_udp_and_tcp() {
    let upstream = Upstream::plain(30);
    let six = SocketAddr::from((Ipv6Addr::LOCALHOST, free_port()));
    let agent = Agent::launch(
        &format!("zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"] }}\n", upstream.tcp()),
        &Launch { also_listen: &[six], ..Launch::default() },
    );
    for address in [six, agent.address] {
        for transport in ["+notcp", "+tcp"] {
            let printed = dig(address, &[transport, "six.example", "A"]);
            assert_eq!(printed.data("A"), ["192.0.2.1"], "{}", printed.text);
            assert_eq!(printed.by_tcp, transport == "+tcp", "{}", printed.text);
        }
    }
}

#[test]
fn a_source_outside_allow_from_is_refused() {
    let upstream = Upstream::plain(30);
    let agent = Agent::start(&format!(
        "allow_from: [\"192.0.2.0/24\"]\nzones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{}\"] }}\n",
        upstream.tcp()
    ));
    let asked = query("www.example.", "A");
    let reply = ask_udp(agent.address, &asked).expect("reply");
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    assert!(reply.to_vec().expect("bytes").len() <= asked.to_vec().expect("bytes").len());
    assert_eq!(upstream.count_of("www.example."), 0);
}
