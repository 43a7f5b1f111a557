//! The servers and clients themselves, without the agent: what a failed test may rely on.

use crate::support::{
    Nsd, Reaction, Transport, Unbound, Upstream, address_reply, ask, ask_tcp, ask_udp, dig, dnsperf, kdig,
    query, seconds, wait_until, with_edns,
};
use hickory_proto::op::ResponseCode;

#[test]
fn nsd_serves_the_cluster_zone_to_dig_and_kdig() {
    let nsd = Nsd::cluster();
    for printed in [
        dig(nsd.address, &["webapp.default.svc.cluster.local", "A"]),
        kdig(nsd.address, &["webapp.default.svc.cluster.local", "A"]),
        kdig(nsd.address, &["+tcp", "webapp.default.svc.cluster.local", "A"]),
    ] {
        assert_eq!(printed.status, "NOERROR", "{}", printed.text);
        assert_eq!(printed.data("A"), ["10.96.46.232"], "{}", printed.text);
        assert_eq!(printed.question, "webapp.default.svc.cluster.local.");
        assert!(printed.has_flag("aa"), "{}", printed.text);
    }
    let missing = dig(nsd.address, &["nowhere.default.svc.cluster.local", "A"]);
    assert_eq!(missing.status, "NXDOMAIN");
    assert_eq!(missing.authority.len(), 1, "{}", missing.text);
    assert_eq!(missing.authority[0].record_type, "SOA");
    let huge = with_edns(query("huge.default.svc.cluster.local.", "A"), 1232);
    assert!(ask_udp(nsd.address, &huge).expect("reply").metadata.truncation);
    assert_eq!(ask_tcp(nsd.address, &huge).answers.len(), 200);
    assert_eq!(ask(nsd.address, "a.wild.default.svc.cluster.local.", "A").answers.len(), 1);
    assert_eq!(ask(nsd.address, "odd.default.svc.cluster.local.", "TYPE65280").answers.len(), 1);
}

#[test]
fn nsd_stops_and_comes_back_on_the_same_port() {
    let mut nsd = Nsd::cluster();
    nsd.stop();
    let quick = ["+time=1", "webapp.default.svc.cluster.local", "A"];
    assert_eq!(dig(nsd.address, &quick).status, "");
    nsd.resume();
    assert_eq!(dig(nsd.address, &quick).status, "NOERROR");
}

#[test]
fn unbound_serves_what_it_was_given_and_nothing_else() {
    let unbound = Unbound::outside();
    let known = dig(unbound.address, &["my.database.example.com", "A"]);
    assert_eq!(known.data("A"), ["203.0.113.7"], "{}", known.text);
    let unknown = dig(unbound.address, &["other.test", "A"]);
    assert_eq!(unknown.status, "NXDOMAIN", "{}", unknown.text);
    let alias = dig(unbound.address, &["example.com", "MX"]);
    assert_eq!(alias.data("MX"), ["10 mail.example.com."], "{}", alias.text);
}

#[test]
fn dnsperf_counts_are_read() {
    let upstream = Upstream::plain(30);
    let names: Vec<String> = (0..200).map(|n| format!("n{n}.example. A")).collect();
    let load = dnsperf(upstream.address, &names, &["-n", "1", "-c", "4"]);
    assert_eq!((load.sent, load.completed, load.lost, load.good), (200, 200, 0, 200), "{}", load.text);
    assert_eq!(upstream.count(Transport::Udp), 200);
    assert_eq!(upstream.count_below("example."), 200);
    let load = dnsperf(upstream.address, &names, &["-m", "tcp", "-n", "1", "-c", "4"]);
    assert_eq!(load.good, 200, "{}", load.text);
    assert_eq!((upstream.count(Transport::Tcp), upstream.connections()), (200, 4));
}

#[test]
fn scripted_upstream_holds_closes_and_counts() {
    let upstream = Upstream::start(|query, _| {
        let reply = address_reply(query, 30, "192.0.2.1");
        match query.queries.first().map(|question| question.name.to_ascii()) {
            Some(owner) if owner.starts_with("held") => Reaction::Hold(reply),
            Some(owner) if owner.starts_with("closed") => Reaction::Close,
            _ => Reaction::Answer(reply),
        }
    });
    let address = upstream.address;
    let held = std::thread::spawn(move || ask(address, "held.example.", "A"));
    wait_until("the query is held", seconds(5), || upstream.count_of("held.example.") == 1);
    upstream.release();
    let reply = held.join().expect("thread");
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(reply.answers.len(), 1);
    let mut connection = crate::support::Tcp::connect(address);
    connection.send(&query("closed.example.", "A"));
    assert!(connection.receive().is_none());
    wait_until("no connection is open", seconds(5), || upstream.open_connections() == 0);
}
