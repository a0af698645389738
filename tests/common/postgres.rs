//! A Postgres with pgvector for the tests.

use std::{
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use sea_orm::{ConnectionTrait, DatabaseConnection};

use super::{connect, free_port, process::ServerProcess, wait_until};

const READY_WITHIN: Duration = Duration::from_secs(60);

/// The server runs under this user when the tests run as root, because it refuses to be root.
const UNPRIVILEGED: &str = "nobody";

/// A Postgres server in a temporary directory; it ends with this value or the test program.
pub struct TestPostgres {
    process: ServerProcess,
    port: u16,
}

impl TestPostgres {
    /// The server that the tests of one program share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<TestPostgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// A server of the caller's own, to be stopped and started at will.
    pub fn start() -> Self {
        let made_by = ["initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"];
        Self::start_from(&[made_by.as_slice(), &["--no-sync"]].concat())
    }

    /// A hot standby of another server, which follows it.
    pub fn standby_of(primary: &Self) -> Self {
        let port = primary.port.to_string();
        let made_by = ["pg_basebackup", "-R", "-X", "stream", "-c", "fast", "--no-sync"];
        let from = ["-h", "127.0.0.1", "-U", "postgres", "-p", &port];
        Self::start_from(&[made_by.as_slice(), &from].concat())
    }

    /// A server on the data directory that a program makes.
    fn start_from(made_by: &[&str]) -> Self {
        let bin = bin();
        let dir = tempfile::Builder::new().prefix("vecmill-postgres").tempdir().unwrap().keep();
        let wrapper = wrapper(&dir);
        let data = dir.join("data");
        let (data, dir_name) = (data.to_str().unwrap(), dir.to_str().unwrap());

        let maker = bin.join(made_by[0]);
        let words =
            [wrapper.as_slice(), &[maker.to_str().unwrap()], &made_by[1..], &["-D", data]].concat();
        let made = Command::new(words[0]).args(&words[1..]).current_dir(&dir).output().unwrap();
        assert!(made.status.success(), "{made_by:?}: {}", String::from_utf8_lossy(&made.stderr));

        let (port, postgres) = (free_port(), bin.join("postgres"));
        let port_option = port.to_string();
        let server = [
            [postgres.to_str().unwrap(), "-D", data, "-k", dir_name].as_slice(),
            &["-h", "127.0.0.1", "-p", &port_option],
            &["-c", "fsync=off", "-c", "max_connections=300", "-c", "shared_buffers=64MB"],
        ]
        .concat();
        Self { process: ServerProcess::start(&wrapper, &dir, "QUIT", &server), port }
    }

    /// A new and empty database; its DSN.
    pub async fn database(&self) -> String {
        let name = format!("test_{}", uuid::Uuid::new_v4().simple());
        let admin = self.connect_when_ready("postgres").await;
        admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
        admin.close().await.unwrap();
        self.dsn(&name)
    }

    /// Ends the server as a crash would; its data stay.
    pub fn stop(&mut self) {
        self.process.end("QUIT");
    }

    /// Starts the server after [`Self::stop`], and waits until it answers.
    pub async fn start_again(&mut self) {
        self.process.start_again();
        self.connect_when_ready("postgres").await.close().await.unwrap();
    }

    /// Runs a statement in a database, by a DSN, or else in the one that every server has.
    pub async fn sql(&self, dsn: Option<&str>, sql: &str) {
        let dsn = dsn.map_or_else(|| self.dsn("postgres"), str::to_owned);
        let mut connection = None;
        wait_until(READY_WITHIN, async || {
            connection = connect(&dsn, 1).await.ok();
            connection.is_some()
        })
        .await;
        let connection = connection.unwrap();
        connection.execute_unprepared(sql).await.unwrap();
        connection.close().await.unwrap();
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn dsn(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.port)
    }

    async fn connect_when_ready(&self, database: &str) -> DatabaseConnection {
        let mut connection = None;
        wait_until(READY_WITHIN, async || {
            connection = connect(&self.dsn(database), 1).await.ok();
            connection.is_some()
        })
        .await;
        connection.unwrap()
    }
}

/// `$VECMILL_PG_BIN`, or what scripts/fetch-postgres.sh made.
fn bin() -> PathBuf {
    let bin = std::env::var_os("VECMILL_PG_BIN").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/postgres/bin"),
        PathBuf::from,
    );
    assert!(
        bin.join("postgres").is_file(),
        "no Postgres in {}: run scripts/fetch-postgres.sh, or set VECMILL_PG_BIN",
        bin.display()
    );
    bin
}

/// As root: gives the directory and its files to another user, and answers the command that runs another as
/// that user.
pub(super) fn wrapper(dir: &Path) -> Vec<&'static str> {
    let am_root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if !am_root {
        return Vec::new();
    }
    let id = Command::new("id").args(["-u", UNPRIVILEGED]).output().unwrap();
    let uid = String::from_utf8_lossy(&id.stdout).trim().parse().unwrap();
    chown(dir, Some(uid), None).unwrap();
    for file in std::fs::read_dir(dir).unwrap() {
        chown(file.unwrap().path(), Some(uid), None).unwrap();
    }
    vec!["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
}
