//! More connections than there may be: those that do nothing give way, and work goes on. And bodies
//! that would take more memory than there is.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::TestApp;
use reqwest::header::CONTENT_TYPE;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const DEADLINE: Duration = Duration::from_secs(30);
const MOST: usize = 20;

async fn serve() -> (TestApp, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let most = MOST.to_string();
    let settings = [("EMBEDDING_ASYNC", "false"), ("VECMILL_CONNECTIONS_MAX", most.as_str())];
    let app = TestApp::serve(dir.path(), &settings).await;
    (app, dir)
}

async fn connect(app: &TestApp) -> TcpStream {
    TcpStream::connect(app.url().strip_prefix("http://").unwrap()).await.unwrap()
}

/// Asks for `/health` on a connection of its own; the status line.
async fn health(app: &TestApp) -> String {
    let ask = async {
        let mut stream = connect(app).await;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    timeout(DEADLINE, ask).await.expect("an idle connection does not give way")
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_idle_connections_give_way_to_new_ones() {
    let (app, _dir) = serve().await;
    let mut idle = Vec::new();
    for number in 0..4 * MOST {
        let mut stream = connect(&app).await;
        // Some have begun a request.
        if number % 2 == 0 {
            stream.write_all(b"GET /health HTTP/1.1\r\nHo").await.unwrap();
        }
        idle.push(stream);
        if number % 10 == 0 {
            assert_eq!(health(&app).await, "HTTP/1.1 200 OK");
        }
    }
    assert!(is_closed(&mut idle[0]).await && is_closed(&mut idle[1]).await);
    assert_eq!(health(&app).await, "HTTP/1.1 200 OK");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_request_is_being_answered_stays() {
    let (app, _dir) = serve().await;
    let body = br#"{"classes": ["Doc"], "props": {"text": "slow"}}"#;
    let head = format!(
        "POST /nodes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let mut slow = connect(&app).await;
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.write_all(&body[..10]).await.unwrap();
    let mut idle = Vec::new();
    for _ in 0..3 * MOST {
        idle.push(connect(&app).await);
        health(&app).await;
    }
    slow.write_all(&body[10..]).await.unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_waits_for_answers_and_not_for_idle_connections() {
    let (app, _dir) = serve().await;
    let mut idle = connect(&app).await;
    let mut begun = connect(&app).await;
    begun.write_all(b"GET /hea").await.unwrap();
    health(&app).await;
    timeout(Duration::from_secs(10), app.stop()).await.expect("it waits for idle connections");
    assert!(is_closed(&mut idle).await && is_closed(&mut begun).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_for_which_there_is_no_memory_are_refused_or_wait() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [("EMBEDDING_ASYNC", "false"), ("VECMILL_MEMORY_MB", "256")];
    let app = TestApp::serve(dir.path(), &settings).await;
    let (client, url) = (reqwest::Client::new(), format!("{}/nodes", app.url()));
    let post = |value: String| {
        let body = format!(r#"{{"classes":["a"],"props":{{"text":"x","v":{value}}}}}"#);
        client.post(&url).header(CONTENT_TYPE, "application/json").body(body).send()
    };
    // Eight megabytes of one string are a node; as many of small arrays are more than there is.
    let megabytes = 8 << 20;
    assert_eq!(post(format!("\"{}\"", "x".repeat(megabytes))).await.unwrap().status(), 200);
    let many = format!("[{}[0]]", "[0],".repeat(megabytes / 4));
    let refused = post(many.clone()).await.unwrap();
    assert_eq!(refused.status(), 413);
    assert!(refused.text().await.unwrap().contains("VECMILL_MEMORY_MB"));

    // Each of these fits, all of them together do not: they take turns.
    let some = format!("[{}[0]]", "[0],".repeat(200_000));
    let posts = (0..12).map(|_| post(some.clone()));
    for answer in futures::future::join_all(posts).await {
        assert_eq!(answer.unwrap().status(), 200);
    }
    app.stop().await;
}
