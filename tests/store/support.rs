//! A database of either kind for a test, and the rows to put into it.

use std::sync::atomic::{AtomicU32, Ordering};

use sea_orm::{ConnectionTrait, Database, DatabaseConnection, Statement};
use serde_json::{Map, Value, json};
use uuid::Uuid;
use vecmill::{
    domain::{NewNode, NodeStatus, TenantId, TenantScope},
    heavy::Weight,
    store::{BeginJob, NodeDetail, Outcome, Store, Subject, Vector, text_hash},
};

use crate::common::TestPostgres;

/// Components of the vectors in these tests.
pub const DIMENSION: usize = 3;

/// Runs each of the tests, which are functions of a [`TestDb`], on both databases.
macro_rules! on_both_databases {
    ($($test:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::support::TestDb::postgres().await).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::support::TestDb::sqlite().await).await;
            })*
        }
    };
}
pub(crate) use on_both_databases;

/// An empty database, removed with this value.
pub struct TestDb {
    pub dsn: String,
    dir: Option<tempfile::TempDir>,
}

impl TestDb {
    pub async fn postgres() -> Self {
        Self { dsn: TestPostgres::shared().database().await, dir: None }
    }

    pub async fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dsn: format!("sqlite://{}/nodes.db", dir.path().display()), dir: Some(dir) }
    }

    pub fn is_sqlite(&self) -> bool {
        self.dir.is_some()
    }

    /// A store of its own connections, as another process has.
    pub async fn store(&self) -> Store {
        Store::connect(&self.dsn, DIMENSION).await.unwrap()
    }

    pub async fn migrated(&self) -> Store {
        let store = self.store().await;
        store.migrate().await.unwrap();
        store
    }

    /// A connection past the store, as another program has.
    pub async fn raw(&self) -> DatabaseConnection {
        let suffix = if self.is_sqlite() { "?mode=rwc" } else { "" };
        Database::connect(format!("{}{suffix}", self.dsn)).await.unwrap()
    }

    /// Runs statements past the store.
    pub async fn sql(&self, sql: &str) {
        let raw = self.raw().await;
        raw.execute_unprepared(sql).await.unwrap();
        raw.close().await.unwrap();
    }

    /// The first column, as text, of the rows that a query past the store finds.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let raw = self.raw().await;
        let rows = raw
            .query_all_raw(Statement::from_string(raw.get_database_backend(), sql))
            .await
            .unwrap();
        raw.close().await.unwrap();
        rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
    }

    /// An id as a literal in SQL.
    pub fn literal(&self, id: Uuid) -> String {
        if self.is_sqlite() { format!("x'{}'", id.simple()) } else { format!("'{id}'") }
    }
}

pub fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

pub fn only(name: &str) -> TenantScope {
    TenantScope::One(tenant(name))
}

pub fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        other => panic!("{other} is no object"),
    }
}

/// A node of a tenant with a text. Ids rise, because the order of rows that were written within
/// one tick of the clock is that of their ids.
pub fn node(tenant_name: &str, text: &str) -> NewNode {
    static NEXT_ID: AtomicU32 = AtomicU32::new(1);
    let id = u128::from(NEXT_ID.fetch_add(1, Ordering::Relaxed));
    NewNode {
        id: Uuid::from_u128(id << 64),
        tenant_id: tenant(tenant_name),
        classes: vec!["Doc".to_owned()],
        props: object(json!({ "text": text })),
        payload_ref: None,
        metadata: None,
        refresh_policy: None,
        triggers: None,
    }
}

pub fn vector(id: Uuid, text: &str, values: [f32; DIMENSION]) -> Vector {
    Vector {
        id,
        text_hash: Some(text_hash(text)),
        source_hash: format!("hash of {text}"),
        input_hash: None,
        values: values.to_vec(),
        truncated: false,
        failed_attempts: 0,
    }
}

pub fn outcome(id: Uuid, status: NodeStatus) -> Outcome {
    Outcome { id, status, error: format!("it is {status}"), attempts: 2, subject: Subject::Unread }
}

pub fn job(node: &NewNode, refresh: bool) -> BeginJob {
    BeginJob { id: node.id, tenant_id: node.tenant_id.clone(), refresh, failed_attempts: 0 }
}

/// The whole node with its vector.
pub async fn read(store: &Store, id: Uuid) -> NodeDetail {
    store.get(&TenantScope::All, id, true, Weight::Light).await.unwrap().unwrap()
}

pub async fn status(store: &Store, id: Uuid) -> NodeStatus {
    read(store, id).await.summary.status
}
