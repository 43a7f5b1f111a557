//! `nodens query`: ask a name, as dig would; with `--trace`, ask the agent how it came by the answer.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::{Value, json};

use super::{ask, trace};
use crate::admin::control::{Request, parse_type};
use crate::config::LINK_LOCAL_LISTEN;
use crate::wire::rcode;

/// Bytes of a UDP answer that we can take.
const SIZE: u16 = 1232;
/// Each of three tries by UDP; the whole wait by TCP.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[group(id = "query")]
pub(super) struct Options {
    /// The name.
    #[arg(required_unless_present = "probe")]
    name: Option<String>,
    /// The type, such as A, AAAA, SRV, PTR or TYPE65280.
    #[arg(default_value = "A")]
    rtype: String,
    /// Whom to ask: an address, with a port if it is not 53.
    #[arg(long, value_name = "ADDR", value_parser = parse_server, default_value_t = LINK_LOCAL_LISTEN)]
    server: SocketAddr,
    /// Ask by TCP.
    #[arg(long)]
    tcp: bool,
    /// Ask the agent on its control socket, and show how it came by the answer.
    #[arg(long, conflicts_with_all = ["server", "tcp"])]
    trace: bool,
    /// Ask the agent on its control socket whether it answers, for Kubernetes probes: exit code 0 or 1.
    #[arg(long, conflicts_with_all = ["server", "tcp", "trace", "name"])]
    probe: bool,
    #[command(flatten)]
    ask: ask::Options,
}

fn parse_server(text: &str) -> Result<SocketAddr, String> {
    text.parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
        .map_err(|_| "not an address: give one like 127.0.0.1:5053, [::1]:5053 or 10.96.0.10".to_owned())
}

pub(super) fn query(options: &Options) -> anyhow::Result<()> {
    let Some(name) = &options.name else { return ask::probe(&options.ask) };
    let rtype = parse_type(&options.rtype).map_err(anyhow::Error::msg)?;
    if options.trace {
        let request = Request::Trace { name: name.clone(), rtype: options.rtype.clone() };
        return ask::ask(&options.ask.control, &request, |trace| trace::print(&trace, options.ask.json));
    }
    let mut name = Name::from_utf8(name).with_context(|| name.clone())?;
    name.set_fqdn(true);
    let started = Instant::now();
    let (reply, transport) = exchange(options, name, rtype)?;
    let took = started.elapsed();
    if options.ask.json {
        println!("{}", message_json(&reply, Some(took)));
        return Ok(());
    }
    print_message(&reply);
    println!(";; {} ms from {} by {transport}", took.as_micros() as f64 / 1e3, options.server);
    Ok(())
}

/// Asks by UDP up to three times, and by TCP if wanted or if the answer was truncated.
fn exchange(options: &Options, name: Name, rtype: RecordType) -> anyhow::Result<(Message, &'static str)> {
    let id: u16 = rand::random();
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut edns = Edns::new();
    edns.set_max_payload(SIZE);
    message.edns = Some(edns);
    message.add_query(Query::query(name, rtype));
    let packet = message.to_vec()?;
    if !options.tcp {
        let reply = ask_udp(options.server, &packet, id)?;
        if !reply.metadata.truncation {
            return Ok((reply, "UDP"));
        }
        eprintln!(";; truncated by UDP, asked again by TCP");
    }
    Ok((ask_tcp(options.server, &packet)?, "TCP"))
}

fn ask_udp(server: SocketAddr, packet: &[u8], id: u16) -> anyhow::Result<Message> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; SIZE as usize];
    for _ in 0..3 {
        socket.send(packet)?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let reply = Message::from_vec(&buffer[..length]).context("the answer breaks the format")?;
                if reply.metadata.id == id {
                    return Ok(reply);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).with_context(|| format!("{server} by UDP")),
        }
    }
    bail!("no answer from {server} by UDP in {} s", 3 * PATIENCE.as_secs())
}

fn ask_tcp(server: SocketAddr, packet: &[u8]) -> anyhow::Result<Message> {
    let reason = || format!("{server} by TCP");
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).with_context(reason)?;
    stream.set_read_timeout(Some(3 * PATIENCE))?;
    let mut framed = (packet.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(packet);
    stream.write_all(&framed).with_context(reason)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).with_context(reason)?;
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut reply).with_context(reason)?;
    Message::from_vec(&reply).context("the answer breaks the format")
}

pub(super) fn print_message(message: &Message) {
    let meta = &message.metadata;
    let flags = [
        (meta.authoritative, "aa"),
        (meta.truncation, "tc"),
        (meta.recursion_desired, "rd"),
        (meta.recursion_available, "ra"),
        (meta.authentic_data, "ad"),
    ];
    let flags: Vec<&str> = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    println!(";; {}, id {}, flags {}", rcode::name(meta.response_code.into()), meta.id, flags.join(" "));
    for query in &message.queries {
        println!(";{}\t{}\t{}", query.name(), query.query_class(), query.query_type());
    }
    for (title, records) in [
        ("ANSWER", &message.answers),
        ("AUTHORITY", &message.authorities),
        ("ADDITIONAL", &message.additionals),
    ] {
        if !records.is_empty() {
            println!("\n;; {title}");
            for record in records {
                println!("{record}");
            }
        }
    }
    println!();
}

pub(super) fn message_json(message: &Message, took: Option<Duration>) -> Value {
    let lines = |records: &[hickory_proto::rr::Record]| -> Vec<String> {
        records.iter().map(ToString::to_string).collect()
    };
    json!({
        "rcode": rcode::name(message.metadata.response_code.into()),
        "answers": lines(&message.answers),
        "authorities": lines(&message.authorities),
        "additionals": lines(&message.additionals),
        "took_us": took.map(|took| took.as_micros() as u64),
    })
}
