//! What the servers of the tests know.

/// The cluster's forward zone: every kind of record that Kubernetes publishes (DNS-Based Service
/// Discovery, version 1.1.0), and names whose lifetimes and sizes tests need.
pub(crate) const CLUSTER_ZONE: (&str, &str) = ("cluster.local", include_str!("cluster.local.zone"));
/// PTR records of services and endpoints.
pub(crate) const REVERSE_ZONE: (&str, &str) = ("10.in-addr.arpa", include_str!("reverse.zone"));

/// The names outside the cluster that the tests know, one zone-file line each.
pub(crate) const OUTSIDE: [&str; 6] = [
    "my.database.example.com. 60 IN A 203.0.113.7",
    "www.example.com. 60 IN A 203.0.113.80",
    "www.example.com. 60 IN AAAA 2001:db8::80",
    "alias.example.com. 60 IN CNAME www.example.com.",
    "example.com. 60 IN MX 10 mail.example.com.",
    "example.com. 60 IN TXT \"v=spf1 -all\"",
];
