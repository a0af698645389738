//! TLS of all clients of this process: one provider of cryptography, and whom they trust.

use std::{env, path::PathBuf};

use rustls::{ClientConfig, RootCertStore};

/// Names a PEM file of authorities that are trusted beside the public ones.
const CERT_FILE: &str = "SSL_CERT_FILE";

/// Why no TLS connection can be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of authorities cannot be used.
    #[error("{CERT_FILE}={0:?} holds no certificate that can be used: it must be a PEM file")]
    CertFile(PathBuf),
}

/// Makes ring the provider of cryptography for the process. Without that, a TLS library that was
/// built with several of them panics at the first connection. May be called any number of times.
pub fn install_provider() {
    // Refused where a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// What a client needs to speak TLS: it trusts the public authorities, those of the system, and
/// those in the file that `SSL_CERT_FILE` names.
///
/// # Errors
/// `SSL_CERT_FILE` names a file without a certificate.
pub fn client_config() -> Result<ClientConfig, TlsError> {
    install_provider();
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    // It reads the file that the variable names instead of the system's authorities, if one does.
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    match env::var_os(CERT_FILE) {
        Some(file) if added == 0 && !file.is_empty() => Err(TlsError::CertFile(file.into())),
        _ => Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()),
    }
}
