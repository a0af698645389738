//! The commands that talk to a server.

use serde_json::json;
use tokio::io::AsyncWriteExt;
use vecmill::app::Role;

use crate::{
    common::{TestApp, TestRedis, hash_model, wait_until},
    support::{DEADLINE, TEXT, end_of, file, lines, run, run_in, vecmill},
};

/// Nobody listens on the discard port.
const NOBODY: &str = "http://127.0.0.1:9";

/// The line numbers of all nodes in the order in which they were created.
async fn created(app: &TestApp) -> Vec<usize> {
    let page = app.get("/nodes?limit=1000").await.1;
    let nodes = page["nodes"].as_array().unwrap().iter();
    nodes.map(|node| node["classes"][0].as_str().unwrap().parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_keeps_the_order_of_the_file_and_waits_for_the_vectors() {
    let dir = tempfile::tempdir().unwrap();
    let app = TestApp::serve(dir.path(), &[]).await;
    let file = file(dir.path(), &lines(50));
    let arguments = ["ingest", &file, "--wait", "--json", "--url", app.url(), "--batch"];
    for (runs, batch) in [(0, "1"), (1, "7")] {
        let tenant = format!("batches-of-{batch}");
        let arguments = [&arguments[..], &[batch, "--tenant", &tenant]].concat();
        let summary = run(&arguments).await.json();
        assert_eq!((&summary["nodes"], &summary["accepted"]), (&json!(50), &json!(50)));
        assert_eq!(summary["failed"], 0);
        let counts = json!({"queued": 0, "processing": 0, "ready": 50, "failed": 0, "skipped": 0});
        assert_eq!(summary["status_counts"], counts, "only this tenant's, and all done");
        assert!(summary["texts_per_second"].as_f64().unwrap() > 0.0);

        // Nodes of one batch are created at once.
        let batch: usize = batch.parse().unwrap();
        let created: Vec<usize> = created(&app).await.split_off(50 * runs);
        let batches: Vec<usize> = created.iter().map(|line| (line - 1) / batch).collect();
        assert_eq!(created.len(), 50);
        assert!(batches.is_sorted(), "{created:?}");
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_reads_standard_input_and_says_how_it_went() {
    let dir = tempfile::tempdir().unwrap();
    let app = TestApp::serve(dir.path(), &[]).await;
    let mut child = vecmill(&["ingest", "-", "--wait", "--url", app.url()], &[]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(lines(250).as_bytes()).await.unwrap();
    drop(stdin);
    let ended = end_of(child).await;
    ended.assert_code(0);
    assert!(
        ended.stdout.starts_with("250 nodes: 250 accepted, 0 refused, in "),
        "{}",
        ended.stdout
    );
    assert!(ended.stdout.contains("ready 250, failed 0"), "{}", ended.stdout);
    assert_eq!(ended.stderr, "");
    assert_eq!(app.status().await["status_counts"]["ready"], 250);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_waits_for_room_when_a_limit_is_met() {
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let url = redis.url();
    let settings = [("REDIS_URL", url.as_str()), ("EMBEDDING_TENANT_MAX_PENDING", "25")];
    let app = TestApp::start(Role::Api, dir.path(), &settings, None).await;
    let file = file(dir.path(), &lines(90));
    let arguments = ["ingest", &file, "--batch", "20", "--wait", "--json", "--url", app.url()];
    let ingest = vecmill(&arguments, &[]).spawn().unwrap();
    wait_until(DEADLINE, async || {
        let metrics = reqwest::get(format!("{}/metrics", app.url())).await.unwrap();
        let rejected = "vecmill_nodes_rejected_total{limit=\"tenant\"}";
        metrics.text().await.unwrap().contains(rejected)
    })
    .await;
    assert_eq!(app.status().await["status_counts"]["queued"], 20, "the second batch must wait");
    let worker = TestApp::start(Role::Worker, dir.path(), &settings, Some(hash_model())).await;
    let summary = end_of(ingest).await.json();
    assert_eq!((&summary["accepted"], &summary["failed"]), (&json!(90), &json!(0)));
    assert_eq!(summary["status_counts"]["ready"], 90);
    let batches: Vec<usize> = created(&app).await.iter().map(|line| (line - 1) / 20).collect();
    assert!(batches.len() == 90 && batches.is_sorted(), "{batches:?}");
    worker.stop().await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_can_never_fit_is_sent_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let app = TestApp::serve(dir.path(), &[("EMBEDDING_QUEUE_MAX_DEPTH", "15")]).await;
    let file = file(dir.path(), &lines(20));
    let summary = run(&["ingest", &file, "--wait", "--json", "--url", app.url()]).await.json();
    assert_eq!((&summary["accepted"], &summary["failed"]), (&json!(20), &json!(0)));
    let halves: Vec<usize> = created(&app).await.iter().map(|line| (line - 1) / 10).collect();
    assert!(halves.is_sorted(), "{halves:?}");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_gives_up_when_nothing_is_taken_for_too_long() {
    let (redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let url = redis.url();
    let settings = [("REDIS_URL", url.as_str()), ("EMBEDDING_QUEUE_MAX_DEPTH", "1")];
    let app = TestApp::start(Role::Api, dir.path(), &settings, None).await;
    let file = file(dir.path(), &lines(2));
    let arguments = ["ingest", &file, "--batch", "1", "--patience", "0", "--url", app.url()];
    let words = ["stopped after 1 accepted nodes", "line 2", "EMBEDDING_QUEUE_MAX_DEPTH"];
    run(&arguments).await.assert_one_line(&words);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_lines_are_named_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let app = TestApp::serve(dir.path(), &[]).await;
    let good = lines(1);
    let refused = json!({"classes": [], "props": {"text": TEXT}}).to_string();
    let ingest = async |content: &str, more: &[&str]| {
        let file = file(dir.path(), content);
        let arguments = ["ingest", &file, "--batch", "2", "--wait", "--json", "--url", app.url()];
        let ended = run(&[&arguments, more].concat()).await;
        assert!(!(ended.stdout.clone() + &ended.stderr).contains(TEXT), "{}", ended.stderr);
        ended
    };

    // What is no JSON object stops there: what was sent before stays, nothing after it is sent.
    let broken = format!("{good}{good}\n[\"{TEXT}\"]\n{good}");
    let ended = ingest(&broken, &[]).await;
    ended.assert_one_line(&["line 4", "stopped after 2 accepted nodes"]);
    assert_eq!(app.settled(DEADLINE).await["ready"], 2);

    // Unless it is to be passed over.
    let cut = format!("{good}{{\"props\": \"{TEXT}\n{good}");
    let ended = ingest(&cut, &["--skip-invalid"]).await;
    ended.assert_code(1);
    assert_eq!(ended.stderr.lines().count(), 1);
    assert!(ended.stderr.starts_with("line 2: no JSON object"), "{}", ended.stderr);
    let summary = ended.json_whatever_the_code();
    assert_eq!(
        (&summary["nodes"], &summary["accepted"], &summary["failed"]),
        (&json!(3), &json!(2), &json!(1))
    );

    // A node that the server refuses harms no other.
    let ended = ingest(&format!("{good}{good}{good}{refused}\n{good}"), &[]).await;
    ended.assert_code(1);
    assert!(ended.stderr.starts_with("line 4: classes: "), "{}", ended.stderr);
    let summary = ended.json_whatever_the_code();
    assert_eq!((&summary["accepted"], &summary["failed"]), (&json!(4), &json!(1)));
    assert_eq!(app.status().await["status_counts"]["ready"], 8);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_requeue_answer_as_the_api_does() {
    let dir = tempfile::tempdir().unwrap();
    let app = TestApp::serve(dir.path(), &[]).await;
    let ids = app.ingest("acme", &["one".to_owned(), "two".to_owned(), String::new()]).await;
    app.settled(DEADLINE).await;
    let environment = [("VECMILL_URL", app.url())];
    let here = async |arguments: &[&str]| run_in(&environment, arguments).await;

    let status = here(&["status", "--json"]).await.json();
    assert_eq!(status, app.status().await);
    assert_eq!(status["status_counts"]["ready"], 2);
    let of_another = here(&["status", "--tenant", "other", "--json"]).await.json();
    assert_eq!(
        (&of_another["tenant_id"], &of_another["status_counts"]["ready"]),
        (&json!("other"), &json!(0))
    );
    let text = here(&["status"]).await;
    text.assert_code(0);
    assert!(text.stdout.contains("ready 2, failed 0, skipped 1"), "{}", text.stdout);
    assert!(text.stdout.contains("waiting 0, in flight 0, retry 0, dead 0"), "{}", text.stdout);

    for (arguments, requested) in [
        (vec![], 0),
        (vec!["--status", "ready"], 0),
        (vec!["--status", "ready", "--no-backfill-ready"], 2),
        (vec!["--status", "skipped", "--tenant", "acme"], 1),
        (vec!["--status", "all", "--tenant", "other"], 0),
        (vec!["--status", "all", "--node", &ids[0], "--node", &ids[2]], 1),
        (vec!["--node", &ids[2]], 1),
        (vec!["--status", "all", "--limit", "1"], 1),
        (vec!["--status", "all", "--only-missing-embedding"], 1),
    ] {
        let done = here(&[&["requeue", "--json"], arguments.as_slice()].concat()).await.json();
        let expected = json!({"backfilled": 0, "requested": requested, "enqueued": requested,
            "next_cursor": null});
        assert_eq!(done, expected, "{arguments:?}");
        app.settled(DEADLINE).await;
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeue_of_all_goes_on_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        [("EMBEDDING_QUEUE_MAX_DEPTH", "1000000"), ("EMBEDDING_TENANT_MAX_PENDING", "0")];
    let app = TestApp::serve(dir.path(), &settings).await;
    let texts: Vec<String> = (0..200).map(|i| format!("text {i}")).collect();
    for _ in 0..25 {
        app.ingest("acme", &texts).await;
    }
    app.settled(DEADLINE).await;
    let environment = [("VECMILL_URL", app.url())];
    let here = async |arguments: &[&str]| run_in(&environment, arguments).await;
    let ready = ["requeue", "--status", "ready", "--no-backfill-ready"];
    let some = here(&ready).await;
    assert!(some.stdout.contains("there are more: use --all"), "{}", some.stdout);
    app.settled(DEADLINE).await;
    let all = here(&[ready.as_slice(), &["--all", "--json"]].concat()).await.json();
    let expected =
        json!({"backfilled": 0, "requested": 5000, "enqueued": 5000, "next_cursor": null});
    // What was enqueued first may be ready again, but not come again.
    assert_eq!(all, expected);
    app.settled(DEADLINE).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_told_apart_from_wrong_usage() {
    for arguments in [vec!["status"], vec!["requeue"], vec!["ingest", "-"]] {
        let ended = run(&[arguments.as_slice(), &["--url", NOBODY]].concat()).await;
        ended.assert_code(3);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        assert!(
            ended.stderr.contains("--url") && ended.stderr.contains(NOBODY),
            "{}",
            ended.stderr
        );
    }
    for arguments in [
        vec![],
        vec!["embed"],
        vec!["status", "--colour"],
        vec!["ingest"],
        vec!["ingest", "-", "--batch", "0"],
        vec!["requeue", "--status", "done"],
        vec!["requeue", "--limit", "2001"],
        vec!["requeue", "--node", "42"],
        vec!["requeue", "--all", "--limit", "5"],
    ] {
        run(&arguments).await.assert_code(2);
    }
    run(&["status", "--url", "localhost:8000"])
        .await
        .assert_one_line(&["localhost:8000", "http://"]);
    let missing = ["ingest", "/no/such/file", "--url", NOBODY];
    assert_ne!(run(&missing).await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_ready_has_the_exit_code_of_one_that_is_not_there() {
    let (mut redis, dir) = (TestRedis::start(), tempfile::tempdir().unwrap());
    let url = redis.url();
    let app = TestApp::start(Role::Api, dir.path(), &[("REDIS_URL", &url)], None).await;
    redis.kill();
    let ended = run(&["status", "--url", app.url()]).await;
    ended.assert_code(3);
    assert!(ended.stderr.contains("the server is not ready: Redis"), "{}", ended.stderr);
    tokio::time::timeout(DEADLINE, app.stop()).await.expect("it stops without Redis");
}
