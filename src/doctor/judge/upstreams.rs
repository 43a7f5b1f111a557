//! Each upstream, by UDP and by TCP: whether it answers the way that the agent asks it, and how fast.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::doctor::Patient;
use crate::doctor::finding::{Finding, Unseen};
use crate::doctor::look::resolv::resolv;
use crate::doctor::look::upstreams::{Asked, How, Outcome, Trouble, ask};
use crate::doctor::sources::AS_ROOT;
use crate::doctor::words::quoted;
use crate::wire::rcode;

const CHECK: &str = "upstream";

/// `stale.client_response` of every zone but `.`: half a second without an answer is when the agent gives clients a
/// stale one instead.
const SLOW: Duration = Duration::from_millis(500);

/// Asks all of them, and judges.
pub async fn check(patient: &Patient) -> Vec<Finding> {
    if let Some(unseen) = super::elsewhere(patient) {
        return vec![Finding::unknown(CHECK, "what the agent reaches is not to be seen", &unseen)];
    }
    let Patient { config, sources, agent, .. } = patient;
    // The agent passes over its own addresses, which are another check's matter.
    let mut system = resolv(sources, agent.pid).servers.unwrap_or_default();
    system.retain(|ip| config.listen.iter().all(|addr| addr.ip() != *ip));
    judge(&ask(config, &system).await)
}

/// What became of one server.
enum Verdict {
    Good,
    /// It answers, and not as it should.
    Half(&'static str, String),
    /// What the agent asks it is lost.
    Dead(&'static str, String),
    NotSeen,
}

/// One finding each. A server that is dead is a problem where its zone has no other, and costs time where it has.
fn judge(all: &[Asked]) -> Vec<Finding> {
    let verdicts: Vec<Verdict> = all.iter().map(verdict).collect();
    let served: BTreeSet<&String> = all
        .iter()
        .zip(&verdicts)
        .filter(|(_, verdict)| matches!(verdict, Verdict::Good | Verdict::Half(..)))
        .flat_map(|(asked, _)| &asked.zones)
        .collect();
    let finding = |(asked, verdict): (&Asked, Verdict)| {
        let what = spoken(asked);
        match verdict {
            Verdict::Good => Finding::ok(CHECK, what),
            Verdict::Half(why, mend) => Finding::warning(CHECK, what, why, mend),
            Verdict::Dead(why, mend) if asked.zones.iter().all(|zone| served.contains(zone)) => {
                let why = format!("{why} Its zones have other servers, which answer.");
                Finding::warning(CHECK, what, why, mend)
            }
            Verdict::Dead(why, mend) => Finding::problem(CHECK, what, why, mend),
            Verdict::NotSeen => {
                let why = "An intercepted address can be asked past the agent only with the agent's mark, which only root \
                           (CAP_NET_ADMIN) may set.";
                Finding::unknown(CHECK, what, &Unseen::new(why, AS_ROOT))
            }
        }
    };
    all.iter().zip(verdicts).map(finding).collect()
}

fn verdict(asked: &Asked) -> Verdict {
    let Asked { udp, tcp, how, .. } = asked;
    let is_unasked = |way: &Option<Outcome>| matches!(way, Some(Err(Trouble::NotAllowed)));
    if is_unasked(udp) || is_unasked(tcp) {
        return Verdict::NotSeen;
    }
    match (how, udp, tcp) {
        (How::Tls, _, Some(tls)) => one_way(asked, tls),
        (_, None, Some(only)) => one_way(asked, only),
        (How::Tcp, Some(udp), Some(tcp)) => match one_way(asked, tcp) {
            Verdict::Dead(_, _) if answers(udp) && tcp.is_err() => Verdict::Dead(
                "The agent asks it by TCP, which is not answered, while UDP is: a firewall or NetworkPolicy that lets UDP \
                 alone through, or a server that serves no TCP.",
                open_tcp(asked, "auto"),
            ),
            verdict => verdict,
        },
        (How::Udp, Some(udp), Some(tcp)) => match one_way(asked, udp) {
            Verdict::Dead(_, _) if udp.is_err() && answers(tcp) => Verdict::Dead(
                "The agent asks it by UDP, which is not answered, while TCP is.",
                format!(
                    "# in the agent's configuration: tcp:// or auto:// in place of udp:// or `system`, or let UDP through\n{}",
                    again(asked, false)
                ),
            ),
            Verdict::Good if !answers(tcp) => Verdict::Half(
                "Answers that UDP truncates are asked for again by TCP, which is not answered: these fail.",
                open_tcp(asked, "udp"),
            ),
            verdict => verdict,
        },
        (How::Auto, Some(udp), Some(tcp)) => match (one_way(asked, tcp), one_way(asked, udp)) {
            (Verdict::Dead(..), Verdict::Good | Verdict::Half(..)) => Verdict::Half(
                "The agent asks it by UDP instead: each query has an entry in connection tracking, and answers that UDP \
                 truncates fail.",
                open_tcp(asked, "auto"),
            ),
            (by_tcp, _) => by_tcp,
        },
        (_, _, None) => Verdict::NotSeen,
    }
}

/// Whether what came is an answer that a client can use: SERVFAIL and REFUSED are none.
fn answers(outcome: &Outcome) -> bool {
    matches!(outcome, Ok((code, _)) if *code != rcode::SERVFAIL && *code != rcode::REFUSED)
}

/// The verdict on the way by which the agent asks.
fn one_way(asked: &Asked, outcome: &Outcome) -> Verdict {
    match outcome {
        Ok((code, _)) if *code == rcode::SERVFAIL => Verdict::Dead(
            "It is there and finds no answer for its own zone: so will clients.",
            format!("# see its own log: its zone, or whom it asks in turn\n{}", again(asked, asked.how != How::Udp)),
        ),
        Ok((code, _)) if *code == rcode::REFUSED => Verdict::Dead(
            "It does not serve this node, or not this zone: clients get REFUSED.",
            format!(
                "# its access list has to allow this node's addresses, and it has to serve the zone\n{}",
                again(asked, asked.how != How::Udp)
            ),
        ),
        Ok((code, _)) if ![rcode::NOERROR, rcode::NXDOMAIN].contains(code) => Verdict::Half(
            "It is there and does not take a plain question for the SOA of its zone.",
            again(asked, asked.how != How::Udp),
        ),
        Ok((_, took)) if *took > SLOW => Verdict::Half(
            "Clients wait that long for each miss; after half a second the agent answers with what it has, if it is stale.",
            path(asked),
        ),
        Ok(_) => Verdict::Good,
        Err(Trouble::Silent) => Verdict::Dead(
            "Packets to it, or its answers, are dropped on the way, or it stands still: what is asked of it waits until the \
             deadline.",
            format!("# a route, a firewall, a NetworkPolicy, or the server itself\n{}", path(asked)),
        ),
        Err(Trouble::Refused) => Verdict::Dead(
            "Its host is there and nobody listens; behind a ClusterIP that is a Service without endpoints.",
            format!("# is the server up? In a cluster, where kubectl works:\nkubectl -n kube-system get endpointslices\n{}", again(asked, asked.how != How::Udp)),
        ),
        Err(Trouble::Unreachable) => Verdict::Dead(
            "This node has no route there, or a router says that there is none.",
            path(asked),
        ),
        Err(Trouble::Name(_)) => Verdict::Dead(
            "A server given by name is resolved by `bootstrap`. Until its name is known, what is asked of it fails.",
            "# in the agent's configuration: the name, and `bootstrap` servers that know it; in a cluster its DNS service:\n\
             #   bootstrap: [\"tcp://CLUSTER-IP\"]"
                .to_owned(),
        ),
        Err(_) if asked.how == How::Tls => Verdict::Dead(
            "There is no TLS connection, so it is never asked.",
            format!("# its certificate, its name in the configuration (tls://ADDRESS#NAME), and `ca`\n{}", handshake(asked)),
        ),
        Err(_) => Verdict::Dead("It does not answer.", path(asked)),
    }
}

/// `udp://10.0.0.1:53 (zone .): UDP 1.2 ms, TCP refused`
fn spoken(asked: &Asked) -> String {
    let Asked { zones, label, udp, tcp, how, .. } = asked;
    let of = if zones.len() == 1 { "zone" } else { "zones" };
    let second = if *how == How::Tls { "TLS" } else { "TCP" };
    let ways: Vec<String> = match (udp, tcp) {
        (None, Some(Err(trouble @ Trouble::Name(_)))) => vec![trouble.to_string()],
        _ => [("UDP", udp), (second, tcp)]
            .into_iter()
            .filter_map(|(name, outcome)| Some(format!("{name} {}", result(outcome.as_ref()?))))
            .collect(),
    };
    format!("{label} ({of} {}): {}", zones.join(", "), ways.join(", "))
}

fn result(outcome: &Outcome) -> String {
    match outcome {
        Ok((rcode::NOERROR, took)) => format!("{:.1} ms", took.as_secs_f64() * 1e3),
        Ok((code, took)) => format!("{} in {:.1} ms", rcode::name(*code), took.as_secs_f64() * 1e3),
        Err(trouble) => trouble.to_string(),
    }
}

/// The way to it.
fn path(asked: &Asked) -> String {
    asked.addr.map_or_else(String::new, |addr| format!("ip route get {}", addr.ip()))
}

/// The same question by hand.
fn again(asked: &Asked, by_tcp: bool) -> String {
    let zone = asked.zones.first().map_or(".", String::as_str);
    let tcp = if by_tcp { " --tcp" } else { "" };
    asked
        .addr
        .map_or_else(String::new, |addr| format!("nodens query {} SOA --server {addr}{tcp}", quoted(zone)))
}

fn handshake(asked: &Asked) -> String {
    let name = asked.label.split_once('#').map_or("", |(_, name)| name.split(' ').next().unwrap_or(name));
    let connect = |addr: SocketAddr| {
        format!("openssl s_client -connect {addr} -servername {} </dev/null", quoted(name))
    };
    asked.addr.map_or_else(String::new, connect)
}

fn open_tcp(asked: &Asked, instead: &str) -> String {
    let port = asked.addr.map_or(crate::config::DNS_PORT, |addr| addr.port());
    let mut lines = vec![
        format!("# let TCP {port} through: in a NetworkPolicy beside UDP"),
        format!("#   ports: [{{protocol: UDP, port: {port}}}, {{protocol: TCP, port: {port}}}]"),
    ];
    if asked.how == How::Tcp {
        lines.push(format!("# or, in the agent's configuration, {instead}:// in place of tcp://, which uses UDP while it must"));
    }
    lines.push("# then this answers:".to_owned());
    lines.push(again(asked, true));
    lines.join("\n")
}

#[cfg(test)]
mod tests;
