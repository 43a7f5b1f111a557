//! Commands to try against the demo, with what each of them shows.

use std::net::SocketAddr;
use std::path::Path;

use super::DOMAIN;

/// A command line and what comes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// To be typed into a shell as it stands.
    pub command: String,
    /// What it shows, in one line.
    pub shows: &'static str,
}

/// Commands for an agent that listens on `agent`, serves its metrics on `admin` and is asked by
/// `program` on `control`: one for each kind of record.
pub fn examples(program: &str, agent: SocketAddr, admin: SocketAddr, control: &Path) -> Vec<Example> {
    let dig = format!("dig @{} -p {}", agent.ip(), agent.port());
    let query = format!("{program} query");
    let control = format!("--control {}", control.display());
    let server = format!("--server {agent}");
    let svc = format!("svc.{DOMAIN}");
    [
        (format!("{dig} webapp.default.{svc} +short"), "A of a service, its ClusterIP: 10.96.46.232"),
        (
            format!("{dig} _http._tcp.webapp.default.{svc} SRV"),
            "SRV of its named port: 0 100 8080 webapp.default.svc.cluster.local, with the address beside it",
        ),
        (
            format!("{query} webapp.default.{svc} --trace {control}"),
            "10.96.46.232 again, and how the agent came by it: from the cache, if asked before",
        ),
        (format!("{dig} kube-dns.kube-system.{svc} +short"), "the cluster's own DNS: 10.96.0.10"),
        (
            format!("{dig} nginx.default.{svc} +short"),
            "a headless service, its four endpoints: 10.244.1.11, 10.244.1.12, 10.244.2.21, 10.244.3.31",
        ),
        (
            format!("{query} _http._tcp.nginx.default.{svc} SRV {server}"),
            "SRV of each endpoint, such as 0 25 80 10-244-1-11.nginx.default.svc.cluster.local",
        ),
        (format!("{dig} 10-244-1-11.nginx.default.{svc} +short"), "one endpoint by name: 10.244.1.11"),
        (
            format!("{dig} my-service.prod.{svc}"),
            "an ExternalName: CNAME my.database.example.com and its address, 192.0.2.54",
        ),
        (format!("{dig} 10-244-2-170.default.pod.{DOMAIN} +short"), "a pod's name: 10.244.2.170"),
        (
            format!("{query} 10-244-2-170.webapp.default.{svc} A {server}"),
            "the same pod as the service's endpoint: 10.244.2.170",
        ),
        (format!("{dig} -x 10.96.46.232 +short"), "PTR of a ClusterIP: webapp.default.svc.cluster.local"),
        (
            format!("{dig} -x 10.244.2.170 +short"),
            "PTR of an endpoint: 10-244-2-170.webapp.default.svc.cluster.local",
        ),
        (
            format!("{dig} dns-version.{DOMAIN} TXT +short"),
            "version of the Kubernetes DNS specification: 1.1.0",
        ),
        (
            format!("{dig} alias.example.com +short"),
            "a name outside the cluster, over an alias: www.example.com, 192.0.2.80",
        ),
        (format!("{query} www.example.com AAAA {server}"), "an IPv6 address: 2001:db8::50"),
        (format!("{query} example.com MX --tcp {server}"), "by TCP, a mail exchange: 10 mail.example.com"),
        (
            format!("{dig} large.example.com TXT"),
            "about 2 KiB, starting with 01 of 10: dig says \"Truncated, retrying in TCP mode\"",
        ),
        (
            format!("{dig} webapp.default.{svc} AAAA"),
            "NODATA: status NOERROR, no answer, and the SOA that says for how long",
        ),
        (
            format!("{dig} no-such.default.{svc}"),
            "status NXDOMAIN; ask twice, and the second answer comes from the cache",
        ),
        (
            format!("{program} cache get webapp.default.{svc} {control}"),
            "what the cache holds of a name asked before",
        ),
        (format!("{program} stats {control}"), "hits, misses and connections"),
        (
            format!("curl -s http://{admin}/metrics"),
            "what was asked and what came from the cache, as Prometheus metrics",
        ),
    ]
    .into_iter()
    .map(|(command, shows)| Example { command, shows })
    .collect()
}
