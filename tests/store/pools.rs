//! What operators ask for has connections of its own.

use std::time::Duration;

use vecmill::{
    domain::{NodeStatus, TenantScope},
    heavy::Weight,
    store::OnRefusal,
};

use crate::{
    common::wait_until,
    support::{TestDb, node, on_both_databases},
};

on_both_databases!(slow_lists_take_no_connection_from_work);

const DEADLINE: Duration = Duration::from_secs(30);
/// More than there are connections.
const LISTS: usize = 20;

async fn slow_lists_take_no_connection_from_work(db: TestDb) {
    let store = db.migrated().await;
    let first = node("acme", "first");
    store
        .insert_nodes(std::slice::from_ref(&first), NodeStatus::Queued, OnRefusal::KeepOthers)
        .await
        .unwrap();
    // A look at former vectors that takes long.
    db.sql(if db.is_sqlite() {
        "CREATE VIEW embedding_history AS \
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000000) \
         SELECT i AS node_id, 0.5 AS drift_score, '' AS created_at, '' AS embedding_ref FROM n"
    } else {
        "CREATE VIEW embedding_history AS \
         SELECT gen_random_uuid() AS node_id, 0.5::float8 AS drift_score, now() AS created_at, \
           pg_sleep(600)::text AS embedding_ref"
    })
    .await;
    let lists: Vec<_> = (0..LISTS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.versions(first.id, 1).await.map(drop) })
        })
        .collect();
    if !db.is_sqlite() {
        wait_until(DEADLINE, async || {
            let asleep = "SELECT count(*)::text FROM pg_stat_activity \
                          WHERE wait_event = 'PgSleep' AND datname = current_database()";
            db.texts(asleep).await != ["0"]
        })
        .await;
    }
    let second = node("acme", "second");
    let written = store
        .insert_nodes(std::slice::from_ref(&second), NodeStatus::Queued, OnRefusal::KeepOthers)
        .await;
    assert_eq!(written.unwrap(), [None]);
    assert!(store.get(&TenantScope::All, second.id, false, Weight::Light).await.unwrap().is_some());
    assert!(lists.iter().any(|list| !list.is_finished()), "there are still some");
    for list in lists {
        list.abort();
    }
}
