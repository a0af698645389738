//! Real servers for the tests, and waiting for a condition.
//!
//! Each test program compiles this module for itself and uses only a part of it.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used)]

mod app;
mod authority;
mod pgbouncer;
mod postgres;
mod process;
mod program;
mod redis;

use std::time::{Duration, Instant};

use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr};

pub use app::{TestApp, cosine, faulty_model, hash_model, ids_of, vector_of, with_short_intervals};
pub use authority::Authority;
pub use pgbouncer::TestPgBouncer;
pub use postgres::TestPostgres;
pub use program::{Program, send_signal};
pub use redis::{TestRedis, end_private_redis, private_redis_cli, redis_cli};

/// How long to wait before a condition is looked at again.
const POLL: Duration = Duration::from_millis(20);

/// Waits until the condition holds, and panics when it does not within the deadline.
pub async fn wait_until(deadline: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < deadline, "the condition did not hold within {deadline:?}");
        tokio::time::sleep(POLL).await;
    }
}

/// The same for conditions that are looked at before there is a runtime.
fn wait_until_blocking(deadline: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < deadline, "the condition did not hold within {deadline:?}");
        std::thread::sleep(POLL);
    }
}

/// A connection of a test's own, of so many at once, to a database.
pub async fn connect(dsn: &str, connections: u32) -> Result<DatabaseConnection, DbErr> {
    let mut options = ConnectOptions::new(dsn);
    options.max_connections(connections).sqlx_logging(false);
    Database::connect(options).await
}

/// A TCP port that nothing listens on.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
