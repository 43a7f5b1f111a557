//! What `nodens query --trace` prints.

use anyhow::Context;
use hickory_proto::op::Message;
use serde_json::Value;

use super::ask::text;
use super::query::{message_json, print_message};
use crate::admin::upstreams;

const HEAD: [&str; 8] = ["try", "after", "because", "server", "by", "waited", "answer in", "outcome"];

/// An answer, and how the agent came by it.
pub(super) fn print(trace: &Value, as_json: bool) -> anyhow::Result<()> {
    let bytes: Vec<u8> = serde_json::from_value(trace["message"].clone())?;
    let message = Message::from_vec(&bytes).context("the answer breaks the format")?;
    if as_json {
        let mut trace = trace.clone();
        trace["message"] = message_json(&message, None);
        println!("{trace}");
        return Ok(());
    }
    print_message(&message);
    for line in lines(trace) {
        println!(";; {line}");
    }
    Ok(())
}

/// The way, for people: one line in all, the tries as a table, and the servers where they are what matters.
fn lines(trace: &Value) -> Vec<String> {
    let zone = text(&trace["zone"]);
    let mut lines = vec![format!("zone {zone}: {} in {}", text(&trace["result"]), ms(&trace["took_us"]))];
    if trace["flight"] == "joined" {
        lines.push("joined a flight that was under way, whose tries these are".to_owned());
    }
    lines.extend(trace["why"].as_str().map(ToOwned::to_owned));
    let tries = array(&trace["tries"]);
    if !tries.is_empty() {
        let rows = tries.iter().enumerate().map(|(index, one)| row(index, one));
        lines.extend(aligned(&[vec![HEAD.map(str::to_owned)], rows.collect()].concat()));
    }
    let servers = array(&trace["servers"]);
    let works = |server: &&Value| server["state"] == "in_use";
    let nobody_was_asked = tries.is_empty() && !trace["flight"].is_null();
    if nobody_was_asked || !servers.iter().all(|server| works(&server)) {
        lines.extend(servers.iter().map(|server| format!("server {}", upstreams::line(server))));
    }
    let unresolved = array(&trace["unresolved"]).iter();
    lines.extend(
        unresolved.map(|name| {
            format!("server name {}: not looked up ({})", text(&name["name"]), text(&name["why"]))
        }),
    );
    lines
}

fn row(index: usize, one: &Value) -> [String; HEAD.len()] {
    let by = match (one["transport"].as_str(), one["connection"].as_u64()) {
        (None, _) => "nothing sent".to_owned(),
        (Some(transport), None) => transport.to_uppercase(),
        (Some(transport), Some(connection)) => {
            let age = if one["reused"] == true { "open" } else { "new" };
            format!("{} {connection}, {age}", transport.to_uppercase())
        }
    };
    let datagrams = one["udp_queries"].as_u64().unwrap_or(0);
    let by = if datagrams > 1 { format!("{by}, {datagrams} datagrams") } else { by };
    let outcome = one["rcode"].as_str().unwrap_or_else(|| text(&one["outcome"])).replace('_', " ");
    // Without an answer it is how long one was waited for.
    let answer = if outcome == "answered" || one["rcode"].is_string() { "" } else { "> " };
    let waited = if one["waited_us"].is_null() { "-".to_owned() } else { ms(&one["waited_us"]) };
    [
        (index + 1).to_string(),
        ms(&one["at_us"]),
        text(&one["why"]).to_owned(),
        text(&one["server"]).to_owned(),
        by,
        waited,
        format!("{answer}{}", ms(&one["answer_us"])),
        outcome,
    ]
}

/// Columns as wide as their widest cell.
fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn ms(us: &Value) -> String {
    format!("{:.1} ms", us.as_f64().unwrap_or(0.0) / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tries_stand_in_columns_in_the_order_in_which_they_began() {
        let one = |why: &str, at: i64, outcome: &str| {
            json!({
                "why": why, "server": "tcp://192.0.2.1:53", "at_us": at, "transport": "tcp", "udp_queries": 0,
                "connection": 7, "reused": true, "waited_us": 40, "answer_us": 12_345, "outcome": outcome,
                "rcode": null,
            })
        };
        let trace = json!({
            "zone": "example.com", "result": "joined", "flight": "joined", "why": null, "took_us": 1500,
            "tries": [one("first", -300, "overtaken"), one("hedge", 10_000, "answered")],
            "servers": [{ "state": "in_use", "server": "not shown" }],
        });
        assert_eq!(
            lines(&trace),
            [
                "zone example.com: joined in 1.5 ms",
                "joined a flight that was under way, whose tries these are",
                "try  after    because  server              by           waited  answer in  outcome",
                "1    -0.3 ms  first    tcp://192.0.2.1:53  TCP 7, open  0.0 ms  > 12.3 ms  overtaken",
                "2    10.0 ms  hedge    tcp://192.0.2.1:53  TCP 7, open  0.0 ms  12.3 ms    answered",
            ]
        );
    }

    #[test]
    fn where_nobody_was_asked_the_servers_are_shown() {
        let trace = json!({
            "zone": ".", "result": "failure", "flight": "first", "why": "nobody was asked", "took_us": 100, "tries": [],
            "servers": [{
                "server": "tcp://192.0.2.1:53", "state": "down", "since_s": 3.0, "share": 0.0,
                "connections": 0, "in_flight": 0, "waiting": 0,
            }],
            "unresolved": [{ "name": "dns.example.", "why": "A NXDOMAIN" }],
        });
        assert_eq!(
            lines(&trace),
            [
                "zone .: failure in 0.1 ms",
                "nobody was asked",
                "server tcp://192.0.2.1:53: down for 3.0 s, 0 connections, 0 in flight, 0 waiting",
                "server name dns.example.: not looked up (A NXDOMAIN)",
            ]
        );
    }
}
