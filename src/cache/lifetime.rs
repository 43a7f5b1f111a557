//! How long an answer lives: a function of its TTLs and the zone's bounds (RFC 2308, RFC 8767 §4).

use crate::wire::response::{Kind, Soa};

/// RFC 8767 §4: a TTL with its top bit set is large, and a week is enough for any.
pub const MAX_TTL: u32 = 7 * 86_400;

/// A zone's bounds, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Least TTL, of any record.
    pub min_ttl: u32,
    /// Greatest TTL, of any record.
    pub max_ttl: u32,
    /// Greatest life of a negative answer.
    pub negative_max_ttl: u32,
    /// Life of a negative answer without SOA; 0 is not at all.
    pub negative_no_soa_ttl: u32,
}

impl Bounds {
    /// The TTL under which a record is stored and delivered.
    pub fn clamp(&self, ttl: u32) -> u32 {
        ttl.min(MAX_TTL).max(self.min_ttl).min(self.max_ttl)
    }

    /// The TTL under which the SOA of a negative answer is stored and delivered.
    fn negative(&self, soa_ttl: u32, minimum: u32) -> u32 {
        self.clamp(soa_ttl.min(minimum)).min(self.negative_max_ttl)
    }

    /// Replaces each TTL by the one under which it is delivered, and returns the answer's life in
    /// seconds: the smallest of them. 0 means that it is delivered and not stored.
    pub fn apply(&self, kind: Kind, soa: Option<Soa>, ttls: &mut [(u16, u32)]) -> u32 {
        let negative = matches!(kind, Kind::NoData | Kind::NxDomain);
        for (at, ttl) in ttls.iter_mut() {
            *ttl = match soa {
                Some(soa) if negative && soa.ttl_at == *at => self.negative(*ttl, soa.minimum),
                _ => self.clamp(*ttl),
            };
        }
        let shortest = ttls.iter().map(|&(_, ttl)| ttl).min();
        match (kind, soa) {
            (Kind::Failure(_), _) => 0,
            (Kind::Positive, _) => shortest.unwrap_or(0),
            (_, Some(_)) => shortest.unwrap_or(0).min(self.negative_max_ttl),
            (_, None) => shortest.unwrap_or(u32::MAX).min(self.negative_no_soa_ttl),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { min_ttl: 0, max_ttl: 3600, negative_max_ttl: 30, negative_no_soa_ttl: 0 };
    const SOA: Option<Soa> = Some(Soa { ttl_at: 90, minimum: 20 });

    fn life(bounds: Bounds, kind: Kind, soa: Option<Soa>, ttls: &[u32]) -> (u32, Vec<u32>) {
        let mut at: Vec<(u16, u32)> =
            ttls.iter().enumerate().map(|(i, &ttl)| (90 - 10 * (ttls.len() - 1 - i) as u16, ttl)).collect();
        let life = bounds.apply(kind, soa, &mut at);
        (life, at.into_iter().map(|(_, ttl)| ttl).collect())
    }

    #[test]
    fn life_is_the_smallest_clamped_ttl() {
        let floor = Bounds { min_ttl: 5, ..BOUNDS };
        for (bounds, ttls, expected) in [
            (BOUNDS, vec![30, 10, 20], (10, vec![30, 10, 20])),
            (BOUNDS, vec![86_400], (3600, vec![3600])),
            (BOUNDS, vec![0, 30], (0, vec![0, 30])),
            (floor, vec![0, 30], (5, vec![5, 30])),
            (BOUNDS, vec![0x8000_0000], (3600, vec![3600])),
            (Bounds { max_ttl: u32::MAX, ..BOUNDS }, vec![u32::MAX], (MAX_TTL, vec![MAX_TTL])),
        ] {
            assert_eq!(life(bounds, Kind::Positive, None, &ttls), expected);
        }
    }

    #[test]
    fn negative_life_is_the_smaller_of_soa_ttl_and_minimum_and_is_delivered() {
        assert_eq!(life(BOUNDS, Kind::NxDomain, SOA, &[3600]), (20, vec![20]));
        assert_eq!(life(BOUNDS, Kind::NoData, SOA, &[7]), (7, vec![7]));
        let long = Some(Soa { ttl_at: 90, minimum: 900 });
        assert_eq!(life(BOUNDS, Kind::NxDomain, long, &[900]), (30, vec![30]));
    }

    #[test]
    fn a_cname_in_front_of_a_negative_answer_bounds_its_life() {
        assert_eq!(life(BOUNDS, Kind::NoData, SOA, &[3, 60]), (3, vec![3, 20]));
        assert_eq!(life(BOUNDS, Kind::NxDomain, SOA, &[300, 60]), (20, vec![300, 20]));
    }

    #[test]
    fn negative_answer_without_soa_is_not_cached_unless_configured() {
        assert_eq!(life(BOUNDS, Kind::NoData, None, &[]).0, 0);
        let some = Bounds { negative_no_soa_ttl: 5, ..BOUNDS };
        assert_eq!(life(some, Kind::NoData, None, &[]).0, 5);
        assert_eq!(life(some, Kind::NxDomain, None, &[2]).0, 2);
    }

    #[test]
    fn failures_have_no_life_here() {
        assert_eq!(life(BOUNDS, Kind::Failure(2), SOA, &[60]).0, 0);
    }
}
