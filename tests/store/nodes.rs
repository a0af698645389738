//! Writing, listing, reading and counting nodes.

use serde_json::json;
use uuid::Uuid;
use vecmill::{
    domain::{NewNode, NodeStatus, TenantScope},
    heavy::Weight,
    store::{Cursor, Fault, NodeFilter, NodeList, OnRefusal, StatusCounts, Total},
};

use crate::support::{
    TestDb, node, object, on_both_databases, only, outcome, read, status, vector,
};

on_both_databases!(
    a_node_is_read_as_it_was_written,
    no_scope_shows_a_node_of_another_tenant,
    a_listing_is_filtered_paged_and_counted,
    a_refused_node_harms_no_other,
    a_refused_node_harms_no_embedded_one,
    a_node_that_a_trigger_leaves_out_is_refused,
    an_insert_takes_more_nodes_than_a_statement_takes_parameters,
    an_embedded_node_is_written_with_its_result,
    embedded_nodes_are_written_all_or_none,
    a_node_without_a_tenant_is_the_default_tenants,
);

fn everything(scope: TenantScope) -> NodeFilter {
    NodeFilter { scope, has_embedding: None, status: None, limit: 100, from: Cursor::default() }
}

fn passing(skip: u64) -> Cursor {
    Cursor { after: None, skip }
}

async fn a_node_that_a_trigger_leaves_out_is_refused(db: TestDb) {
    let store = db.migrated().await;
    if db.is_sqlite() {
        db.sql(
            "CREATE TRIGGER unwanted BEFORE INSERT ON nodes WHEN NEW.tenant_id = 'unwanted' \
             BEGIN SELECT RAISE(IGNORE); END",
        )
        .await;
    } else {
        db.sql(
            "CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF NEW.tenant_id = 'unwanted' THEN RETURN NULL; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER unwanted BEFORE INSERT ON nodes FOR EACH ROW \
             EXECUTE FUNCTION leave_out()",
        )
        .await;
    }
    let nodes = [node("acme", "a"), node("unwanted", "b"), node("acme", "c")];
    let refusals = store.insert_nodes(&nodes, NodeStatus::Queued, OnRefusal::KeepOthers).await;
    let refused: Vec<bool> = refusals.unwrap().iter().map(Option::is_some).collect();
    assert_eq!(refused, [false, true, false]);
    let listed = store.list(&everything(TenantScope::All)).await.unwrap().nodes;
    assert_eq!(listed.len(), 2);
}

async fn a_node_is_read_as_it_was_written(db: TestDb) {
    let store = db.migrated().await;
    let full = NewNode {
        classes: vec!["Größe".to_owned(), "a, \"b\" {c}".to_owned()],
        props: object(json!({
            "text": "naïve 'quotes' \\ and\nlines 🦀",
            "nested": {"list": [1, 2.5, null, true, 9007199254740993_i64]},
            "$odd.key[0]": ""
        })),
        payload_ref: Some("file:///a b?c#d".to_owned()),
        metadata: Some(json!("a mere string")),
        refresh_policy: Some(json!({"every": "1h"})),
        triggers: Some(json!([])),
        ..node("acme", "")
    };
    let bare = node("acme", "t");
    store
        .insert_nodes(&[full.clone(), bare.clone()], NodeStatus::Queued, OnRefusal::KeepOthers)
        .await
        .unwrap();

    let found = read(&store, full.id).await;
    assert_eq!(found.summary.classes, full.classes);
    assert_eq!(found.summary.status, NodeStatus::Queued);
    assert_eq!((found.summary.attempts, found.summary.error), (0, None));
    assert!(!found.summary.has_embedding);
    assert_eq!(found.tenant_id, full.tenant_id);
    assert_eq!(found.props, full.props);
    assert_eq!(found.payload_ref, full.payload_ref);
    assert_eq!(found.metadata, full.metadata);
    assert_eq!(found.refresh_policy, full.refresh_policy);
    assert_eq!(found.triggers, full.triggers);
    assert_eq!(found.version, 1);
    assert_eq!((found.embedding, found.embedding_updated_at, found.truncated), (None, None, None));
    let age = chrono::Utc::now() - found.created_at.unwrap();
    assert!(age.num_seconds().abs() < 60, "created {age} ago");
    assert_eq!(found.updated_at, found.created_at);

    let found = read(&store, bare.id).await;
    // As an ActiveKG database wants it, which takes no null there.
    assert_eq!((found.payload_ref, found.metadata), (None, Some(json!({}))));
    assert_eq!((found.refresh_policy, found.triggers), (Some(json!({})), Some(json!([]))));
}

async fn no_scope_shows_a_node_of_another_tenant(db: TestDb) {
    let store = db.migrated().await;
    let (ours, theirs) = (node("acme", "ours"), node("other", "theirs"));
    store
        .insert_nodes(&[ours.clone(), theirs.clone()], NodeStatus::Queued, OnRefusal::KeepOthers)
        .await
        .unwrap();

    assert!(store.get(&only("acme"), ours.id, false, Weight::Light).await.unwrap().is_some());
    assert!(store.get(&only("acme"), theirs.id, false, Weight::Light).await.unwrap().is_none());
    let NodeList { nodes: listed, total: Total { nodes: total, .. }, .. } =
        store.list(&everything(only("acme"))).await.unwrap();
    assert_eq!((listed.iter().map(|node| node.id).collect::<Vec<_>>(), total), (vec![ours.id], 1));
    assert_eq!(store.status_counts(&only("acme")).await.unwrap().queued, 1);
    assert_eq!(store.status_counts(&only("default")).await.unwrap(), StatusCounts::default());
    assert_eq!(store.status_counts(&TenantScope::All).await.unwrap().queued, 2);
}

async fn a_listing_is_filtered_paged_and_counted(db: TestDb) {
    let store = db.migrated().await;
    let nodes: Vec<NewNode> = (0..5).map(|i| node("acme", &i.to_string())).collect();
    for node in &nodes {
        store
            .insert_nodes(std::slice::from_ref(node), NodeStatus::Queued, OnRefusal::KeepOthers)
            .await
            .unwrap();
    }
    store.complete(&[vector(nodes[1].id, "1", [1.0, 0.0, 0.0])]).await.unwrap();
    store.record(&[outcome(nodes[3].id, NodeStatus::Failed)]).await.unwrap();

    let ids = async |filter: NodeFilter| {
        let NodeList { nodes: listed, total: Total { nodes: total, .. }, .. } =
            store.list(&filter).await.unwrap();
        (listed.iter().map(|node| node.id).collect::<Vec<_>>(), total)
    };
    let all = || everything(TenantScope::All);
    assert_eq!(
        ids(NodeFilter { limit: 2, from: passing(4), ..all() }).await,
        (vec![nodes[4].id], 5)
    );
    assert_eq!(ids(NodeFilter { limit: 2, from: passing(9), ..all() }).await, (vec![], 5));
    assert_eq!(ids(NodeFilter { has_embedding: Some(true), ..all() }).await.0, [nodes[1].id]);
    assert_eq!(ids(NodeFilter { has_embedding: Some(false), ..all() }).await.1, 4);
    let failed = NodeFilter { status: Some(NodeStatus::Failed), ..all() };
    let NodeList { nodes: listed, total: Total { nodes: total, .. }, .. } =
        store.list(&failed).await.unwrap();
    assert_eq!(total, 1);
    assert_eq!(listed[0].id, nodes[3].id);
    assert_eq!((listed[0].error.as_deref(), listed[0].attempts), (Some("it is failed"), 2));
    let stuck = NodeFilter { has_embedding: Some(false), status: Some(NodeStatus::Ready), ..all() };
    assert_eq!(ids(stuck).await, (vec![], 0));
}

async fn a_refused_node_harms_no_other(db: TestDb) {
    let store = db.migrated().await;
    let all = || everything(TenantScope::All);
    let first = node("acme", "first");
    let insert = async |nodes: &[NewNode], on_refusal| {
        let refusals = store.insert_nodes(nodes, NodeStatus::Queued, on_refusal).await.unwrap();
        refusals
            .iter()
            .map(|refusal| refusal.as_ref().map(|r| r.fault == Fault::Conflict))
            .collect::<Vec<_>>()
    };
    assert_eq!(insert(std::slice::from_ref(&first), OnRefusal::KeepOthers).await, [None]);
    assert_eq!(insert(std::slice::from_ref(&first), OnRefusal::KeepOthers).await, [Some(true)]);

    let five: Vec<NewNode> = (0..5).map(|i| node("acme", &i.to_string())).collect();
    let mut batch = five.clone();
    batch.insert(3, first.clone());
    let refused = [None, None, None, Some(true), None, None];
    assert_eq!(insert(&batch, OnRefusal::KeepNone).await, refused);
    assert_eq!(store.list(&all()).await.unwrap().total.nodes, 1);
    assert_eq!(insert(&batch, OnRefusal::KeepOthers).await, refused);
    assert_eq!(store.list(&all()).await.unwrap().total.nodes, 6);
    assert!(insert(&[], OnRefusal::KeepOthers).await.is_empty());
}

async fn a_refused_node_harms_no_embedded_one(db: TestDb) {
    let store = db.migrated().await;
    let nodes = ["a", "b", "c"].map(|text| node("acme", text));
    store.insert_nodes(&nodes[1..2], NodeStatus::Queued, OnRefusal::KeepOthers).await.unwrap();
    let results = nodes.clone().map(|node| {
        let text = node.props["text"].as_str().unwrap().to_owned();
        (node.clone(), Ok(vector(node.id, &text, [0.0, 1.0, 0.0])))
    });
    let refusals = store.insert_ready(&results, OnRefusal::KeepOthers).await.unwrap();
    assert_eq!(refusals.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(status(&store, nodes[0].id).await, NodeStatus::Ready);
    assert_eq!(status(&store, nodes[1].id).await, NodeStatus::Queued);
    assert_eq!(status(&store, nodes[2].id).await, NodeStatus::Ready);
}

async fn an_insert_takes_more_nodes_than_a_statement_takes_parameters(db: TestDb) {
    let store = db.migrated().await;
    let nodes: Vec<NewNode> = (0..8000).map(|i| node("acme", &i.to_string())).collect();
    store.insert_nodes(&nodes, NodeStatus::Queued, OnRefusal::KeepOthers).await.unwrap();
    assert_eq!(store.status_counts(&TenantScope::All).await.unwrap().queued, 8000);
}

async fn an_embedded_node_is_written_with_its_result(db: TestDb) {
    let store = db.migrated().await;
    let (good, bad, empty) = (node("acme", "good"), node("acme", "bad"), node("acme", ""));
    let results = [
        (good.clone(), Ok(vector(good.id, "good", [0.0, 1.0, 0.0]))),
        (bad.clone(), Err(outcome(bad.id, NodeStatus::Failed))),
        (empty.clone(), Err(outcome(empty.id, NodeStatus::Skipped))),
    ];
    store.insert_ready(&results, OnRefusal::KeepOthers).await.unwrap();
    let found = read(&store, good.id).await;
    assert_eq!(found.summary.status, NodeStatus::Ready);
    assert_eq!(found.embedding, Some(vec![0.0, 1.0, 0.0]));
    assert_eq!(status(&store, bad.id).await, NodeStatus::Failed);
    assert_eq!(status(&store, empty.id).await, NodeStatus::Skipped);
}

async fn embedded_nodes_are_written_all_or_none(db: TestDb) {
    let store = db.migrated().await;
    let (first, second) = (node("acme", "first"), node("acme", "second"));
    let results = [
        (first.clone(), Ok(vector(first.id, "first", [0.0, 1.0, 0.0]))),
        (second.clone(), Ok(vector(second.id, "of another text", [0.0, 1.0, 0.0]))),
    ];
    store.insert_ready(&results, OnRefusal::KeepOthers).await.unwrap_err();
    assert_eq!(store.list(&everything(TenantScope::All)).await.unwrap().total.nodes, 0);
}

async fn a_node_without_a_tenant_is_the_default_tenants(db: TestDb) {
    let store = db.migrated().await;
    let foreign = node("acme", "text");
    store
        .insert_nodes(std::slice::from_ref(&foreign), NodeStatus::Queued, OnRefusal::KeepOthers)
        .await
        .unwrap();
    db.sql("UPDATE nodes SET tenant_id = NULL").await;

    assert!(store.get(&only("acme"), foreign.id, false, Weight::Light).await.unwrap().is_none());
    let found =
        store.get(&only("default"), foreign.id, false, Weight::Light).await.unwrap().unwrap();
    assert_eq!(found.tenant_id.as_str(), "default");
    assert_eq!(store.list(&everything(only("default"))).await.unwrap().total.nodes, 1);
    let tenants = store.tenants_of(&[foreign.id, Uuid::new_v4()]).await.unwrap();
    assert_eq!(tenants, [(foreign.id, crate::support::tenant("default"))]);
}
