//! A worker that sleeps past its lease and wakes up, while its work has changed.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{
    checker::{Expected, check, rows},
    plan::{Plan, Row},
    site::{DEADLINE, Site, Stores},
};
use crate::common::{cosine, vector_of, wait_until};

/// As many as a worker takes at first.
const NODES: usize = 16;

/// The value of a counter in the metrics of a process.
async fn metric(site: &Site, url: &str, name: &str) -> u64 {
    let metrics = site.http().get(format!("{url}/metrics")).send().await.unwrap();
    let text = metrics.text().await.unwrap();
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .map_or(0, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_sleeps_past_its_lease_overwrites_nothing() {
    let _plan = Plan::new("SIGSTOP past the lease, text changed meanwhile").await;
    let mut row = Row::new("SIGSTOP past the lease, text changed", Stores::Shared.name());
    let settings = [("EMBEDDING_LEASE_SECONDS", "1"), ("EMBEDDING_BATCH_TEXTS", "16")];
    let mut site = Site::new(Stores::Shared, &settings).await;
    // Both are `serve`, so that their metrics can be read.
    let sleeper = site.start_faulty("serve", Duration::from_millis(1500), &[]);
    let url = site.url(sleeper).await;
    let texts: Vec<String> = (0..NODES).map(|i| format!("old {i}")).collect();
    let ids = site.ingest(&url, &texts).await;
    wait_until(DEADLINE, async || site.redis("SCARD embedding:queue:started") == NODES.to_string())
        .await;
    site.program(sleeper).signal("STOP");
    let stopped = Instant::now();

    let other = site.start("serve");
    let other_url = site.url(other).await;
    for (i, id) in ids.iter().enumerate().filter(|(i, _)| i % 2 == 0) {
        let patch = json!({"props": {"text": format!("new {i}")}});
        let request = site
            .http()
            .patch(format!("{other_url}/nodes/{id}?tenant_id=tenant-{}", i % 5))
            .json(&patch);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 202, "{}", response.text().await.unwrap());
    }
    let progress = site.progress().await;
    progress.reach(NODES as u64).await;
    let (asleep, continued) = (stopped.elapsed(), Instant::now());
    site.program(sleeper).signal("CONT");
    wait_until(DEADLINE, async || site.has_logged(sleeper, "a batch was embedded")).await;
    row.recovered(continued.elapsed());
    let count = async |name| metric(&site, &url, name).await;
    // The old texts are refused, and so is the end of every job that it held.
    wait_until(DEADLINE, async || {
        count("vecmill_stale_vectors_total").await == NODES as u64 / 2
            && count("vecmill_stale_leases_total").await >= NODES as u64
    })
    .await;
    println!(
        "asleep for {asleep:?} with a lease of 1 s; vecmill_leases_lost_total {}, \
         vecmill_stale_vectors_total {}, vecmill_stale_leases_total {}",
        count("vecmill_leases_lost_total").await,
        count("vecmill_stale_vectors_total").await,
        count("vecmill_stale_leases_total").await,
    );
    let expected = Expected { ids: &ids, embedded_again: Some(NODES), ..Expected::default() };
    row.checked(check(&site, &expected).await);
    let db = site.database().await;
    let changed: Vec<_> = rows(&db).await;
    let changed: Vec<_> =
        changed.iter().filter(|row| row.text.as_deref().unwrap().starts_with("new")).collect();
    assert_eq!(changed.len(), NODES / 2);
    for row in changed {
        let new = vector_of(row.text.as_deref().unwrap());
        assert!(cosine(row.vector.as_deref().unwrap(), &new) > 0.999_99);
    }
}
