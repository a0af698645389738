//! A PgBouncer of a test's own, before a Postgres.

use std::{fs, path::Path, process::Command, time::Duration};

use super::{
    free_port,
    postgres::{TestPostgres, wrapper},
    process::ServerProcess,
    wait_until,
};

const READY_WITHIN: Duration = Duration::from_secs(20);

/// A pooler in transaction mode in a temporary directory; it ends with this value or the test
/// program.
pub struct TestPgBouncer {
    process: ServerProcess,
    port: u16,
}

impl TestPgBouncer {
    /// A pooler with three connections to a server and user, and further lines of configuration.
    pub async fn before(server: &TestPostgres, lines: &str) -> Self {
        Self::with_files(server, lines, &[]).await
    }

    /// The same with files, by name and content, in its working directory.
    pub async fn with_files(server: &TestPostgres, lines: &str, files: &[(&str, &[u8])]) -> Self {
        let dir = tempfile::Builder::new().prefix("vecmill-pgbouncer").tempdir().unwrap().keep();
        for (name, content) in files {
            fs::write(dir.join(name), content).unwrap();
        }
        let (port, config) = (free_port(), dir.join("pgbouncer.ini"));
        let text = format!(
            "[databases]\n\
             * = host=127.0.0.1 port={server}\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {port}\n\
             unix_socket_dir =\n\
             auth_type = any\n\
             pool_mode = transaction\n\
             default_pool_size = 3\n\
             max_client_conn = 200\n\
             {lines}\n",
            server = server.port(),
        );
        // With any authentication the pooler logs into servers as the user that is named here.
        let text = text.replace("port=", "user=postgres port=");
        fs::write(&config, text).unwrap();
        let wrapper = wrapper(&dir);
        let (program, config) = (program(), config.to_str().unwrap());
        let server = [program.as_str(), config];
        let process = ServerProcess::start(&wrapper, &dir, "INT", &server);
        let bouncer = Self { process, port };
        bouncer.ready().await;
        bouncer
    }

    /// The same database behind the pooler.
    pub fn dsn(&self, direct: &str) -> String {
        let (rest, database) = direct.rsplit_once('/').unwrap();
        let (rest, _) = rest.rsplit_once(':').unwrap();
        format!("{rest}:{}/{database}", self.port)
    }

    /// Ends the pooler, and starts it again.
    pub async fn restart(&mut self) {
        self.process.end("INT");
        self.process.start_again();
        self.ready().await;
    }

    async fn ready(&self) {
        wait_until(READY_WITHIN, async || {
            tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()
        })
        .await;
    }
}

/// `$VECMILL_PGBOUNCER`, or what scripts/install-pgbouncer.sh installs; the directory of servers is in
/// no user's `PATH`.
fn program() -> String {
    if let Ok(program) = std::env::var("VECMILL_PGBOUNCER") {
        return program;
    }
    let is_in_path = Command::new("pgbouncer").arg("--version").output().is_ok();
    let program = if is_in_path { "pgbouncer" } else { "/usr/sbin/pgbouncer" };
    let is_there = is_in_path || Path::new(program).exists();
    assert!(is_there, "no pgbouncer: run scripts/install-pgbouncer.sh, or set VECMILL_PGBOUNCER");
    program.to_owned()
}
