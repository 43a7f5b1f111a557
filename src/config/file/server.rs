//! One server, as `tcp://10.96.0.10`, `tls://9.9.9.9#dns.quad9.net`, `auto://kube-dns.kube-system.svc` or `system`.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::rr::Name;
use tokio_rustls::rustls::pki_types::ServerName;

use super::problem::{Fault, shown};
use super::value;
use crate::config::{DNS_PORT, Scheme, Server};

/// RFC 7858 §3.1: where servers listen for TLS.
const TLS_PORT: u16 = 853;

/// What would be right, if nothing better is known.
const EXAMPLE: &str = "write tcp://10.96.0.10, udp://[fd00::a]:5353 or system";

/// Any server.
pub(super) fn server(text: &str) -> Result<Server, Fault> {
    if text == "system" {
        return Ok(Server::System);
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(no_scheme(text));
    };
    let scheme = match scheme {
        "tcp" => Scheme::Tcp,
        "udp" => Scheme::Udp,
        "auto" => Scheme::Auto,
        "tls" => return tls(text, rest),
        _ => {
            let fix = "write one of tcp://, udp://, auto:// and tls://, or system";
            return Err(Fault::new(format!("{} has no scheme of ours", shown(text)), fix));
        }
    };
    if let Some((host, name)) = rest.split_once('#') {
        let what = format!("{} names a certificate, which only tls:// servers have", shown(text));
        return Err(Fault::new(what, format!("write {scheme}://{host} or tls://{host}#{name}")));
    }
    match address(rest, DNS_PORT) {
        Some(address) if may_be_asked(address) => Ok(match scheme {
            Scheme::Tcp => Server::Tcp(address),
            Scheme::Udp => Server::Udp(address),
            Scheme::Auto => Server::Auto(address),
        }),
        Some(_) => Err(Fault::new(format!("{} cannot be asked", shown(text)), EXAMPLE)),
        None => named(text, scheme, rest),
    }
}

/// A server that resolves the names of others, and so has an address itself.
pub(super) fn bootstrap(text: &str) -> Result<Server, Fault> {
    match server(text)? {
        Server::Named(..) | Server::System => {
            let what = format!("{} is not a server at an address", shown(text));
            Err(Fault::new(what, "write one such as tcp://10.96.0.10, whose address need not be looked up"))
        }
        server => Ok(server),
    }
}

fn no_scheme(text: &str) -> Fault {
    let fix = match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => format!("write tcp://{ip} or udp://{ip}"),
        Ok(IpAddr::V6(ip)) => format!("write tcp://[{ip}] or udp://[{ip}]"),
        Err(_) if text.parse::<SocketAddr>().is_ok() => format!("write tcp://{text} or udp://{text}"),
        Err(_) => EXAMPLE.to_owned(),
    };
    Fault::new(format!("{} does not say how to ask", shown(text)), fix)
}

/// `IP[:port]`, with IPv6 in brackets.
fn address(text: &str, port: u16) -> Option<SocketAddr> {
    text.parse().or_else(|_| format!("{text}:{port}").parse()).ok()
}

fn may_be_asked(address: SocketAddr) -> bool {
    address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast()
}

/// The certificate is what tells a server from whoever stands between, so its name has no default.
fn tls(text: &str, rest: &str) -> Result<Server, Fault> {
    const TLS_EXAMPLE: &str = "write tls://9.9.9.9#dns.quad9.net";
    let (host, name) = rest.split_once('#').unwrap_or((rest, ""));
    let Some(address) = address(host, TLS_PORT) else {
        if let Ok(IpAddr::V6(ip)) = host.parse() {
            return Err(no_brackets(text, &format!("tls://[{ip}]#NAME")));
        }
        let what = format!("{} holds no IP address, which a tls:// server needs", shown(text));
        return Err(Fault::new(what, TLS_EXAMPLE));
    };
    if !may_be_asked(address) {
        return Err(Fault::new(format!("{} cannot be asked", shown(text)), TLS_EXAMPLE));
    }
    if name.is_empty() {
        let what = format!("{} does not say which name the server's certificate has", shown(text));
        return Err(Fault::new(what, format!("write tls://{host}#NAME")));
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    if ServerName::try_from(name.as_str()).is_err() {
        let what = format!("{} is no name that a certificate can have", shown(&name));
        return Err(Fault::new(what, "write a host name such as dns.quad9.net"));
    }
    Ok(Server::Tls(address, name))
}

/// `name[:port]`, or what is wrong with it.
fn named(text: &str, scheme: Scheme, rest: &str) -> Result<Server, Fault> {
    if let Ok(IpAddr::V6(ip)) = rest.parse() {
        return Err(no_brackets(text, &format!("{scheme}://[{ip}]")));
    }
    let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
    let Some(name) = host_name(host) else {
        let what = format!("{} holds no IP address or host name", shown(text));
        return Err(Fault::new(what, format!("write {scheme}://10.96.0.10 or {scheme}://[fd00::a]:5353")));
    };
    let port = match port {
        None => DNS_PORT,
        Some(port) => value::number(port, &(1..=u16::MAX)).map_err(|_| {
            Fault::new(
                format!("{} has no port behind its colon", shown(text)),
                format!("write {scheme}://{host}:53"),
            )
        })?,
    };
    Ok(Server::Named(scheme, name, port))
}

/// A host name, lower-case and fully qualified. Its last label is not a number (RFC 1123 §2.1): such a text is an
/// address with a slip in it.
fn host_name(text: &str) -> Option<Name> {
    let last = text.strip_suffix('.').unwrap_or(text).rsplit('.').next()?;
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit());
    (!is_number && !text.contains('/')).then(|| value::name(text).ok()).flatten()
}

fn no_brackets(text: &str, right: &str) -> Fault {
    Fault::new(format!("{} lacks brackets around the address", shown(text)), format!("write {right}"))
}
