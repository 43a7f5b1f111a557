//! A GET over a plain socket, and Prometheus text.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The admin port of one agent.
#[derive(Clone, Copy)]
pub(crate) struct Http {
    pub(crate) address: SocketAddr,
}

impl Http {
    /// Status code and body; `None` when nothing listens or the answer is no HTTP.
    pub(crate) fn get(self, path: &str) -> Option<(u16, String)> {
        let (code, _, body) = self.exchange(path)?;
        Some((code, body))
    }

    /// As [`Http::get`], with the head of the answer in the middle.
    pub(crate) fn exchange(self, path: &str) -> Option<(u16, String, String)> {
        let limit = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&self.address, limit).ok()?;
        stream.set_read_timeout(Some(limit)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address).ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let answer = String::from_utf8(answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let code = head.split(' ').nth(1)?.parse().ok()?;
        let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            unchunk(body)?
        } else {
            body.to_owned()
        };
        Some((code, head.to_owned(), body))
    }

    /// Sum of the samples of `name` that carry all of `labels`; `None` when there is none.
    pub(crate) fn metric(self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let (code, text) = self.get("/metrics")?;
        assert_eq!(code, 200, "/metrics: {text}");
        sum(&text, name, labels)
    }

    /// As [`Http::metric`], with an absent series as 0: a counter appears with its first event.
    pub(crate) fn count(self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metric(name, labels).unwrap_or(0.0)
    }
}

fn unchunk(mut rest: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let mut total = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some(rest) = line.strip_prefix(name) else {
            continue;
        };
        let (found, value) = match rest.strip_prefix('{') {
            Some(inner) => {
                let Some((found, value)) = inner.rsplit_once('}') else {
                    continue;
                };
                (found, value)
            }
            None if rest.starts_with(' ') => ("", rest),
            None => continue,
        };
        let carries = |(key, value): &(&str, &str)| {
            let pair = format!("{key}=\"{value}\"");
            found == pair || found.starts_with(&format!("{pair},")) || found.contains(&format!(",{pair}"))
        };
        if labels.iter().all(carries) {
            let value = value.split_whitespace().next()?.parse::<f64>().ok()?;
            total = Some(total.unwrap_or(0.0) + value);
        }
    }
    total
}

#[test]
fn prometheus_text_is_summed_over_the_series_that_carry_the_labels() {
    let text = "# TYPE q counter\nq{a=\"1\",b=\"x\"} 2\nq{a=\"1\",b=\"y\"} 3\nq_more 9\nplain 4\n";
    assert_eq!(sum(text, "q", &[("a", "1")]), Some(5.0));
    assert_eq!(sum(text, "q", &[("b", "y")]), Some(3.0));
    assert_eq!(sum(text, "q", &[("b", "z")]), None);
    assert_eq!(sum(text, "plain", &[]), Some(4.0));
}

#[test]
fn chunked_bodies_are_put_together() {
    assert_eq!(unchunk("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").as_deref(), Some("abcde"));
}
