//! Vectors found by what they were made of.

use vecmill::{
    domain::{NewNode, NodeStatus},
    store::{InputHash, OnRefusal, Store, Vector},
};

use crate::support::{TestDb, node, on_both_databases, vector};

on_both_databases!(
    a_vector_is_found_by_its_input,
    of_many_nodes_with_one_input_one_is_answered,
    a_vector_that_another_program_wrote_is_not_answered,
    a_vector_stored_without_its_input_is_not_answered,
    a_node_without_a_vector_is_not_answered,
);

const X: [f32; 3] = [1.0, 0.0, 0.0];
const Y: [f32; 3] = [0.0, 1.0, 0.0];

fn input(number: u8) -> InputHash {
    [number; 32]
}

/// A node whose vector is stored with an input.
async fn embedded(store: &Store, input_hash: Option<InputHash>, values: [f32; 3]) -> NewNode {
    let node = node("acme", "text");
    store
        .insert_nodes(std::slice::from_ref(&node), NodeStatus::Queued, OnRefusal::KeepOthers)
        .await
        .unwrap();
    store_vector(store, &node, input_hash, values).await;
    node
}

async fn store_vector(
    store: &Store,
    node: &NewNode,
    input_hash: Option<InputHash>,
    values: [f32; 3],
) {
    let vector = Vector { input_hash, ..vector(node.id, "text", values) };
    assert_eq!(store.complete(&[vector]).await.unwrap(), [node.id]);
}

async fn a_vector_is_found_by_its_input(db: TestDb) {
    let store = db.migrated().await;
    embedded(&store, Some(input(1)), X).await;
    embedded(&store, Some(input(2)), Y).await;
    let mut found = store.vectors_of(&[input(2), input(3), input(1)]).await.unwrap();
    found.sort_by_key(|(input, _)| *input);
    assert_eq!(found, [(input(1), X.to_vec()), (input(2), Y.to_vec())]);
    assert_eq!(store.vectors_of(&[]).await.unwrap(), []);
}

async fn of_many_nodes_with_one_input_one_is_answered(db: TestDb) {
    let store = db.migrated().await;
    for _ in 0..3 {
        embedded(&store, Some(input(1)), X).await;
    }
    assert_eq!(store.vectors_of(&[input(1)]).await.unwrap(), [(input(1), X.to_vec())]);
}

async fn a_vector_that_another_program_wrote_is_not_answered(db: TestDb) {
    let store = db.migrated().await;
    let node = embedded(&store, Some(input(1)), X).await;
    let y = if db.is_sqlite() { "x'000000000000803f00000000'" } else { "'[0,1,0]'" };
    db.sql(&format!("UPDATE nodes SET embedding = {y}")).await;
    assert_eq!(store.vectors_of(&[input(1)]).await.unwrap(), []);
    // Ours comes again in its place.
    store_vector(&store, &node, Some(input(1)), X).await;
    assert_eq!(store.vectors_of(&[input(1)]).await.unwrap().len(), 1);
}

async fn a_vector_stored_without_its_input_is_not_answered(db: TestDb) {
    let store = db.migrated().await;
    let node = embedded(&store, Some(input(1)), X).await;
    store_vector(&store, &node, None, Y).await;
    assert_eq!(store.vectors_of(&[input(1)]).await.unwrap(), []);
}

async fn a_node_without_a_vector_is_not_answered(db: TestDb) {
    let store = db.migrated().await;
    embedded(&store, Some(input(1)), X).await;
    db.sql("UPDATE nodes SET embedding = NULL").await;
    assert_eq!(store.vectors_of(&[input(1)]).await.unwrap(), []);
}
