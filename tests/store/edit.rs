//! Changing and deleting nodes.

use serde_json::{Value, json};
use uuid::Uuid;
use vecmill::{
    domain::{NewNode, NodePatch, NodeStatus, TenantScope},
    store::{
        Cursor, NodeDetail, OnNewText, OnRefusal, Outcome, Patched, RequeueFilter, Store, Subject,
        TextSource, text_hash,
    },
};

use crate::support::{
    TestDb, job, node, object, on_both_databases, only, outcome, read, status, tenant, vector,
};

on_both_databases!(
    a_new_text_is_written_only_with_permission,
    a_node_with_a_new_text_begins_anew_and_keeps_its_old_vector,
    a_change_of_other_things_leaves_the_embedding_alone,
    a_change_that_changes_nothing_writes_nothing,
    what_was_made_of_another_text_is_not_written,
    a_new_text_is_written_together_with_what_was_made_of_it,
    a_vector_of_an_older_text_counts_as_missing,
    a_late_outcome_of_an_older_text_leaves_the_newer_alone,
    an_outcome_is_written_where_its_subject_is,
    what_another_program_made_ready_with_an_older_text_is_opened_again,
    concurrent_changes_are_all_merged,
    only_the_scope_of_a_node_can_change_or_delete_it,
    rows_of_another_program_can_be_changed_and_deleted,
);

const X: [f32; 3] = [1.0, 0.0, 0.0];
const Y: [f32; 3] = [0.0, 1.0, 0.0];

fn props(value: Value) -> NodePatch {
    NodePatch { props: Some(object(value)), ..NodePatch::default() }
}

fn text(text: &str) -> NodePatch {
    props(json!({ "text": text }))
}

fn source(text: &str) -> TextSource {
    TextSource { text: Some(text.to_owned()), payload_ref: None }
}

async fn patch(store: &Store, id: Uuid, patch: &NodePatch, on: OnNewText<'_>) -> Patched {
    store.patch(&TenantScope::All, id, patch, on).await.unwrap()
}

fn done(status: NodeStatus, has_new_text: bool) -> Patched {
    Patched::Done { tenant_id: tenant("acme"), status, has_new_text }
}

fn new_text(text: &str) -> Patched {
    Patched::NewText { tenant_id: tenant("acme"), source: source(text) }
}

/// A node with the text "old" and a vector of it.
async fn ready(store: &Store) -> NewNode {
    let node = node("acme", "old");
    store
        .insert_nodes(std::slice::from_ref(&node), NodeStatus::Queued, OnRefusal::KeepOthers)
        .await
        .unwrap();
    store.complete(&[vector(node.id, "old", X)]).await.unwrap();
    node
}

/// The node without the time of its last change.
async fn embedding_of(store: &Store, id: Uuid) -> NodeDetail {
    NodeDetail { updated_at: None, ..read(store, id).await }
}

async fn a_new_text_is_written_only_with_permission(db: TestDb) {
    let store = db.migrated().await;
    let node = ready(&store).await;
    let before = read(&store, node.id).await;
    assert_eq!(patch(&store, node.id, &text("new"), OnNewText::Ask).await, new_text("new"));
    let place = NodePatch { payload_ref: Some("file:///a".to_owned()), ..NodePatch::default() };
    let Patched::NewText { source, .. } = patch(&store, node.id, &place, OnNewText::Ask).await
    else {
        panic!("another place is another text");
    };
    assert_eq!(source.payload_ref.as_deref(), Some("file:///a"));
    assert_eq!(read(&store, node.id).await, before);
}

async fn a_node_with_a_new_text_begins_anew_and_keeps_its_old_vector(db: TestDb) {
    let store = db.migrated().await;
    let node = ready(&store).await;
    store.begin(&[job(&node, true)], usize::MAX).await.unwrap();
    store.record(&[outcome(node.id, NodeStatus::Failed)]).await.unwrap();
    db.sql("UPDATE nodes SET updated_at = NULL").await;
    let patched = patch(&store, node.id, &text("new"), OnNewText::Queue).await;
    assert_eq!(patched, done(NodeStatus::Queued, true));
    let found = read(&store, node.id).await;
    assert_eq!((found.summary.status, found.summary.attempts), (NodeStatus::Queued, 0));
    assert_eq!((found.summary.error, found.version), (None, 2));
    assert_eq!((found.props["text"].as_str(), found.embedding), (Some("new"), Some(X.to_vec())));
    assert!(found.updated_at.is_some());

    let rows = store.begin(&[job(&node, false)], usize::MAX).await.unwrap();
    assert_ne!(rows[0].source_hash.as_deref(), Some("hash of old"));
    store.complete(&[vector(node.id, "new", Y)]).await.unwrap();
    assert_eq!(read(&store, node.id).await.drift_score, Some(1.0));
}

async fn a_change_of_other_things_leaves_the_embedding_alone(db: TestDb) {
    let store = db.migrated().await;
    let node = ready(&store).await;
    let before = embedding_of(&store, node.id).await;
    let change = NodePatch {
        props: Some(object(json!({"body": "an unused text", "n": {"a": [1], "b": null}}))),
        metadata: Some(json!({"by": "me"})),
        payload_ref: None,
    };
    let patched = patch(&store, node.id, &change, OnNewText::Ask).await;
    assert_eq!(patched, done(NodeStatus::Ready, false));
    let expected = NodeDetail {
        props: object(json!({"text": "old", "body": "an unused text", "n": {"a": [1]}})),
        metadata: Some(json!({"by": "me"})),
        version: 2,
        ..before.clone()
    };
    assert_eq!(embedding_of(&store, node.id).await, expected);
    let back = NodePatch {
        props: Some(object(json!({"body": null, "n": null}))),
        metadata: Some(Value::Null),
        payload_ref: Some(String::new()),
    };
    patch(&store, node.id, &back, OnNewText::Ask).await;
    let expected = NodeDetail { version: 3, metadata: Some(json!({})), ..before };
    assert_eq!(embedding_of(&store, node.id).await, expected);
}

async fn a_change_that_changes_nothing_writes_nothing(db: TestDb) {
    let store = db.migrated().await;
    let node = ready(&store).await;
    let before = read(&store, node.id).await;
    for change in [text("old"), props(json!({})), props(json!({"absent": null}))] {
        let patched = patch(&store, node.id, &change, OnNewText::Queue).await;
        assert_eq!(patched, done(NodeStatus::Ready, false));
    }
    assert_eq!(read(&store, node.id).await, before);
}

async fn what_was_made_of_another_text_is_not_written(db: TestDb) {
    let store = db.migrated().await;
    let node = ready(&store).await;
    let before = read(&store, node.id).await;
    let made = Ok(vector(node.id, "other", Y));
    let other = source("other");
    let patched = patch(&store, node.id, &text("new"), OnNewText::Store(&other, &made)).await;
    assert_eq!(patched, new_text("new"));
    assert_eq!(read(&store, node.id).await, before);

    // A vector that is not of the text that it is said to be of fails the change as a whole.
    let new = source("new");
    let write = OnNewText::Store(&new, &made);
    store.patch(&TenantScope::All, node.id, &text("new"), write).await.unwrap_err();
    assert_eq!(read(&store, node.id).await, before);
}

async fn a_new_text_is_written_together_with_what_was_made_of_it(db: TestDb) {
    let store = db.migrated().await;
    let node = ready(&store).await;
    let (new, made) = (source("new"), Ok(vector(node.id, "new", Y)));
    let patched = patch(&store, node.id, &text("new"), OnNewText::Store(&new, &made)).await;
    assert_eq!(patched, done(NodeStatus::Ready, true));
    let found = read(&store, node.id).await;
    assert_eq!((found.embedding, found.drift_score), (Some(Y.to_vec()), Some(1.0)));
    assert_eq!((found.version, found.summary.status), (2, NodeStatus::Ready));

    let none = TextSource { text: None, payload_ref: None };
    let skipped =
        Err(Outcome { subject: Subject::Processing, ..outcome(node.id, NodeStatus::Skipped) });
    let removal = props(json!({"text": null}));
    let patched = patch(&store, node.id, &removal, OnNewText::Store(&none, &skipped)).await;
    assert_eq!(patched, done(NodeStatus::Skipped, true));
    assert_eq!(status(&store, node.id).await, NodeStatus::Skipped);
}

async fn a_vector_of_an_older_text_counts_as_missing(db: TestDb) {
    let store = db.migrated().await;
    let (stale, current) = (ready(&store).await, ready(&store).await);
    patch(&store, stale.id, &text("new"), OnNewText::Queue).await;
    assert_eq!(store.backfill_ready(&TenantScope::All, None).await.unwrap().nodes, 0);
    assert_eq!(status(&store, stale.id).await, NodeStatus::Queued);
    assert!(read(&store, stale.id).await.summary.has_embedding, "a vector is stored all the same");

    let wanted = |only_missing_embedding| RequeueFilter {
        scope: TenantScope::All,
        node_ids: None,
        status: None,
        only_missing_embedding,
        limit: 10,
        from: Cursor::default(),
    };
    let missing = store.requeue_candidates(&wanted(true)).await.unwrap();
    assert_eq!(missing.iter().map(|found| found.id).collect::<Vec<_>>(), [stale.id]);
    let all = store.requeue_candidates(&wanted(false)).await.unwrap();
    let current_of = |id| all.iter().find(|found| found.id == id).unwrap().has_current_embedding;
    assert!(!current_of(stale.id) && current_of(current.id));
}

async fn a_late_outcome_of_an_older_text_leaves_the_newer_alone(db: TestDb) {
    let store = db.migrated().await;
    for late in [NodeStatus::Failed, NodeStatus::Skipped, NodeStatus::Queued] {
        let node = node("acme", "old");
        store
            .insert_nodes(std::slice::from_ref(&node), NodeStatus::Queued, OnRefusal::KeepOthers)
            .await
            .unwrap();
        store.begin(&[job(&node, false)], usize::MAX).await.unwrap();
        patch(&store, node.id, &text("new"), OnNewText::Queue).await;
        let subject = Subject::Text(Some(text_hash("old")));
        let late = Outcome { subject, ..outcome(node.id, late) };
        let is_recorded =
            async || !store.record(std::slice::from_ref(&late)).await.unwrap().is_empty();
        assert!(!is_recorded().await, "it is told so");
        assert!(store.complete(&[vector(node.id, "old", X)]).await.unwrap().is_empty());
        let found = read(&store, node.id).await.summary;
        assert_eq!((found.status, found.attempts, found.error), (NodeStatus::Queued, 0, None));
        // Nor when a second worker has begun on the newer one.
        store.begin(&[job(&node, false)], usize::MAX).await.unwrap();
        assert!(!is_recorded().await, "it is told so");
        assert_eq!(status(&store, node.id).await, NodeStatus::Processing);
    }
}

async fn an_outcome_is_written_where_its_subject_is(db: TestDb) {
    let store = db.migrated().await;
    let (same, other) = (Some(text_hash("text")), Some(text_hash("other")));
    let mut outcomes = Vec::new();
    let mut expected = Vec::new();
    for (props, hash) in [(json!({"text": "text"}), same), (json!({"title": "none"}), None)] {
        for (status, subject, is_written) in [
            (NodeStatus::Processing, Subject::Text(hash), true),
            (NodeStatus::Processing, Subject::Text(other), false),
            (
                NodeStatus::Processing,
                Subject::Text(if hash.is_some() { None } else { same }),
                false,
            ),
            (NodeStatus::Processing, Subject::Processing, true),
            (NodeStatus::Processing, Subject::Unread, true),
            (NodeStatus::Queued, Subject::Text(hash), false),
            (NodeStatus::Queued, Subject::Processing, false),
            (NodeStatus::Queued, Subject::Unread, true),
            (NodeStatus::Ready, Subject::Unread, false),
            (NodeStatus::Skipped, Subject::Processing, false),
        ] {
            let node = NewNode { props: object(props.clone()), ..node("acme", "") };
            store
                .insert_nodes(std::slice::from_ref(&node), status, OnRefusal::KeepOthers)
                .await
                .unwrap();
            outcomes.push(Outcome { subject, ..outcome(node.id, NodeStatus::Failed) });
            expected.push((node.id, if is_written { NodeStatus::Failed } else { status }));
        }
    }
    let gone = node("acme", "gone").id;
    outcomes.push(Outcome { subject: Subject::Text(same), ..outcome(gone, NodeStatus::Failed) });
    let mut written = store.record(&outcomes).await.unwrap();
    written.sort();
    let failed = expected.iter().filter(|(_, status)| *status == NodeStatus::Failed);
    assert_eq!(written, failed.map(|(id, _)| *id).collect::<Vec<_>>());
    for (id, expected) in expected {
        assert_eq!(status(&store, id).await, expected);
    }
}

async fn what_another_program_made_ready_with_an_older_text_is_opened_again(db: TestDb) {
    let store = db.migrated().await;
    let (overwritten, untouched) = (ready(&store).await, ready(&store).await);
    patch(&store, overwritten.id, &text("new"), OnNewText::Queue).await;
    assert_eq!(store.reopen_overwritten().await.unwrap(), 0, "it is queued as it is");
    db.sql(&format!(
        "UPDATE nodes SET embedding_status = 'ready' WHERE id = {}",
        db.literal(overwritten.id)
    ))
    .await;
    assert_eq!(store.reopen_overwritten().await.unwrap(), 1);
    assert_eq!(status(&store, overwritten.id).await, NodeStatus::Queued);
    assert_eq!(status(&store, untouched.id).await, NodeStatus::Ready);
}

async fn concurrent_changes_are_all_merged(db: TestDb) {
    let store = db.migrated().await;
    let node = ready(&store).await;
    let changes = (0..20).map(|i| {
        let (store, id) = (store.clone(), node.id);
        tokio::spawn(async move {
            let change = props(json!({ format!("p{i}"): i, "text": i.to_string() }));
            patch(&store, id, &change, OnNewText::Queue).await
        })
    });
    for patched in futures::future::join_all(changes.collect::<Vec<_>>()).await {
        assert_eq!(patched.unwrap(), done(NodeStatus::Queued, true));
    }
    let found = read(&store, node.id).await;
    assert_eq!((found.version, found.props.len()), (21, 21), "{:?}", found.props);
}

async fn only_the_scope_of_a_node_can_change_or_delete_it(db: TestDb) {
    let store = db.migrated().await;
    let node = ready(&store).await;
    let before = read(&store, node.id).await;
    let other = only("other");
    let queue = OnNewText::Queue;
    let patched = store.patch(&other, node.id, &text("new"), queue).await.unwrap();
    assert_eq!(patched, Patched::NotFound);
    assert_eq!(store.delete(&other, node.id).await.unwrap(), None);
    assert_eq!(read(&store, node.id).await, before);
    assert_eq!(store.delete(&only("acme"), node.id).await.unwrap(), Some(tenant("acme")));
    assert_eq!(store.delete(&only("acme"), node.id).await.unwrap(), None);
    assert_eq!(patch(&store, node.id, &text("new"), queue).await, Patched::NotFound);
}

async fn rows_of_another_program_can_be_changed_and_deleted(db: TestDb) {
    let store = db.migrated().await;
    let node = ready(&store).await;
    db.sql("UPDATE nodes SET tenant_id = NULL, props = NULL, metadata = 'null', payload_ref = ''")
        .await;
    let change = NodePatch { metadata: Some(json!({"a": {"b": null}})), ..props(json!({"n": 1})) };
    let patched = store.patch(&only("default"), node.id, &change, OnNewText::Ask).await.unwrap();
    let default = tenant("default");
    let status = NodeStatus::Ready;
    assert_eq!(patched, Patched::Done { tenant_id: default.clone(), status, has_new_text: false });
    let found = read(&store, node.id).await;
    assert_eq!((found.props, found.metadata), (object(json!({"n": 1})), Some(json!({"a": {}}))));
    assert_eq!(store.delete(&only("default"), node.id).await.unwrap(), Some(default));
}
