//! Why a handshake failed, in words for an operator.

use std::io;
use std::time::Duration;

use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::{CertificateError, Error};

use crate::upstream::Cause;

/// Names of a certificate that are shown; some have hundreds.
const NAMES: usize = 8;

/// What is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) cause: Cause,
    pub(super) what: String,
    pub(super) fix: &'static str,
}

impl Problem {
    /// Of a handshake with the server that should have this name.
    pub(super) fn of(error: &io::Error, name: &str) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::InvalidCertificate(error)) => Self::of_certificate(error, name),
            Some(Error::NoCertificatesPresented) => Self {
                cause: Cause::Certificate,
                what: "it shows no certificate".to_owned(),
                fix: "give the server a certificate",
            },
            Some(error @ Error::InvalidMessage(_)) => Self {
                cause: Cause::Tls,
                what: format!("what it says is not TLS ({error})"),
                fix: "name the server's port for DNS over TLS, usually 853",
            },
            Some(error @ (Error::AlertReceived(_) | Error::PeerIncompatible(_))) => Self {
                cause: Cause::Tls,
                what: format!("it refuses, or has no way in common ({error})"),
                fix: "look at the server's log: TLS 1.2 or 1.3 is needed, and no certificate of ours",
            },
            Some(error) => Self::other(error.to_string()),
            None => Self::other(error.to_string()),
        }
    }

    /// Of a handshake that was given up.
    pub(super) fn timeout(after: Duration) -> Self {
        Self {
            cause: Cause::Tls,
            what: format!("the handshake took more than {} ms", after.as_millis()),
            fix: "look at the server's load, and whether its port speaks TLS",
        }
    }

    /// Of a pool whose authorities were not loaded.
    pub(super) fn not_ready() -> Self {
        Self {
            cause: Cause::Tls,
            what: "there are no certificate authorities to trust".to_owned(),
            fix: "look at upstream.ca",
        }
    }

    fn other(what: String) -> Self {
        Self { cause: Cause::Tls, what, fix: "look at the server's log" }
    }

    fn of_certificate(error: &CertificateError, name: &str) -> Self {
        use CertificateError as E;
        let (what, fix) = match error {
            E::Expired => ("its certificate has expired".to_owned(), RENEW),
            E::ExpiredContext { time, not_after } => {
                (format!("its certificate expired at {}, and it is {}", date(*not_after), date(*time)), RENEW)
            }
            E::NotValidYet => ("its certificate is not valid yet".to_owned(), CLOCK),
            E::NotValidYetContext { time, not_before } => (
                format!("its certificate is valid from {} on, and it is {}", date(*not_before), date(*time)),
                CLOCK,
            ),
            E::UnknownIssuer => {
                ("its certificate comes from an authority that is not trusted here".to_owned(), TRUST)
            }
            // An authority that was made anew under its old name.
            E::BadSignature => (
                "its certificate is signed by another key than that of the authority it names".to_owned(),
                TRUST,
            ),
            E::NotValidForName => (format!("its certificate is not for `{name}`"), NAME),
            E::NotValidForNameContext { presented, .. } => {
                (format!("its certificate is for {}, not for `{name}`", list(presented)), NAME)
            }
            E::Revoked => ("its certificate was revoked".to_owned(), RENEW),
            // webpki, `CaUsedAsEndEntity`: what `openssl req -x509` makes unless it is told otherwise.
            error if error.to_string().contains("CaUsedAsEndEntity") => (
                "its certificate is an authority's own".to_owned(),
                "give the server a certificate that is signed by the authority (basicConstraints CA:FALSE)",
            ),
            error => (format!("its certificate is not accepted ({error})"), "have a new one issued"),
        };
        Self { cause: Cause::Certificate, what, fix }
    }
}

const RENEW: &str = "renew the server's certificate";
const CLOCK: &str = "look at the clocks of this node and of the authority";
const TRUST: &str = "put the certificate of the authority that signed it into the file of upstream.ca";
const NAME: &str = "name the server in upstream.servers as its certificate does: tls://IP#name";

fn date(time: UnixTime) -> String {
    let at = std::time::UNIX_EPOCH + Duration::from_secs(time.as_secs());
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Names as a certificate holds them, each a text such as `DnsName("dns.example")`.
fn list(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inner = name.split_once('(').map_or(name.as_str(), |(_, inner)| inner.trim_end_matches(')'));
        format!("`{}`", inner.trim_matches('"').escape_debug())
    };
    let mut names: Vec<String> = presented.iter().take(NAMES).map(bare).collect();
    match presented.len() {
        0 => return "no name".to_owned(),
        n if n > NAMES => names.push(format!("{} more", n - NAMES)),
        _ => {}
    }
    names.join(", ")
}
