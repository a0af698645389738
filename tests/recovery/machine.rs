//! Others on the machine: what they must not read, and what they may have prepared.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use super::{DEADLINE, all_ready, ingest};
use crate::common::{Program, TestApp};

/// A user that the tests do not run as.
const STRANGER: u32 = 65_534;

/// All files and directories below one, and itself.
fn tree(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut next = 0;
    while next < found.len() {
        if let Ok(entries) = fs::read_dir(&found[next]) {
            found.extend(entries.map(|entry| entry.unwrap().path()));
        }
        next += 1;
    }
    found
}

/// What others may do with anything in a data directory: nothing.
fn is_private(root: &Path) {
    for path in tree(root) {
        // A file may go between the two looks.
        let Ok(found) = path.symlink_metadata() else { continue };
        assert_eq!(found.mode() & 0o077, 0, "{} {:o}", path.display(), found.mode());
    }
}

/// Runs `serve` with the mask that lets others read what is made.
fn serve(dir: &Path, before: &str, settings: &[(&str, &str)]) -> Program {
    // Tests that were started by `nohup` would hand down that it ignores the end of a terminal.
    let mut command = Command::new("env");
    let program = env!("CARGO_BIN_EXE_vecmill");
    command.args([
        "--default-signal=HUP",
        "sh",
        "-c",
        &format!("umask 022; {before} exec {program} serve"),
    ]);
    let dir = dir.to_str().unwrap();
    let own = [
        ("VECMILL_DATA_DIR", dir),
        ("VECMILL_BIND", "127.0.0.1:0"),
        ("EMBEDDING_BACKEND", "hash"),
        ("EMBEDDING_SWEEP_INTERVAL_SECONDS", "0.5"),
    ];
    Program::run(command, &[own.as_slice(), settings].concat())
}

/// What a `serve` that does not start says.
async fn refusal(dir: &Path) -> String {
    let mut serve = serve(dir, "", &[]);
    assert_eq!(serve.exit_code(DEADLINE).await, Some(1), "{}", serve.stderr());
    let error = serve.stderr();
    assert_eq!(error.lines().filter(|line| line.starts_with("vecmill: ")).count(), 1, "{error}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_can_read_what_is_in_the_data_directory() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    let mut first = serve(&dir, "", &[]);
    let client = TestApp::client_of(&first.url().await);
    ingest(&client, 20).await;
    all_ready(&client, 20).await;
    is_private(&dir);
    first.signal("TERM");
    assert_eq!(first.exit_code(DEADLINE).await, Some(0));

    // As an earlier release left it.
    for path in tree(&dir) {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let second = serve(&dir, "", &[]);
    let client = TestApp::client_of(&second.url().await);
    all_ready(&client, 20).await;
    is_private(&dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_user_is_not_used() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("data");
    fs::create_dir(&dir).unwrap();
    if chown(&dir, Some(STRANGER), None).is_err() {
        // Only root can give a directory away.
        return;
    }
    let error = refusal(&dir).await;
    assert!(error.contains("belongs to user 65534"), "{error}");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "nothing was put there");

    chown(&dir, Some(0), None).unwrap();
    fs::create_dir(dir.join("redis")).unwrap();
    chown(dir.join("redis"), Some(STRANGER), None).unwrap();
    let error = refusal(&dir).await;
    assert!(error.contains("belongs to user 65534") && error.contains("redis"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_somebody_prepared_lead_nowhere() {
    for (link, dir_first) in [("vecmill.db", ""), ("redis/lock", "redis"), ("redis", "")] {
        let root = tempfile::tempdir().unwrap();
        let (dir, precious) = (root.path().join("data"), root.path().join("precious"));
        fs::create_dir_all(dir.join(dir_first)).unwrap();
        fs::write(&precious, "precious").unwrap();
        symlink(&precious, dir.join(link)).unwrap();
        let error = refusal(&dir).await;
        assert!(error.contains("symbolic link") && error.contains(link), "{error}");
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    }
}

/// The place of the socket must not hang on the environment: a process with another one would not
/// find the server that a killed process left, and start a second one on the same files.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_path_has_its_socket_in_it_and_is_found_by_whoever_comes_next() {
    let root = tempfile::tempdir().unwrap();
    let elsewhere = root.path().join("run");
    fs::create_dir(&elsewhere).unwrap();
    let dir = root.path().join("d".repeat(120));
    let mut first = serve(&dir, "", &[]);
    let client = TestApp::client_of(&first.url().await);
    ingest(&client, 5).await;
    all_ready(&client, 5).await;
    let socket = dir.join("redis/redis.sock");
    assert!(socket.exists());
    first.kill();

    let other = elsewhere.to_str().unwrap();
    let settings = [("XDG_RUNTIME_DIR", other), ("TMPDIR", other)];
    let mut second = serve(&dir, "", &settings);
    let client = TestApp::client_of(&second.url().await);
    ingest(&client, 5).await;
    all_ready(&client, 10).await;
    let ended = second.stderr().contains("ended a redis-server that an earlier process left");
    assert!(ended, "{}", second.stderr());
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    second.signal("TERM");
    assert_eq!(second.exit_code(DEADLINE).await, Some(0));
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_goes_ends_it_in_good_order_unless_it_was_told_to_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = serve(dir.path(), "", &[]);
    first.url().await;
    // Shell and system both tell the end of a terminal.
    first.signal("HUP");
    first.signal("HUP");
    assert_eq!(first.exit_code(DEADLINE).await, Some(0), "{}", first.stderr());
    assert!(first.stderr().contains("stopped"), "{}", first.stderr());
    assert!(!dir.path().join("redis/redis.sock").exists(), "its Redis ended with it");

    let mut second = serve(dir.path(), "trap '' HUP;", &[]);
    let client = TestApp::client_of(&second.url().await);
    second.signal("HUP");
    client.ingest("acme", &["after the terminal".to_owned()]).await;
    assert_eq!(client.settled(DEADLINE).await["ready"], 1);
    assert!(second.is_running());
    second.signal("TERM");
    assert_eq!(second.exit_code(DEADLINE).await, Some(0));
}
