//! `serve` with a Redis of its own.

use std::{path::Path, time::Duration};

use vecmill::app::Role;

use super::{DEADLINE, all_ready, ingest, slow_model};
use crate::common::{
    Program, TestApp, end_private_redis, private_redis_cli, send_signal, wait_until,
};

/// The process id of the private Redis, when it answers.
fn pid(dir: &Path) -> Option<u32> {
    let info = private_redis_cli(dir, &["INFO", "server"]).ok()?;
    info.lines().find_map(|line| line.strip_prefix("process_id:"))?.parse().ok()
}

/// An answer that is an integer.
fn number(dir: &Path, command: &[&str]) -> u64 {
    private_redis_cli(dir, command).unwrap().parse().unwrap()
}

fn is_running(pid: u32) -> bool {
    // A process that ended and was not waited for yet is a zombie.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Ends the Redis that a killed `serve` leaves behind. It is made before the `serve`, and so is
/// dropped after it.
struct EndAtLast<'a>(&'a Path);

impl Drop for EndAtLast<'_> {
    fn drop(&mut self) {
        end_private_redis(self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_private_redis_comes_back_with_its_jobs() {
    const NODES: usize = 400;
    let dir = tempfile::tempdir().unwrap();
    let settings = [
        ("EMBEDDING_BATCH_TEXTS", "4"),
        // What comes back must come from the file, not from the sweep.
        ("EMBEDDING_SWEEP_INTERVAL_SECONDS", "3600"),
    ];
    let model = slow_model(Duration::from_millis(10));
    let app = TestApp::start(Role::Serve, dir.path(), &settings, Some(model)).await;
    ingest(&app, NODES).await;
    wait_until(DEADLINE, async || app.count("ready").await > 20).await;
    let first = pid(dir.path()).unwrap();
    assert!(send_signal("KILL", first));
    assert!(app.count("ready").await < NODES as u64, "it was killed under load");

    all_ready(&app, NODES).await;
    assert_ne!(pid(dir.path()), Some(first));
    assert_eq!(number(dir.path(), &["LLEN", "embedding:dlq"]), 0);
    wait_until(DEADLINE, async || app.get("/readyz").await.0.as_u16() == 200).await;
    app.stop().await;
    assert_eq!(pid(dir.path()), None, "it ends with the program");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_serve_leaves_behind_is_taken_over() {
    const NODES: usize = 400;
    let dir = tempfile::tempdir().unwrap();
    let settings = [("EMBEDDING_BATCH_TEXTS", "1")];
    let _redis = EndAtLast(dir.path());
    let mut killed = Program::start("serve", dir.path(), &settings);
    let client = TestApp::client_of(&killed.url().await);
    let leftover = pid(dir.path()).unwrap();
    ingest(&client, NODES).await;
    killed.kill();
    let jobs = number(dir.path(), &["LLEN", "embedding:queue"])
        + number(dir.path(), &["HLEN", "embedding:queue:inflight"]);
    assert!(jobs > 0, "it was killed with jobs left");
    assert!(is_running(leftover), "nobody told its Redis to stop");

    let mut next = Program::start("serve", dir.path(), &settings);
    let client = TestApp::client_of(&next.url().await);
    let redis = pid(dir.path()).unwrap();
    assert_ne!(redis, leftover);
    assert!(!is_running(leftover), "two servers on one directory");
    all_ready(&client, NODES).await;
    next.signal("TERM");
    assert_eq!(next.exit_code(DEADLINE).await, Some(0), "{}", next.stderr());
    assert!(!is_running(redis), "its Redis ends with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_serve_on_one_directory_do_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let app = TestApp::serve(dir.path(), &[]).await;
    let mut second = Program::start("serve", dir.path(), &[]);
    assert_eq!(second.exit_code(DEADLINE).await, Some(1));
    let error = second.stderr();
    assert!(error.contains("in use by another vecmill process"), "{error}");
    assert!(error.contains("VECMILL_DATA_DIR"), "it says what to do: {error}");
    ingest(&app, 10).await;
    all_ready(&app, 10).await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_installed_the_error_says_what_to_install() {
    let dir = tempfile::tempdir().unwrap();
    let mut serve = Program::start("serve", dir.path(), &[("PATH", "")]);
    assert_eq!(serve.exit_code(DEADLINE).await, Some(1));
    let error = serve.stderr();
    assert!(error.contains("apt-get install redis-server"), "{error}");
    assert!(error.contains("REDIS_URL"), "{error}");
}
