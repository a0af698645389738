//! Requeue and sweep.

use std::time::Duration;

use vecmill::{
    domain::{NewNode, NodeStatus, TenantScope},
    store::{Candidate, Cursor, OnRefusal, OpenPage, RequeueFilter, Store},
};

use crate::{
    common::wait_until,
    support::{TestDb, job, node, on_both_databases, only, outcome, read, status, tenant, vector},
};

on_both_databases!(
    requeue_finds_what_the_operator_asks_for,
    backfill_marks_only_nodes_with_a_vector,
    a_node_is_marked_queued_only_as_it_was_read,
    the_sweep_reads_old_open_nodes_page_by_page,
    a_tenant_that_no_job_can_carry_is_left_out,
);

const X: [f32; 3] = [1.0, 0.0, 0.0];

/// A node in each status, in the order of [`NodeStatus::ALL`]; the one that is `ready` has a
/// vector.
async fn one_of_each(store: &Store, tenant: &str) -> Vec<NewNode> {
    let nodes: Vec<NewNode> = (0..5).map(|i| node(tenant, &format!("text {i}"))).collect();
    for node in &nodes {
        store
            .insert_nodes(std::slice::from_ref(node), NodeStatus::Queued, OnRefusal::KeepOthers)
            .await
            .unwrap();
    }
    store.begin(&[job(&nodes[1], false)], usize::MAX).await.unwrap();
    store.complete(&[vector(nodes[2].id, "text 2", X)]).await.unwrap();
    let outcomes =
        [outcome(nodes[3].id, NodeStatus::Failed), outcome(nodes[4].id, NodeStatus::Skipped)];
    store.record(&outcomes).await.unwrap();
    nodes
}

fn everything() -> RequeueFilter {
    RequeueFilter {
        scope: TenantScope::All,
        node_ids: None,
        status: None,
        only_missing_embedding: false,
        limit: 2000,
        from: Cursor::default(),
    }
}

async fn requeue_finds_what_the_operator_asks_for(db: TestDb) {
    let store = db.migrated().await;
    let ours = one_of_each(&store, "acme").await;
    let theirs = one_of_each(&store, "other").await;
    let ids = async |filter: RequeueFilter| -> Vec<_> {
        store.requeue_candidates(&filter).await.unwrap().iter().map(|found| found.id).collect()
    };

    let acme = || RequeueFilter { scope: only("acme"), ..everything() };
    assert_eq!(ids(acme()).await, ours.iter().map(|node| node.id).collect::<Vec<_>>());
    assert_eq!(ids(RequeueFilter { limit: 2, ..acme() }).await, [ours[0].id, ours[1].id]);
    let failed = RequeueFilter { status: Some(NodeStatus::Failed), ..everything() };
    assert_eq!(ids(failed).await, [ours[3].id, theirs[3].id]);
    let missing = RequeueFilter { only_missing_embedding: true, ..acme() };
    assert_eq!(ids(missing).await, [ours[0].id, ours[1].id, ours[3].id, ours[4].id]);
    let named = RequeueFilter { node_ids: Some(vec![ours[2].id, theirs[2].id]), ..acme() };
    let found = store.requeue_candidates(&named).await.unwrap();
    let [found] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((found.id, &found.tenant_id), (ours[2].id, &tenant("acme")));
    assert_eq!((found.status, found.has_current_embedding), (NodeStatus::Ready, true));
    assert!(ids(RequeueFilter { node_ids: Some(vec![]), ..everything() }).await.is_empty());
}

async fn backfill_marks_only_nodes_with_a_vector(db: TestDb) {
    let store = db.migrated().await;
    let ours = one_of_each(&store, "acme").await;
    let theirs = one_of_each(&store, "other").await;
    assert_eq!(store.backfill_ready(&TenantScope::All, None).await.unwrap().nodes, 0);

    // All get a vector, as another program may have left them.
    let blob = if db.is_sqlite() { "x'0000803f0000000000000000'" } else { "'[1,0,0]'" };
    db.sql(&format!("UPDATE nodes SET embedding = {blob}")).await;
    let one = store.backfill_ready(&only("acme"), Some(&[ours[0].id, theirs[0].id])).await;
    assert_eq!(one.unwrap().nodes, 1);
    assert_eq!(store.backfill_ready(&only("acme"), None).await.unwrap().nodes, 1);
    for (node, expected) in ours.iter().zip([
        NodeStatus::Ready,
        NodeStatus::Processing,
        NodeStatus::Ready,
        NodeStatus::Ready,
        NodeStatus::Skipped,
    ]) {
        assert_eq!(status(&store, node.id).await, expected);
    }
    assert_eq!(read(&store, ours[3].id).await.summary.error, None);
    assert_eq!(status(&store, theirs[3].id).await, NodeStatus::Failed);
}

async fn a_node_is_marked_queued_only_as_it_was_read(db: TestDb) {
    let store = db.migrated().await;
    let nodes = one_of_each(&store, "acme").await;
    let all = RequeueFilter {
        scope: TenantScope::All,
        node_ids: Some(vec![nodes[2].id, nodes[3].id]),
        status: None,
        only_missing_embedding: false,
        limit: 10,
        from: Cursor::default(),
    };
    let read_first = store.requeue_candidates(&all).await.unwrap();
    let failed = read_first.iter().find(|node| node.id == nodes[3].id).unwrap().clone();
    let ready = read_first.iter().find(|node| node.id == nodes[2].id).unwrap().clone();
    let gone = Candidate { id: node("acme", "gone").id, ..failed.clone() };
    wait_until(Duration::from_secs(5), async || {
        // SQLite's clock has ticks of a millisecond.
        store.mark_queued(std::slice::from_ref(&ready)).await.unwrap();
        let again = store.requeue_candidates(&all).await.unwrap();
        again.iter().find(|node| node.id == ready.id).unwrap().changed != ready.changed
    })
    .await;
    assert!(read(&store, ready.id).await.embedding.is_some());
    assert_eq!(store.mark_queued(&[ready, failed, gone]).await.unwrap(), [nodes[3].id]);
    let found = read(&store, nodes[3].id).await.summary;
    assert_eq!((found.status, found.error, found.attempts), (NodeStatus::Queued, None, 0));
    assert!(store.mark_queued(&[]).await.unwrap().is_empty());
}

async fn the_sweep_reads_old_open_nodes_page_by_page(db: TestDb) {
    let store = db.migrated().await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.extend(one_of_each(&store, "acme").await.iter().take(2).map(|node| node.id));
    }
    open.sort();
    assert!(store.open_nodes(None, 10, 600.0).await.unwrap().nodes.is_empty());
    let (old, unknown) = (db.literal(open[0]), db.literal(open[5]));
    let hour_ago = if db.is_sqlite() {
        "strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now', '-3600 seconds')"
    } else {
        "now() - interval '1 hour'"
    };
    db.sql(&format!("UPDATE nodes SET updated_at = {hour_ago} WHERE id = {old}")).await;
    db.sql(&format!("UPDATE nodes SET updated_at = NULL, created_at = NULL WHERE id = {unknown}"))
        .await;
    let ids = |page: &OpenPage| page.nodes.iter().map(|found| found.id).collect::<Vec<_>>();
    let page = store.open_nodes(None, 10, 600.0).await.unwrap();
    assert_eq!((ids(&page), page.next), (vec![open[0], open[5]], None));
    assert_eq!(store.open_nodes(None, 10, 3600.5 * 24.0).await.unwrap().nodes.len(), 1);
    // A page is as many rows as were looked at, whatever they are.
    let page = store.open_nodes(Some(open[0]), 3, 600.0).await.unwrap();
    assert_eq!((ids(&page), page.next), (vec![], Some(open[3])));

    // A negative age is any age.
    let first = store.open_nodes(None, 4, -60.0).await.unwrap();
    let second = store.open_nodes(first.next, 4, -60.0).await.unwrap();
    assert_eq!([ids(&first), ids(&second)].concat(), open);
    assert_eq!(second.next, None);
}

async fn a_tenant_that_no_job_can_carry_is_left_out(db: TestDb) {
    let store = db.migrated().await;
    let (odd, good) = (node("acme", "odd"), node("acme", "good"));
    store
        .insert_nodes(&[odd.clone(), good.clone()], NodeStatus::Queued, OnRefusal::KeepOthers)
        .await
        .unwrap();
    db.sql(&format!("UPDATE nodes SET tenant_id = '' WHERE id = {}", db.literal(odd.id))).await;
    let found = store.open_nodes(None, 2, -60.0).await.unwrap().nodes;
    assert_eq!(found.iter().map(|found| found.id).collect::<Vec<_>>(), [good.id]);
    assert_eq!(store.requeue_candidates(&everything()).await.unwrap().len(), 1);
}
