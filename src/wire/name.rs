//! Domain names in wire form.
//!
//! A *plain* name is a run of labels without compression, ending in the root label. Length octets
//! are at most 63 and so never look like a letter: a plain name can be lower-cased byte by byte.

use super::{HEADER, Malformed};

/// RFC 1035 §2.3.4: octets of a whole name, length octets and root included.
pub const MAX_NAME: usize = 255;
/// RFC 1035 §2.3.4: octets of one label.
pub const MAX_LABEL: usize = 63;
/// Pointers in one name: more than it can have labels lead nowhere, and are walked for each name anew.
const MAX_POINTERS: usize = 127;

/// The first byte behind the plain name at `at`.
///
/// # Errors
/// A label over 63 octets or a compression pointer, a name over 255, or the message's end inside.
pub fn skip_plain(message: &[u8], at: usize) -> Result<usize, Malformed> {
    let mut here = at;
    loop {
        let length = usize::from(*message.get(here).ok_or(Malformed("message ends inside a name"))?);
        if length > MAX_LABEL {
            return Err(Malformed("label over 63 octets, or compressed"));
        }
        here += 1 + length;
        if here - at > MAX_NAME {
            return Err(Malformed("name over 255 octets"));
        }
        if length == 0 {
            return Ok(here);
        }
    }
}

/// The first byte behind the name at `at`, which may be compressed. Every pointer is followed, so
/// that what is skipped here is known to be a name. A pointer counts from the message's first byte.
///
/// # Errors
/// As [`skip_plain`], a pointer that does not lead backwards or leads into the header (RFC 9267 §2),
/// and more pointers than a name has labels.
pub fn skip(message: &[u8], at: usize) -> Result<usize, Malformed> {
    let mut labels = Labels::at(message, at);
    while labels.step()?.is_some() {}
    Ok(labels.left_at.unwrap_or(labels.here))
}

/// The first byte behind the run of labels at `at`, and where the pointer leads that ends it.
///
/// # Errors
/// The message's end inside. Nothing else is checked.
pub fn run(message: &[u8], at: usize) -> Result<(usize, Option<usize>), Malformed> {
    let mut here = at;
    loop {
        match *message.get(here).ok_or(Malformed("message ends inside a name"))? {
            0 => return Ok((here + 1, None)),
            length @ 1..=63 => here += 1 + usize::from(length),
            _ => return Ok((here + 2, Some(pointer(message, here)?))),
        }
    }
}

/// Where the pointer at `at` leads.
fn pointer(message: &[u8], at: usize) -> Result<usize, Malformed> {
    Ok(usize::from(super::u16_at(message, at)? & 0x3fff))
}

/// Whether the two names are equal without regard to ASCII case (RFC 4343). Malformed ones never are.
pub fn eq(a: (&[u8], usize), b: (&[u8], usize)) -> bool {
    let (mut a, mut b) = (Labels::at(a.0, a.1), Labels::at(b.0, b.1));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(Ok(a)), Some(Ok(b))) if a.eq_ignore_ascii_case(b) => {}
            _ => return false,
        }
    }
}

/// Gives each letter of a plain name either case, as the bits of `random` say: a response must repeat
/// them, which whoever did not see the query has to guess (draft-vixie-dnsext-dns0x20).
pub fn mix_case(plain: &mut [u8], random: impl Fn() -> u32) {
    for run in plain.chunks_mut(32) {
        let bits = random();
        for (at, octet) in run.iter_mut().enumerate() {
            if octet.is_ascii_alphabetic() && bits >> at & 1 == 1 {
                *octet ^= 0x20;
            }
        }
    }
}

/// Whether two names of one message are equal. The records of an RRset mostly share one pointer.
pub fn same(message: &[u8], a: usize, b: usize) -> bool {
    let pointer = |at: usize| message.get(at..at + 2).filter(|pointer| pointer[0] >= 0xc0);
    pointer(a).is_some_and(|a| pointer(b) == Some(a)) || eq((message, a), (message, b))
}

/// The labels of a plain name, from the left, without the root.
pub fn labels(plain: &[u8]) -> impl Iterator<Item = &[u8]> {
    Labels::at(plain, 0).map_while(Result::ok)
}

/// The name in presentation format (RFC 1035 §5.1), off the hot path.
pub fn display(plain: &[u8]) -> String {
    let mut text = String::with_capacity(plain.len());
    for label in labels(plain) {
        for &octet in label {
            match octet {
                b'.' | b'\\' => text.extend(['\\', char::from(octet)]),
                b'!'..=b'~' => text.push(char::from(octet)),
                _ => text.push_str(&format!("\\{octet:03}")),
            }
        }
        text.push('.');
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

/// Walks a name, following compression pointers.
struct Labels<'a> {
    message: &'a [u8],
    here: usize,
    /// Pointers must lead to before this.
    before: usize,
    /// Octets so far, the root included.
    length: usize,
    /// Behind the first pointer, where the record goes on.
    left_at: Option<usize>,
    pointers: usize,
    done: bool,
}

impl<'a> Labels<'a> {
    fn at(message: &'a [u8], at: usize) -> Self {
        Self { message, here: at, before: at, length: 1, left_at: None, pointers: 0, done: false }
    }

    fn step(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        loop {
            let octet = *self.message.get(self.here).ok_or(Malformed("message ends inside a name"))?;
            match octet {
                0 => {
                    self.here += 1;
                    return Ok(None);
                }
                1..=63 => {
                    let start = self.here + 1;
                    let end = start + usize::from(octet);
                    self.length += 1 + usize::from(octet);
                    if self.length > MAX_NAME {
                        return Err(Malformed("name over 255 octets"));
                    }
                    let label =
                        self.message.get(start..end).ok_or(Malformed("message ends inside a name"))?;
                    self.here = end;
                    return Ok(Some(label));
                }
                0xc0..=0xff => {
                    let target = pointer(self.message, self.here)?;
                    if target >= self.before {
                        return Err(Malformed("compression pointer does not lead backwards"));
                    }
                    if target < HEADER {
                        return Err(Malformed("compression pointer into the header"));
                    }
                    self.pointers += 1;
                    if self.pointers > MAX_POINTERS {
                        return Err(Malformed("more compression pointers than a name has labels"));
                    }
                    self.left_at.get_or_insert(self.here + 2);
                    self.before = target;
                    self.here = target;
                }
                _ => return Err(Malformed("unknown label type")),
            }
        }
    }
}

impl<'a> Iterator for Labels<'a> {
    type Item = Result<&'a [u8], Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let step = self.step();
        self.done = !matches!(step, Ok(Some(_)));
        step.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::super::HEADER;
    use super::*;

    #[test]
    fn a_plain_name_ends_behind_its_root() {
        assert_eq!(skip_plain(b"\x03www\x07example\x03com\x00rest", 0), Ok(17));
        assert_eq!(skip_plain(b"\x00", 0), Ok(1));
    }

    #[test]
    fn labels_over_63_and_names_over_255_are_malformed() {
        assert!(skip_plain(&[64; 80], 0).is_err());
        let label = [&[63u8][..], &[b'a'; 63]].concat();
        let of = |last: usize| {
            let mut name = label.repeat(3);
            name.push(last as u8);
            name.extend(vec![b'b'; last]);
            name.push(0);
            name
        };
        assert_eq!(skip_plain(&of(61), 0), Ok(255));
        assert!(skip_plain(&of(62), 0).is_err());
        assert_eq!(skip(&of(61), 0), Ok(255));
        assert!(skip(&of(62), 0).is_err());
    }

    /// A message of an empty header and this body, which begins at 12.
    fn behind_header(body: &[u8]) -> Vec<u8> {
        [&[0; HEADER], body].concat()
    }

    #[test]
    fn mixing_case_changes_letters_alone() {
        let mut name = b"\x03w-w\x0bexample1234\x23abcdefghijklmnopqrstuvwxyz012345678\x00".to_vec();
        let before = name.clone();
        mix_case(&mut name, || u32::MAX);
        assert_eq!(name, b"\x03W-W\x0bEXAMPLE1234\x23ABCDEFGHIJKLMNOPQRSTUVWXYZ012345678\x00");
        mix_case(&mut name, || 0);
        assert!(name.eq_ignore_ascii_case(&before) && name != before);
    }

    #[test]
    fn a_compressed_name_ends_behind_its_first_pointer() {
        let message = behind_header(b"\x03com\x00\x07example\xc0\x0c\x03www\xc0\x11tail");
        assert_eq!(skip(&message, 27), Ok(33));
        assert!(eq((&message, 27), (b"\x03WWW\x07example\x03COM\x00", 0)));
        assert!(!eq((&message, 27), (b"\x07example\x03com\x00", 0)));
    }

    #[test]
    fn names_of_a_message_are_the_same_in_any_form() {
        let message = behind_header(b"\x01a\x00\xc0\x0c\xc0\x0c\x01A\x00\xc0\x0e");
        for (a, b, equal) in [(15, 17, true), (12, 15, true), (15, 19, true), (15, 22, false), (22, 22, true)]
        {
            assert_eq!((same(&message, a, b), same(&message, b, a)), (equal, equal), "{a} and {b}");
        }
    }

    #[test]
    fn pointers_that_loop_or_lead_forward_are_malformed() {
        for (what, body) in [
            ("to itself", b"\xc0\x0c".as_slice()),
            ("to its own label", b"\x01a\xc0\x0c"),
            ("forward", b"\x01a\xc0\x10\x00"),
            ("cut off", b"\x01a\xc0"),
            ("label type 01", b"\x40a"),
            ("label type 10", b"\x80a"),
        ] {
            assert!(skip(&behind_header(body), HEADER).is_err(), "{what}");
        }
    }

    #[test]
    fn pointers_into_the_header_are_malformed() {
        // The header is empty, so each of its bytes could be read as the root.
        for target in 0..HEADER as u8 {
            let message = behind_header(&[1, b'a', 0xc0, target]);
            assert!(skip(&message, HEADER).is_err(), "{target}");
            assert!(!eq((&message, HEADER), (b"\x01a\x00", 0)), "{target}");
        }
        assert_eq!(skip(&behind_header(b"\x00\xc0\x0c"), 13), Ok(15));
    }

    #[test]
    fn names_over_255_octets_through_compression_are_malformed() {
        let label = [&[63u8][..], &[b'a'; 63]].concat();
        let tail = [label.repeat(3), vec![0]].concat();
        for (length, fits) in [(60, true), (61, true), (62, false), (63, false)] {
            let mut message = behind_header(&tail);
            let at = message.len();
            message.push(length);
            message.extend(vec![b'b'; usize::from(length)]);
            message.extend([0xc0, 0x0c]);
            assert_eq!(skip(&message, at).is_ok(), fits, "a label of {length} in front of 193 octets");
        }
    }

    /// Without a bound, a message of 64 KiB could make each of 4,000 owner names take 8,000 steps.
    #[test]
    fn more_pointers_than_a_name_has_labels_are_malformed() {
        for (pointers, fits) in [(1, true), (127, true), (128, false), (5000, false)] {
            let mut message = behind_header(b"\x00");
            for _ in 0..pointers {
                let before = if message.len() == HEADER + 1 { HEADER } else { message.len() - 2 };
                message.extend((0xc000 | before as u16).to_be_bytes());
            }
            let last = message.len() - 2;
            assert_eq!(skip(&message, last).is_ok(), fits, "{pointers} pointers");
        }
    }

    #[test]
    fn a_nul_octet_is_a_letter_like_any_other() {
        let name = b"\x03a\x00b\x00";
        assert_eq!((skip_plain(name, 0), skip(name, 0)), (Ok(5), Ok(5)));
        assert!(!eq((name, 0), (b"\x01a\x00", 0)));
        assert!(!eq((name, 0), (b"\x02ab\x00", 0)));
        assert_eq!(display(name), "a\\000b.");
    }
}
