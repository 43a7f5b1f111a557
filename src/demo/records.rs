//! The sample names, and what CoreDNS would answer for them: a table and a lookup without I/O.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::ProtoError;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{CNAME, MX, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::DOMAIN;

/// Seconds, for all that the kubernetes plugin serves: `ttl 30` in kubeadm's Corefile.
const CLUSTER_TTL: u32 = 30;
/// Seconds, for `dns-version`: fixed in CoreDNS's kubernetes plugin.
const VERSION_TTL: u32 = 28_800;
/// Seconds, for the names of example.com.
const EXAMPLE_TTL: u32 = 300;
/// Seconds, for what example.com says does not exist.
const EXAMPLE_NEGATIVE_TTL: u32 = 60;
/// Version of the Kubernetes DNS specification that the cluster claims to serve.
const SPECIFICATION: &str = "1.1.0";
/// CNAMEs followed within one answer, as many as CoreDNS follows.
const MAX_ALIASES: usize = 8;
/// Sum of the weights of one name's SRV records in CoreDNS.
const SRV_WEIGHT: u16 = 100;
/// TXT records of `large.example.com`. With [`LARGE_TEXT`] about 2 KiB: more than any EDNS size in use over UDP.
const LARGE_RECORDS: usize = 10;
/// Bytes in each of them; a TXT string ends at 255.
const LARGE_TEXT: usize = 190;
/// Namespaces whose pod names exist.
const NAMESPACES: [&str; 3] = ["default", "kube-system", "prod"];
/// ClusterIP of the cluster's own DNS, kubeadm's default.
const DNS_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// What a question gets.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) rcode: ResponseCode,
    pub(super) authoritative: bool,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

impl Reply {
    /// An answer without records.
    pub(super) fn empty(rcode: ResponseCode) -> Self {
        Self {
            rcode,
            authoritative: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }
}

/// Zones and every name in them, empty non-terminals too.
#[derive(Debug)]
pub(super) struct Table {
    zones: Vec<Zone>,
    nodes: HashMap<Name, Vec<Record>>,
    /// `pod.cluster.local`, below which addresses are names.
    pods: Name,
}

#[derive(Debug)]
struct Zone {
    apex: Name,
    soa: Record,
    /// Whether CoreDNS's kubernetes plugin serves it.
    cluster: bool,
}

impl Table {
    /// Answers a question of class IN.
    pub(super) fn answer(&self, qname: &Name, qtype: RecordType) -> Reply {
        let Some(asked) = self.zone_of(qname) else {
            return Reply::empty(ResponseCode::Refused);
        };
        let mut reply = Reply::empty(ResponseCode::NoError);
        reply.authoritative = true;
        let mut owner = qname.clone();
        for _ in 0..=MAX_ALIASES {
            let Some(zone) = self.zone_of(&owner) else {
                return reply; // an alias that leads out of here: the CNAME is all there is
            };
            // CoreDNS resolves an ExternalName by a query of its own and takes over only the answer section.
            let soa = (zone.cluster || !asked.cluster).then(|| zone.soa.clone());
            let Some(records) = self.records(&owner) else {
                reply.rcode = ResponseCode::NXDomain;
                reply.authorities.extend(soa);
                return reply;
            };
            let found = records.iter().filter(|r| r.record_type() == qtype);
            let before = reply.answers.len();
            // The owner is spelt as it was asked for, so that a client that mixes case finds its own letters.
            reply.answers.extend(found.cloned().map(|mut record| {
                record.name = owner.clone();
                record
            }));
            if reply.answers.len() > before {
                reply.additionals = self.addresses_of_targets(&reply.answers);
                return reply;
            }
            match records.iter().find_map(alias_target) {
                // SRV of an ExternalName: CoreDNS has none and does not follow.
                Some(_) if zone.cluster && qtype == RecordType::SRV => {
                    reply.authorities.extend(soa);
                    return reply;
                }
                Some((record, target)) => {
                    let mut record = record.clone();
                    record.name = owner;
                    reply.answers.push(record);
                    owner = target.clone();
                }
                None => {
                    reply.authorities.extend(soa);
                    return reply;
                }
            }
        }
        reply
    }

    /// The closest enclosing zone.
    fn zone_of(&self, name: &Name) -> Option<&Zone> {
        self.zones.iter().filter(|zone| zone.apex.zone_of(name)).max_by_key(|zone| zone.apex.num_labels())
    }

    /// The records at a name; empty for an empty non-terminal, `None` where there is no such name.
    fn records(&self, name: &Name) -> Option<Cow<'_, [Record]>> {
        match self.nodes.get(name) {
            Some(records) => Some(Cow::Borrowed(records)),
            None => Some(Cow::Owned(vec![self.pod(name)?])),
        }
    }

    /// `10-244-2-170.default.pod.cluster.local`. With `pods insecure`, kubeadm's setting, every address is
    /// a name in each namespace, whether a pod has it or not.
    fn pod(&self, name: &Name) -> Option<Record> {
        let namespace = name.base_name();
        if namespace.base_name() != self.pods || !self.nodes.contains_key(&namespace) {
            return None;
        }
        let label = std::str::from_utf8(name.iter().next()?).ok()?;
        let address: Ipv4Addr = label.replace('-', ".").parse().ok()?;
        Some(Record::from_rdata(name.clone(), CLUSTER_TTL, address.into()))
    }

    /// The additional section: addresses of the names that the answers point to, each once.
    fn addresses_of_targets(&self, answers: &[Record]) -> Vec<Record> {
        let mut found: Vec<Record> = Vec::new();
        for target in answers.iter().filter_map(host_target) {
            for record in self.nodes.get(target).into_iter().flatten() {
                let address = matches!(record.data, RData::A(_) | RData::AAAA(_));
                if address && !found.contains(record) && !answers.contains(record) {
                    found.push(record.clone());
                }
            }
        }
        found
    }
}

fn alias_target(record: &Record) -> Option<(&Record, &Name)> {
    match &record.data {
        RData::CNAME(CNAME(target)) => Some((record, target)),
        _ => None,
    }
}

fn host_target(record: &Record) -> Option<&Name> {
    match &record.data {
        RData::SRV(srv) => Some(&srv.target),
        RData::MX(mx) => Some(&mx.exchange),
        RData::NS(NS(name)) => Some(name),
        _ => None,
    }
}

/// A service port as its SRV record names it: name, protocol, number.
type Port = (&'static str, &'static str, u16);

impl Table {
    /// The sample cluster and example.com.
    pub(super) fn sample() -> Result<Self, ProtoError> {
        let mut table =
            Self { zones: Vec::new(), nodes: HashMap::new(), pods: fqdn(&format!("pod.{DOMAIN}"))? };
        for zone in [DOMAIN, "in-addr.arpa", "ip6.arpa"] {
            table.zone(zone, "ns.dns", CLUSTER_TTL, true)?;
        }
        table.zone("example.com", "ns", EXAMPLE_NEGATIVE_TTL, false)?;
        table.cluster()?;
        table.example_com()?;
        Ok(table)
    }

    fn cluster(&mut self) -> Result<(), ProtoError> {
        let kube_dns = fqdn(&format!("kube-dns.kube-system.svc.{DOMAIN}"))?;
        self.add(DOMAIN, CLUSTER_TTL, RData::NS(NS(kube_dns)))?;
        self.add(&format!("ns.dns.{DOMAIN}"), CLUSTER_TTL, DNS_IP.into())?;
        self.add(&format!("dns-version.{DOMAIN}"), VERSION_TTL, text(SPECIFICATION.into()))?;
        for namespace in NAMESPACES {
            self.exists(fqdn(&format!("{namespace}.svc.{DOMAIN}"))?);
            self.exists(fqdn(&format!("{namespace}.pod.{DOMAIN}"))?);
        }

        let ip = Ipv4Addr::new;
        self.service("kubernetes.default", Some(ip(10, 96, 0, 1)), &[("https", "tcp", 443)], &[])?;
        self.service(
            "kube-dns.kube-system",
            Some(DNS_IP),
            &[("dns", "udp", 53), ("dns-tcp", "tcp", 53), ("metrics", "tcp", 9153)],
            &[],
        )?;
        self.service(
            "webapp.default",
            Some(ip(10, 96, 46, 232)),
            &[("http", "tcp", 8080)],
            &[ip(10, 244, 2, 170)],
        )?;
        self.service(
            "nginx.default",
            None,
            &[("http", "tcp", 80)],
            &[ip(10, 244, 1, 11), ip(10, 244, 1, 12), ip(10, 244, 2, 21), ip(10, 244, 3, 31)],
        )?;
        let external = RData::CNAME(CNAME(fqdn("my.database.example.com")?));
        self.add(&format!("my-service.prod.svc.{DOMAIN}"), CLUSTER_TTL, external)
    }

    /// A service with its endpoints. Without a ClusterIP it is headless, and its endpoints stand for it.
    fn service(
        &mut self,
        name: &str,
        cluster_ip: Option<Ipv4Addr>,
        ports: &[Port],
        endpoints: &[Ipv4Addr],
    ) -> Result<(), ProtoError> {
        let host = format!("{name}.svc.{DOMAIN}");
        let mut targets = Vec::new();
        for address in endpoints {
            let endpoint = format!("{}.{host}", address.to_string().replace('.', "-"));
            self.add(&endpoint, CLUSTER_TTL, (*address).into())?;
            self.pointer(*address, &endpoint)?;
            targets.push((*address, endpoint));
        }
        if let Some(address) = cluster_ip {
            self.pointer(address, &host)?;
            targets = vec![(address, host.clone())];
        }
        for (address, _) in &targets {
            self.add(&host, CLUSTER_TTL, (*address).into())?;
        }
        for &(port, protocol, number) in ports {
            for (_, target) in &targets {
                let named = srv(number, target, targets.len())?;
                self.add(&format!("_{port}._{protocol}.{host}"), CLUSTER_TTL, named)?;
                // Asked for SRV without a port, CoreDNS lists all ports.
                let listed = srv(number, target, targets.len() * ports.len())?;
                self.add(&host, CLUSTER_TTL, listed)?;
            }
        }
        Ok(())
    }

    fn example_com(&mut self) -> Result<(), ProtoError> {
        let v4 = |last| RData::from(Ipv4Addr::new(192, 0, 2, last));
        let v6 = |last| RData::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last));
        let mx = RData::MX(MX::new(10, fqdn("mail.example.com")?));
        let ns = RData::NS(NS(fqdn("ns.example.com")?));
        let www = RData::CNAME(CNAME(fqdn("www.example.com")?));
        for (name, data) in [
            ("example.com", v4(1)),
            ("example.com", mx),
            ("example.com", text("v=spf1 mx -all".into())),
            ("example.com", ns),
            ("ns.example.com", v4(53)),
            ("mail.example.com", v4(25)),
            ("www.example.com", v4(80)),
            ("www.example.com", v6(80)),
            ("alias.example.com", www),
            ("my.database.example.com", v4(54)),
        ] {
            self.add(name, EXAMPLE_TTL, data)?;
        }
        for number in 1..=LARGE_RECORDS {
            let line = format!("{number:02} of {LARGE_RECORDS} ");
            self.add("large.example.com", EXAMPLE_TTL, text(format!("{line:-<LARGE_TEXT$}")))?;
        }
        Ok(())
    }

    /// Adds a zone with the SOA that CoreDNS would make for it.
    fn zone(&mut self, apex: &str, mname: &str, ttl: u32, cluster: bool) -> Result<(), ProtoError> {
        let mname = fqdn(&format!("{mname}.{apex}"))?;
        let rname = fqdn(&format!("hostmaster.{apex}"))?;
        let apex = fqdn(apex)?;
        let soa = RData::SOA(SOA::new(mname, rname, 1, 7200, 1800, 86_400, ttl));
        let soa = Record::from_rdata(apex.clone(), ttl, soa);
        self.nodes.insert(apex.clone(), vec![soa.clone()]);
        self.zones.push(Zone { apex, soa, cluster });
        Ok(())
    }

    fn pointer(&mut self, address: Ipv4Addr, target: &str) -> Result<(), ProtoError> {
        let owner = Name::from(IpAddr::from(address)).to_ascii();
        self.add(&owner, CLUSTER_TTL, RData::PTR(PTR(fqdn(target)?)))
    }

    fn add(&mut self, owner: &str, ttl: u32, data: RData) -> Result<(), ProtoError> {
        let owner = fqdn(owner)?;
        self.exists(owner.clone());
        let record = Record::from_rdata(owner.clone(), ttl, data);
        self.nodes.entry(owner).or_default().push(record);
        Ok(())
    }

    /// Enters a name and the empty non-terminals between it and what is already there.
    fn exists(&mut self, mut name: Name) {
        while !name.is_root() && !self.nodes.contains_key(&name) {
            let parent = name.base_name();
            self.nodes.insert(name, Vec::new());
            name = parent;
        }
    }
}

fn fqdn(name: &str) -> Result<Name, ProtoError> {
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    Ok(name)
}

/// One of `count` SRV records, which share the weight as CoreDNS shares it.
fn srv(port: u16, target: &str, count: usize) -> Result<RData, ProtoError> {
    let weight = u16::try_from(usize::from(SRV_WEIGHT) / count.max(1)).unwrap_or(1);
    Ok(RData::SRV(SRV::new(0, weight.max(1), port, fqdn(target)?)))
}

fn text(line: String) -> RData {
    RData::TXT(TXT::new(vec![line]))
}
