//! Black-box tests: the program as it is built, between real servers and real clients.
//!
//! NSD is the cluster's DNS, Unbound the resolver outside, dig, kdig and dnsperf are the clients;
//! where a server has to misbehave or be counted, a scripted one stands in. Debian packages: nsd,
//! unbound, bind9-dnsutils, knot-dnsutils, dnsperf, procps, util-linux. One crate, so that the
//! program's dependencies are linked once.

mod support;

#[path = "blackbox/admin.rs"]
mod admin;
#[path = "blackbox/auto.rs"]
mod auto;
#[path = "blackbox/bad_config.rs"]
mod bad_config;
#[path = "blackbox/case.rs"]
mod case;
#[path = "blackbox/control_and_cli.rs"]
mod control_and_cli;
#[path = "blackbox/demo.rs"]
mod demo;
#[path = "blackbox/expiry.rs"]
mod expiry;
#[path = "blackbox/fairness.rs"]
mod fairness;
#[path = "blackbox/harness.rs"]
mod harness;
#[path = "blackbox/hostile_clients.rs"]
mod hostile_clients;
#[path = "blackbox/hostile_upstream.rs"]
mod hostile_upstream;
#[path = "blackbox/hostile_upstream_faults.rs"]
mod hostile_upstream_faults;
#[path = "blackbox/hostile_upstream_judged.rs"]
mod hostile_upstream_judged;
#[path = "blackbox/hostile_upstream_more.rs"]
mod hostile_upstream_more;
#[path = "blackbox/loops.rs"]
mod loops;
#[path = "blackbox/malformed.rs"]
mod malformed;
#[path = "blackbox/names.rs"]
mod names;
#[path = "blackbox/negative.rs"]
mod negative;
#[path = "blackbox/records.rs"]
mod records;
#[path = "blackbox/reload.rs"]
mod reload;
#[path = "blackbox/shutdown.rs"]
mod shutdown;
#[path = "blackbox/single_flight.rs"]
mod single_flight;
#[path = "blackbox/tcp_clients.rs"]
mod tcp_clients;
#[path = "blackbox/tls.rs"]
mod tls;
#[path = "blackbox/traces.rs"]
mod traces;
#[path = "blackbox/truncation.rs"]
mod truncation;
#[path = "blackbox/upstream.rs"]
mod upstream;
#[path = "blackbox/upstream_metrics.rs"]
mod upstream_metrics;
