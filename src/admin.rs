//! Admin HTTP: `/metrics`, `/health`, `/ready`.

pub mod control;

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::{counter, gauge};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;

use crate::metrics::{self as names, Source};
use crate::resolve::Resolver;
use crate::resolve::view::Zone;
use crate::serve::{Pulse, socket};
use crate::upstream::Connects;
use crate::upstream::server::Server;
use crate::upstream::tls::Handshakes;
use crate::upstream::{Attempt, Cause, apex};

/// HTTP clients at one time; probes and a scraper are three.
const CLIENTS: usize = 16;
/// A request's header must be complete by then.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A client is let go after this long whatever it does.
const CONNECTION: Duration = Duration::from_secs(60);
/// A worker is seen at least every half second; this many missed ones mean that it hangs.
const SILENT: Duration = Duration::from_secs(3);
/// interface.md: readiness waits this long for a first upstream's answer.
const UPSTREAM_WAIT: Duration = Duration::from_secs(10);

/// Whether the agent can do its work.
pub struct Readiness {
    pulses: Vec<Arc<Pulse>>,
    /// Set once, when an upstream has answered or enough time has passed.
    latched: AtomicBool,
    draining: AtomicBool,
}

impl Readiness {
    /// Not ready yet, over these workers.
    pub fn new(pulses: Vec<Arc<Pulse>>) -> Self {
        Self { pulses, latched: AtomicBool::new(false), draining: AtomicBool::new(false) }
    }

    /// From now on the agent is leaving.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether every worker makes progress.
    pub fn is_healthy(&self) -> bool {
        self.pulses.iter().all(|pulse| pulse.silence() < SILENT)
    }

    /// What keeps the agent from being ready; nothing if it is.
    pub fn reasons(&self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        if self.draining.load(Ordering::Relaxed) {
            reasons.push("draining");
        }
        if !self.is_healthy() {
            reasons.push("a worker makes no progress");
        }
        if !self.latched.load(Ordering::Relaxed) {
            reasons.push("no upstream of the first zone has answered yet");
        }
        reasons
    }

    /// Asks the first zone's upstream until it answers, and latches. Upstreams never revoke it.
    pub fn wait_for_upstream(self: &Arc<Self>, resolver: Arc<Resolver>) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(UPSTREAM_WAIT, first_answer(&resolver)).await;
            this.latched.store(true, Ordering::Relaxed);
            tracing::info!("ready");
        });
    }
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

/// Serves the pages at `addr`, and returns where it really listens.
///
/// # Errors
/// When the address cannot be bound.
pub fn listen(addr: SocketAddr, admin: Arc<Admin>) -> io::Result<SocketAddr> {
    let explain =
        |error: io::Error| io::Error::new(error.kind(), format!("admin: cannot listen on {addr}: {error}"));
    let listener = socket::tcp(addr).map_err(explain)?;
    let addr = listener.local_addr()?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(async move {
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
    });
    Ok(addr)
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
                let state = if server.health.is_passed_over() { "failing" } else { "in use" };
                let by =
                    if server.is_auto() { format!(", by {}", server.transport()) } else { String::new() };
                let _ = writeln!(
                    body,
                    "zone {} upstream {}: {state}{by}, {} connections, {} in flight",
                    zone.name,
                    server.label,
                    server.open(),
                    server.in_flight()
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
        write_servers(&mut page, &view.zones);
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
            [("udp", sent.udp), ("tcp", sent.tcp)].map(|(transport, count)| {
                let server = &sent.server;
                (format!("{},server=\"{server}\",transport=\"{transport}\"", label(zone)), count)
            })
        })
    });
    names::UPSTREAM_REQUESTS.write(page, requests);
}

fn write_servers(page: &mut String, zones: &[Arc<Zone>]) {
    let mut servers: Vec<Arc<Server>> = Vec::new();
    for server in zones.iter().flat_map(|zone| zone.pool.servers().to_vec()) {
        // Two pools may hold the same server; its series must stand there once.
        if !servers.iter().any(|known| known.label == server.label) {
            servers.push(server);
        }
    }
    let label = |server: &Server| format!("server=\"{}\"", server.label);
    let open = |server: &Arc<Server>| (label(server), server.open() as u64);
    names::UPSTREAM_CONNECTIONS.write(page, servers.iter().map(open));
    let in_flight = |server: &Arc<Server>| (label(server), server.in_flight() as u64);
    names::UPSTREAM_IN_FLIGHT.write(page, servers.iter().map(in_flight));
    let transports = servers.iter().filter(|server| server.is_auto()).flat_map(|server| {
        let first = server.transport();
        ["tcp", "udp"].map(|transport| {
            (format!("{},transport=\"{transport}\"", label(server)), u64::from(transport == first))
        })
    });
    names::UPSTREAM_TRANSPORT.write(page, transports);
    let writes = |server: &Arc<Server>| (label(server), server.counts.writes.value());
    names::UPSTREAM_WRITES.write(page, servers.iter().map(writes));
    let connects = servers.iter().flat_map(|server| {
        let Connects { ok, failed, timeout, tls } = &server.counts.connects;
        [("ok", ok), ("failed", failed), ("timeout", timeout), ("tls", tls)]
            .map(|(result, count)| (format!("{},result=\"{result}\"", label(server)), count.value()))
    });
    names::UPSTREAM_CONNECTS.write(page, connects);
    let private = servers.iter().filter_map(|server| Some((server, &server.tls.as_ref()?.handshakes)));
    let handshakes = private.flat_map(|(server, Handshakes { full, resumed, failed })| {
        [("full", full), ("resumed", resumed), ("failed", failed)]
            .map(|(result, count)| (format!("{},result=\"{result}\"", label(server)), count.value()))
    });
    names::UPSTREAM_TLS_HANDSHAKES.write(page, handshakes);
    let failures = servers.iter().flat_map(|server| {
        let causes = Cause::LABELS.iter().zip(&server.counts.failures);
        causes.map(|(cause, count)| (format!("{},cause=\"{cause}\"", label(server)), count.value()))
    });
    names::UPSTREAM_FAILURES.write(page, failures);
    let durations = servers.iter().map(|server| (label(server), vec![&server.durations]));
    let help = "Seconds from asking a server to its answer.";
    names::write_histograms(page, names::UPSTREAM_DURATION, help, durations);
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
