//! Admin HTTP: `/metrics`, `/health`, `/ready`.

pub mod control;
mod trace;
pub mod upstreams;

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::{counter, gauge};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use upstreams::Upstreams;

use crate::metrics::{self as names, Source};
use crate::readiness::{Readiness, Step};
use crate::resolve::Resolver;
use crate::resolve::view::Zone;
use crate::serve::socket;
use crate::upstream::{Attempt, Cause, apex};

/// HTTP clients at one time; probes and a scraper are three.
const CLIENTS: usize = 16;
/// A request's header must be complete by then.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A client is let go after this long whatever it does.
const CONNECTION: Duration = Duration::from_secs(60);
/// The pause between two tries at a port that another process has.
const BIND_PAUSE: Duration = Duration::from_secs(1);
/// interface.md: readiness waits this long for a first upstream's answer.
const UPSTREAM_WAIT: Duration = Duration::from_secs(10);

/// Asks the first zone's upstream until it answers, and latches. Upstreams never revoke it.
pub fn wait_for_upstream(readiness: Arc<Readiness>, resolver: Arc<Resolver>) {
    tokio::spawn(async move {
        let _ = tokio::time::timeout(UPSTREAM_WAIT, first_answer(&resolver)).await;
        readiness.latch();
    });
}

/// Returns when a server of the first zone has answered anything at all.
async fn first_answer(resolver: &Resolver) {
    let zone = resolver.view().zones.first().cloned();
    let Some(zone) = zone else { return };
    let key = apex(&zone.apex);
    loop {
        let done = zone.pool.exchange(&key, None).await;
        zone.count(&done.attempts);
        let failure_rcode = |attempt: &Attempt| matches!(attempt.failed, Some(Cause::Rcode(_)));
        if done.result.is_ok() || done.attempts.iter().any(failure_rcode) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// What the pages are made from.
pub struct Admin {
    /// Who answers queries.
    pub resolver: Arc<Resolver>,
    /// Whether they can be answered.
    pub readiness: Arc<Readiness>,
    /// Where the facade's metrics are rendered.
    pub prometheus: PrometheusHandle,
}

/// Serves the pages at `addr`, and returns where it really listens, and what ends that: no one new is let in then. While
/// another process has the port it is tried again: queries are answered without any page.
///
/// # Errors
/// When the process may not.
pub fn listen(addr: SocketAddr, admin: Arc<Admin>) -> io::Result<(SocketAddr, AbortHandle)> {
    match bind(addr, &admin.readiness) {
        Ok(listener) => {
            let addr = listener.local_addr()?;
            Ok((addr, tokio::spawn(serve(listener, admin)).abort_handle()))
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        Err(_) => {
            let retry = async move {
                loop {
                    tokio::time::sleep(BIND_PAUSE).await;
                    if let Ok(listener) = bind(addr, &admin.readiness) {
                        return serve(listener, admin).await;
                    }
                }
            };
            Ok((addr, tokio::spawn(retry).abort_handle()))
        }
    }
}

fn bind(addr: SocketAddr, readiness: &Readiness) -> io::Result<TcpListener> {
    let subject = addr.to_string();
    let listener = socket::tcp(addr).and_then(TcpListener::from_std);
    match listener {
        Ok(listener) => {
            readiness.has(Step::Admin, &subject);
            Ok(listener)
        }
        Err(error) => {
            let error = io::Error::new(error.kind(), format!("admin: cannot listen on {addr}: {error}"));
            readiness.lacks(Step::Admin, &subject, error.to_string());
            Err(error)
        }
    }
}

async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let page = admin.page(&request);
                async move { Ok::<_, Infallible>(page) }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(CONNECTION, serving).await;
            drop(place);
        });
    }
}

impl Admin {
    fn page(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
        }
        match request.uri().path() {
            "/metrics" => text(StatusCode::OK, self.metrics()),
            "/health" if self.readiness.is_healthy() => text(StatusCode::OK, "ok\n".to_owned()),
            "/health" => text(StatusCode::SERVICE_UNAVAILABLE, "a worker makes no progress\n".to_owned()),
            "/ready" => self.ready(),
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /health and /ready\n".to_owned()),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let reasons = self.readiness.reasons();
        let mut body = String::new();
        for reason in &reasons {
            let _ = writeln!(body, "not ready: {reason}");
        }
        if reasons.is_empty() {
            body.push_str("ready\n");
        }
        for zone in &self.resolver.view().zones {
            for server in zone.pool.servers().iter() {
                let _ = writeln!(
                    body,
                    "zone {} upstream {}",
                    zone.name,
                    upstreams::line(&upstreams::describe(server))
                );
            }
        }
        for zone in &self.resolver.view().zones {
            for (name, why) in zone.pool.unresolved() {
                let _ = writeln!(body, "zone {} upstream name {name}: not looked up ({why})", zone.name);
            }
        }
        let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        text(status, body)
    }

    /// The whole page: the facade's own, then what threads, zones and servers count.
    fn metrics(&self) -> String {
        let resolver = &self.resolver;
        let totals = resolver.cache.totals();
        gauge!(names::CACHE_ENTRIES, "kind" => "positive").set(totals.positive as f64);
        gauge!(names::CACHE_ENTRIES, "kind" => "negative").set(totals.negative as f64);
        gauge!(names::CACHE_ENTRIES, "kind" => "failure").set(resolver.failures.len() as f64);
        gauge!(names::CACHE_BYTES).set(totals.bytes as f64);
        counter!(names::CACHE_EVICTIONS).absolute(totals.evictions);
        gauge!(names::FLIGHTS).set(resolver.flights.len() as f64);
        gauge!(names::WAITERS).set(resolver.flights.waiting() as f64);
        let mut page = self.prometheus.render();
        let view = resolver.view();
        resolver.metrics.write(&mut page, view.zones.iter().map(|zone| &zone.metrics));
        resolver.metrics.write_durations(&mut page);
        write_zones(&mut page, &view.zones);
        Upstreams::of(&view.zones).write(&mut page);
        page
    }
}

fn write_zones(page: &mut String, zones: &[Arc<Zone>]) {
    let label = |zone: &Zone| format!("zone=\"{}\"", zone.name);
    let lookups = zones.iter().flat_map(|zone| {
        let counts = [
            ("hit", zone.metrics.answered(Source::Hit)),
            ("stale", zone.metrics.answered(Source::Stale)),
            ("miss", zone.metrics.misses.value()),
        ];
        counts.map(|(result, count)| (format!("{},result=\"{result}\"", label(zone)), count))
    });
    names::CACHE_LOOKUPS.write(page, lookups);
    names::PREFETCHES.write(page, zones.iter().map(|zone| (label(zone), zone.metrics.prefetches.value())));
    names::STALE_SINCE.write(page, zones.iter().map(|zone| (label(zone), zone.failing_since())));
    let requests = zones.iter().flat_map(|zone| {
        zone.requests().into_iter().flat_map(|sent| {
            let server = sent.server;
            let stream = if server.starts_with("tls://") { "tls" } else { "tcp" };
            [("udp", sent.udp), (stream, sent.tcp)].map(|(transport, count)| {
                (format!("{},server=\"{server}\",transport=\"{transport}\"", label(zone)), count)
            })
        })
    });
    names::UPSTREAM_REQUESTS.write(page, requests);
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
