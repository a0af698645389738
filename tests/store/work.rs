//! Claims and results.

use std::time::Duration;

use serde_json::{Value, json};
use vecmill::{
    domain::{NewNode, NodeStatus, TenantScope, node::text_of_props},
    heavy::Weight,
    store::{BeginJob, OnRefusal, Outcome, Store, StoreError, TextRow},
};

use crate::support::{
    TestDb, job, node, object, on_both_databases, outcome, read, status, tenant, vector,
};

on_both_databases!(
    a_claim_answers_the_status_before_it,
    of_concurrent_claims_one_sees_the_node_queued,
    a_claim_by_another_tenant_finds_nothing,
    a_node_that_is_done_is_only_marked_for_a_refresh,
    a_vector_is_stored_with_all_that_belongs_to_it,
    a_vector_of_an_older_text_is_refused,
    the_text_in_the_guard_is_the_text_of_the_claim,
    properties_that_nobody_can_read_spoil_no_batch,
    a_node_with_a_payload_ref_takes_no_vector_of_an_older_text_either,
    the_drift_is_the_distance_from_the_old_vector,
    a_vector_of_another_dimension_is_refused,
    a_late_failure_leaves_a_ready_node_alone,
    a_reason_is_kept_short,
    only_processing_nodes_return_to_the_queue,
    a_batch_of_two_hundred_is_stored,
    texts_beyond_a_bound_are_left_for_later,
);

const X: [f32; 3] = [1.0, 0.0, 0.0];
const Y: [f32; 3] = [0.0, 1.0, 0.0];

async fn insert(store: &Store, nodes: &[&NewNode]) {
    let nodes: Vec<NewNode> = nodes.iter().copied().cloned().collect();
    store.insert_nodes(&nodes, NodeStatus::Queued, OnRefusal::KeepOthers).await.unwrap();
}

/// Claims one node; a row that another claim holds at the moment is asked for again.
async fn begin_one(store: &Store, job: BeginJob) -> TextRow {
    loop {
        if let Some(row) = store.begin(std::slice::from_ref(&job), usize::MAX).await.unwrap().pop()
        {
            return row;
        }
        assert!(store.present(std::slice::from_ref(&job)).await.unwrap().contains(&job.id));
    }
}

async fn a_claim_answers_the_status_before_it(db: TestDb) {
    let store = db.migrated().await;
    let (fresh, failed) = (node("acme", "fresh"), node("acme", "failed"));
    insert(&store, &[&fresh, &failed]).await;
    store.record(&[outcome(failed.id, NodeStatus::Failed)]).await.unwrap();

    // Two jobs of one node are one row.
    let jobs = [job(&fresh, false), job(&failed, false), job(&fresh, false)];
    let mut rows = store.begin(&jobs, usize::MAX).await.unwrap();
    rows.sort_by_key(|row| row.text.clone());
    assert_eq!(rows.len(), 2);
    assert_eq!((rows[0].id, rows[0].status), (failed.id, NodeStatus::Failed));
    assert_eq!((rows[1].id, rows[1].status), (fresh.id, NodeStatus::Queued));
    assert_eq!(rows[1].text.as_deref(), Some("fresh"));
    assert_eq!((rows[1].has_embedding, &rows[1].source_hash), (false, &None));
    assert_eq!(status(&store, fresh.id).await, NodeStatus::Processing);
    assert_eq!(status(&store, failed.id).await, NodeStatus::Processing);

    assert_eq!(begin_one(&store, job(&fresh, false)).await.status, NodeStatus::Processing);
    assert!(store.begin(&[], usize::MAX).await.unwrap().is_empty());
}

async fn of_concurrent_claims_one_sees_the_node_queued(db: TestDb) {
    let store = db.migrated().await;
    for _ in 0..10 {
        let node = node("acme", "text");
        insert(&store, &[&node]).await;
        let claims = (0..8).map(|_| {
            let (store, job) = (store.clone(), job(&node, false));
            tokio::spawn(async move { begin_one(&store, job).await.status })
        });
        let before = futures::future::join_all(claims.collect::<Vec<_>>()).await;
        let queued =
            before.iter().filter(|status| *status.as_ref().unwrap() == NodeStatus::Queued).count();
        assert_eq!(queued, 1, "{before:?}");
    }
}

async fn a_claim_by_another_tenant_finds_nothing(db: TestDb) {
    let store = db.migrated().await;
    let (ours, foreign) = (node("acme", "ours"), node("acme", "foreign"));
    insert(&store, &[&ours, &foreign]).await;
    db.sql(&format!("UPDATE nodes SET tenant_id = NULL WHERE id = {}", db.literal(foreign.id)))
        .await;

    let other =
        BeginJob { id: ours.id, tenant_id: tenant("other"), refresh: true, failed_attempts: 0 };
    assert!(store.begin(&[other, job(&foreign, false)], usize::MAX).await.unwrap().is_empty());
    assert_eq!(status(&store, ours.id).await, NodeStatus::Queued);
    assert_eq!(status(&store, foreign.id).await, NodeStatus::Queued);

    let default = BeginJob {
        id: foreign.id,
        tenant_id: tenant("default"),
        refresh: false,
        failed_attempts: 0,
    };
    assert_eq!(begin_one(&store, default).await.id, foreign.id);
    assert_eq!(status(&store, foreign.id).await, NodeStatus::Processing);
}

async fn a_node_that_is_done_is_only_marked_for_a_refresh(db: TestDb) {
    let store = db.migrated().await;
    let done = node("acme", "done");
    insert(&store, &[&done]).await;
    store.complete(&[vector(done.id, "done", X)]).await.unwrap();

    let row = begin_one(&store, job(&done, false)).await;
    assert_eq!((row.status, row.has_embedding), (NodeStatus::Ready, true));
    assert_eq!(row.source_hash.as_deref(), Some("hash of done"));
    assert_eq!(status(&store, done.id).await, NodeStatus::Ready);

    let row = begin_one(&store, job(&done, true)).await;
    assert_eq!(row.status, NodeStatus::Ready);
    assert_eq!(status(&store, done.id).await, NodeStatus::Processing);

    // `ready` without a vector is not done.
    db.sql("UPDATE nodes SET embedding = NULL, embedding_status = 'ready'").await;
    begin_one(&store, job(&done, false)).await;
    assert_eq!(status(&store, done.id).await, NodeStatus::Processing);
}

async fn a_vector_is_stored_with_all_that_belongs_to_it(db: TestDb) {
    let store = db.migrated().await;
    let node = NewNode {
        props: object(json!({"text": "text", "content_hash": "theirs"})),
        ..node("acme", "")
    };
    insert(&store, &[&node]).await;
    store.record(&[outcome(node.id, NodeStatus::Queued)]).await.unwrap();
    let values = [0.1_f32, -0.2, 0.974_679_4];
    let mut vector = vector(node.id, "text", values);
    (vector.truncated, vector.failed_attempts) = (true, 3);
    assert_eq!(store.complete(&[vector]).await.unwrap(), [node.id]);

    let found = read(&store, node.id).await;
    assert_eq!(found.summary.status, NodeStatus::Ready);
    assert_eq!((found.summary.error, found.summary.attempts), (None, 4));
    assert!(found.summary.has_embedding);
    assert_eq!(found.embedding, Some(values.to_vec()));
    assert_eq!((found.truncated, found.drift_score), (Some(true), Some(0.0)));
    assert_eq!(found.props, node.props);
    let now = chrono::Utc::now();
    for time in [found.embedding_updated_at, found.last_refreshed, found.updated_at] {
        assert!((now - time.unwrap()).num_seconds().abs() < 60);
    }
    let without =
        store.get(&TenantScope::All, node.id, false, Weight::Light).await.unwrap().unwrap();
    assert_eq!(without.embedding, None);
}

async fn a_vector_of_an_older_text_is_refused(db: TestDb) {
    let store = db.migrated().await;
    let (changed, same) = (node("acme", "old"), node("acme", "same"));
    insert(&store, &[&changed, &same]).await;
    store.begin(&[job(&changed, false), job(&same, false)], usize::MAX).await.unwrap();
    db.sql(&format!(
        "UPDATE nodes SET props = '{{\"text\":\"new\"}}' WHERE id = {}",
        db.literal(changed.id)
    ))
    .await;

    let gone = node("acme", "gone");
    let vectors =
        [vector(changed.id, "old", X), vector(same.id, "same", Y), vector(gone.id, "gone", Y)];
    assert_eq!(store.complete(&vectors).await.unwrap(), [same.id]);
    let found = read(&store, changed.id).await;
    assert_eq!((found.summary.status, found.embedding), (NodeStatus::Processing, None));
    assert_eq!(store.complete(&[vector(changed.id, "new", Y)]).await.unwrap(), [changed.id]);
}

async fn the_text_in_the_guard_is_the_text_of_the_claim(db: TestDb) {
    let store = db.migrated().await;
    let variants = [
        json!({"text": "t", "content": "c"}),
        json!({"text": "", "resume_text": "r"}),
        json!({"text": null, "resume_text": 7, "content": {"a": "b"}, "body": "b"}),
        json!({"text": ["x"], "resume_text": false, "description": "ünï\u{1f980}\n\t\"\\'"}),
        json!({"content": " "}),
        json!({"text": "123"}),
        json!({"text": "null"}),
    ];
    let nodes: Vec<NewNode> = variants
        .into_iter()
        .map(|props| NewNode { props: object(props), ..node("acme", "") })
        .collect();
    store.insert_nodes(&nodes, NodeStatus::Queued, OnRefusal::KeepOthers).await.unwrap();
    for node in &nodes {
        let text = text_of_props(&node.props).unwrap();
        let claimed = begin_one(&store, job(node, false)).await.text;
        assert_eq!(claimed.as_deref(), Some(text));
        assert!(store.complete(&[vector(node.id, "other", X)]).await.unwrap().is_empty());
        assert!(store.complete(&[vector(node.id, "", X)]).await.unwrap().is_empty());
        assert_eq!(store.complete(&[vector(node.id, text, X)]).await.unwrap(), [node.id]);
    }

    let textless = NewNode { props: object(json!({"title": "t"})), ..node("acme", "") };
    insert(&store, &[&textless]).await;
    assert_eq!(begin_one(&store, job(&textless, false)).await.text, None);
    assert!(store.complete(&[vector(textless.id, "", X)]).await.unwrap().is_empty());
}

async fn properties_that_nobody_can_read_spoil_no_batch(db: TestDb) {
    let store = db.migrated().await;
    let (odd, none, good) = (node("acme", "odd"), node("acme", "none"), node("acme", "good"));
    insert(&store, &[&odd, &none, &good]).await;
    let props = if db.is_sqlite() { "{\"text\":" } else { "{\"text\":\"odd\",\"n\":1e999}" };
    let (odd_id, none_id) = (db.literal(odd.id), db.literal(none.id));
    db.sql(&format!("UPDATE nodes SET props = '{props}' WHERE id = {odd_id}")).await;
    db.sql(&format!("UPDATE nodes SET props = NULL WHERE id = {none_id}")).await;

    let jobs = [job(&odd, false), job(&none, false), job(&good, false)];
    assert_eq!(store.begin(&jobs, usize::MAX).await.unwrap().len(), 3);
    let vectors =
        [vector(odd.id, "odd", X), vector(none.id, "none", X), vector(good.id, "good", X)];
    let stored = store.complete(&vectors).await.unwrap();
    assert_eq!(stored.contains(&odd.id), !db.is_sqlite());
    assert!(!stored.contains(&none.id));
    assert!(stored.contains(&good.id));
}

async fn a_node_with_a_payload_ref_takes_no_vector_of_an_older_text_either(db: TestDb) {
    let store = db.migrated().await;
    let node = NewNode { payload_ref: Some("file:///x".to_owned()), ..node("acme", "new") };
    insert(&store, &[&node]).await;
    let row = begin_one(&store, job(&node, false)).await;
    assert_eq!(row.payload_ref.as_deref(), Some("file:///x"));
    assert!(store.complete(&[vector(node.id, "old", X)]).await.unwrap().is_empty());
    assert_eq!(store.complete(&[vector(node.id, "new", X)]).await.unwrap(), [node.id]);
}

async fn the_drift_is_the_distance_from_the_old_vector(db: TestDb) {
    let store = db.migrated().await;
    let node = node("acme", "text");
    insert(&store, &[&node]).await;
    let half = 0.5_f32.sqrt();
    for (values, drift) in [
        (X, 0.0),
        ([half, half, 0.0], 1.0 - f64::from(half)),
        (Y, 1.0 - f64::from(half)),
        ([0.0, -1.0, 0.0], 2.0),
        ([0.0, -1.0, 0.0], 0.0),
    ] {
        store.complete(&[vector(node.id, "text", values)]).await.unwrap();
        let found = read(&store, node.id).await.drift_score.unwrap();
        assert!((found - drift).abs() < 1e-6, "{found} for {drift}");
    }
    // A vector of another program need not have a direction.
    let zero = if db.is_sqlite() { "x'000000000000000000000000'" } else { "'[0,0,0]'" };
    db.sql(&format!("UPDATE nodes SET embedding = {zero}")).await;
    store.complete(&[vector(node.id, "text", X)]).await.unwrap();
    assert_eq!(read(&store, node.id).await.drift_score, Some(0.0));
}

async fn a_vector_of_another_dimension_is_refused(db: TestDb) {
    let store = db.migrated().await;
    let node = node("acme", "text");
    insert(&store, &[&node]).await;
    let mut vector = vector(node.id, "text", X);
    vector.values.push(0.0);
    let error = store.complete(&[vector]).await.unwrap_err();
    assert!(matches!(error, StoreError::Dimension { column: 3, model: 4 }), "{error}");
}

async fn a_late_failure_leaves_a_ready_node_alone(db: TestDb) {
    let store = db.migrated().await;
    let (done, open) = (node("acme", "done"), node("acme", "open"));
    insert(&store, &[&done, &open]).await;
    store.complete(&[vector(done.id, "done", X)]).await.unwrap();
    let outcomes = [
        outcome(done.id, NodeStatus::Failed),
        outcome(open.id, NodeStatus::Queued),
        outcome(node("acme", "gone").id, NodeStatus::Failed),
    ];
    store.record(&outcomes).await.unwrap();
    let found = read(&store, done.id).await.summary;
    assert_eq!((found.status, found.error, found.attempts), (NodeStatus::Ready, None, 1));
    let found = read(&store, open.id).await.summary;
    assert_eq!((found.status, found.attempts), (NodeStatus::Queued, 2));
    assert_eq!(found.error.as_deref(), Some("it is queued"));
    store.record(&[]).await.unwrap();
}

async fn a_reason_is_kept_short(db: TestDb) {
    let store = db.migrated().await;
    let node = node("acme", "text");
    insert(&store, &[&node]).await;
    let error = format!("\0{}", "ü".repeat(900));
    let outcome = Outcome { error, ..outcome(node.id, NodeStatus::Failed) };
    store.record(&[outcome]).await.unwrap();
    assert_eq!(read(&store, node.id).await.summary.error, Some("ü".repeat(500)));
}

async fn only_processing_nodes_return_to_the_queue(db: TestDb) {
    let store = db.migrated().await;
    let (held, done, failed) = (node("a", "held"), node("a", "done"), node("a", "failed"));
    insert(&store, &[&held, &done, &failed]).await;
    store.record(&[outcome(held.id, NodeStatus::Queued)]).await.unwrap();
    // The third attempt begins, and does not count when it is taken back.
    let third = BeginJob { failed_attempts: 2, ..job(&held, false) };
    store.begin(&[third], usize::MAX).await.unwrap();
    assert_eq!(read(&store, held.id).await.summary.attempts, 3);
    store.complete(&[vector(done.id, "done", X)]).await.unwrap();
    store.record(&[outcome(failed.id, NodeStatus::Failed)]).await.unwrap();

    store.return_to_queue(&[held.id, done.id, failed.id]).await.unwrap();
    let found = read(&store, held.id).await.summary;
    assert_eq!((found.status, found.attempts), (NodeStatus::Queued, 2));
    assert_eq!(found.error.as_deref(), Some("it is queued"));
    assert_eq!(status(&store, done.id).await, NodeStatus::Ready);
    assert_eq!(status(&store, failed.id).await, NodeStatus::Failed);
}

async fn a_batch_of_two_hundred_is_stored(db: TestDb) {
    let store = db.migrated().await;
    let nodes: Vec<NewNode> = (0..200).map(|i| node("acme", &format!("text {i}"))).collect();
    store.insert_nodes(&nodes, NodeStatus::Queued, OnRefusal::KeepOthers).await.unwrap();
    let value = |i: u16| [f32::from(i), 1.0, -f32::from(i)];
    let vectors: Vec<_> = (0_u16..)
        .zip(&nodes)
        .map(|(i, node)| vector(node.id, &format!("text {i}"), value(i)))
        .collect();
    let work = async {
        assert_eq!(store.complete(&vectors).await.unwrap().len(), 200);
    };
    tokio::time::timeout(Duration::from_secs(30), work).await.unwrap();
    for (i, node) in (0_u16..).zip(&nodes).step_by(37) {
        assert_eq!(read(&store, node.id).await.embedding, Some(value(i).to_vec()));
    }
    let found = read(&store, nodes[0].id).await;
    assert_eq!(found.props.get("text"), Some(&Value::from("text 0")));
}

async fn texts_beyond_a_bound_are_left_for_later(db: TestDb) {
    let store = db.migrated().await;
    let long = "x".repeat(10_000);
    let nodes: Vec<NewNode> = (0..6).map(|n| node("acme", &format!("{n} {long}"))).collect();
    insert(&store, &nodes.iter().collect::<Vec<_>>()).await;
    let all: Vec<BeginJob> = nodes.iter().map(|node| job(node, false)).collect();
    let (mut jobs, mut rounds) = (all.clone(), Vec::new());
    while !jobs.is_empty() {
        let rows = store.begin(&jobs, 25_000).await.unwrap();
        assert_eq!(rows.len(), jobs.len(), "each row is known");
        let (left, read): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.is_left);
        assert!(left.iter().all(|row| row.text.is_none()));
        assert!(read.iter().all(|row| row.text.as_ref().is_some_and(|text| text.len() > 10_000)));
        rounds.push(read.len());
        jobs.retain(|job| left.iter().any(|row| row.id == job.id));
    }
    assert_eq!(rounds, [2, 2, 2]);
    let rows = store.begin(&all, 0).await.unwrap();
    assert_eq!(rows.iter().filter(|row| !row.is_left).count(), 1, "one is always read");
}
