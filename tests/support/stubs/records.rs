//! What must be found: read from the zones that the servers were given.

use std::net::IpAddr;

use super::super::zones::{CLUSTER_ZONE, OUTSIDE, REVERSE_ZONE};

/// The root zone with the names outside, for a cluster's DNS that answers for all names, as one does that asks further.
/// Its name and its content.
pub(crate) fn root_zone() -> (&'static str, String) {
    let head =
        "$ORIGIN .\n@ 60 IN SOA root.invalid. host.invalid. 1 3600 600 86400 60\n@ 60 IN NS root.invalid.";
    (".", format!("{head}\n{}\n", OUTSIDE.join("\n")))
}

struct Record {
    owner: String,
    record_type: String,
    data: String,
}

fn all() -> Vec<Record> {
    [CLUSTER_ZONE, REVERSE_ZONE, (".", &OUTSIDE.join("\n"))]
        .iter()
        .flat_map(|(origin, content)| {
            content.lines().filter_map(|line| read(line, origin)).collect::<Vec<_>>()
        })
        .collect()
}

/// One line of a zone file, `OWNER [TTL] IN TYPE DATA`.
fn read(line: &str, origin: &str) -> Option<Record> {
    let line = line.split(';').next().unwrap_or_default();
    let (front, back) = line.split_once(" IN ")?;
    let (record_type, data) = back.trim().split_once(' ')?;
    let owner = absolute(front.split_whitespace().next()?, origin);
    let named = ["CNAME", "SRV", "PTR"].contains(&record_type);
    let data = match data.trim().rsplit_once(' ') {
        Some((numbers, target)) if named => {
            format!(
                "{},{}",
                numbers.split_whitespace().collect::<Vec<_>>().join(","),
                absolute(target, origin)
            )
        }
        None if named => absolute(data.trim(), origin),
        _ => data.trim().to_owned(),
    };
    Some(Record { owner, record_type: record_type.to_owned(), data })
}

/// The whole name, without the last dot.
fn absolute(name: &str, origin: &str) -> String {
    match name.strip_suffix('.') {
        Some(whole) => whole.to_owned(),
        None if name == "@" => origin.to_owned(),
        None => format!("{name}.{origin}"),
    }
}

fn data(owner: &str, record_type: &str) -> Vec<String> {
    let owner = owner.trim_end_matches('.').to_ascii_lowercase();
    let fits = |record: &Record| record.owner == owner && record.record_type == record_type;
    all().into_iter().filter(fits).map(|record| record.data).collect()
}

/// Addresses of both families, CNAMEs followed, sorted as text. There is at least one.
#[track_caller]
pub(crate) fn addresses(owner: &str) -> Vec<String> {
    let mut owner = owner.to_owned();
    while let Some(target) = data(&owner, "CNAME").pop() {
        owner = target;
    }
    let mut found: Vec<String> = [data(&owner, "A"), data(&owner, "AAAA")]
        .concat()
        .iter()
        .map(|text| text.parse::<IpAddr>().expect("an address").to_string())
        .collect();
    assert!(!found.is_empty(), "{owner} has no addresses");
    found.sort();
    found
}

/// SRV records, `priority,weight,port,target`, sorted as text. There is at least one.
#[track_caller]
pub(crate) fn services(owner: &str) -> Vec<String> {
    let mut found = data(owner, "SRV");
    assert!(!found.is_empty(), "{owner} has no services");
    found.sort();
    found
}

/// The name of an IPv4 address.
#[track_caller]
pub(crate) fn owner(address: &str) -> Vec<String> {
    let octets: Vec<&str> = address.split('.').rev().collect();
    let found = data(&format!("{}.in-addr.arpa", octets.join(".")), "PTR");
    assert_eq!(found.len(), 1, "{address} has one name");
    found
}

#[test]
fn zone_lines_are_read_as_records() {
    assert_eq!(addresses("dual.default.svc.cluster.local."), ["10.96.7.7", "fd00:96::7"]);
    assert_eq!(addresses("my-service.prod.svc.cluster.local"), ["203.0.113.7"]);
    assert_eq!(addresses("Huge.default.svc.cluster.local").len(), 200);
    assert_eq!(
        services("_http._tcp.webapp.default.svc.cluster.local"),
        ["0,100,8080,webapp.default.svc.cluster.local"]
    );
    assert_eq!(owner("10.96.0.10"), ["kube-dns.kube-system.svc.cluster.local"]);
}
