//! RDATA that is looked into: addresses, and the types whose names a sender may compress.
//!
//! A reader must expand names in RDATA of the types of RFC 3597 §4, so it would follow what is wrong in
//! them. RDATA of every other type is opaque and passes as it is.

use super::{Malformed, Record, class, name, rtype};

/// Where the names in a record's RDATA begin.
pub type Names = [Option<usize>; 2];

/// What stands behind the names.
enum Tail {
    /// So many octets.
    Octets(usize),
    /// Whatever there is.
    Any,
}

/// What stands before the names (octets, then character strings), how many there are, and what follows.
type Layout = (usize, usize, usize, Tail);

/// The layout of each type with names that may be compressed (RFC 3597 §4), and of DNAME and KX, which
/// readers treat alike.
fn layout(rtype: u16) -> Option<Layout> {
    use rtype::*;
    Some(match rtype {
        NS | MD | MF | CNAME | MB | MG | MR | PTR | DNAME => (0, 0, 1, Tail::Octets(0)),
        MINFO | RP => (0, 0, 2, Tail::Octets(0)),
        SOA => (0, 0, 2, Tail::Octets(20)),
        MX | AFSDB | RT | KX => (2, 0, 1, Tail::Octets(0)),
        PX => (2, 0, 2, Tail::Octets(0)),
        SRV => (6, 0, 1, Tail::Octets(0)),
        NAPTR => (4, 3, 1, Tail::Octets(0)),
        NXT => (0, 0, 1, Tail::Any),
        SIG => (18, 0, 1, Tail::Any),
        _ => return None,
    })
}

/// Checks the RDATA of a record that [`Record::read`] found in this message, and says where its names are.
///
/// # Errors
/// An address without its length, a name that breaks the format, or names that end elsewhere than their
/// type says.
pub fn names(message: &[u8], record: &Record) -> Result<Names, Malformed> {
    let size = record.end - record.rdata();
    match (record.rtype, record.class) {
        (rtype::A, class::IN) if size != 4 => return Err(Malformed("A whose RDATA is no IPv4 address")),
        (rtype::AAAA, class::IN) if size != 16 => {
            return Err(Malformed("AAAA whose RDATA is no IPv6 address"));
        }
        _ => {}
    }
    let mut found = Names::default();
    let Some((octets, strings, names, tail)) = layout(record.rtype) else { return Ok(found) };
    let rdata = &message[..record.end];
    let mut at = record.rdata() + octets;
    for _ in 0..strings {
        at += 1 + usize::from(*rdata.get(at).ok_or(Malformed("RDATA ends inside a character string"))?);
    }
    for place in found.iter_mut().take(names) {
        *place = Some(at);
        at = name::skip(rdata, at)?;
    }
    match tail {
        Tail::Octets(octets) if at + octets != record.end => {
            Err(Malformed("RDATA whose names do not end where its type says"))
        }
        _ => Ok(found),
    }
}
