//! Messages on a stream: each behind its length in two bytes (RFC 1035 §4.2.2).

/// The whole messages at the front of a buffer.
#[derive(Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// Reads from the front of `buffer`.
    pub fn new(buffer: &'a [u8]) -> Self {
        Self { rest: buffer }
    }

    /// Bytes behind the last whole message that was taken.
    pub fn left(&self) -> usize {
        self.rest.len()
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, behind) = self.rest.split_first_chunk::<2>()?;
        let (message, rest) = behind.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        self.rest = rest;
        Some(message)
    }
}

/// Appends a message whose bytes `write` appends, with its length in front.
pub fn append(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend([0, 0]);
    write(out);
    let length = (out.len() - at - 2) as u16;
    super::put_u16(out, at, length);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_whole_or_not_at_all() {
        let mut buffer = Vec::new();
        append(&mut buffer, |out| out.extend(b"one"));
        append(&mut buffer, |_| {});
        append(&mut buffer, |out| out.extend([7; 65_535]));
        for cut in [0, 1, 2, 4, 5, 6, 7, 8, 100, buffer.len()] {
            let mut frames = Frames::new(&buffer[..cut]);
            let lengths: Vec<usize> = frames.by_ref().map(<[u8]>::len).collect();
            let whole = [(5, 3), (7, 0), (65_544, 65_535)].iter().filter(|(end, _)| *end <= cut);
            assert_eq!(lengths, whole.clone().map(|&(_, length)| length).collect::<Vec<_>>());
            assert_eq!(frames.left(), cut - whole.map(|&(end, _)| end).max().unwrap_or(0));
        }
    }
}
