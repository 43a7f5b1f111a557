//! One value each: from what is written to what is meant, or what would have been right.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use hickory_proto::rr::Name;
use ipnet::IpNet;

use super::problem::{Fault, shown};
use super::syntax::nearest;
use crate::config::DNS_PORT;

/// Longest duration as text. Nobody needs as many characters, and humantime 2.4 panics on some sums of parts
/// near 2⁶⁴ s, which take at least 26.
const DURATION_TEXT: usize = 20;

/// unix(7): `sun_path` has 108 bytes, with the NUL at its end.
const SOCKET_PATH: usize = 107;

/// A whole number, decimal or after `0x`.
pub(super) fn number<T>(text: &str, bounds: &RangeInclusive<T>) -> Result<T, Fault>
where
    T: TryFrom<u64> + PartialOrd + Display,
{
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let fix = || format!("write a whole number from {} to {}", bounds.start(), bounds.end());
    match number {
        Ok(number) => T::try_from(number)
            .ok()
            .filter(|number| bounds.contains(number))
            .ok_or_else(|| Fault::new(format!("{} is out of bounds", shown(text)), fix())),
        Err(_) => Err(Fault::new(format!("{} is not a whole number", shown(text)), fix())),
    }
}

/// A duration such as `30s`, inside `bounds`.
pub(super) fn duration(text: &str, bounds: &RangeInclusive<Duration>) -> Result<Duration, Fault> {
    let parsed = if text.len() > DURATION_TEXT { None } else { humantime::parse_duration(text).ok() };
    let Some(duration) = parsed else {
        return Err(Fault::new(
            format!("{} is not a duration", shown(text)),
            "write a number and its unit, such as 30s, 500ms, 5m or 1h",
        ));
    };
    if bounds.contains(&duration) {
        return Ok(duration);
    }
    Err(Fault::new(
        format!("{} is out of bounds", shown(text)),
        format!("write {} to {}", spoken(*bounds.start()), spoken(*bounds.end())),
    ))
}

/// A TTL: a duration of whole seconds, which is all that RFC 1035 §3.2.1 has room for.
pub(super) fn ttl(text: &str, bounds: &RangeInclusive<Duration>) -> Result<Duration, Fault> {
    let ttl = duration(text, bounds)?;
    if ttl.subsec_nanos() == 0 {
        return Ok(ttl);
    }
    Err(Fault::new(
        format!("{} has a part of a second", shown(text)),
        "write whole seconds, as a TTL has no smaller unit",
    ))
}

/// A size in bytes such as `16MiB`, inside `bounds`.
pub(super) fn size(text: &str, bounds: &RangeInclusive<u64>) -> Result<u64, Fault> {
    let Ok(ByteSize(size)) = ByteSize::from_str(text) else {
        return Err(Fault::new(
            format!("{} is not a size", shown(text)),
            "write a number and its unit, such as 16MiB",
        ));
    };
    if bounds.contains(&size) {
        return Ok(size);
    }
    let (least, most) = (ByteSize(*bounds.start()), ByteSize(*bounds.end()));
    Err(Fault::new(format!("{} is out of bounds", shown(text)), format!("write {least} to {most}")))
}

/// A whole percentage such as `10%`.
pub(super) fn percent(text: &str, bounds: &RangeInclusive<u8>) -> Result<u8, Fault> {
    let percent = text.strip_suffix('%').and_then(|digits| digits.parse().ok());
    match percent {
        Some(percent) if bounds.contains(&percent) => Ok(percent),
        Some(_) | None => Err(Fault::new(
            format!("{} is not a percentage in bounds", shown(text)),
            format!("write a whole percentage from {}% to {}%", bounds.start(), bounds.end()),
        )),
    }
}

/// `true` or `false`.
pub(super) fn flag(text: &str) -> Result<bool, Fault> {
    word(text, &[("true", true), ("false", false)])
}

/// One of a few words.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, Fault> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let fix = match nearest(text, &known) {
        Some(near) if known.len() > 2 => format!("write {near}, or another of {}", known.join(", ")),
        _ => format!("write {}", known.join(" or ")),
    };
    Err(Fault::new(format!("{} is not known here", shown(text)), fix))
}

/// Where the control socket is to be.
pub(super) fn socket_path(text: &str) -> Result<PathBuf, Fault> {
    if !text.starts_with('/') || text.contains('\0') {
        return Err(Fault::new(
            format!("{} is not an absolute path", shown(text)),
            "write one such as /run/nodens/control.sock",
        ));
    }
    if text.len() > SOCKET_PATH {
        return Err(Fault::new(
            format!("{} is too long for a unix socket", shown(text)),
            format!("write a path of at most {SOCKET_PATH} bytes"),
        ));
    }
    Ok(PathBuf::from(text))
}

/// An address with its port. Port 0 lets the system choose.
pub(super) fn address(text: &str) -> Result<SocketAddr, Fault> {
    text.parse().map_err(|_| {
        let fix = match text.parse::<IpAddr>() {
            Ok(ip) => format!("write it with its port, such as {}", SocketAddr::new(ip, DNS_PORT)),
            Err(_) => "write IP:port, such as 169.254.20.10:53 or [fd00::a]:53".to_owned(),
        };
        Fault::new(format!("{} is not an address with a port", shown(text)), fix)
    })
}

/// An address to answer on. Wildcards are refused: the reply must come from the address that was asked, and a
/// socket bound to a wildcard leaves the choice to the routing table.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, Fault> {
    let address = address(text)?;
    if address.ip().to_canonical().is_unspecified() {
        return Err(Fault::new(
            format!("{} is a wildcard, and a reply must come from the address that was asked", shown(text)),
            "name the addresses",
        ));
    }
    Ok(address)
}

/// An address alone.
pub(super) fn ip(text: &str) -> Result<IpAddr, Fault> {
    text.parse().map_err(|_| {
        Fault::new(format!("{} is not an IP address", shown(text)), "write one such as 10.0.0.7 or fd00::7")
    })
}

/// A prefix without host bits.
pub(super) fn prefix(text: &str) -> Result<IpNet, Fault> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Err(Fault::new(
            format!("{} has no prefix length", shown(text)),
            format!("write {} for this address alone", IpNet::from(ip)),
        ));
    }
    let Ok(prefix) = text.parse::<IpNet>() else {
        return Err(Fault::new(
            format!("{} is not a prefix", shown(text)),
            "write one such as 10.0.0.0/8 or fd00::/8",
        ));
    };
    if prefix.trunc() == prefix {
        return Ok(prefix);
    }
    Err(Fault::new(
        format!("{} has bits set beyond its length", shown(text)),
        format!("write {}", prefix.trunc()),
    ))
}

/// A domain name, made lower-case and fully qualified.
pub(super) fn name(text: &str) -> Result<Name, Fault> {
    let fault = |why: &str, fix: &str| Fault::new(format!("{} {why}", shown(text)), fix);
    if text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok() {
        return Err(fault(
            "is an address and not a name",
            "write a name, such as 10.in-addr.arpa for 10.0.0.0/8",
        ));
    }
    if text.contains('*') {
        return Err(fault("holds a wildcard", "write the suffix alone: it covers every name below it"));
    }
    // RFC 2181 §11 allows any octet; whoever writes another one than these in a config has made a slip.
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte)) {
        return Err(fault(
            "is not a domain name",
            "write letters, digits, - and _ in labels with dots between them",
        ));
    }
    if text.is_empty() || (text != "." && (text.starts_with('.') || text.contains(".."))) {
        return Err(fault("has an empty label", "write a name such as cluster.local, or . for every name"));
    }
    match Name::from_ascii(text) {
        Ok(mut name) => {
            name.set_fqdn(true);
            Ok(name.to_lowercase())
        }
        Err(_) => Err(fault(
            "is too long",
            "write labels of at most 63 characters and at most 255 in all (RFC 1035 §2.3.4)",
        )),
    }
}

/// A duration as it would be written.
pub(super) fn spoken(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
