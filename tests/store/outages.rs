//! Databases that are away, or that refuse us; several processes on one file.

use std::time::Duration;

use vecmill::{
    domain::{NewNode, NodeStatus, TenantScope},
    store::{OnRefusal, Store, StoreError},
};

use crate::{
    common::{TestPostgres, wait_until},
    support::{DIMENSION, TestDb, job, node, vector},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_comes_back_is_used_again() {
    let mut server = TestPostgres::start();
    let dsn = server.database().await;
    let store = Store::connect(&dsn, DIMENSION).await.unwrap();
    store.migrate().await.unwrap();
    let node = node("acme", "text");
    store
        .insert_nodes(std::slice::from_ref(&node), NodeStatus::Queued, OnRefusal::KeepOthers)
        .await
        .unwrap();

    server.stop();
    assert!(store.check_writable().await.unwrap_err().is_unavailable());
    assert!(store.status_counts(&TenantScope::All).await.unwrap_err().is_unavailable());
    let error = store
        .insert_nodes(std::slice::from_ref(&node), NodeStatus::Queued, OnRefusal::KeepOthers)
        .await;
    assert!(error.unwrap_err().is_unavailable());
    assert!(Store::connect(&dsn, DIMENSION).await.unwrap_err().is_unavailable());

    server.start_again().await;
    wait_until(Duration::from_secs(20), async || store.check_writable().await.is_ok()).await;
    assert_eq!(store.status_counts(&TenantScope::All).await.unwrap().queued, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_a_connection_hold_nothing_of_the_dsn() {
    let db = TestDb::postgres().await;
    let (server, _) = db.dsn.rsplit_once('@').unwrap().1.split_once('/').unwrap();
    let secret = "Xyzzy42";
    for dsn in [
        format!("postgresql://postgres:{secret}@{server}/nowhere"),
        format!("postgresql://nobody:{secret}@{server}/postgres"),
        format!("postgresql://postgres:{secret}@127.0.0.1:notaport/postgres"),
        format!("postgresql://postgres:{secret}@127.0.0.1:1/postgres"),
        format!("mysql://root:{secret}@127.0.0.1/db"),
        format!("sqlite:///nonexistent/{secret}/db"),
    ] {
        let error = Store::connect(&dsn, DIMENSION).await.unwrap_err();
        let chain = format!("{error:?} {error} {:?}", std::error::Error::source(&error));
        assert!(!chain.contains(secret), "{chain}");
    }
    let nowhere = Store::connect(&format!("postgresql://postgres@{server}/nowhere"), DIMENSION)
        .await
        .unwrap_err();
    assert!(matches!(nowhere, StoreError::Setup(_)), "{nowhere:?}");
    assert!(nowhere.to_string().contains("check the user, password"), "{nowhere}");
    let file = Store::connect("sqlite:///nonexistent/db", DIMENSION).await.unwrap_err();
    assert!(file.to_string().contains("check that its directory exists"), "{file}");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_share_a_sqlite_file() {
    let db = TestDb::sqlite().await;
    let stores = [db.migrated().await, db.store().await];
    let writers =
        stores.clone().into_iter().flat_map(|store| [store.clone(), store]).map(|store| {
            tokio::spawn(async move {
                for _ in 0..10 {
                    let nodes: Vec<NewNode> =
                        (0..5).map(|i| node("acme", &format!("text {i}"))).collect();
                    store
                        .insert_nodes(&nodes, NodeStatus::Queued, OnRefusal::KeepOthers)
                        .await
                        .unwrap();
                    let jobs: Vec<_> = nodes.iter().map(|node| job(node, false)).collect();
                    assert_eq!(store.begin(&jobs, usize::MAX).await.unwrap().len(), 5);
                    let vectors: Vec<_> = nodes
                        .iter()
                        .enumerate()
                        .map(|(i, node)| vector(node.id, &format!("text {i}"), [1.0, 0.0, 0.0]))
                        .collect();
                    assert_eq!(store.complete(&vectors).await.unwrap().len(), 5);
                }
            })
        });
    for writer in futures::future::join_all(writers.collect::<Vec<_>>()).await {
        writer.unwrap();
    }
    for store in &stores {
        assert_eq!(store.status_counts(&TenantScope::All).await.unwrap().ready, 200);
    }
}
