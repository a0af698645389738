//! The start of a process whose stores are away, or that lack something.

use std::{path::Path, time::Duration};

use reqwest::StatusCode;

use crate::common::{Program, TestApp, TestPostgres, free_port, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

/// Starts `serve` at an address of its own; a client of it.
fn serve(dir: &Path, settings: &[(&str, &str)]) -> (Program, TestApp) {
    let bind = format!("127.0.0.1:{}", free_port());
    let settings = [settings, &[("VECMILL_BIND", bind.as_str())]].concat();
    let program = Program::start("serve", dir, &settings);
    (program, TestApp::client_of(&format!("http://{bind}")))
}

/// Waits until the process can be asked whether it lives.
async fn lives(program: &mut Program, app: &TestApp) {
    wait_until(DEADLINE, async || {
        assert!(program.is_running(), "{}", program.stderr());
        reqwest::get(format!("{}/health", app.url())).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_comes_later_is_waited_for() {
    let mut server = TestPostgres::start();
    let dsn = server.database().await;
    server.stop();
    let dir = tempfile::tempdir().unwrap();
    let (mut program, app) = serve(dir.path(), &[("ACTIVEKG_DSN", &dsn)]);
    lives(&mut program, &app).await;
    assert_eq!(app.get("/health").await.0, StatusCode::OK);
    wait_until(DEADLINE, async || {
        let (status, answer) = app.get("/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        let detail = answer["detail"].as_str().unwrap().to_owned();
        detail.contains("database") && detail.contains("connection refused")
    })
    .await;
    let node = serde_json::json!({"classes": ["Doc"], "props": {"text": "early"}});
    assert_eq!(app.post("/nodes", &node).await.0, StatusCode::SERVICE_UNAVAILABLE);

    server.start_again().await;
    wait_until(DEADLINE, async || app.get("/readyz").await.0 == StatusCode::OK).await;
    assert_eq!(app.post("/nodes", &node).await.0, StatusCode::ACCEPTED);
    let log = program.stderr() + &program.stdout();
    assert_eq!(log.matches("waiting for the database").count(), 1, "{log}");
    program.signal("TERM");
    assert_eq!(program.exit_code(DEADLINE).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_the_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let dsn = format!("postgresql://u:hunter2@127.0.0.1:{}/db", free_port());
    let (mut program, app) = serve(dir.path(), &[("ACTIVEKG_DSN", &dsn)]);
    lives(&mut program, &app).await;
    program.signal("TERM");
    assert_eq!(program.exit_code(DEADLINE).await, Some(0));
    assert!(!(program.stderr() + &program.stdout()).contains("hunter2"));
}

/// What is said of a start that fails.
async fn refusal(settings: &[(&str, &str)]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Program::start("serve", dir.path(), settings);
    assert_eq!(program.exit_code(DEADLINE).await, Some(1), "{}", program.stderr());
    let line = program.stderr().lines().last().unwrap_or_default().to_owned();
    assert!(line.starts_with("vecmill: "), "{line}");
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_names_the_variable_the_server_and_the_cause_once() {
    let port = free_port();
    let dsn = format!("postgresql://u:hunter2@127.0.0.1:{port}/db");
    for variable in ["ACTIVEKG_DSN", "DATABASE_URL"] {
        let line = refusal(&[(variable, &dsn), ("VECMILL_START_PATIENCE", "0")]).await;
        assert_eq!(
            line,
            format!(
                "vecmill: {variable}: cannot reach Postgres at 127.0.0.1:{port}: connection refused"
            )
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waiting_cannot_mend_ends_the_start_at_once() {
    let server = TestPostgres::shared();
    let dsn = server.database().await;
    let database = dsn.rsplit_once('/').unwrap().1;
    let role = format!("role_{}", uuid::Uuid::new_v4().simple());
    server.sql(Some(&dsn), &format!("CREATE ROLE {role} LOGIN")).await;
    server.sql(Some(&dsn), "CREATE EXTENSION vector").await;
    let of = |role: &str, database: &str| {
        dsn.replace("postgres@", &format!("{role}@"))
            .replace(dsn.rsplit_once('/').unwrap().1, database)
    };
    for (dsn, words) in [
        (of("postgres", "nowhere"), "nowhere"),
        (of("nobody_at_all", database), "nobody_at_all"),
        (format!("{dsn}?sslpassword=hunter2"), "sslpassword"),
        (of(&role, database), "permission denied for schema public; "),
        (of(&role, database), "GRANT USAGE, CREATE ON SCHEMA public"),
    ] {
        let line = refusal(&[("ACTIVEKG_DSN", &dsn)]).await;
        assert!(line.contains("ACTIVEKG_DSN") && line.contains(words), "{line}");
        assert!(!line.contains("hunter2"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_database_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("letter.txt");
    std::fs::write(&file, "Dear all,\n".repeat(1000)).unwrap();
    let line = refusal(&[("ACTIVEKG_DSN", &format!("sqlite://{}", file.display()))]).await;
    assert!(line.contains("not a database") && !line.contains("password"), "{line}");
}
