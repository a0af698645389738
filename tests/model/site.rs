//! The real servers: a Redis and a database of either kind for the whole test program.

use std::{future::Future, sync::OnceLock, time::Duration};

use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use tokio::runtime::Runtime;
use uuid::Uuid;
use vecmill::{
    config::Settings,
    domain::RetryPolicy,
    queue::{Limits, Queue},
    store::Store,
};

use crate::{
    common::{TestPostgres, TestRedis},
    seen::Seen,
};

/// Longer than a test; leases run out only when a step says so.
pub const LEASE: Duration = Duration::from_secs(600);
/// So few that they are reached.
pub const LIMITS: Limits = Limits { max_depth: 6, tenant_max_pending: 4 };
/// Tenants of our own producers; foreign rows may have none, which means the second.
pub const TENANTS: [&str; 2] = ["acme", "default"];
/// Components of the vectors.
pub const DIMENSION: usize = 3;
pub const RETRY: RetryPolicy = RetryPolicy { max_attempts: 3, base: LEASE, max: LEASE };

/// See the module.
pub struct Site {
    pub redis: TestRedis,
    pub queue: Queue,
    pub store: Store,
    /// A connection past the store, as another program has.
    db: DatabaseConnection,
    runtime: Runtime,
}

impl Site {
    /// The one on Postgres, or the one on SQLite; starts everything at the first call.
    pub fn get(on_postgres: bool) -> &'static Self {
        static SITES: [OnceLock<Site>; 2] = [OnceLock::new(), OnceLock::new()];
        SITES[usize::from(on_postgres)].get_or_init(|| {
            let runtime = Runtime::new().unwrap();
            let redis = TestRedis::start();
            let config = Settings::with(&[]).unwrap();
            let queue = runtime.block_on(Queue::connect(&redis.url(), &config.queue)).unwrap();
            let (store, db) = runtime.block_on(async {
                let dsn = match on_postgres {
                    true => TestPostgres::shared().database().await,
                    // The directory of the Redis server is removed with it.
                    false => {
                        let file = redis.socket().with_file_name("nodes.db");
                        format!("sqlite://{}", file.display())
                    }
                };
                let store = Store::connect(&dsn, DIMENSION).await.unwrap();
                store.migrate().await.unwrap();
                (store, Database::connect(dsn).await.unwrap())
            });
            Self { redis, queue, store, db, runtime }
        })
    }

    pub fn is_postgres(&self) -> bool {
        self.db.get_database_backend() == DbBackend::Postgres
    }

    /// An id as a literal.
    pub fn id(&self, node: Uuid) -> String {
        if self.is_postgres() { format!("'{node}'") } else { format!("x'{}'", node.simple()) }
    }

    /// A vector as a literal.
    pub fn vector(&self, vector: &[f32]) -> String {
        if self.is_postgres() {
            return format!("'{vector:?}'");
        }
        let bytes = vector.iter().flat_map(|x| x.to_le_bytes());
        format!("x'{}'", bytes.map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    /// One label as a literal.
    pub fn classes(&self) -> &'static str {
        if self.is_postgres() { "'{Chunk}'" } else { "'[\"Chunk\"]'" }
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Empties both stores.
    pub async fn clear(&self) {
        self.redis.flush();
        self.sql("DELETE FROM nodes").await;
    }

    /// Runs a statement past the store; answers how many rows it changed.
    pub async fn sql(&self, statement: &str) -> u64 {
        self.db.execute_unprepared(statement).await.unwrap().rows_affected()
    }

    /// What is in both stores.
    pub async fn look(&self) -> Seen {
        let query = if self.is_postgres() { Seen::POSTGRES_ROWS } else { Seen::SQLITE_ROWS };
        let rows = Statement::from_string(self.db.get_database_backend(), query);
        let rows = self.db.query_all_raw(rows).await.unwrap();
        Seen::new(&self.redis.cli(&["EVAL", Seen::KEYS, "0"]), &rows)
    }
}

/// The properties of a node whose text has this number; none of them is a text without one.
pub fn props(text: Option<usize>) -> serde_json::Map<String, serde_json::Value> {
    let mut props = serde_json::Map::new();
    props.insert("title".into(), "a node".into());
    if let Some(number) = text {
        props.insert("text".into(), format!("text {number}").into());
    }
    props
}

/// What our model makes of a text.
pub fn our_vector(text: &str) -> Vec<f32> {
    let number: f32 = text.strip_prefix("text ").unwrap().parse().unwrap();
    vec![number.cos(), number.sin(), 0.0]
}

/// What a foreign consumer makes of it; our model makes no such vectors.
pub fn their_vector(text: &str) -> Vec<f32> {
    [our_vector(text)[..2].to_vec(), vec![1.0]].concat()
}

/// Whether a vector is one of [`their_vector`].
pub fn is_theirs(vector: &[f32]) -> bool {
    vector[2] == 1.0
}

/// What our worker notes of the text that it made a vector of.
pub fn hash_of(text: &str) -> String {
    format!("hash of {text}")
}

/// What stands there when the text has changed since.
pub const STALE: &str = "stale";
