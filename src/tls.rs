//! TLS: who does its arithmetic.

/// Makes `ring` the provider of cryptography of this process, unless there is one: several are
/// compiled in, and the TLS library refuses to choose. May be called at any time, by anybody.
pub fn install_provider() {
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
