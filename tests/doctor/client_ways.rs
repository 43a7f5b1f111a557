//! What the cluster's DNS is asked at its start.

/// A query for an A record below `load.test`.
pub(crate) fn question(name: &str, id: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]); // RD, one question
    for label in [name, "load", "test", ""] {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 1, 0, 1]);
    message
}
