//! Handshakes and streams in memory, with a server that the tests hold.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, duplex,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ServerConfig, SupportedProtocolVersion};
use tokio_rustls::server::TlsStream;

use super::*;
use crate::upstream::transport::Reader;

const NAME: &str = "dns.example";
const BOTH: &[&SupportedProtocolVersion] = &[&TLS12, &TLS13];

/// A certificate authority, and the file with its certificate.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: tempfile::NamedTempFile,
}

impl Authority {
    fn new() -> Self {
        Self::called("an authority")
    }

    fn called(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), file }
    }

    fn definition(&self) -> config::Upstream {
        let server = config::Server::Tls(([192, 0, 2, 1], 853).into(), NAME.to_owned());
        let ca = Some(self.file.path().to_owned());
        config::Upstream { ca, ..config::Upstream::new(vec![server]) }
    }

    fn client(&self, name: &str) -> Client {
        let tls = Tls::load(&self.definition()).unwrap().unwrap();
        Client::new(Some(&tls), name, "tls://192.0.2.1:853".into())
    }

    /// A server with a certificate for this name, changed as the test wants it.
    fn server(
        &self,
        name: &str,
        versions: &[&'static SupportedProtocolVersion],
        change: Change,
    ) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec(), ALPN.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

type Change = fn(&mut CertificateParams);

const AS_IS: Change = |_| {};

/// What a stream in memory has seen.
#[derive(Default)]
struct Wire {
    written: Mutex<Vec<u8>>,
    acknowledged: AtomicUsize,
}

impl Wire {
    /// Forgets what was written, and gives the types and lengths of its records (RFC 8446 §5.1).
    fn take_records(&self) -> Vec<(u8, usize)> {
        let written = std::mem::take(&mut *self.written.lock().unwrap());
        let (mut rest, mut records) = (&written[..], Vec::new());
        while let [kind, _, _, high, low, after @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            records.push((*kind, length));
            rest = &after[length..];
        }
        records
    }
}

struct Near<T>(T, Arc<Wire>);

impl AsyncRead for Near<ReadHalf<DuplexStream>> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Reader for Near<ReadHalf<DuplexStream>> {
    fn acknowledge(&self) {
        self.1.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Near<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.0).poll_write(cx, bytes);
        if let Poll::Ready(Ok(length)) = done {
            self.1.written.lock().unwrap().extend_from_slice(&bytes[..length]);
        }
        done
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A stream that holds this many bytes each way, and its far end.
fn stream(room: usize) -> (Link, DuplexStream, Arc<Wire>) {
    let (near, far) = duplex(room);
    let (reader, writer) = tokio::io::split(near);
    let wire = Arc::new(Wire::default());
    let reader = Box::new(Near(reader, Arc::clone(&wire)));
    (Link { reader, writer: Box::new(Near(writer, Arc::clone(&wire))) }, far, wire)
}

/// Both ends after a handshake.
async fn connected(
    client: &Client,
    server: &TlsAcceptor,
    room: usize,
) -> (Link, TlsStream<DuplexStream>, Arc<Wire>) {
    let (link, far, wire) = stream(room);
    let (near, far) = tokio::join!(client.handshake(link), server.accept(far));
    (near.unwrap(), far.unwrap(), wire)
}

/// Why there is no connection, in words.
async fn refused(client: &Client, server: &TlsAcceptor) -> Problem {
    let (link, far, _) = stream(1 << 16);
    let (connector, name) = client.ready.clone().unwrap();
    let connecting = connector.connect(name.clone(), stream::Joined(link));
    let (near, far) = tokio::join!(connecting, server.accept(far));
    assert!(far.is_err(), "the server is told");
    Problem::of(&near.map(|_| ()).unwrap_err(), &name.to_str())
}

fn counts(client: &Client) -> [u64; 3] {
    let Handshakes { full, resumed, failed } = &client.handshakes;
    [full, resumed, failed].map(Counter::value)
}

#[tokio::test]
async fn a_second_handshake_is_a_resumed_one_by_either_version() {
    let authority = Authority::new();
    for versions in [&[&TLS12][..], &[&TLS13]] {
        let server = authority.server(NAME, versions, AS_IS);
        let client = authority.client(NAME);
        for handshakes in 1..=4 {
            let (mut near, mut far, _) = connected(&client, &server, 1 << 16).await;
            assert_eq!(far.get_ref().1.alpn_protocol(), Some(ALPN));
            // Tickets come with the first answer.
            far.write_all(b"answer").await.unwrap();
            near.reader.read_exact(&mut [0; 6]).await.unwrap();
            assert_eq!(counts(&client), [1, handshakes - 1, 0], "{versions:?}");
        }
        let other = authority.client(NAME);
        connected(&other, &server, 1 << 16).await;
        assert_eq!(counts(&other), [1, 0, 0], "sessions are a server's own");
    }
}

#[tokio::test]
async fn an_address_can_be_the_name() {
    let authority = Authority::new();
    for name in ["192.0.2.1", "2001:db8::1"] {
        let server = authority.server(name, BOTH, AS_IS);
        connected(&authority.client(name), &server, 1 << 16).await;
        let wrong = refused(&authority.client("192.0.2.2"), &server).await;
        assert_eq!(wrong.what, format!("its certificate is for `{name}`, not for `192.0.2.2`"));
    }
}

#[tokio::test]
async fn a_certificate_that_proves_nothing_is_refused_with_the_reason() {
    let (authority, again, stranger) = (Authority::new(), Authority::new(), Authority::called("a stranger"));
    let client = authority.client(NAME);
    let past: Change = |params| params.not_after = rcgen::date_time_ymd(2020, 2, 29);
    let future: Change = |params| params.not_before = rcgen::date_time_ymd(3000, 1, 1);
    let own: Change = |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let many: Change = |params| {
        let names: Vec<String> = (0..20).map(|n| format!("n{n}.example")).collect();
        params.subject_alt_names = CertificateParams::new(names).unwrap().subject_alt_names;
    };
    let none: Change = |params| params.subject_alt_names.clear();
    for (server, what, fix) in [
        (authority.server(NAME, BOTH, past), "expired at 2020-02-29T00:00:00Z, and it is 2", "renew"),
        (authority.server(NAME, BOTH, future), "valid from 3000-01-01T00:00:00Z on, and it is 2", "clocks"),
        (stranger.server(NAME, BOTH, AS_IS), "an authority that is not trusted", "upstream.ca"),
        (again.server(NAME, BOTH, AS_IS), "another key than that of the authority", "upstream.ca"),
        (
            authority.server("other.example", BOTH, AS_IS),
            "is for `other.example`, not for `dns.example`",
            "tls://",
        ),
        (authority.server(NAME, BOTH, many), "`n7.example`, 12 more, not for", "upstream.servers"),
        (authority.server(NAME, BOTH, none), "is for no name, not for", "upstream.servers"),
        (authority.server(NAME, BOTH, own), "an authority's own", "signed by"),
    ] {
        let problem = refused(&client, &server).await;
        assert_eq!(problem.cause, Cause::Certificate, "{problem:?}");
        assert!(problem.what.contains(what) && problem.fix.contains(fix), "{what}: {problem:?}");
        let (link, far, _) = stream(1 << 16);
        let (near, _) = tokio::join!(client.handshake(link), server.accept(far));
        assert_eq!(near.err(), Some(Cause::Certificate));
    }
    assert_eq!(counts(&client), [0, 0, 8]);
}

#[tokio::test]
async fn a_server_without_tls_or_alpn_dot_is_refused_and_is_told_nothing_in_the_clear() {
    let authority = Authority::new();
    let client = authority.client(NAME);
    let (link, mut far, wire) = stream(1 << 16);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    assert_eq!(client.handshake(link).await.err(), Some(Cause::Tls));
    let kinds: Vec<u8> = wire.take_records().iter().map(|&(kind, _)| kind).collect();
    assert!(matches!(kinds[..], [22] | [22, 21]), "a greeting and perhaps an alert: {kinds:?}");
    let (link, far, _) = stream(1 << 16);
    drop(far);
    assert_eq!(client.handshake(link).await.err(), Some(Cause::Tls));
    let mut config = Arc::unwrap_or_clone(Arc::clone(authority.server(NAME, BOTH, AS_IS).config()));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let problem = refused(&client, &TlsAcceptor::from(Arc::new(config))).await;
    assert!(problem.cause == Cause::Tls && problem.what.contains("NoApplicationProtocol"), "{problem:?}");
}

#[tokio::test]
async fn without_authorities_nothing_is_sent_at_all() {
    let client = Client::new(None, NAME, "tls://192.0.2.1:853".into());
    let (link, mut far, _) = stream(1 << 16);
    assert_eq!(client.handshake(link).await.err(), Some(Cause::Tls));
    assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
    let missing = config::Upstream { ca: Some("/nonexistent.pem".into()), ..Authority::new().definition() };
    assert!(Tls::load(&missing).is_err());
    let plain = config::Server::Tcp(([192, 0, 2, 1], 53).into());
    assert!(Tls::load(&config::Upstream { servers: vec![plain], ..missing }).unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_is_given_up() {
    let client = Authority::new().client(NAME);
    let (link, _far, _) = stream(1 << 16);
    let started = Instant::now();
    assert_eq!(client.handshake(link).await.err(), Some(Cause::Tls));
    assert!(started.elapsed() >= HANDSHAKE && started.elapsed() < HANDSHAKE * 2);
    assert!(!client.past().may_log(Instant::now()), "one line a minute");
    tokio::time::advance(SILENCE).await;
    assert!(client.past().may_log(Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn certificates_refused_in_a_row_make_handshakes_rare_until_one_is_good() {
    let authority = Authority::new();
    let (bad, good) = (authority.server("other.example", BOTH, AS_IS), authority.server(NAME, BOTH, AS_IS));
    let client = authority.client(NAME);
    let try_at = async |server: &TlsAcceptor| {
        let (link, far, _) = stream(1 << 16);
        tokio::join!(client.handshake(link), server.accept(far)).0.err()
    };
    for _ in 0..100 {
        assert_eq!(try_at(&bad).await, Some(Cause::Certificate));
    }
    assert_eq!(counts(&client), [0, 0, u64::from(REFUSALS) + 1]);
    tokio::time::advance(PAUSE).await;
    for _ in 0..100 {
        assert_eq!(try_at(&bad).await, Some(Cause::Certificate));
    }
    assert_eq!(counts(&client), [0, 0, u64::from(REFUSALS) + 2]);
    tokio::time::advance(PAUSE).await;
    assert_eq!(try_at(&good).await, None);
    for _ in 0..REFUSALS {
        assert_eq!(try_at(&bad).await, Some(Cause::Certificate));
        assert_eq!(try_at(&good).await, None, "one bad server beside a good one keeps nobody from it");
    }
}

#[tokio::test]
async fn a_batch_is_one_record_and_leaves_without_a_flush() {
    let authority = Authority::new();
    let server = authority.server(NAME, BOTH, AS_IS);
    let (mut near, mut far, wire) = connected(&authority.client(NAME), &server, 1 << 16).await;
    wire.take_records();
    let batch = vec![7; 64 * 50];
    assert_eq!(near.writer.write(&batch).await.unwrap(), batch.len());
    let records = wire.take_records();
    assert!(matches!(records[..], [(23, length)] if length > batch.len()), "{records:?}");
    let mut read = vec![0; batch.len()];
    far.read_exact(&mut read).await.unwrap();
    assert_eq!(read, batch);
    near.reader.acknowledge();
    assert_eq!(wire.acknowledged.load(Ordering::Relaxed), 1);
}

/// As the connection's task does it: after a write has taken all, only reading goes on.
#[tokio::test]
async fn what_a_full_stream_did_not_take_leaves_while_the_answer_is_awaited() {
    let authority = Authority::new();
    let server = authority.server(NAME, BOTH, AS_IS);
    let (mut near, mut far, _) = connected(&authority.client(NAME), &server, 512).await;
    let batch: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
    let far = tokio::spawn(async move {
        let mut read = vec![0; 20_000];
        far.read_exact(&mut read).await.unwrap();
        far.write_all(b"answer").await.unwrap();
        far.flush().await.unwrap();
        read
    });
    assert_eq!(near.writer.write(&batch).await.unwrap(), batch.len());
    assert_eq!(near.writer.write(&batch).await.unwrap(), batch.len(), "after what was left of the first");
    let mut answer = [0; 6];
    timeout(HANDSHAKE, near.reader.read_exact(&mut answer)).await.expect("nothing is left").unwrap();
    assert_eq!((&answer, far.await.unwrap()), (b"answer", [&batch[..], &batch].concat()));
}

#[tokio::test]
async fn a_connection_that_is_dropped_says_that_it_ends() {
    let authority = Authority::new();
    let server = authority.server(NAME, BOTH, AS_IS);
    let (near, mut far, _) = connected(&authority.client(NAME), &server, 1 << 16).await;
    drop(near);
    // Without close_notify it would be an error: somebody may have cut it (RFC 8446 §6.1).
    assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
}

#[test]
fn a_pool_follows_a_file_of_authorities_that_changes() {
    let authority = Authority::new();
    let definition = authority.definition();
    let tls = Tls::load(&definition).unwrap().unwrap();
    assert!(tls.is_current(&definition));
    std::fs::copy(Authority::new().file.path(), authority.file.path()).unwrap();
    assert!(!tls.is_current(&definition));
}
