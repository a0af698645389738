//! A certificate authority that nobody knows, and a server's certificate by it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// The names in the server's certificate.
const NAMES: &str = "subjectAltName=IP:127.0.0.1,DNS:localhost";

/// Files in a directory that goes with this value.
pub struct Authority {
    dir: TempDir,
}

impl Authority {
    /// Makes the keys and certificates with the `openssl` program.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        let own = ["-x509", "-subj", "/CN=nobody knows it", "-keyout", "ca.key", "-out", "ca.pem"];
        openssl(dir.path(), &[["req"].as_slice(), &key, &own].concat());
        let server = ["-subj", "/CN=server", "-keyout", "server.key", "-out", "server.csr"];
        openssl(dir.path(), &[["req"].as_slice(), &key, &server].concat());
        std::fs::write(dir.path().join("names"), NAMES).unwrap();
        let signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"];
        let files = ["-in", "server.csr", "-out", "server.pem", "-extfile", "names"];
        openssl(dir.path(), &[["x509", "-req"].as_slice(), &signed, &files].concat());
        Self { dir }
    }

    /// The certificate of the authority, as `SSL_CERT_FILE` names it.
    pub fn file(&self) -> String {
        self.path("ca.pem").display().to_string()
    }

    /// The options of a Redis server that speaks TLS on this port.
    pub fn options(&self, port: u16) -> [String; 10] {
        let file = |name: &str| self.path(name).display().to_string();
        [
            ("--tls-port", port.to_string()),
            ("--tls-cert-file", file("server.pem")),
            ("--tls-key-file", file("server.key")),
            ("--tls-ca-cert-file", file("ca.pem")),
            ("--tls-auth-clients", "no".to_owned()),
        ]
        .map(|(option, value)| [option.to_owned(), value])
        .concat()
        .try_into()
        .unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn openssl(dir: &Path, words: &[&str]) {
    let made = Command::new("openssl").args(words).current_dir(dir).output();
    let made = made.expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
