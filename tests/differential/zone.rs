//! A zone of everything that is odd, and what names there are to ask for.

use std::fmt::Write as _;

use crate::support::zones::OUTSIDE;

/// Suffixes of the same zone: one is asked for by TCP, the other by UDP.
pub(crate) const ODD: [&str; 2] = ["tcp.test", "udp.test"];

/// Odd names outside of NSD's zones, which Unbound knows beside those of other tests.
const ODD_OUTSIDE: [&str; 6] = [
    "many.example.com. 30 IN A 203.0.113.1",
    "many.example.com. 30 IN A 203.0.113.2",
    "many.example.com. 30 IN A 203.0.113.3",
    "_sip._udp.example.com. 604800 IN SRV 1 2 5060 www.example.com.",
    "old.example.com. 0 IN A 203.0.113.9",
    "https.example.com. 90000 IN HTTPS 1 . alpn=h2",
];

/// All records outside of NSD's zones.
pub(crate) fn outside() -> Vec<&'static str> {
    [OUTSIDE, ODD_OUTSIDE].concat()
}

/// Records below either suffix, one a line.
const RECORDS: &str = r#"
@ 600 IN SOA ns hostmaster 7 7200 1800 86400 9
@ IN NS ns
@ IN NS ns.elsewhere.example.
@ IN MX 5 mail
@ IN TXT "apex"
@ IN CAA 0 issue "ca.example"
ns IN A 192.0.2.53
ns IN AAAA 2001:db8::53
mail IN A 192.0.2.25

; one name with many types
types IN A 192.0.2.1
types IN AAAA 2001:db8::1
types IN HINFO "CPU" "OS"
types IN MINFO rmail.types email
types IN MB mb.Types
types IN MG mg
types IN MR mr
types IN MX 10 mail
types IN MX 20 MAIL.types
types IN TXT "one" "two" ""
types IN RP who.types what
types IN AFSDB 1 afs
types IN X25 "311061700956"
types IN ISDN "150862028003217" "004"
types IN RT 2 relay
types IN PX 10 map822 mapx400
types IN LOC 52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m
types IN SRV 0 5 5060 mail
types IN SRV 0 6 5061 ns
types IN NAPTR 100 50 "s" "z3950+I2L+I2C" "" _z3950._tcp.mail
types IN KX 1 kx
types IN CERT 1 12179 3 AQIDBA==
types IN APL 1:192.168.32.0/21 !1:192.168.38.0/28
types IN DS 60485 5 1 2BB183AF5F22588179A53B0A98631FAD1A292118
types IN SSHFP 2 1 123456789abcdef67890123456789abcdef67890
types IN IPSECKEY 10 1 2 192.0.2.38 AQNRU3mG7TVTO2BkR47usntb102uFJtugbo6BSGvgqt4AQ==
types IN DHCID AAIBY2/AuCccgoJbsaxcQc9TUapptP69lOjxfNuVAA2kjEA=
types IN TLSA 1 1 2 92003ba34942dc74152e2f2c408d29eca5a520e7f2e06bb944f4dca346baf63c
types IN SMIMEA 1 1 2 92003ba34942dc74152e2f2c408d29eca5a520e7f2e06bb944f4dca346baf63c
types IN CDS 60485 5 1 2BB183AF5F22588179A53B0A98631FAD1A292118
types IN OPENPGPKEY AQIDBAUG
types IN SPF "v=spf1 -all"
types IN NID 10 0014:4fff:ff20:ee64
types IN L32 10 10.1.2.0
types IN L64 10 2001:0DB8:1140:1000
types IN LP 10 l64
types IN EUI48 00-00-5e-00-53-2a
types IN EUI64 00-00-5e-ef-10-00-00-2a
types IN URI 10 1 "ftp://ftp.example/public"
types IN CAA 128 issuewild "ca.example"
types IN SVCB 16 svc.types alpn="h2,h3" port=8004 ipv4hint=192.0.2.1
types IN HTTPS 1 . alpn=h3
types IN TYPE10 \# 3 010203
types IN TYPE65280 \# 4 0A000001
types IN TYPE65534 \# 0
types IN TYPE999 \# 2 C00C
svc.types IN SVCB 0 types

; names with odd octets, long ones, letters
sp\032ace IN A 192.0.2.2
dot\.inside IN A 192.0.2.3
\000nul\001 IN TXT "nul"
\255\254\253 IN A 192.0.2.4
qu\"ote\\back IN A 192.0.2.5
se\;mi\(colon\) IN TXT "\000\255;\""
\192\012 IN A 192.0.2.6
UPPER.MiXeD IN A 192.0.2.7
UPPER.MiXeD IN TXT "UPPER stays UPPER"
x.y.z.ent IN A 192.0.2.8

; lifetimes
ttl0 0 IN A 192.0.2.10
ttl1 1 IN A 192.0.2.11
ttl2 2 IN AAAA 2001:db8::2
ttlmax 2147483647 IN A 192.0.2.12
ttlweek 604801 IN TXT "a week and a second"
mixed 5000 IN CNAME mixed2
mixed2 3 IN CNAME mixed3
mixed3 86400 IN A 192.0.2.13
mixed3 86400 IN A 192.0.2.14

; aliases
c1 IN CNAME c2
c2 IN CNAME C3
c3 IN CNAME c4.deep
c4.deep IN CNAME c5
c5 IN CNAME types
round1 IN CNAME round2
round2 IN CNAME round1
self IN CNAME self
lost IN CNAME nowhere
nodata IN CNAME only-text
only-text IN TXT "only text"
away IN CNAME www.example.com.
under IN CNAME any.wild
dn IN DNAME target.of.dname
deep.target.of.dname IN A 192.0.2.15
deep.target.of.dname IN A 192.0.2.16
longdn IN DNAME a23456789012345678901234567890123456789012345678901234567890123.longer
away-dn IN DNAME example.com.

; wildcards
*.wild IN A 192.0.2.17
*.wild IN TXT "wild"
*.wild IN MX 1 mail
fixed.wild IN A 192.0.2.18
*.cwild IN CNAME types
*.xwild IN CNAME nowhere

; delegations
sub IN NS ns1.sub
sub IN NS ns.elsewhere.example.
ns1.sub IN A 192.0.2.54
ns1.sub IN AAAA 2001:db8::54
signed-sub IN NS ns.elsewhere.example.
signed-sub IN DS 60485 5 1 2BB183AF5F22588179A53B0A98631FAD1A292118

; as if it were signed
signed IN A 192.0.2.19
signed IN A 192.0.2.20
signed IN RRSIG A 8 3 300 20380101000000 20200101000000 12345 @ AQIDBAUGBwgJCgsMDQ4PEA==
signed IN NSEC sub A RRSIG NSEC
signed IN RRSIG NSEC 8 3 300 20380101000000 20200101000000 12345 @ EBAQEAUGBwgJCgsMDQ4PEA==
signed IN DNSKEY 256 3 8 AQIDBAUGBwgJCgsMDQ4PEA==
signed IN NSEC3PARAM 1 0 12 aabbccdd
"#;

/// The longest name there is below a suffix of ten octets: 255 octets in all.
fn longest() -> String {
    let label = "l".repeat(63);
    format!("{label}.{label}.{label}.{}", &label[..52])
}

/// The zone file.
pub(crate) fn text(suffix: &str) -> String {
    let mut zone = format!("$ORIGIN {suffix}.\n$TTL 40\n{RECORDS}");
    let _ = writeln!(zone, "{} IN A 192.0.2.21", longest());
    let long_text = "t".repeat(255);
    let _ = writeln!(zone, "long-text IN TXT {}", format!("\"{long_text}\" ").repeat(9));
    for n in 0..100 {
        let _ = writeln!(zone, "hundred IN A 10.60.1.{n}");
        let _ = writeln!(zone, "hosts IN AAAA 2001:db8:1::{n}\nhosts IN A 10.60.2.{n}");
        let _ = writeln!(zone, "giant IN TXT \"{n}\" \"{long_text}\"");
    }
    for n in 0..30 {
        let _ = writeln!(zone, "middle IN A 10.60.3.{n}");
        let _ = writeln!(zone, "exchanges IN MX {n} mx{n}.exchanges\nmx{n}.exchanges IN A 10.60.4.{n}");
        let _ = writeln!(zone, "texts IN TXT \"number {n}\"\nmx{n}.exchanges IN AAAA 2001:db8:4::{n}");
    }
    for n in 0..9 {
        let _ = writeln!(zone, "services IN SRV 1 {n} 80 s{n}.services\ns{n}.services IN A 10.60.5.{n}");
        let _ = writeln!(zone, "few IN A 10.60.6.{n}\nfew IN AAAA 2001:db8:6::{n}");
    }
    zone
}

/// Owners of more than 512 bytes.
pub(crate) const LARGE: [&str; 10] =
    ["types", "long-text", "hundred", "hosts", "giant", "middle", "exchanges", "texts", "services", "few"];

/// Owner names below a suffix, in presentation form, without the suffix; the apex is empty.
pub(crate) fn owners() -> Vec<String> {
    // The last one is too long once `longdn` is replaced by its target (RFC 6672 §2.2).
    let label = "l".repeat(63);
    let mut owners = vec![String::new(), longest(), format!("{label}.{label}.{label}.longdn")];
    owners.extend(RECORDS.lines().filter_map(|line| {
        let owner = line.split_whitespace().next()?;
        (!matches!(owner, "@" | ";")).then(|| owner.to_owned())
    }));
    owners.extend(LARGE.map(str::to_owned));
    owners.extend(["mx7.exchanges", "ent", "z.ent", "y.z.ent", "of.dname"].map(str::to_owned));
    owners.sort();
    owners.dedup();
    owners
}

/// Names of the server itself, in class CH.
pub(crate) const SERVER: [&str; 3] = ["version.bind", "id.server", "hostname.bind"];

/// Names of the cluster's zone, whole.
pub(crate) const CLUSTER: [&str; 22] = [
    "cluster.local",
    "dns-version.cluster.local",
    "webapp.default.svc.cluster.local",
    "_http._tcp.webapp.default.svc.cluster.local",
    "dual.default.svc.cluster.local",
    "nginx.default.svc.cluster.local",
    "10-244-1-11.nginx.default.svc.cluster.local",
    "my-service.prod.svc.cluster.local",
    "alias.default.svc.cluster.local",
    "alias-nodata.default.svc.cluster.local",
    "two.default.svc.cluster.local",
    "zero.default.svc.cluster.local",
    "long.default.svc.cluster.local",
    "brief.default.svc.cluster.local",
    "odd.default.svc.cluster.local",
    "a.wild.default.svc.cluster.local",
    "big.default.svc.cluster.local",
    "huge.default.svc.cluster.local",
    "svc.cluster.local",
    "nowhere.cluster.local",
    "10.0.96.10.in-addr.arpa",
    "232.46.96.10.in-addr.arpa",
];
