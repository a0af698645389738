//! Rows that another session holds.

use std::time::Duration;

use sea_orm::{ConnectionTrait, TransactionTrait};

use crate::{
    common::{connect, wait_until},
    site::{DEADLINE, Site},
};

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_held_hold_up_nobody_else() {
    let site = Site::new().await;
    let api = site.start(vecmill::app::Role::Api, &site.dsn, &[]).await.unwrap();
    let texts: Vec<String> = (0..200).map(|i| format!("text {i}")).collect();
    let ids = api.ingest("acme", &texts).await;
    let theirs = connect(&site.dsn, 1).await.unwrap();
    let transaction = theirs.begin().await.unwrap();
    // Of two claims, one row each.
    let lock = format!("SELECT FROM nodes WHERE id IN ('{}', '{}') FOR UPDATE", ids[3], ids[150]);
    transaction.execute_unprepared(&lock).await.unwrap();

    let worker = site.start(vecmill::app::Role::Worker, &site.dsn, &[]).await.unwrap();
    wait_until(Duration::from_secs(10), async || api.count("ready").await == 198).await;
    let more: Vec<String> = (0..200).map(|i| format!("more {i}")).collect();
    api.ingest("other", &more).await;
    wait_until(Duration::from_secs(10), async || api.count("ready").await == 398).await;
    for id in [&ids[3], &ids[150]] {
        let node = api.node(id).await;
        assert_eq!(
            (&node["embedding_status"], &node["embedding_attempts"]),
            (&"queued".into(), &0.into())
        );
    }
    transaction.rollback().await.unwrap();
    let counts = api.settled(DEADLINE).await;
    assert_eq!(counts["ready"], 400, "{counts}");
    assert_eq!(api.node(&ids[3]).await["embedding_attempts"], 1, "waiting is no attempt");
    assert_eq!(site.redis.cli(&["KEYS", "embedding:*pending*"]), "");
    worker.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_held_when_its_vector_comes_gets_it_later() {
    let site = Site::new().await;
    // It holds each row of its own for a while in the middle of the work, once.
    let app = site.serve().await;
    let theirs = connect(&site.dsn, 1).await.unwrap();
    for round in 0..10 {
        let ids = app.ingest("acme", &[format!("round {round}")]).await;
        let transaction = theirs.begin().await.unwrap();
        let lock = format!("SELECT FROM nodes WHERE id = '{}' FOR UPDATE", ids[0]);
        transaction.execute_unprepared(&lock).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20 * round)).await;
        transaction.rollback().await.unwrap();
    }
    assert_eq!(app.settled(DEADLINE).await["ready"], 10);
    app.stop().await;
}
