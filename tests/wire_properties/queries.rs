//! What hickory-proto writes as a query is read as the same query.

use hickory_proto::op::{Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::{DNSClass, RecordType};
use nodens::wire::edns::Edns;
use nodens::wire::key::KeyBuf;
use nodens::wire::query::Query;
use nodens::wire::{flag, rtype};
use proptest::option;
use proptest::prelude::*;

use super::generate::{config, edns, hickory, labels, plain, wants_keepalive};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_query_is_read_as_it_was_written(
        name in labels(),
        id in any::<u16>(),
        qtype in prop_oneof![Just(1u16), Just(28), Just(255), any::<u16>()],
        qclass in prop_oneof![Just(1u16), any::<u16>()],
        (rd, cd, ad) in any::<(bool, bool, bool)>(),
        opt in option::of((edns(), 0..3u8)),
    ) {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = rd;
        message.metadata.checking_disabled = cd;
        message.metadata.authentic_data = ad;
        let mut question = Question::query(hickory(&name), RecordType::from(qtype));
        question.set_query_class(DNSClass::from(qclass));
        message.add_query(question);
        if let Some((mut edns, version)) = opt.clone() {
            edns.set_version(version);
            message.set_edns(edns);
        }
        let packet = message.to_vec().expect("a query that fits");
        let query = Query::parse(&packet).expect("a well-formed query");

        prop_assert_eq!((query.id, query.qtype, query.qclass), (id, qtype, qclass));
        prop_assert_eq!(query.name, plain(&name));
        let bit = |set: bool, bit: u16| if set { bit } else { 0 };
        prop_assert_eq!(query.flags, bit(rd, flag::RD) | bit(cd, flag::CD) | bit(ad, flag::AD));
        let dnssec = opt.as_ref().is_some_and(|(edns, _)| edns.flags().dnssec_ok);
        let expected = opt.map(|(edns, version)| Edns {
            size: edns.max_payload().max(512),
            dnssec_ok: dnssec,
            version,
            // The options of another version are not read.
            keepalive: version == 0 && wants_keepalive(&edns),
        });
        prop_assert_eq!(query.edns, expected);
        prop_assert_eq!(query.wants_ad(), ad || dnssec);

        let key = KeyBuf::new(&query).to_key();
        prop_assert_eq!(key.name(), plain(&name).to_ascii_lowercase());
        prop_assert_eq!((key.qtype(), key.qclass(), key.checking_disabled()), (qtype, qclass, cd));
    }

    /// Our own queries, read by the other implementation.
    #[test]
    fn the_query_that_goes_upstream_is_read_by_others(
        name in labels(),
        id in any::<u16>(),
        qtype in any::<u16>().prop_filter("no meta type", |&qtype| qtype != rtype::OPT),
        cd in any::<bool>(),
        dnssec in option::of(any::<bool>()),
        size in option::of(512..=4096u16),
    ) {
        let edns = dnssec.map(|dnssec_ok| Edns { size: 1232, dnssec_ok, version: 0, keepalive: false });
        let name = plain(&name);
        let query = Query { id: 1, flags: if cd { flag::CD } else { 0 }, name: &name, qtype, qclass: 1, edns };
        let key = KeyBuf::new(&query).to_key();
        let mut packet = Vec::new();
        key.write_query(id, size, &mut packet);
        let message = Message::from_vec(&packet).expect("a well-formed query");
        prop_assert_eq!(message.metadata.id, id);
        prop_assert!(message.metadata.recursion_desired && message.metadata.authentic_data);
        prop_assert_eq!(message.metadata.checking_disabled, cd);
        prop_assert_eq!(u16::from(message.queries[0].query_type()), qtype);
        prop_assert_eq!(message.edns.as_ref().map(|edns| edns.max_payload()), size);
        let dnssec_ok = message.edns.as_ref().map(|edns| edns.flags().dnssec_ok);
        prop_assert_eq!(dnssec_ok, size.map(|_| dnssec == Some(true)));
        prop_assert!(!key.is_answered_by(&packet));
        packet[2] |= 0x80;
        prop_assert!(key.is_answered_by(&packet));
    }
}
