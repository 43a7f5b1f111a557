//! How one answer came about.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::{Name, RecordType};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::control::parse_type;
use super::upstreams;
use crate::cache::front::Front;
use crate::clock;
use crate::config::StaleMode;
use crate::metrics::{Source, Transport};
use crate::resolve::flight::{ReplyTo, Told};
use crate::resolve::view::Zone;
use crate::resolve::{Client, Resolver, Step, Waits};
use crate::upstream::{Attempt, Cause};
use crate::wire::query::OurEdns;
use crate::wire::rcode;

/// Two tries whose ends are no further apart ended with one answer.
const TOGETHER: Duration = Duration::from_millis(1);

/// Resolves as for a client, and says how the answer came about.
pub(super) async fn trace(name: &str, rtype: &str, resolver: &Arc<Resolver>) -> Result<Value, String> {
    let mut name = Name::from_utf8(name).map_err(|error| format!("{name}: {error}"))?;
    name.set_fqdn(true);
    let rtype = parse_type(rtype)?;
    let packet = question(&name, rtype)?;
    let client = Client {
        slot: resolver.metrics.shared(),
        transport: Transport::Tcp,
        ipv6: false,
        allowed: true,
        ours: OurEdns { size: resolver.view().edns_size, keepalive: Some(0) },
    };
    let view = Arc::clone(&resolver.view());
    let zone = view.zone_of(&name);
    let began = clock::now();
    let was_down = zone.is_some_and(|zone| zone.pool.is_down());
    let mut out = Vec::new();
    let told = match resolver.handle(&view, &client, &packet, began, &mut Front::none(), &mut out) {
        Step::Drop(_) => return Err("the query was dropped".to_owned()),
        Step::Reply(source) => Way::at_once(out, source, clock::now() - began),
        Step::Wait(miss) => {
            let key = miss.key().clone();
            let (asker, answer) = oneshot::channel();
            let waits = resolver.wait(miss, ReplyTo::Trace(asker));
            let told = answer.await.map_err(|_| "the flight was lost".to_owned())?;
            let mut way = Way::waited(told, waits, clock::now() - began);
            if way.told.source == Source::Stale && way.told.attempts.is_empty() {
                // The flight goes on, and tells its tries when it has ended.
                let (witness, attempts) = oneshot::channel();
                way.is_late = resolver.attend(&key, &packet, client.ours, witness);
                way.told.attempts = attempts.await.unwrap_or_default();
            }
            way
        }
    };
    let servers = zone.map(|zone| zone.pool.servers()).unwrap_or_default();
    let unresolved = zone.map(|zone| zone.pool.unresolved()).unwrap_or_default();
    let unresolved: Vec<Value> =
        unresolved.into_iter().map(|(name, why)| json!({ "name": name.to_ascii(), "why": why })).collect();
    Ok(json!({
        "name": name.to_ascii(),
        "type": rtype.to_string(),
        "zone": zone.map(|zone| &zone.name),
        "result": told.result(),
        "flight": told.flight(),
        "why": told.reason(zone, was_down),
        "tries": told.tries(began),
        "unresolved": unresolved,
        "servers": servers.iter().map(|server| upstreams::describe(server)).collect::<Vec<_>>(),
        "took_us": told.took.as_micros() as u64,
        "message": told.told.message,
    }))
}

fn question(name: &Name, rtype: RecordType) -> Result<Vec<u8>, String> {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.edns = Some(Edns::new());
    message.add_query(Question::query(name.clone(), rtype));
    message.to_vec().map_err(|error| error.to_string())
}

/// The way of one answer.
struct Way {
    told: Told,
    /// `None` if it needed no flight.
    waits: Option<Waits>,
    /// The answer came while its flight went on.
    is_late: bool,
    took: Duration,
}

impl Way {
    fn at_once(message: Vec<u8>, source: Source, took: Duration) -> Self {
        Self { told: Told { message, source, attempts: Vec::new() }, waits: None, is_late: false, took }
    }

    fn waited(told: Told, waits: Waits, took: Duration) -> Self {
        Self { told, waits: Some(waits), is_late: false, took }
    }

    /// Where the answer came from; one by a flight that others had started is `joined`.
    fn result(&self) -> &'static str {
        match (self.told.source, self.waits) {
            (Source::Miss, Some(Waits::Joined)) => "joined",
            (source, _) => source.label(),
        }
    }

    fn flight(&self) -> Option<&'static str> {
        Some(match self.waits? {
            Waits::First => "first",
            Waits::Joined => "joined",
            Waits::Late => "late",
            Waits::Refused(_) => "refused",
        })
    }

    /// What the tries do not say.
    fn reason(&self, zone: Option<&Arc<Zone>>, was_down: bool) -> Option<String> {
        let rule = zone.and_then(|zone| zone.stale.as_ref());
        let is_immediate = rule.is_some_and(|rule| rule.mode == StaleMode::Immediate);
        let none = self.told.attempts.is_empty();
        let text = match (self.told.source, self.waits) {
            (_, Some(Waits::Refused(bound))) => {
                return Some(format!("a bound is reached: {}, see limits", bound.label()));
            }
            (Source::Stale, Some(Waits::Late)) => "others have been waiting for it too long already",
            (Source::Stale, Some(_)) if self.is_late => {
                let after = rule.map_or(Duration::ZERO, |rule| rule.client_response);
                return Some(format!(
                    "no answer within {after:?} (stale.client_response), and asking went on"
                ));
            }
            (Source::Stale | Source::Failure, Some(_)) if none && was_down => {
                "nobody was asked: no server of the zone works"
            }
            (Source::Stale | Source::Failure, Some(_)) if none => "nobody was asked",
            (Source::Stale, Some(_)) => "no server gave an answer",
            (Source::Stale, None) if was_down => "at once, because no server of the zone works",
            (Source::Stale, None) if is_immediate => {
                "at once (stale.mode: immediate), and asked for meanwhile"
            }
            (Source::Stale | Source::Failure, None) => {
                "no server gave an answer a moment ago, which is remembered"
            }
            (Source::Miss, Some(_)) if none => "the late answer to an earlier query",
            (Source::Hit, _) => "fresh in the cache",
            (Source::Hosts, _) => "a static record of the configuration",
            (Source::Local, _) => "a rule of the agent's own",
            (Source::Miss | Source::Failure, _) => return None,
        };
        Some(text.to_owned())
    }

    /// The tries in the order in which they began.
    fn tries(&self, began: Instant) -> Vec<Value> {
        let mut attempts: Vec<&Attempt> = self.told.attempts.iter().collect();
        attempts.sort_by_key(|attempt| attempt.started);
        let good = attempts.iter().find(|attempt| attempt.failed.is_none()).copied();
        attempts.iter().map(|attempt| describe(attempt, began, good)).collect()
    }
}

fn describe(attempt: &Attempt, began: Instant, good: Option<&Attempt>) -> Value {
    let started = attempt.started.into_std();
    // A flight that was joined may have begun before.
    let before = began.saturating_duration_since(started).as_micros() as i64;
    let after = started.saturating_duration_since(began).as_micros() as i64;
    let end = |attempt: &Attempt| attempt.started + attempt.took;
    let is_overtaken = matches!(attempt.failed, Some(Cause::Timeout | Cause::GivenUp))
        && good.is_some_and(|good| end(good).saturating_duration_since(end(attempt)) < TOGETHER);
    let outcome = match attempt.failed {
        None => "answered",
        Some(_) if is_overtaken => "overtaken",
        Some(cause) => cause.label(),
    };
    let code = match attempt.failed {
        Some(Cause::Rcode(code)) => Some(rcode::name(code)),
        _ => None,
    };
    let sent = &attempt.sent;
    let stream = if attempt.server.starts_with("tls://") { "tls" } else { "tcp" };
    let answer = attempt.took.saturating_sub(attempt.waited.unwrap_or_default());
    json!({
        "why": attempt.why.label(),
        "server": &*attempt.server,
        "at_us": after - before,
        "transport": match (sent.udp, sent.tcp) {
            (0, 0) => None,
            (_, 0) => Some("udp"),
            (0, _) => Some(stream),
            (..) => Some("udp+tcp"),
        },
        "udp_queries": sent.udp,
        "tcp_queries": sent.tcp,
        "connection": sent.connection,
        "reused": sent.connection.map(|_| sent.reused),
        "waited_us": attempt.waited.map(|waited| waited.as_micros() as u64),
        "answer_us": answer.as_micros() as u64,
        "took_us": attempt.took.as_micros() as u64,
        "outcome": outcome,
        "failed": attempt.failed.map(Cause::label),
        "rcode": code,
    })
}
