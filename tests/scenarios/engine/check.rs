//! Whether a reply, or a query that went upstream, is what a scenario expects.

use hickory_proto::op::Message;
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};

use crate::network::{Seen, Transport};
use crate::script::Expect;

/// Whether a reply is what was expected, beside its time and source.
pub(crate) fn check(
    id: Option<u16>,
    query: Option<&Message>,
    reply: &Message,
    length: usize,
    expect: &Expect,
) -> Result<(), String> {
    let header = &reply.metadata;
    same("RCODE", u16::from(header.response_code), expect.code)?;
    same("ID", Some(header.id), id)?;
    if let Some(query) = query {
        // FORMERR and NOTIMP may be a header alone.
        let whole = !(matches!(expect.code, 1 | 4) && reply.queries.is_empty());
        if whole {
            // In the client's own letters: names compare without case, their text does not.
            let text =
                |message: &Message| message.queries.iter().map(ToString::to_string).collect::<Vec<_>>();
            same("question", text(reply), text(query))?;
        }
        same("an OPT", reply.edns.is_some(), whole && query.edns.is_some())?;
    }
    for option in &expect.options {
        expected(reply, length, option)?;
    }
    if let Some(wanted) = &expect.records {
        let ordered = expect.options.iter().any(|option| option == "ordered");
        let sections = [&reply.answers, &reply.authorities, &reply.additionals];
        for ((what, got), wanted) in
            ["answer", "authority", "additional"].into_iter().zip(sections).zip(wanted)
        {
            compare(what, got, wanted, ordered)?;
        }
    }
    Ok(())
}

fn expected(reply: &Message, length: usize, option: &str) -> Result<(), String> {
    let header = &reply.metadata;
    let (key, value) = option.split_once('=').unwrap_or((option, ""));
    let number = || value.parse::<usize>().map_err(|_| format!("`{option}` wants a number"));
    match key {
        "ordered" => Ok(()),
        "ede" => same("extended error", of_option(reply, 15)?, Some(number()?)),
        "no-ede" => same("extended error", of_option(reply, 15)?, None),
        "no-options" => {
            let bare = reply.edns.as_ref().is_some_and(|edns| edns.options().as_ref().is_empty());
            same("an OPT without options", bare, true)
        }
        "keepalive" => same("keepalive", of_option(reply, 11)?, Some(number()?)),
        "size" => {
            let size = reply.edns.as_ref().map(|edns| usize::from(edns.max_payload()));
            same("our payload size", size, Some(number()?))
        }
        "length" => same("length", length, number()?),
        "at-most" => (length <= number()?).then_some(()).ok_or(format!("{length} octets, not {option}")),
        "answers" => same("answer records", reply.answers.len(), number()?),
        "flags" => {
            let known = [
                ("aa", header.authoritative),
                ("tc", header.truncation),
                ("rd", header.recursion_desired),
                ("ra", header.recursion_available),
                ("ad", header.authentic_data),
                ("cd", header.checking_disabled),
                ("do", reply.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)),
            ];
            let set: Vec<&str> = known.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
            let mut wanted: Vec<&str> = value.split(',').filter(|flag| !flag.is_empty()).collect();
            wanted.sort_by_key(|flag| known.iter().position(|(name, _)| name == flag));
            same("flags", set, wanted)
        }
        _ => Err(format!("`{option}` is nothing to expect")),
    }
}

/// The number in an option of a reply's OPT.
fn of_option(message: &Message, code: u16) -> Result<Option<usize>, String> {
    let Some(option) = message.edns.as_ref().and_then(|edns| edns.option(EdnsCode::from(code))) else {
        return Ok(None);
    };
    let bytes = match option {
        EdnsOption::Unknown(_, bytes) => bytes.clone(),
        other => Vec::<u8>::try_from(other).map_err(|error| error.to_string())?,
    };
    Ok(bytes.first_chunk::<2>().map(|bytes| usize::from(u16::from_be_bytes(*bytes))))
}

fn compare(what: &str, got: &[Record], wanted: &[Record], ordered: bool) -> Result<(), String> {
    let mut got: Vec<String> = got.iter().map(ToString::to_string).collect();
    let mut wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
    if !ordered {
        got.sort();
        wanted.sort();
    }
    same(&format!("{what} section"), got, wanted)
}

/// Whether a query that went upstream, after this other one for the same question, is as wanted.
pub(crate) fn sent(seen: &Seen, before: Option<&Seen>, wanted: &str) -> Result<(), String> {
    let (header, edns) = (&seen.message.metadata, seen.message.edns.as_ref());
    let (key, value) = wanted.split_once('=').unwrap_or((wanted, ""));
    let name = seen.message.queries[0].name.to_ascii();
    let holds = match key {
        "rd" => header.recursion_desired,
        "ad" => header.authentic_data,
        "cd" => header.checking_disabled,
        "no-cd" => !header.checking_disabled,
        "do" => edns.is_some_and(|edns| edns.flags().dnssec_ok),
        "no-do" => edns.is_some_and(|edns| !edns.flags().dnssec_ok),
        "opt" => edns.is_some(),
        "no-opt" => edns.is_none(),
        "no-options" => edns.is_some_and(|edns| edns.options().as_ref().is_empty()),
        "size" => edns.is_some_and(|edns| edns.max_payload().to_string() == value),
        "udp" => seen.transport == Transport::Udp,
        "tcp" => seen.transport == Transport::Tcp,
        "at" => seen.server.ip().to_string() == value,
        "repeated" => before.is_some_and(|before| {
            (before.way, before.message.metadata.id) == (seen.way, seen.message.metadata.id)
        }),
        "elsewhere" => before.is_some_and(|before| before.way != seen.way),
        "lower-case" => name == name.to_lowercase(),
        "mixed-case" => name != name.to_lowercase() && name != name.to_uppercase(),
        _ => return Err(format!("`{wanted}` is nothing to look for in a query")),
    };
    if holds { Ok(()) } else { Err(format!("not {wanted}: {}", seen.message)) }
}

pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Result<(), String> {
    if got == wanted { Ok(()) } else { Err(format!("{what}: {got:?}, not {wanted:?}")) }
}
