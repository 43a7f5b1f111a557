//! What the expressions of a rule say, as far as doctor and we ourselves ask for it.

use std::net::IpAddr;

use super::super::netlink::{Attributes, text};
use super::numbers::{
    BITWISE_MASK, CMP_DATA, COUNTER_PACKETS, DATA_VALUE, DATA_VERDICT, EXPR_DATA, EXPR_NAME, IMMEDIATE_DATA,
    LIST_ELEM, MATCH_INFO, MATCH_NAME, VERDICT_CHAIN, VERDICT_CODE,
};
use super::rule::UNTRACKED;
use super::seen::RuleSeen;

/// libnftnl writes what belongs to a rule as type, length and value; this type is a comment.
const COMMENT: u8 = 0;
/// Values, names and letters that are kept of one rule: it can have up to 128 expressions, and others write them.
const BOUND: usize = 32;
/// linux/netfilter/xt_comment.h, `XT_MAX_COMMENT_LEN`.
const LETTERS: usize = 256;

/// Reads the expressions and the user data of a rule.
pub(super) fn read(expressions: Attributes<'_>, user_data: &[u8]) -> RuleSeen {
    let mut rule = RuleSeen { comment: comment(user_data), ..RuleSeen::default() };
    let elements = expressions.each().filter(|(kind, _)| *kind == LIST_ELEM);
    for (_, element) in elements.take(BOUND) {
        let element = Attributes::behind(0, element);
        let Some(name) = element.text(EXPR_NAME) else { continue };
        let name = expression(name, element.nested(EXPR_DATA), &mut rule);
        rule.expressions.push(bounded(name));
    }
    rule
}

/// User data that is a comment, as nft(8) writes and shows it.
pub(super) fn user_data(comment: &str) -> Vec<u8> {
    // Its length has one byte, and the zero at the end is counted. Ours are far shorter.
    let text = &comment.as_bytes()[..comment.len().min(usize::from(u8::MAX) - 1)];
    let mut data = vec![COMMENT, text.len() as u8 + 1];
    data.extend_from_slice(text);
    data.push(0);
    data
}

/// Takes what the rule is asked for out of one expression; returns its name.
fn expression(name: String, data: Attributes<'_>, rule: &mut RuleSeen) -> String {
    match name.as_str() {
        "counter" => rule.packets = data.long(COUNTER_PACKETS),
        "ct" => rule.states = Some(0),
        "bitwise" => states(data, rule),
        "cmp" => compared(data.nested(CMP_DATA).find(DATA_VALUE).unwrap_or_default(), rule),
        "immediate" => return verdict(data.nested(IMMEDIATE_DATA).nested(DATA_VERDICT)).unwrap_or(name),
        // Both kinds of attributes begin with the name.
        "match" | "target" => {
            let name = data.text(MATCH_NAME).unwrap_or(name);
            compat(&name, data.find(MATCH_INFO).unwrap_or_default(), rule);
            return name;
        }
        _ => {}
    }
    name
}

/// nft(8) compares bits of the state: it keeps those that are asked for. Whatever comes later is about something else.
fn states(data: Attributes<'_>, rule: &mut RuleSeen) {
    let is_next = rule.expressions.last().is_some_and(|before| before == "ct");
    let mask = data.nested(BITWISE_MASK).find(DATA_VALUE).and_then(|bytes| bytes.first_chunk());
    if let (true, Some(mask)) = (is_next, mask) {
        rule.states = Some(u32::from_ne_bytes(*mask));
    }
}

fn compared(value: &[u8], rule: &mut RuleSeen) {
    match value.len() {
        2 => rule.ports.extend(value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))),
        4 => rule.addresses.extend(value.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes))),
        16 => rule.addresses.extend(value.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes))),
        _ => {}
    }
}

/// What a rule decides; `None` when the expression loads a value instead.
fn verdict(verdict: Attributes<'_>) -> Option<String> {
    let chain = || verdict.text(VERDICT_CHAIN).unwrap_or_default();
    Some(match verdict.word(VERDICT_CODE)?.cast_signed() {
        libc::NF_DROP => "drop".to_owned(),
        libc::NF_ACCEPT => "accept".to_owned(),
        libc::NFT_CONTINUE => "continue".to_owned(),
        libc::NFT_RETURN => "return".to_owned(),
        libc::NFT_JUMP => format!("jump {}", chain()),
        libc::NFT_GOTO => format!("goto {}", chain()),
        other => format!("verdict {other}"),
    })
}

/// A match or target of iptables, whose bytes only it knows. Two are simple: `struct xt_comment_info`, and the
/// destination ports of `struct xt_udp` and `struct xt_tcp`, which are in the machine's byte order.
fn compat(name: &str, info: &[u8], rule: &mut RuleSeen) {
    match name {
        "state" => rule.states = Some(0),
        "conntrack" => rule.states = tracked(info),
        "comment" => rule.comment = Some(bounded(text(info))),
        "udp" | "tcp" => {
            if let Some(&[_, _, _, _, a, b, c, d]) = info.first_chunk() {
                let (first, last) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
                rule.ports.extend((first == last).then_some(first));
            }
        }
        _ => {}
    }
}

/// linux/netfilter/xt_conntrack.h, `struct xt_conntrack_mtinfo3`: behind 146 bytes which conditions there are, which of
/// them are turned round, and the states, in the machine's byte order. They are numbered in another way than nft(8)'s.
fn tracked(info: &[u8]) -> Option<u32> {
    const STATE: u16 = 1;
    const XT_UNTRACKED: u16 = 1 << 8;
    let word = |at: usize| {
        info.get(at..at + 2).and_then(|bytes| bytes.first_chunk()).map(|b| u16::from_ne_bytes(*b))
    };
    let (Some(conditions), Some(inverted), Some(states)) = (word(146), word(148), word(150)) else {
        return Some(0);
    };
    if conditions & STATE == 0 {
        return Some(0); // of what else connection tracking knows
    }
    let untracked = (states & XT_UNTRACKED != 0) != (inverted & STATE != 0);
    Some(if untracked { UNTRACKED } else { 1 })
}

fn comment(mut rest: &[u8]) -> Option<String> {
    while let Some((&[kind, length], behind)) = rest.split_first_chunk() {
        let (value, next) = behind.split_at_checked(length.into())?;
        if kind == COMMENT {
            return Some(bounded(text(value)));
        }
        rest = next;
    }
    None
}

fn bounded(mut text: String) -> String {
    let end = text.char_indices().map(|(at, _)| at).take_while(|at| *at <= LETTERS).last();
    if text.len() > LETTERS {
        text.truncate(end.unwrap_or_default());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::rule::{Bits, Rule};
    use super::*;

    fn words(rule: &Rule) -> RuleSeen {
        read(Attributes::behind(0, rule.expressions.bytes()), &[])
    }

    #[test]
    fn what_is_written_is_read() {
        let address: IpAddr = "fd00::10".parse().unwrap();
        let rule = Rule::default().protocol(17).destination(address).destination_port(53).counter().accept();
        let read = words(&rule);
        assert_eq!(
            (read.addresses.as_slice(), read.ports.as_slice()),
            ([address].as_slice(), [53].as_slice())
        );
        let names = ["meta", "cmp", "meta", "cmp", "payload", "cmp", "payload", "cmp", "counter", "accept"];
        assert_eq!(read.expressions, names);
        assert!(!read.drops());
        assert_eq!(words(&Rule::default().set_mark(Bits { value: 1, mask: 1 })).addresses, [] as [IpAddr; 0]);
    }

    #[test]
    fn a_rule_says_whether_it_is_about_untracked_packets() {
        assert_eq!(words(&Rule::default().untracked().accept()).is_for_untracked(), Some(true));
        assert_eq!(words(&Rule::default().mark(Bits { value: 1, mask: 1 })).is_for_untracked(), Some(true));
        let asks = |states| RuleSeen { states: Some(states), ..RuleSeen::default() }.is_for_untracked();
        assert_eq!((asks(0), asks(1 << 3)), (None, Some(false)));
    }

    #[test]
    fn user_data_and_iptables_matches_hold_comments() {
        let data = [&[7, 2, 1, 1, COMMENT, 5][..], b"ours\0"].concat();
        assert_eq!(read(Attributes::default(), &data).comment.as_deref(), Some("ours"));
        for cut in 0..data.len() {
            assert_eq!(read(Attributes::default(), &data[..cut]).comment, None, "{cut}");
        }
        assert_eq!(read(Attributes::default(), &user_data("ours")).comment.as_deref(), Some("ours"));
        let mut rule = RuleSeen::default();
        let mut info = b"NodeLocal DNS Cache: skip conntrack".to_vec();
        info.resize(LETTERS, 0);
        compat("comment", &info, &mut rule);
        assert_eq!(rule.comment.as_deref(), Some("NodeLocal DNS Cache: skip conntrack"));
        compat("udp", &[0; 3], &mut rule);
        assert!(rule.ports.is_empty());
        compat("tcp", &[0u16, u16::MAX, 53, 53, 0].map(u16::to_ne_bytes).concat(), &mut rule);
        compat("udp", &[0u16, u16::MAX, 1, 1023].map(u16::to_ne_bytes).concat(), &mut rule);
        assert_eq!(rule.ports, [53], "a range is no port");
    }

    #[test]
    fn a_long_name_is_cut_between_letters() {
        assert_eq!(bounded("ä".repeat(LETTERS)).len(), LETTERS);
        assert_eq!(bounded(format!("a{}", "ä".repeat(LETTERS))).len(), LETTERS - 1);
        assert_eq!(bounded("as it is".to_owned()), "as it is");
    }

    #[test]
    fn any_bytes_are_survived() {
        let whole = Rule::default().destination("10.0.0.1".parse().unwrap()).counter().accept();
        let whole = whole.expressions.bytes();
        for at in 0..whole.len() {
            for value in [0, 1, 2, 5, 0x7f, 0xff] {
                let mut broken = whole.to_vec();
                broken[at] = value;
                assert!(read(Attributes::behind(0, &broken), &broken).expressions.len() <= BOUND);
            }
        }
    }
}
