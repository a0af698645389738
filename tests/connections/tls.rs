//! TLS, with an authority of one's own. The Postgres of the tests is built without TLS, so a PgBouncer
//! in session mode speaks it before that.

use std::{path::Path, process::Command, time::Duration};

use tempfile::TempDir;
use vecmill::store::Store;

use crate::common::{Program, TestPgBouncer, TestPostgres};

const ENDS_WITHIN: Duration = Duration::from_secs(60);

fn openssl(dir: &Path, arguments: &str) {
    let output =
        Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Makes an authority, `<name>.pem`.
fn authority(dir: &Path, name: &str) {
    openssl(
        dir,
        &format!(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout {name}.key \
             -out {name}.pem"
        ),
    );
}

/// A server whose certificate, for `127.0.0.1` only, an authority has signed, the DSN of a database
/// there, and the files.
async fn server() -> (TestPgBouncer, String, TempDir) {
    let files = tempfile::tempdir().unwrap();
    let dir = files.path();
    authority(dir, "ours");
    authority(dir, "other");
    openssl(dir, "req -newkey rsa:2048 -nodes -subj /CN=server -keyout server.key -out server.csr");
    std::fs::write(dir.join("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl(
        dir,
        "x509 -req -in server.csr -CA ours.pem -CAkey ours.key -CAcreateserial -days 2 \
         -extfile extensions -out server.pem",
    );
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    // Without TLS, nobody gets in.
    let lines = "pool_mode = session\n\
                 client_tls_sslmode = require\n\
                 client_tls_cert_file = server.pem\n\
                 client_tls_key_file = server.key\n";
    let server_files = ["server.pem", "server.key"].map(|name| (name, read(name)));
    let server_files = server_files.each_ref().map(|(name, content)| (*name, content.as_slice()));
    let postgres = TestPostgres::shared();
    let server = TestPgBouncer::with_files(postgres, lines, &server_files).await;
    let dsn = server.dsn(&postgres.database().await);
    (server, dsn, files)
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_as_asked_for() {
    let (_server, dsn, files) = server().await;
    let file = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
    let (ours, other) = (file("ours.pem"), file("other.pem"));
    let localhost = dsn.replace("127.0.0.1", "localhost");
    for good in [
        format!("{dsn}?sslmode=require"),
        format!("{dsn}?ssl=true"),
        format!("{dsn}?sslmode=verify-ca&sslrootcert={ours}"),
        format!("{localhost}?sslmode=verify-ca&sslrootcert={ours}"),
        format!("{dsn}?sslmode=verify-full&sslrootcert={ours}"),
        format!("{dsn}?sslmode=require&sslrootcert={ours}"),
    ] {
        let store =
            Store::connect(&good, 3).await.unwrap_or_else(|error| panic!("{good}: {error}"));
        store.migrate().await.unwrap();
        store.check_writable().await.unwrap();
    }
    for (bad, why) in [
        (format!("{dsn}?sslmode=verify-ca&sslrootcert={other}"), "TLS"),
        (format!("{dsn}?sslmode=verify-ca"), "TLS"),
        (format!("{dsn}?sslmode=require&sslrootcert={other}"), "TLS"),
        (format!("{localhost}?sslmode=verify-full&sslrootcert={ours}"), "TLS"),
        (format!("{dsn}?sslmode=verify-ca&sslrootcert={ours}.missing"), "sslrootcert"),
        (format!("{dsn}?sslmode=disable"), "SSL required"),
    ] {
        let error = Store::connect(&bad, 3).await.unwrap_err();
        assert!(!error.is_unavailable(), "{bad}: {error:?}");
        assert!(error.to_string().contains(why), "{bad}: {error}");
        println!("{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_may_come_from_the_environment() {
    let (_server, dsn, files) = server().await;
    let dsn = format!("{dsn}?sslmode=verify-full");
    for (authority, code) in [("ours.pem", 0), ("other.pem", 1)] {
        for variable in ["SSL_CERT_FILE", "PGSSLROOTCERT"] {
            let (file, dir) = (files.path().join(authority), tempfile::tempdir().unwrap());
            let environment = [("DATABASE_URL", dsn.as_str()), (variable, file.to_str().unwrap())];
            let mut program = Program::start("migrate", dir.path(), &environment);
            let ended = program.exit_code(ENDS_WITHIN).await;
            assert_eq!(ended, Some(code), "{variable}, {authority}: {}", program.stderr());
        }
    }
}
