//! Good answers to a query.

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{RData, Record};

/// A reply to this query with nothing but an RCODE.
pub(crate) fn reply_code(query: &Message, code: ResponseCode) -> Message {
    let mut reply = query.clone();
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.response_code = code;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = false;
    reply.metadata.authentic_data = false;
    if let Some(edns) = &mut reply.edns {
        edns.options_mut().options.clear();
    }
    reply
}

/// A reply with one address record under the question's own name; NODATA for other types.
pub(crate) fn address_reply(query: &Message, ttl: u32, address: &str) -> Message {
    let mut reply = reply_code(query, ResponseCode::NoError);
    let question = query.queries.first().expect("question");
    let data = RData::from(address.parse::<IpAddr>().expect("address"));
    if data.record_type() == question.query_type {
        reply.add_answer(Record::from_rdata(question.name.clone(), ttl, data));
    }
    reply
}
