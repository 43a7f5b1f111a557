//! DNS over TLS to upstreams: Unbound is the server, its certificates are made here.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::traces::trace;
use crate::support::{
    Accept, Agent, Unbound, Upstream, ask_udp, free_port, message, millis, nodens, option, query, seconds,
    wait_until, with_edns,
};

const NAME: &str = "dns.example";
/// Every name below it has this address.
const WILD: [&str; 2] = ["probe.example.com. 60 IN A 203.0.113.7", "example. 60 IN A 203.0.113.7"];
const REDIRECT: &str = "  local-zone: \"example.\" redirect\n";

type Change = fn(&mut CertificateParams);

const AS_IS: Change = |_| {};
const EXPIRED: Change = |params| params.not_after = rcgen::date_time_ymd(2020, 2, 29);

/// A certificate authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    dir: TempDir,
}

impl Authority {
    fn called(name: &str) -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("certificate").pem();
        let authority =
            Self { issuer: Issuer::new(params, key), pem, dir: tempfile::tempdir().expect("directory") };
        fs::write(authority.file(), &authority.pem).expect("ca.pem");
        authority
    }

    /// The file with its certificate.
    fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Unbound with a certificate for this name, for DNS over TLS on this port of 127.0.0.1.
    fn unbound(&self, port: u16, name: &str, change: Change) -> Unbound {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("name");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate");
        let (key_file, file) = (self.dir.path().join("key.pem"), self.dir.path().join("certificate.pem"));
        fs::write(&key_file, key.serialize_pem()).expect("key.pem");
        fs::write(&file, certificate.pem()).expect("certificate.pem");
        let tls = format!(
            "  interface: 127.0.0.1@{port}\n  tls-port: {port}\n  tls-service-key: \"{}\"\n  tls-service-pem: \"{}\"\n{REDIRECT}",
            key_file.display(),
            file.display()
        );
        Unbound::configured(&WILD, &tls)
    }
}

/// The configuration of an agent before these servers, whom this file of authorities has to vouch for.
fn before(servers: &[String], ca: &std::path::Path, more: &str) -> String {
    let servers = servers.join("\", \"");
    format!(
        "zones:\n  - match: [\".\"]\n    upstream: {{ servers: [\"{servers}\"], ca: {}{more} }}\n",
        ca.display()
    )
}

fn server(port: u16) -> String {
    format!("tls://127.0.0.1:{port}#{NAME}")
}

/// The RCODE, the extended error, and how long it took.
fn outcome(agent: &Agent, owner: &str) -> (ResponseCode, Option<u16>, Duration) {
    let started = Instant::now();
    let reply = ask_udp(agent.address, &with_edns(query(owner, "A"), 1232));
    let reply = reply.unwrap_or_else(|| panic!("no reply to {owner}"));
    let error = option(&reply, 15).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    (reply.metadata.response_code, error, started.elapsed())
}

#[track_caller]
fn is_answered(agent: &Agent, owner: &str) {
    assert_eq!(outcome(agent, owner).0, ResponseCode::NoError, "{owner}");
}

fn handshakes(agent: &Agent, result: &str) -> f64 {
    agent.admin.count("nodens_upstream_tls_handshakes_total", &[("result", result)])
}

#[test]
fn a_tls_server_answers_over_few_connections_and_a_reconnect_is_resumed() {
    let (authority, port) = (Authority::called("good"), free_port());
    let _unbound = authority.unbound(port, NAME, AS_IS);
    let bounds = ", connections: { max: 1, in_flight: 64, idle: 1s }";
    let agent = Agent::start(&before(&[server(port)], &authority.file(), bounds));
    is_answered(&agent, "first.example.");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
    socket.set_read_timeout(Some(seconds(5))).expect("timeout");
    for n in 0..50 {
        let asked = message(&query(&format!("n{n}.example."), "A"));
        socket.send_to(&asked, agent.address).expect("query");
    }
    let mut reply = [0; 512];
    for _ in 0..50 {
        let length = socket.recv(&mut reply).expect("50 answers");
        assert!(length > 12 && reply[3] & 0xf == 0 && reply[7] == 1, "{:?}", &reply[..length]);
    }
    assert_eq!([handshakes(&agent, "full"), handshakes(&agent, "failed")], [1.0, 0.0]);
    let label = format!("tls://127.0.0.1:{port}");
    let requests =
        |transport| agent.admin.count("nodens_upstream_requests_total", &[("transport", transport)]);
    assert!(requests("tls") >= 51.0 && requests("tcp") == 0.0 && requests("udp") == 0.0);
    let writes = agent.admin.count("nodens_upstream_writes_total", &[("server", &label)]);
    assert!(writes < 50.0, "several queries share a write: {writes}");
    wait_until("the idle connection is closed", seconds(5), || {
        agent.admin.metric("nodens_upstream_connections", &[("server", &label)]) == Some(0.0)
    });
    is_answered(&agent, "second.example.");
    assert_eq!([handshakes(&agent, "full"), handshakes(&agent, "resumed")], [1.0, 1.0]);
    for owner in ["third.example", "fourth.example"] {
        let trace = trace(&agent, owner);
        let one = &trace["tries"][0];
        assert_eq!((&one["server"], &one["transport"]), (&label.as_str().into(), &"tls".into()), "{trace}");
        assert_eq!((&one["outcome"], &one["reused"]), (&"answered".into(), &true.into()), "{trace}");
    }
}

#[test]
fn a_server_that_does_not_prove_its_name_is_servfail_with_the_reason_and_is_used_once_it_does() {
    let (authority, stranger) = (Authority::called("good"), Authority::called("stranger"));
    for (signer, name, change, reason) in [
        (&authority, "other.example", AS_IS, "its certificate is for `other.example`, not for `dns.example`"),
        (&stranger, NAME, AS_IS, "an authority that is not trusted here"),
        (&authority, NAME, EXPIRED, "its certificate expired at 2020-02-29T00:00:00Z, and it is 2"),
    ] {
        let port = free_port();
        let unbound = signer.unbound(port, name, change);
        let agent = Agent::start(&before(&[server(port)], &authority.file(), ""));
        for n in 0..4 {
            let (code, error, took) = outcome(&agent, &format!("n{n}.example."));
            assert_eq!((code, error), (ResponseCode::ServFail, Some(22)), "{reason}");
            assert!(took < millis(1_500), "{reason}: {took:?}");
        }
        let line = format!("no TLS with tls://127.0.0.1:{port}: ");
        let output = agent.output();
        let lines: Vec<&str> = output.lines().filter(|text| text.contains(&line)).collect();
        assert!(matches!(lines[..], [one] if one.contains(reason)), "{reason}: {output}");
        let failed = agent.admin.count("nodens_upstream_failures_total", &[("cause", "certificate")]);
        let connects = agent.admin.count("nodens_upstream_connects_total", &[("result", "tls")]);
        // Three tries, and a probe has failed too: then nobody asks it any more.
        assert!(failed >= 3.0 && connects >= 4.0, "{failed} {connects}");
        assert!(handshakes(&agent, "failed") >= 4.0 && handshakes(&agent, "full") == 0.0);
        let trace = trace(&agent, "trace.example");
        let tries = trace["tries"].as_array().expect("tries");
        // Before a probe has failed too it is asked, and nobody afterwards.
        let is_down = tries.is_empty() && trace["servers"][0]["state"] == "down";
        let is_asked =
            |one: &serde_json::Value| one["outcome"] == "certificate" && one["transport"].is_null();
        assert!(is_down || (!tries.is_empty() && tries.iter().all(is_asked)), "{trace}");
        drop(unbound);
        let _unbound = authority.unbound(port, NAME, AS_IS);
        let (back, mut asked) = (Instant::now(), 0);
        wait_until("it is answered", seconds(5), || {
            asked += 1;
            outcome(&agent, &format!("back{asked}.example.")).0 == ResponseCode::NoError
        });
        assert!(back.elapsed() < seconds(2), "{:?}", back.elapsed());
        is_answered(&agent, "n3.example.");
    }
}

#[test]
fn a_tls_server_that_stalls_in_the_handshake_is_given_up_in_time_and_keeps_nobody_from_another() {
    let (authority, port) = (Authority::called("good"), free_port());
    let _unbound = authority.unbound(port, NAME, AS_IS);
    let stalled = Upstream::plain(30);
    stalled.accept(|_| Accept::Ignore);
    let both = [server(stalled.address.port()), server(port)];
    let agent = Agent::start(&before(&both, &authority.file(), ", policy: sequential"));
    for n in 0..4 {
        let (code, _, took) = outcome(&agent, &format!("n{n}.example."));
        assert!(code == ResponseCode::NoError && took < millis(2_500), "{code} after {took:?}");
    }
    let agent = Agent::start(&before(&both[..1], &authority.file(), ""));
    let (code, error, took) = outcome(&agent, "alone.example.");
    assert_eq!((code, error), (ResponseCode::ServFail, Some(22)));
    assert!(took < millis(4_500), "{took:?}");
    wait_until("the handshake is given up", seconds(5), || handshakes(&agent, "failed") >= 1.0);
    wait_until("the log says so", seconds(2), || agent.output().contains("took more than 1500 ms"));
}

#[test]
fn a_server_that_speaks_no_tls_is_servfail_and_hears_no_question() {
    let authority = Authority::called("good");
    let plain = Upstream::plain(30);
    let agent = Agent::start(&before(&[server(plain.address.port())], &authority.file(), ""));
    let (code, error, _) = outcome(&agent, "secret.example.");
    assert_eq!((code, error), (ResponseCode::ServFail, Some(22)));
    assert!(plain.connections() >= 1, "it was tried");
    assert_eq!(plain.count_below("."), 0);
}

#[test]
fn authorities_that_cannot_be_read_are_an_error_at_the_start_that_names_the_file() {
    let dir = tempfile::tempdir().expect("directory");
    for (file, why) in [("missing.pem", "cannot be read"), ("empty.pem", "holds no certificate")] {
        let ca = dir.path().join(file);
        if why.contains("holds") {
            fs::write(&ca, "").expect("empty.pem");
        }
        let config = dir.path().join("nodens.yaml");
        let head = format!(
            "listen: [\"127.0.0.1:{}\"]\nadmin: \"127.0.0.1:{}\"\ncontrol: {}\n",
            free_port(),
            free_port(),
            dir.path().join("control.sock").display()
        );
        fs::write(&config, head + &before(&[server(853)], &ca, "")).expect("nodens.yaml");
        let tool = nodens(&["run", "--config", &config.display().to_string()]);
        let text = tool.text();
        assert!(tool.code == 1 && text.contains(file) && text.contains(why), "{}: {text}", tool.code);
    }
}

#[test]
fn a_reload_takes_the_authorities_anew_or_changes_nothing() {
    let (old, new, port) = (Authority::called("old"), Authority::called("new"), free_port());
    let unbound = old.unbound(port, NAME, AS_IS);
    let file = old.dir.path().join("trusted.pem");
    fs::copy(old.file(), &file).expect("trusted.pem");
    let mut agent = Agent::start(&format!("reload: signal\n{}", before(&[server(port)], &file, "")));
    let last_reload = |agent: &Agent| agent.admin.metric("nodens_config_last_reload_success", &[]);
    is_answered(&agent, "first.example.");
    fs::write(&file, "").expect("trusted.pem");
    agent.signal("HUP");
    wait_until("the failure shows", seconds(5), || last_reload(&agent) == Some(0.0));
    is_answered(&agent, "second.example.");
    assert!(agent.output().contains("trusted.pem: holds no certificate"), "{}", agent.output());
    drop(unbound);
    let _unbound = new.unbound(port, NAME, AS_IS);
    assert_eq!(outcome(&agent, "third.example.").0, ResponseCode::ServFail);
    fs::copy(new.file(), &file).expect("trusted.pem");
    agent.signal("HUP");
    wait_until("it is in use", seconds(5), || last_reload(&agent) == Some(1.0));
    is_answered(&agent, "fourth.example.");
    assert!(!agent.has_ended());
}

#[test]
fn servers_of_one_name_keep_sessions_of_their_own() {
    let authority = Authority::called("good");
    let ports = [free_port(), free_port()];
    let _unbound = ports.map(|port| authority.unbound(port, NAME, AS_IS));
    let bounds = ", policy: round_robin, connections: { max: 1, in_flight: 64, idle: 1s }";
    let agent = Agent::start(&before(&ports.map(server), &authority.file(), bounds));
    for round in 0..3 {
        for n in 0..4 {
            is_answered(&agent, &format!("n{n}.r{round}.example."));
        }
        wait_until("idle connections are closed", seconds(5), || {
            agent.admin.metric("nodens_upstream_connections", &[]) == Some(0.0)
        });
    }
    assert_eq!(handshakes(&agent, "full"), 2.0, "one for each server");
    assert_eq!(handshakes(&agent, "resumed"), 4.0);
}

/// Where it listens, as Unbound's other clients see it.
#[test]
fn unbound_speaks_tls_on_the_port_that_these_tests_give_it() {
    let (authority, port) = (Authority::called("good"), free_port());
    let _unbound = authority.unbound(port, NAME, AS_IS);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let ca = format!("+tls-ca={}", authority.file().display());
    let printed = crate::support::kdig(address, &[&ca, &format!("+tls-hostname={NAME}"), "a.example", "A"]);
    assert_eq!(printed.data("A"), ["203.0.113.7"], "{}", printed.text);
}
