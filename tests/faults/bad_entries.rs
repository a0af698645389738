//! Entries that are no jobs, entries of any size, and keys that hold something else.

use std::net::TcpStream;

use serde_json::{Value, json};

use super::{
    checker::{Expected, check},
    plan::Plan,
    site::{DEADLINE, Site, Stores, texts},
};
use crate::common::{redis_cli, wait_until};

/// A site with an API and the plain program as its worker.
async fn site() -> (Site, String, usize) {
    let mut site = Site::new(Stores::Shared, &[]).await;
    let api = site.start("api");
    let url = site.url(api).await;
    let worker = site.start("worker");
    (site, url, worker)
}

/// Pushes bytes on the main list, as a foreign producer can.
fn push(site: &Site, entry: &[u8]) {
    let port = site.redis_server.as_ref().unwrap().port();
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    redis_cli(stream, &[b"LPUSH".as_slice(), b"embedding:queue", entry]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_are_no_jobs_are_kept_and_hold_nobody_up() {
    let _plan = Plan::new("entries of 50 MB, binary ones, jobs of nodes that are gone").await;
    let (mut site, url, worker) = site().await;
    let binary: Vec<u8> = (0..=255).collect();
    let mut ids = Vec::new();
    for round in 0..3 {
        push(&site, &vec![b'x'; 50 << 20]);
        push(&site, &binary);
        push(&site, b"");
        let gone = uuid::Uuid::new_v4();
        push(&site, format!(r#"{{"node_id":"{gone}","action":"embed"}}"#).as_bytes());
        let texts: Vec<String> = (0..20).map(|i| format!("round{round} {i}")).collect();
        ids.extend(site.ingest(&url, &texts).await);
    }
    let progress = site.progress().await;
    progress.reach(60).await;
    wait_until(DEADLINE, async || site.redis("LLEN embedding:dlq") == "9").await;
    check(&site, &Expected { ids: &ids, embedded_again: Some(0), ..Expected::default() }).await;
    assert!(site.program(worker).is_running());
    let sizes: Vec<usize> = (0..9)
        .map(|i| {
            let letter: Value =
                serde_json::from_str(&site.redis(&format!("LINDEX embedding:dlq {i}"))).unwrap();
            let raw = letter["raw"].as_str().map(str::len);
            raw.or_else(|| letter["raw_base64"].as_str().map(str::len)).unwrap()
        })
        .collect();
    let of = |size: usize| sizes.iter().filter(|&&found| found == size).count();
    assert_eq!((of(50 << 20), of(344), of(0)), (3, 3, 3), "byte for byte: {sizes:?}");
    let log = site.program(worker).stderr();
    assert!(log.contains("an entry of the queue is no job") && !log.contains("xxx"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_job_with_unknown_fields_is_a_job() {
    let _plan = Plan::new("a job of 20 MB").await;
    let (site, url, _) = site().await;
    let ids = site.ingest(&url, &texts(4)).await;
    site.progress().await.reach(4).await;
    let ballast = "y".repeat(20 << 20);
    let job = json!({"node_id": ids[0], "tenant_id": "tenant-0", "action": "refresh",
                     "attempts": 0, "theirs": ballast});
    push(&site, job.to_string().as_bytes());
    let expected = Expected { ids: &ids, embedded_again: Some(1), ..Expected::default() };
    wait_until(DEADLINE, async || site.embedded() == 5).await;
    check(&site, &expected).await;
}

async fn readyz(site: &Site, url: &str) -> (u16, String) {
    let answer = site.http().get(format!("{url}/readyz")).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// What goes on while a key holds another type than it must.
#[derive(Clone, Copy, PartialEq)]
enum GoesOn {
    IngestAndWork,
    Ingest,
    /// On the nodes that are there.
    Work,
    Nothing,
}

/// What somebody else has put under a key.
#[derive(Clone, Copy)]
enum Theirs {
    Text,
    List,
}

async fn a_key_of_another_type(key: &str, goes_on: GoesOn) {
    holds_theirs(key, Theirs::Text, goes_on).await;
}

/// Whatever holds what it must not is named by readiness and the log; what does not need it goes
/// on, and the rest does when the key is mended.
async fn holds_theirs(key: &str, theirs: Theirs, goes_on: GoesOn) {
    let (put, look) = match theirs {
        Theirs::Text => ("SET aside theirs", format!("GET {key}")),
        Theirs::List => ("RPUSH aside theirs", format!("LINDEX {key} 0")),
    };
    let (mut site, url, worker) = site().await;
    let mut ids = Vec::new();
    if goes_on == GoesOn::Work {
        site.program(worker).signal("STOP");
        ids = site.ingest(&url, &texts(10)).await;
    }
    site.redis(put);
    // In one step: a worker could take it in between.
    assert_eq!(site.redis(&format!("RENAME aside {key}")), "OK");
    site.program(worker).signal("CONT");
    let (status, detail) = readyz(&site, &url).await;
    assert!(status == 503 && detail.contains(key), "{key}: {status} {detail}");

    let answer = site.try_ingest(&url, &texts(10)).await;
    match (answer, goes_on) {
        (Ok(new), GoesOn::IngestAndWork | GoesOn::Ingest) => ids.extend(new),
        (Err(refused), GoesOn::Work | GoesOn::Nothing) => {
            assert!(refused.starts_with("503") && refused.contains(key), "{key}: {refused}");
        }
        (answer, _) => panic!("{key}: {answer:?}"),
    }
    let progress = site.progress().await;
    if matches!(goes_on, GoesOn::IngestAndWork | GoesOn::Work) {
        progress.reach(10).await;
    }
    wait_until(DEADLINE, async || site.has_logged(worker, key)).await;
    assert!(site.program(worker).is_running(), "{key}");

    assert_eq!(site.redis(&look), "theirs", "{key} is left to its owner");
    site.redis(&format!("DEL {key}"));
    wait_until(DEADLINE, async || readyz(&site, &url).await.0 == 200).await;
    ids.extend(site.ingest(&url, &texts(10)).await);
    let expected = Expected { ids: &ids, embedded_again: Some(0), ..Expected::default() };
    check(&site, &expected).await;
    let log = site.program(worker).stderr();
    assert!(!log.contains("an actor failed"), "{key}: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_is_named_and_other_work_goes_on() {
    let _plan = Plan::new("keys of another type that few need").await;
    for key in ["embedding:retry", "embedding:dlq", "embedding:queue:orphans"] {
        a_key_of_another_type(key, GoesOn::IngestAndWork).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_book_of_ours_of_another_type_is_named_and_holds_nobody_up() {
    let _plan = Plan::new("books of another type").await;
    for key in ["embedding:queue:fair", "embedding:queue:started", "embedding:queue:changed"] {
        a_key_of_another_type(key, GoesOn::IngestAndWork).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_nobody_gives_back_is_named_and_holds_nobody_up() {
    let _plan = Plan::new("a lock that nobody gives back").await;
    for theirs in [Theirs::List, Theirs::Text] {
        holds_theirs("embedding:queue:sweep-lock", theirs, GoesOn::IngestAndWork).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_that_claims_need_is_named_and_nodes_are_accepted() {
    let _plan = Plan::new("keys of another type that claims need").await;
    for key in ["embedding:queue:inflight", "embedding:queue:leases"] {
        a_key_of_another_type(key, GoesOn::Ingest).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_that_nodes_need_is_named_and_they_are_refused() {
    let _plan = Plan::new("keys of another type that new nodes need").await;
    for (key, goes_on) in
        [("embedding:queue", GoesOn::Nothing), ("embedding:queue:reservations", GoesOn::Work)]
    {
        a_key_of_another_type(key, goes_on).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_and_pending_keys_of_another_type_are_made_anew() {
    let _plan = Plan::new("counts and pending keys of another type").await;
    let (site, url, worker) = site().await;
    for junk in
        ["LPUSH embedding:tenant:pending:tenant-0 x", "SET embedding:tenant:pending:tenant-1 x"]
    {
        site.redis(junk);
    }
    let ids = site.ingest(&url, &texts(20)).await;
    site.redis(&format!("LPUSH embedding:pending:{} x", ids[0]));
    check(&site, &Expected { ids: &ids, ..Expected::default() }).await;
    wait_until(DEADLINE, async || site.has_logged(worker, "tenant-0")).await;
}
