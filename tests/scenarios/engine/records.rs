//! Records, types and names as scenarios write them.

use std::str::FromStr;

use hickory_proto::rr::rdata::NULL;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

/// `www.example.`, fully qualified, letter case kept; `\193` is one octet (RFC 1035 §5.1).
pub(crate) fn name(text: &str) -> Result<Name, String> {
    if !text.ends_with('.') {
        return Err(format!("`{text}` does not end with a dot"));
    }
    let labels = text.trim_end_matches('.').split('.').filter(|label| !label.is_empty());
    let labels: Vec<Vec<u8>> = labels.map(octets).collect::<Result<_, _>>()?;
    Name::from_labels(labels).map_err(|error| format!("`{text}` is no name: {error}"))
}

/// A label's octets.
fn octets(label: &str) -> Result<Vec<u8>, String> {
    let mut parts = label.split('\\');
    let mut octets = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let number = part.get(..3).and_then(|digits| digits.parse().ok());
        octets.push(number.ok_or_else(|| format!("`{label}`: write \\ and three digits"))?);
        octets.extend(&part.as_bytes()[3..]);
    }
    Ok(octets)
}

/// `AAAA` or `TYPE65280`.
pub(crate) fn rtype(text: &str) -> Result<RecordType, String> {
    let number = text.strip_prefix("TYPE").and_then(|number| number.parse::<u16>().ok());
    number
        .map(RecordType::from)
        .or_else(|| RecordType::from_str(text).ok())
        .ok_or_else(|| format!("`{text}` is no type"))
}

/// `IN`, `CH`, `NONE` or `CLASS42`.
pub(crate) fn class(text: &str) -> Option<DNSClass> {
    match text {
        "IN" => Some(DNSClass::IN),
        "CH" => Some(DNSClass::CH),
        "NONE" => Some(DNSClass::NONE),
        _ => text.strip_prefix("CLASS")?.parse::<u16>().ok().map(DNSClass::from),
    }
}

/// `www.example. 10 A 192.0.2.1`: owner, TTL, class unless IN, type, RDATA; `\# 2 abcd` for any type, `\# 600 ab...` for 600 alike.
pub(crate) fn record(text: &str) -> Result<Record, String> {
    let mut words = text.split_whitespace();
    let mut word = || words.next().ok_or_else(|| format!("`{text}` is no whole record"));
    let owner = name(word()?)?;
    let ttl = word()?;
    let ttl: u32 = ttl.parse().map_err(|_| format!("`{ttl}` is no TTL in seconds"))?;
    let mut kind = word()?;
    let class = class(kind);
    if class.is_some() {
        kind = word()?;
    }
    let rtype = rtype(kind)?;
    let rest: Vec<&str> = words.collect();
    let data = match rest.as_slice() {
        [r"\#", length, digits @ ..] => {
            let digits = digits.concat();
            let mut bytes = hex(digits.trim_end_matches('.'))?;
            if digits.ends_with("...") {
                let length = length.parse().map_err(|_| format!("`{length}` is no length"))?;
                bytes = bytes.into_iter().cycle().take(length).collect();
            }
            if bytes.len().to_string() != *length {
                return Err(format!("`{text}` does not have {length} octets of RDATA"));
            }
            if bytes.is_empty() {
                return Err(format!("`{text}`: hickory does not read empty RDATA"));
            }
            RData::Unknown { code: rtype, rdata: NULL::with(bytes) }
        }
        rest => RData::try_from_str(rtype, &rest.join(" ")).map_err(|error| format!("`{text}`: {error}"))?,
    };
    let mut record = Record::from_rdata(owner, ttl, data);
    record.dns_class = class.unwrap_or(DNSClass::IN);
    Ok(record)
}

/// One record, or with `30*` in front as many, in which `{}` is their number from 1 on.
pub(crate) fn records(text: &str) -> Result<Vec<Record>, String> {
    match text.split_once("* ") {
        Some((count, text)) => {
            let count: usize = count.parse().map_err(|_| format!("`{count}` is no number of records"))?;
            (1..=count).map(|number| record(&text.replace("{}", &number.to_string()))).collect()
        }
        None => Ok(vec![record(text)?]),
    }
}

/// Bytes from hexadecimal digits.
pub(crate) fn hex(digits: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("`{digits}` is not hexadecimal");
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return Err(wrong());
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong()))
        .collect()
}
