//! Rows that another session of Postgres holds: they hold up nobody but themselves.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, TransactionTrait};
use serde_json::json;
use uuid::Uuid;
use vecmill::{
    domain::{NewNode, NodePatch, NodeStatus, TenantScope},
    store::{Cursor, OnNewText, OnRefusal, Patched, RequeueFilter, Store},
};

use crate::support::{TestDb, job, node, object, only, outcome, status, vector};

const X: [f32; 3] = [1.0, 0.0, 0.0];
/// Far below the time that a database is given to answer.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Two nodes, of which another session holds the second until the transaction ends.
struct Site {
    store: Store,
    free: NewNode,
    held: NewNode,
    transaction: DatabaseTransaction,
    _raw: DatabaseConnection,
}

async fn site() -> Site {
    let db = TestDb::postgres().await;
    let store = db.migrated().await;
    let (free, held) = (node("acme", "free"), node("acme", "held"));
    let both = [free.clone(), held.clone()];
    store.insert_nodes(&both, NodeStatus::Queued, OnRefusal::KeepOthers).await.unwrap();
    let raw = db.raw().await;
    let transaction = raw.begin().await.unwrap();
    let lock = format!("SELECT FROM nodes WHERE id = '{}' FOR UPDATE", held.id);
    transaction.execute_unprepared(&lock).await.unwrap();
    Site { store, free, held, transaction, _raw: raw }
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(AT_ONCE, work).await.expect("it waits for a row that another holds")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_of_a_worker_passes_over_a_row_that_another_holds() {
    let Site { store, free, held, transaction, .. } = site().await;
    let jobs = [job(&held, false), job(&free, false)];
    let rows = in_time(store.begin(&jobs, usize::MAX)).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), [free.id]);
    assert_eq!(in_time(store.present(&jobs)).await.unwrap().len(), 2);

    in_time(store.return_to_queue(&[held.id, free.id])).await.unwrap();
    assert_eq!(status(&store, free.id).await, NodeStatus::Queued);
    let outcomes = [outcome(held.id, NodeStatus::Failed), outcome(free.id, NodeStatus::Failed)];
    assert_eq!(in_time(store.record(&outcomes)).await.unwrap(), [free.id]);
    let vectors = [vector(held.id, "held", X), vector(free.id, "free", X)];
    assert_eq!(in_time(store.complete(&vectors)).await.unwrap(), [free.id]);

    transaction.rollback().await.unwrap();
    assert_eq!(store.complete(&vectors[..1]).await.unwrap(), [held.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_repair_passes_over_a_row_that_another_holds() {
    let Site { store, free, held, transaction, _raw: raw } = site().await;
    let all = RequeueFilter {
        scope: TenantScope::All,
        node_ids: None,
        status: None,
        only_missing_embedding: false,
        limit: 10,
        from: Cursor::default(),
    };
    let candidates = store.requeue_candidates(&all).await.unwrap();
    assert_eq!(candidates.len(), 2);
    assert_eq!(in_time(store.mark_queued(&candidates)).await.unwrap(), [free.id]);
    let vector = "UPDATE nodes SET embedding = '[1,0,0]', embedding_source_hash = 'x'";
    transaction.rollback().await.unwrap();
    raw.execute_unprepared(vector).await.unwrap();
    let transaction = raw.begin().await.unwrap();
    let lock = format!("SELECT FROM nodes WHERE id = '{}' FOR UPDATE", held.id);
    transaction.execute_unprepared(&lock).await.unwrap();
    assert_eq!(in_time(store.backfill_ready(&TenantScope::All, None)).await.unwrap().nodes, 1);
    assert_eq!(status(&store, free.id).await, NodeStatus::Ready);
    assert_eq!(status(&store, held.id).await, NodeStatus::Queued);
    transaction.rollback().await.unwrap();
    raw.execute_unprepared("UPDATE nodes SET embedding_source_hash = 'stale'").await.unwrap();
    assert_eq!(store.reopen_overwritten().await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_another_table_refers_to_is_free() {
    let Site { store, held, transaction, _raw: raw, .. } = site().await;
    transaction.rollback().await.unwrap();
    let refer = "CREATE TABLE edges (src uuid REFERENCES nodes (id))";
    raw.execute_unprepared(refer).await.unwrap();
    let transaction = raw.begin().await.unwrap();
    let insert = format!("INSERT INTO edges VALUES ('{}')", held.id);
    transaction.execute_unprepared(&insert).await.unwrap();
    assert_eq!(in_time(store.begin(&[job(&held, false)], usize::MAX)).await.unwrap().len(), 1);
    let stored = in_time(store.complete(&[vector(held.id, "held", X)])).await.unwrap();
    assert_eq!(stored, [held.id]);
    transaction.rollback().await.unwrap();
}

/// The database gives up whoever it likes: of two that wait for each other, or by a rule of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_the_database_gives_up_is_done_again() {
    let db = TestDb::postgres().await;
    let store = db.migrated().await;
    let nodes = [node("acme", "a"), node("acme", "b")];
    store.insert_nodes(&nodes, NodeStatus::Queued, OnRefusal::KeepOthers).await.unwrap();
    let ids: Vec<Uuid> = nodes.iter().map(|node| node.id).collect();
    db.sql("UPDATE nodes SET embedding = '[1,0,0]', embedding_source_hash = 'x'").await;
    db.sql("CREATE SEQUENCE writes").await;
    // What a sequence has counted stays counted when a transaction is undone.
    db.sql(
        "CREATE FUNCTION give_up() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
           IF nextval('writes') <= 2 THEN RAISE EXCEPTION 'given up' USING ERRCODE = '40P01'; END IF; \
           RETURN NEW; END $$",
    )
    .await;
    db.sql(
        "CREATE TRIGGER give_up BEFORE INSERT OR UPDATE ON nodes FOR EACH ROW \
         EXECUTE FUNCTION give_up()",
    )
    .await;
    let again = async || db.sql("SELECT setval('writes', 1, false)").await;

    assert_eq!(store.backfill_ready(&TenantScope::All, None).await.unwrap().nodes, 2);
    again().await;
    let patch = NodePatch { props: Some(object(json!({"text": "c"}))), ..NodePatch::default() };
    let patched = store.patch(&only("acme"), ids[0], &patch, OnNewText::Queue).await.unwrap();
    assert!(matches!(patched, Patched::Done { has_new_text: true, .. }), "{patched:?}");
    again().await;
    let more = [node("acme", "d"), node("acme", "e")];
    let refusals = store.insert_nodes(&more, NodeStatus::Queued, OnRefusal::KeepNone).await;
    assert_eq!(refusals.unwrap(), [None, None]);
    assert_eq!(status(&store, more[1].id).await, NodeStatus::Queued);
    again().await;
    let (id, source) = store.sources(&ids[1..]).await.unwrap().remove(0);
    let made = [(source, Ok(vector(id, "b", X)))];
    assert_eq!(store.store_again(&made).await.unwrap(), [(id, NodeStatus::Ready)]);
}
