//! Migrations of a Postgres table that others use meanwhile.

use std::time::Duration;

use sea_orm::{ConnectionTrait, TransactionTrait};
use vecmill::store::{Store, StoreError};

use crate::{
    common::wait_until,
    support::{DIMENSION, TestDb},
};

const DEADLINE: Duration = Duration::from_secs(30);
/// Those that there must be.
const INDEXES: usize = 8;
/// Longer than a reader or writer may have to wait for a change that gives up its place.
const A_MOMENT: Duration = Duration::from_secs(8);

/// The schema of another installation, with a row.
const FOREIGN: &str = "CREATE EXTENSION vector; \
    CREATE TABLE nodes (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id text, \
      props jsonb NOT NULL DEFAULT '{}', embedding vector(3)); \
    INSERT INTO nodes (tenant_id) VALUES ('acme')";

fn migrating(db: &TestDb) -> tokio::task::JoinHandle<Result<(), StoreError>> {
    let dsn = db.dsn.clone();
    tokio::spawn(async move { Store::connect(&dsn, DIMENSION).await?.migrate().await })
}

async fn usable_indexes(db: &TestDb) -> Vec<String> {
    db.texts(
        "SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
         WHERE c.relname LIKE 'vecmill_nodes%' AND i.indisvalid ORDER BY 1",
    )
    .await
}

/// Reads and writes of another program, each of which ends soon.
async fn others_go_on(db: &TestDb) {
    let raw = db.raw().await;
    for i in 0..5 {
        let work = async {
            raw.execute_unprepared("INSERT INTO nodes (tenant_id) VALUES ('other')").await.unwrap();
            raw.execute_unprepared("UPDATE nodes SET tenant_id = 'x' WHERE tenant_id = 'other'")
                .await
                .unwrap();
            raw.execute_unprepared("SELECT count(*) FROM nodes").await.unwrap();
        };
        tokio::time::timeout(A_MOMENT, work).await.unwrap_or_else(|_| panic!("round {i} waits"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_that_has_read_the_table_holds_up_the_migration_alone() {
    let db = TestDb::postgres().await;
    db.sql(FOREIGN).await;
    let raw = db.raw().await;
    let reader = raw.begin().await.unwrap();
    reader.execute_unprepared("SELECT FROM nodes").await.unwrap();
    let migration = migrating(&db);
    wait_until(DEADLINE, async || {
        let waits = "SELECT count(*)::text FROM pg_locks WHERE relation = 'nodes'::regclass \
                     AND NOT granted";
        db.texts(waits).await == ["1"]
    })
    .await;
    others_go_on(&db).await;
    assert!(!migration.is_finished());
    reader.rollback().await.unwrap();
    migration.await.unwrap().unwrap();
    assert_eq!(usable_indexes(&db).await.len(), INDEXES);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_built_beside_those_who_read_and_write() {
    let db = TestDb::postgres().await;
    db.migrated().await;
    db.sql("DROP INDEX vecmill_nodes_status; INSERT INTO nodes (id) VALUES (gen_random_uuid())")
        .await;
    let raw = db.raw().await;
    // It sees the table as it was, which the build has to wait for.
    let reader = raw.begin().await.unwrap();
    reader.execute_unprepared("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    reader.execute_unprepared("SELECT FROM nodes").await.unwrap();
    let migration = migrating(&db);
    wait_until(DEADLINE, async || {
        db.texts("SELECT phase FROM pg_stat_progress_create_index").await.len() == 1
    })
    .await;
    let raw = db.raw().await;
    for _ in 0..3 {
        let write = "INSERT INTO nodes (id, tenant_id) VALUES (gen_random_uuid(), 'other')";
        tokio::time::timeout(A_MOMENT, raw.execute_unprepared(write)).await.unwrap().unwrap();
    }
    assert!(!migration.is_finished());
    // One that starts meanwhile waits for its turn, and neither for the other.
    let second = migrating(&db);
    reader.rollback().await.unwrap();
    migration.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert_eq!(usable_indexes(&db).await.len(), INDEXES);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_left_unusable_is_built_again() {
    let db = TestDb::postgres().await;
    db.migrated().await;
    db.sql(
        "INSERT INTO nodes (id) VALUES (gen_random_uuid()); \
         UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'vecmill_nodes_open'::regclass",
    )
    .await;
    assert_eq!(usable_indexes(&db).await.len(), INDEXES - 1);
    db.migrated().await;
    assert_eq!(usable_indexes(&db).await.len(), INDEXES);
}
