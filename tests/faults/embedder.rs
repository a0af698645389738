//! Models that panic, hang, make no vectors, or are slow.

use std::time::Duration;

use serde_json::json;

use super::{
    checker::{Expected, check, rest, rows},
    faulty::{HANG, NAN, PANIC},
    plan::{Plan, Row},
    site::{DEADLINE, Site, Stores, texts},
};

async fn bad_texts_harm_no_others(stores: Stores) {
    let mut plan = Plan::new("models that panic, hang or return NaN").await;
    let mut row = Row::new("models that panic, hang or return NaN", stores.name());
    let settings = [
        ("EMBEDDING_BATCH_TIMEOUT_SECONDS", "1"),
        ("EMBEDDING_MAX_ATTEMPTS", "2"),
        // It must not be a lease that brings a batch back.
        ("EMBEDDING_LEASE_SECONDS", "600"),
    ];
    let mut site = Site::new(stores, &settings).await;
    let (worker, url) = site.start_all(Duration::from_millis(1)).await;
    let mut texts = texts(120);
    let bad = [PANIC, HANG, NAN];
    for (i, text) in bad.iter().enumerate() {
        let place = plan.pick(40 * i as u64..40 * (i as u64 + 1));
        texts[place as usize] = (*text).to_owned();
    }
    let ids = site.ingest(&url, &texts).await;
    let expected = Expected {
        ids: &ids,
        failing: &bad,
        attempts: 2,
        // A batch is done again text by text, and with it the one that was ready behind it.
        embedded_again: Some(4 * 16),
    };
    let checked = check(&site, &expected).await;
    let db = site.database().await;
    let rows = rows(&db).await;
    for (text, reason, attempts) in [
        (PANIC, "the inference thread panicked on this text", 1),
        (HANG, "the model did not answer within 1s on this text", 1),
        (NAN, "the model's vector is not of length 1", 2),
    ] {
        let failed = rows.iter().find(|row| row.text.as_deref() == Some(text)).unwrap();
        assert_eq!((failed.error.as_str(), failed.attempts), (reason, attempts));
        assert!(failed.vector.is_none(), "{text}");
    }
    assert!(rows.iter().all(|row| row.status != "ready" || row.attempts == 1), "a mate is blamed");
    assert!(site.has_logged(worker, "an actor failed; restarting it"));
    row.checked(checked);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_texts_harm_no_others_on_private_stores() {
    bad_texts_harm_no_others(Stores::Private).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_texts_harm_no_others_on_shared_stores() {
    bad_texts_harm_no_others(Stores::Shared).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_models_only_hang_ends_and_says_so() {
    let _plan = Plan::new("a model that always hangs").await;
    let mut row = Row::new("a model that always hangs", Stores::Shared.name());
    let settings = [("EMBEDDING_BATCH_TIMEOUT_SECONDS", "0.2"), ("EMBEDDING_BATCH_TEXTS", "1")];
    let mut site = Site::new(Stores::Shared, &settings).await;
    let (worker, url) = site.start_all(Duration::ZERO).await;
    let ids = site.ingest(&url, &vec![HANG.to_owned(); 6]).await;
    // Each hang leaves a thread that nobody can end.
    assert_eq!(site.program(worker).exit_code(DEADLINE).await, Some(1));
    assert!(site.has_logged(worker, "models hang, and only the process can end their threads"));

    // The program itself has no text that hangs: what is left is embedded, and what was given up
    // can be.
    site.start("worker");
    let db = site.database().await;
    rest(&site, &db).await;
    let failed = rows(&db).await.iter().filter(|row| row.status == "failed").count();
    println!("given up by the worker that ended: {failed} of {}", ids.len());
    assert!((1..ids.len()).contains(&failed), "some were given up, not all: {failed}");
    assert_eq!(site.redis("LLEN embedding:dlq"), failed.to_string());
    site.redis("DEL embedding:dlq");
    let requeue = site.http().post(format!("{url}/admin/embedding/requeue"));
    let answer = requeue.json(&json!({"status": "failed"})).send().await.unwrap();
    let answer: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(answer["enqueued"], failed, "{answer}");
    let expected = Expected { ids: &ids, embedded_again: Some(0), ..Expected::default() };
    row.checked(check(&site, &expected).await);
}

async fn a_batch_longer_than_the_lease_is_embedded_once(stores: Stores) {
    let _plan = Plan::new("a batch longer than its lease").await;
    let mut row = Row::new("a batch four times as long as its lease", stores.name());
    let mut site = Site::new(stores, &[("EMBEDDING_LEASE_SECONDS", "0.5")]).await;
    let (_, url) = site.start_all(Duration::from_secs(2)).await;
    let ids = site.ingest(&url, &texts(12)).await;
    if stores == Stores::Shared {
        // One that would take them if their leases ran out.
        site.start("worker");
    }
    let expected = Expected { ids: &ids, embedded_again: Some(0), ..Expected::default() };
    row.checked(check(&site, &expected).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_model_keeps_its_leases_on_private_stores() {
    a_batch_longer_than_the_lease_is_embedded_once(Stores::Private).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_model_keeps_its_leases_on_shared_stores() {
    a_batch_longer_than_the_lease_is_embedded_once(Stores::Shared).await;
}
