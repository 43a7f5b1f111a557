//! Whom to trust: the certificate authorities of a file, or those of the system.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

/// Largest file of authorities, in bytes. All that Debian knows have 220 KB, a ConfigMap holds 1 MiB.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Why `tls://` servers cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read, or is no list of authorities.
    #[error(
        "upstream.ca: {file}: {why}: name a PEM file with the certificates of those who sign the servers'"
    )]
    File {
        /// As the configuration names it.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The system trusts nobody.
    #[error(
        "no certificate authority on this system for tls:// servers{0}: install ca-certificates, or name a PEM file as upstream.ca"
    )]
    System(String),
    /// The library has no TLS.
    #[error("TLS: {0}")]
    Provider(String),
}

/// The authorities, and what tells them from others.
pub(super) fn load(file: Option<&Path>) -> Result<(RootCertStore, u64), LoadError> {
    let Some(file) = file else { return of_system(rustls_native_certs::load_native_certs()) };
    let fault = |why: String| LoadError::File { file: file.to_owned(), why };
    let text = read(file).map_err(|error| fault(format!("cannot be read ({error})")))?;
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| fault(format!("is no PEM ({error})")))?;
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates.iter().enumerate() {
        let add = roots.add(certificate.clone());
        add.map_err(|error| fault(format!("certificate {} cannot be used ({error})", index + 1)))?;
    }
    if roots.is_empty() {
        return Err(fault("holds no certificate".to_owned()));
    }
    Ok((roots, digest(&certificates)))
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(file)?.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {MAX_FILE} bytes")));
    }
    Ok(text)
}

/// What the system holds is nobody's mistake here: what cannot be used is passed over.
fn of_system(found: rustls_native_certs::CertificateResult) -> Result<(RootCertStore, u64), LoadError> {
    let mut roots = RootCertStore::empty();
    let digest = digest(&found.certs);
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|error| format!(" ({error})"));
        return Err(LoadError::System(why.unwrap_or_default()));
    }
    Ok((roots, digest))
}

fn digest(certificates: &[CertificateDer<'_>]) -> u64 {
    let mut hasher = DefaultHasher::new();
    certificates.iter().for_each(|certificate| certificate.as_ref().hash(&mut hasher));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_native_certs::CertificateResult;

    fn authority() -> rcgen::Certificate {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap()
    }

    /// What loading a file of this text says.
    fn said(text: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let error = load(Some(file.path())).unwrap_err().to_string();
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
        error
    }

    #[test]
    fn a_file_without_a_usable_certificate_is_an_error_that_says_why() {
        let missing = load(Some(Path::new("/nonexistent/ca.pem"))).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/ca.pem: cannot be read (No such file"), "{missing}");
        assert!(said(b"").contains("holds no certificate"));
        assert!(said(b"certificates\n").contains("holds no certificate"));
        assert!(
            said(rcgen::KeyPair::generate().unwrap().serialize_pem().as_bytes()).contains("no certificate")
        );
        let good = authority().pem();
        assert!(said(good.replace("-----END", "-----").as_bytes()).contains("is no PEM"));
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(said(format!("{good}{bad}").as_bytes()).contains("certificate 2 cannot be used"));
        assert!(said(&vec![b'\n'; MAX_FILE as usize + 1]).contains("larger than"));
    }

    #[test]
    fn a_file_with_other_authorities_has_another_digest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut digests = Vec::new();
        for text in [authority().pem(), authority().pem()] {
            for _ in 0..2 {
                std::fs::write(file.path(), &text).unwrap();
                digests.push(load(Some(file.path())).unwrap().1);
            }
        }
        assert_eq!(digests[0], digests[1]);
        assert_ne!(digests[1], digests[2]);
    }

    #[test]
    fn a_system_that_trusts_nobody_is_an_error_and_one_bad_certificate_is_none() {
        let nobody = of_system(CertificateResult::default()).unwrap_err();
        assert!(nobody.to_string().contains("install ca-certificates"), "{nobody}");
        let mut found = CertificateResult::default();
        found.certs = vec![CertificateDer::from(vec![0; 4]), authority().der().clone()];
        assert_eq!(of_system(found).unwrap().0.len(), 1);
    }
}
