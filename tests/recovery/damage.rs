//! A private Redis whose files are damaged: they are put aside, and its jobs come back from the
//! database.

use std::{
    fs::{self, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;
use vecmill::app::Role;

use super::{DEADLINE, all_ready, ingest, slow_model};
use crate::common::{Program, TestApp, private_redis_cli, send_signal, wait_until};

const NODES: usize = 150;

/// The only file in the directory of a private Redis whose name ends so.
fn file(dir: &Path, end: &str) -> PathBuf {
    let files = fs::read_dir(dir.join("redis/appendonlydir")).unwrap();
    let mut found = files.map(|file| file.unwrap().path());
    found.find(|file| file.to_str().unwrap().ends_with(end)).unwrap()
}

/// What was put aside.
fn aside(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir.join("redis")).unwrap().map(|file| file.unwrap().path());
    files.filter(|file| file.to_str().unwrap().contains(".damaged-")).collect()
}

fn append(file: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(file).unwrap().write_all(bytes).unwrap();
}

/// Leaves a data directory with nodes that wait, and no process.
async fn waiting_nodes(dir: &Path) {
    let broken = crate::common::faulty_model(|_| {
        std::thread::sleep(Duration::from_secs(3600));
        Ok(())
    });
    let settings = [("VECMILL_SHUTDOWN_GRACE", "0.1")];
    let app = TestApp::start(Role::Serve, dir, &settings, Some(broken)).await;
    ingest(&app, NODES).await;
    app.stop().await;
}

/// A way to damage the files in a directory.
type Damage = fn(&Path);

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_are_put_aside_and_every_node_is_embedded() {
    let ways: [(&str, Damage); 6] = [
        ("zeros at the end", |dir| append(&file(dir, ".incr.aof"), &[0; 4096])),
        ("bytes in the middle", |dir| {
            let mut file = OpenOptions::new().write(true).open(file(dir, ".incr.aof")).unwrap();
            file.seek(SeekFrom::Start(200)).unwrap();
            file.write_all(&[b'X'; 64]).unwrap();
        }),
        ("a manifest of garbage", |dir| fs::write(file(dir, ".manifest"), "hello\n").unwrap()),
        ("an empty manifest", |dir| fs::write(file(dir, ".manifest"), "").unwrap()),
        ("a part that is gone", |dir| fs::remove_file(file(dir, ".incr.aof")).unwrap()),
        ("a base cut short", |dir| {
            let base = OpenOptions::new().write(true).open(file(dir, ".base.rdb")).unwrap();
            base.set_len(40).unwrap();
        }),
    ];
    for (name, damage) in ways {
        println!("{name}");
        let dir = tempfile::tempdir().unwrap();
        waiting_nodes(dir.path()).await;
        damage(dir.path());
        let serve = Program::start("serve", dir.path(), &[]);
        let client = TestApp::client_of(&serve.url().await);
        all_ready(&client, NODES).await;
        assert_eq!(aside(dir.path()).len(), 1, "{name}: it is kept");
        assert_eq!(serve.stderr().matches("put aside").count(), 1, "{}", serve.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_damaged_while_the_server_runs_are_put_aside_when_it_is_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [("EMBEDDING_BATCH_TEXTS", "4")];
    let model = slow_model(Duration::from_millis(10));
    let app = TestApp::start(Role::Serve, dir.path(), &settings, Some(model)).await;
    ingest(&app, NODES).await;
    append(&file(dir.path(), ".incr.aof"), &[0; 4096]);
    let info = private_redis_cli(dir.path(), &["INFO", "server"]).unwrap();
    let pid = info.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap();
    assert!(send_signal("KILL", pid.parse().unwrap()));
    all_ready(&app, NODES).await;
    assert_eq!(aside(dir.path()).len(), 1);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_cut_short_or_of_a_newer_server_is_left_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    waiting_nodes(dir.path()).await;
    let incr = file(dir.path(), ".incr.aof");
    let length = incr.metadata().unwrap().len();
    OpenOptions::new().write(true).open(&incr).unwrap().set_len(length - 3).unwrap();
    let mut serve = Program::start("serve", dir.path(), &[]);
    let client = TestApp::client_of(&serve.url().await);
    all_ready(&client, NODES).await;
    serve.signal("TERM");
    assert_eq!(serve.exit_code(DEADLINE).await, Some(0));
    assert!(aside(dir.path()).is_empty(), "the server mends that by itself");

    let mut base = OpenOptions::new().write(true).open(file(dir.path(), ".base.rdb")).unwrap();
    base.write_all(b"REDIS0099").unwrap();
    let mut serve = Program::start("serve", dir.path(), &[]);
    assert_eq!(serve.exit_code(DEADLINE).await, Some(1));
    let error = serve.stderr();
    assert!(error.contains("older than the one that wrote"), "{error}");
    assert!(aside(dir.path()).is_empty(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_for_another_reason_says_which_and_moves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    waiting_nodes(dir.path()).await;
    // The server cannot make its socket where a directory stands.
    fs::create_dir(dir.path().join("redis/redis.sock")).unwrap();
    fs::write(dir.path().join("redis/redis.sock/file"), "").unwrap();
    let mut serve = Program::start("serve", dir.path(), &[]);
    assert_eq!(serve.exit_code(DEADLINE).await, Some(1));
    let error = serve.stderr();
    assert!(error.contains("does not start: ") && error.contains("redis.log"), "{error}");
    assert!(aside(dir.path()).is_empty(), "{error}");
    fs::remove_dir_all(dir.path().join("redis/redis.sock")).unwrap();
    let serve = Program::start("serve", dir.path(), &[]);
    let client = TestApp::client_of(&serve.url().await);
    wait_until(DEADLINE, async || client.get("/readyz").await.0 == 200).await;
    let (_, answer) = client.post("/admin/embedding/requeue", &json!({"status": "queued"})).await;
    assert_eq!(answer["enqueued"], 0, "the jobs are still there: {answer}");
}
