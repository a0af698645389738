//! The commands that are a server, and those that need none.

use std::path::Path;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use crate::support::{Ended, end_of, file, lines, run, run_in, vecmill};

#[tokio::test(flavor = "multi_thread")]
async fn the_openapi_document_and_the_models_are_printed() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let ended = run(&["openapi"]).await;
    ended.assert_code(0);
    assert_eq!(ended.stdout, std::fs::read_to_string(committed).unwrap());

    let dir = tempfile::tempdir().unwrap();
    let environment = [("VECMILL_MODELS_DIR", dir.path().to_str().unwrap())];
    let listed = run_in(&environment, &["models", "list", "--json"]).await.json();
    let models = listed["models"].as_array().unwrap();
    let default = models.iter().find(|model| model["name"] == "all-MiniLM-L6-v2").unwrap();
    assert_eq!((&default["dimension"], &default["max_tokens"]), (&json!(384), &json!(256)));
    assert_eq!(default["hub_id"], "sentence-transformers/all-MiniLM-L6-v2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_value_stops_the_start_with_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().to_str().unwrap();
    for (variable, value, allowed) in [
        ("EMBEDDING_ASYNC", "maybe", "true or false"),
        ("VECMILL_BIND", "localhost", "127.0.0.1:8000"),
        ("VECMILL_COMPAT", "activekg2", "none, activekg"),
        ("VECMILL_INSECURE", "maybe", "true or false"),
        ("VECMILL_ALLOWED_HOSTS", "https://a.example", "names of hosts"),
        ("VECMILL_BODY_LIMIT", "10MB", "from 1024 to"),
        ("MAX_REQUEST_SIZE_BYTES", "10MB", "from 1024 to"),
        ("JWT_ENABLED", "true", "no authentication"),
        ("EMBEDDING_QUEUE_MAX_DEPTH", "0", "from 1 to"),
        ("EMBEDDING_TENANT_MAX_PENDING", "-1", "from 0 to"),
        ("NODE_BATCH_MAX", "many", "from 1 to"),
        ("EMBEDDING_BACKEND", "onnx", "candle, sentence-transformers or hash"),
        ("EMBEDDING_DEVICE", "tpu", "cpu, cuda, cuda:N or auto"),
        ("EMBEDDING_MAX_ATTEMPTS", "0", "from 1 to"),
        ("EMBEDDING_RETRY_BASE_SECONDS", "soon", "number of seconds"),
        ("EMBEDDING_RETRY_MAX_SECONDS", "inf", "number of seconds"),
        ("EMBEDDING_WORKER_POLL_INTERVAL", "0", "number of seconds"),
    ] {
        for command in ["serve", "api", "worker", "migrate"] {
            let environment = [("VECMILL_DATA_DIR", data_dir), (variable, value)];
            let ended = run_in(&environment, &[command]).await;
            ended.assert_one_line(&[&format!("{variable}={value:?}"), allowed]);
        }
        // The flag of the same name says the same.
        let flag = format!("--{}={value}", variable.to_lowercase().replace('_', "-"));
        run(&["migrate", &flag]).await.assert_one_line(&[variable, allowed]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_message_holds_a_secret() {
    let dir = tempfile::tempdir().unwrap();
    let bind = ("VECMILL_BIND", "127.0.0.1:0");
    let common = [
        bind,
        ("VECMILL_DATA_DIR", dir.path().to_str().unwrap()),
        ("EMBEDDING_BACKEND", "hash"),
        ("VECMILL_START_PATIENCE", "0"),
        ("REDIS_URL", "redis://127.0.0.1:9"),
    ];
    for (variable, value) in [
        ("REDIS_URL", "http://:hunter2@localhost"),
        ("REDIS_URL", "hunter2"),
        ("REDIS_URL", "redis://:hunter2@localhost:port"),
        ("REDIS_URL", "redis://user:hunter2@127.0.0.1:9"),
        ("ACTIVEKG_DSN", "mysql://user:hunter2@localhost/db"),
        ("ACTIVEKG_DSN", "hunter2"),
        ("DATABASE_URL", "postgresql://user:hunter2@localhost:port/db"),
        ("DATABASE_URL", "postgresql://user:hunter2@127.0.0.1:9/db"),
    ] {
        let environment = [common.as_slice(), &[(variable, value)]].concat();
        let ended = run_in(&environment, &["api"]).await;
        ended.assert_code(1);
        assert!(!ended.stderr.contains("hunter2"), "{variable}={value}: {}", ended.stderr);
        assert!(!ended.stderr.is_empty());
        let address = ("VECMILL_URL", "https://user:hunter2@vecmill.example");
        for command in ["serve", "api", "worker", "migrate", "status", "requeue", "ingest"] {
            let environment = [environment.as_slice(), &[address]].concat();
            let help = run_in(&environment, &[command, "--help"]).await;
            help.assert_code(0);
            assert!(!help.stdout.contains("hunter2"), "{}", help.stdout);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_help_lists_every_variable_with_its_flag_and_default() {
    for command in ["serve", "api", "worker"] {
        let help = run(&[command, "--help"]).await;
        help.assert_code(0);
        // One setting a paragraph or line, whatever the width.
        let help = help.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        for (variable, default) in [
            ("EMBEDDING_ASYNC", "true"),
            ("REDIS_URL", ""),
            ("ACTIVEKG_DSN", ""),
            ("DATABASE_URL", ""),
            ("VECMILL_DATA_DIR", "./data"),
            ("VECMILL_BIND", "127.0.0.1:8000"),
            ("VECMILL_COMPAT", "none"),
            ("VECMILL_INSECURE", "false"),
            ("VECMILL_START_PATIENCE", "60"),
            ("EMBEDDING_QUEUE_MAX_DEPTH", "5000"),
            ("EMBEDDING_TENANT_MAX_PENDING", "2000"),
            ("NODE_BATCH_MAX", "200"),
            ("EMBEDDING_BACKEND", "candle"),
            ("EMBEDDING_MODEL", "all-MiniLM-L6-v2"),
            ("EMBEDDING_DEVICE", "auto"),
            ("EMBEDDING_MAX_ATTEMPTS", "5"),
            ("EMBEDDING_RETRY_BASE_SECONDS", "10"),
            ("EMBEDDING_RETRY_MAX_SECONDS", "300"),
            ("EMBEDDING_WORKER_POLL_INTERVAL", "1.0"),
            ("EMBEDDING_QUEUE_KEY", "embedding:queue"),
            ("EMBEDDING_RETRY_KEY", "embedding:retry"),
            ("EMBEDDING_DLQ_KEY", "embedding:dlq"),
            ("EMBEDDING_PENDING_PREFIX", "embedding:pending"),
            ("EMBEDDING_TENANT_PENDING_PREFIX", "embedding:tenant:pending"),
        ] {
            let flag = format!("--{} <", variable.to_lowercase().replace('_', "-"));
            assert!(help.contains(&flag), "{command}: {flag}");
            let shown = match default {
                "" => format!("[env: {variable}]"),
                default => format!("[env: {variable}=] [default: {default}]"),
            };
            assert!(help.contains(&shown), "{command}: {shown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_run_apart_must_share_a_redis() {
    let dir = tempfile::tempdir().unwrap();
    let environment = [
        ("VECMILL_DATA_DIR", dir.path().to_str().unwrap()),
        ("VECMILL_BIND", "127.0.0.1:0"),
        ("EMBEDDING_BACKEND", "hash"),
    ];
    for command in ["api", "worker"] {
        let ended = run_in(&environment, &[command]).await;
        ended.assert_code(1);
        let reason = ended.stderr.lines().last().unwrap();
        assert!(reason.contains("REDIS_URL is not set") && reason.contains("`serve`"), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_may_be_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("deep/data");
    let arguments =
        ["migrate", "--vecmill-data-dir", data.to_str().unwrap(), "--embedding-backend", "hash"];
    for _ in 0..2 {
        let ended = run(&arguments).await;
        ended.assert_code(0);
        assert!(ended.stdout.contains("384"), "{}", ended.stdout);
        assert!(data.join("vecmill.db").is_file());
    }
    let ended = run(&[&arguments[..], &["--json"]].concat()).await.json();
    assert_eq!(ended["dimension"], 384);
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_says_where_it_listens_and_ends_when_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let environment = [
        ("VECMILL_DATA_DIR", dir.path().to_str().unwrap()),
        ("VECMILL_BIND", "127.0.0.1:0"),
        ("EMBEDDING_BACKEND", "hash"),
        ("EMBEDDING_TENANT_MAX_PENDING", "0"),
    ];
    let mut counts = Value::Null;
    for run_number in 1..=2 {
        let mut server = vecmill(&["serve"], &environment).spawn().unwrap();
        let mut said = BufReader::new(server.stdout.take().unwrap()).lines();
        let line = said.next_line().await.unwrap().unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("http://")).unwrap();
        let file = file(dir.path(), &lines(100));
        counts = run(&["ingest", &file, "--wait", "--json", "--url", url]).await.json();
        let pid = server.id().unwrap().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().await.unwrap();
        end_of(server).await.assert_code(0);
        assert_eq!(counts["status_counts"]["ready"], 100 * run_number, "{counts}");
    }
    assert_eq!(counts["failed"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_others_reach_stops_the_start_unless_it_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let common = [
        ("VECMILL_DATA_DIR", dir.path().to_str().unwrap()),
        ("EMBEDDING_BACKEND", "hash"),
        ("EMBEDDING_ASYNC", "false"),
    ];
    let compat = ("VECMILL_COMPAT", "activekg");
    for (command, variable, settings) in [
        ("serve", "VECMILL_BIND", vec![("VECMILL_BIND", "0.0.0.0:0")]),
        ("api", "VECMILL_BIND", vec![("VECMILL_BIND", "[::]:0")]),
        // The image of ActiveKG sets these.
        ("serve", "HOST", vec![compat, ("HOST", "0.0.0.0"), ("PORT", "0")]),
    ] {
        let ended = run_in(&[&common[..], &settings].concat(), &[command]).await;
        let words = [&format!("{variable}="), "no authentication", "VECMILL_INSECURE=true"];
        ended.assert_one_line(&words);
    }
    let meant = [("VECMILL_BIND", "0.0.0.0:0"), ("VECMILL_INSECURE", "true")];
    let said = said_at_start(&[&common[..], &meant].concat()).await;
    assert!(said.stdout.contains("listens on http://0.0.0.0:"), "{}", said.stdout);
}

/// Whether the help wraps its lines depends on how its library was built.
fn unwrapped(help: &str) -> String {
    help.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_that_is_set_to_nothing_is_not_set() {
    let dir = tempfile::tempdir().unwrap();
    let help = unwrapped(&run(&["serve", "--help"]).await.stdout);
    let variables = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next());
    let mut environment: Vec<(&str, &str)> = variables.map(|name| (name, "")).collect();
    assert!(environment.len() > 35, "{environment:?}");
    let own = [
        ("VECMILL_DATA_DIR", dir.path().to_str().unwrap()),
        ("VECMILL_BIND", "127.0.0.1:0"),
        ("EMBEDDING_BACKEND", "hash"),
    ];
    environment.retain(|(name, _)| own.iter().all(|(other, _)| other != name));
    environment.extend(own);
    let said = said_at_start(&environment).await;
    assert!(said.stdout.contains("listens on"), "{}\n{}", said.stdout, said.stderr);
    // Help names them all the same.
    let with_empty = run_in(&environment, &["serve", "--help"]).await;
    with_empty.assert_code(0);
    let help = unwrapped(&with_empty.stdout);
    assert!(help.contains("[env: EMBEDDING_QUEUE_KEY="), "{help}");
    // A flag that is empty says something, and that is wrong.
    let ended = run(&["migrate", "--embedding-queue-key="]).await;
    ended.assert_one_line(&["EMBEDDING_QUEUE_KEY=\"\"", "must not be empty"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_of_activekg_that_change_nothing_are_named_in_one_warning() {
    let dir = tempfile::tempdir().unwrap();
    let own = [
        ("VECMILL_DATA_DIR", dir.path().to_str().unwrap()),
        ("VECMILL_BIND", "127.0.0.1:0"),
        ("EMBEDDING_BACKEND", "hash"),
        ("EMBEDDING_ASYNC", "false"),
        ("MAX_REQUEST_SIZE_BYTES", "4096"),
        ("JWT_ENABLED", "false"),
        ("HOST", "build-7"),
    ];
    let warning = "these variables of ActiveKG change nothing here";
    let said = said_at_start(&own).await;
    assert!(!said.stderr.contains(warning), "{}", said.stderr);
    let foreign = [
        ("RATE_LIMIT_ENABLED", "true"),
        ("JWT_SECRET_KEY", "hunter2"),
        ("RUN_SCHEDULER", "true"),
        ("ACTIVEKG_URL_ALLOWLIST", ""),
    ];
    let said = said_at_start(&[&own[..], &foreign].concat()).await;
    assert_eq!(said.stderr.matches(warning).count(), 1, "{}", said.stderr);
    let names = format!("{warning}: JWT_SECRET_KEY, RATE_LIMIT_ENABLED, RUN_SCHEDULER");
    assert!(said.stderr.contains(&names), "{}", said.stderr);
    assert!(!said.stderr.contains("hunter2"), "{}", said.stderr);
}

/// Runs `serve` until it says where it listens, and ends it; what it said.
async fn said_at_start(environment: &[(&str, &str)]) -> Ended {
    let mut server = vecmill(&["serve"], environment).spawn().unwrap();
    let mut said = BufReader::new(server.stdout.take().unwrap()).lines();
    let line = said.next_line().await.unwrap().unwrap_or_default();
    if let Some(pid) = server.id() {
        Command::new("kill").args(["-TERM", &pid.to_string()]).status().await.unwrap();
    }
    let ended = end_of(server).await;
    Ended { stdout: line, ..ended }
}
