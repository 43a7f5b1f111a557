//! Longest-suffix match: which zone a name belongs to.

use crate::wire::name;

/// Labels that a name can have: 255 octets, at least two for each (RFC 1035 §2.3.4).
const MAX_LABELS: usize = 128;

/// A tree of labels from the root down, with a value at each suffix that has one.
#[derive(Debug, Clone)]
pub struct Suffixes<T> {
    nodes: Vec<Node<T>>,
}

#[derive(Debug, Clone)]
struct Node<T> {
    children: Vec<(Box<[u8]>, usize)>,
    value: Option<T>,
}

impl<T> Node<T> {
    fn child(&self, label: &[u8]) -> Option<usize> {
        self.children.iter().find(|(known, _)| **known == *label).map(|&(_, index)| index)
    }
}

impl<T> Default for Suffixes<T> {
    fn default() -> Self {
        Self { nodes: vec![Node { children: Vec::new(), value: None }] }
    }
}

impl<T> Suffixes<T> {
    /// Puts `value` at the suffix whose plain, lower-cased name this is, and returns what was there.
    pub fn insert(&mut self, suffix: &[u8], value: T) -> Option<T> {
        let labels: Vec<&[u8]> = name::labels(suffix).collect();
        let mut at = 0;
        for label in labels.into_iter().rev() {
            at = match self.nodes[at].child(label) {
                Some(child) => child,
                None => {
                    let child = self.nodes.len();
                    self.nodes.push(Node { children: Vec::new(), value: None });
                    self.nodes[at].children.push((label.into(), child));
                    child
                }
            };
        }
        self.nodes[at].value.replace(value)
    }

    /// The value of the longest suffix of the plain, lower-cased `name`, and that suffix's labels.
    pub fn find(&self, name: &[u8]) -> Option<(u8, &T)> {
        let mut starts = [0u8; MAX_LABELS];
        let mut count = 0;
        let mut at = 0;
        while name[at] != 0 {
            starts[count] = at as u8;
            count += 1;
            at += 1 + usize::from(name[at]);
        }
        let mut node = &self.nodes[0];
        let mut found = node.value.as_ref().map(|value| (0, value));
        for (depth, &start) in starts[..count].iter().rev().enumerate() {
            let start = usize::from(start);
            let label = &name[start + 1..start + 1 + usize::from(name[start])];
            let Some(child) = node.child(label) else { break };
            node = &self.nodes[child];
            if let Some(value) = &node.value {
                found = Some((depth as u8 + 1, value));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_suffix_wins_at_label_boundaries() {
        let mut zones = Suffixes::default();
        assert_eq!(zones.find(b"\x03com\x00"), None);
        zones.insert(b"\x00", "root");
        zones.insert(b"\x07cluster\x05local\x00", "cluster");
        zones.insert(b"\x03svc\x07cluster\x05local\x00", "svc");
        for (name, expected) in [
            (&b"\x03com\x00"[..], (0, "root")),
            (b"\x00", (0, "root")),
            (b"\x05local\x00", (0, "root")),
            (b"\x07cluster\x05local\x00", (2, "cluster")),
            (b"\x08xcluster\x05local\x00", (0, "root")),
            (b"\x01a\x03svc\x07cluster\x05local\x00", (3, "svc")),
            (b"\x01a\x03pod\x07cluster\x05local\x00", (2, "cluster")),
        ] {
            assert_eq!(zones.find(name), Some((expected.0, &expected.1)), "{name:?}");
        }
        let mut longest = b"\x01a".repeat(127);
        longest.push(0);
        assert_eq!(zones.find(&longest), Some((0, &"root")));
    }
}
