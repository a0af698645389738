//! While nothing asks who a caller is, only programs that mean this server are answered: no web page
//! under a name that was made to lead here, and no form of another site.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use common::TestApp;
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(60);

/// Sends lines of a request as they are; the status and the body of the answer.
async fn raw(app: &TestApp, lines: &[&str]) -> (u16, String) {
    let address = app.url().strip_prefix("http://").unwrap().to_owned();
    let mut request = lines.join("\r\n");
    request.push_str("\r\nConnection: close\r\n\r\n");
    let read = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let answer = tokio::task::spawn_blocking(read).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

async fn serve(settings: &[(&str, &str)]) -> (TestApp, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let inline = [&[("EMBEDDING_ASYNC", "false")], settings].concat();
    let app = TestApp::serve(dir.path(), &inline).await;
    app.post("/nodes", &json!({"classes": ["Doc"], "props": {"text": "a secret"}})).await;
    (app, dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_meant_for_another_host_is_misdirected() {
    let (app, _dir) = serve(&[("VECMILL_ALLOWED_HOSTS", "vec.example, Box.Local")]).await;
    let own = app.url().strip_prefix("http://").unwrap().to_owned();
    let asked =
        async |host: &str| raw(&app, &["GET /nodes HTTP/1.1", &format!("Host: {host}")]).await;
    for host in [
        own.as_str(),
        "127.0.0.1",
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "[::1]:8000",
        "127.8.8.8",
        "[::ffff:127.0.0.1]",
        "vec.example",
        "VEC.example:443",
        "box.local",
    ] {
        let (status, body) = asked(host).await;
        assert_eq!(status, 200, "{host}: {body}");
    }
    for host in [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil@localhost",
        "localhost@evil.example",
        "sub.vec.example",
        "192.0.2.7",
        "0.0.0.0",
        "[2001:db8::1]",
        "",
        "a b",
    ] {
        let (status, body) = asked(host).await;
        // A name that is none is refused by the server itself.
        assert!(status == 421 || status == 400, "{host}: {status} {body}");
        if status == 421 {
            assert!(
                body.contains("{\"detail\":") && body.contains("VECMILL_ALLOWED_HOSTS"),
                "{body}"
            );
        }
        assert!(!body.contains("\"nodes\""), "{host}: {body}");
    }
    assert_eq!(asked("evil.example").await.0, 421);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_place_that_names_the_host_counts() {
    let (app, _dir) = serve(&[]).await;
    let cases: [(&[&str], u16); 8] = [
        (&["GET /nodes HTTP/1.1"], 400),
        // Health checks of older load balancers; no browser speaks it.
        (&["GET /health HTTP/1.0"], 200),
        (&["GET /nodes HTTP/1.0", "Host: evil.example"], 421),
        (&["GET http://evil.example/nodes HTTP/1.1", "Host: localhost"], 421),
        (&["GET http://localhost/nodes HTTP/1.1", "Host: evil.example"], 421),
        (&["GET http://localhost/nodes HTTP/1.1", "Host: localhost"], 200),
        (&["GET /nodes HTTP/1.1", "Host: localhost", "Host: evil.example"], 421),
        (&["GET /nowhere HTTP/1.1", "Host: evil.example"], 421),
    ];
    for (lines, expected) in cases {
        let (status, body) = raw(&app, lines).await;
        assert!(
            status == expected || (expected == 421 && status == 400),
            "{lines:?}: {status} {body}"
        );
    }
    // Every path is behind it.
    for path in ["/", "/docs", "/openapi.json", "/health", "/metrics", "/readyz"] {
        let line = format!("GET {path} HTTP/1.1");
        assert_eq!(raw(&app, &[&line, "Host: evil.example"]).await.0, 421, "{path}");
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_cannot_write() {
    let (app, _dir) = serve(&[("VECMILL_ALLOWED_HOSTS", "vec.example")]).await;
    let id = app.get("/nodes").await.1["nodes"][0]["id"].as_str().unwrap().to_owned();
    let before = app.node(&id).await;
    let refresh = format!("POST /nodes/{id}/refresh HTTP/1.1");
    for origin in ["https://evil.example", "null", "http://localhost.evil.example:8000"] {
        let origin = format!("Origin: {origin}");
        // As a form without fields or a script can send it, without asking before.
        let (status, body) = raw(&app, &[&refresh, "Host: localhost", &origin]).await;
        assert_eq!(status, 403, "{origin}: {body}");
        let form = "Content-Type: application/x-www-form-urlencoded";
        let (status, _) = raw(&app, &[&refresh, "Host: localhost", &origin, form]).await;
        assert_eq!(status, 415, "{origin}");
    }
    assert_eq!(app.node(&id).await["last_refreshed"], before["last_refreshed"]);
    for origin in ["http://localhost:3000", "http://127.0.0.1:8000", "https://vec.example"] {
        let origin = format!("Origin: {origin}");
        let (status, body) = raw(&app, &[&refresh, "Host: localhost", &origin]).await;
        assert_eq!(status, 200, "{origin}: {body}");
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_this_machine_any_name_is_taken_unless_names_are_given() {
    let open = [("VECMILL_BIND", "0.0.0.0:0"), ("VECMILL_INSECURE", "true")];
    for (settings, expected) in [
        (open.to_vec(), 200),
        ([&open[..], &[("VECMILL_ALLOWED_HOSTS", "vec.example")]].concat(), 421),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let settings = [&settings[..], &[("EMBEDDING_ASYNC", "false")]].concat();
        let app = TestApp::serve(dir.path(), &settings).await;
        let local = TestApp::client_of(&app.url().replace("0.0.0.0", "127.0.0.1"));
        let asked = async |host: &str| raw(&local, &["GET /nodes HTTP/1.1", host]).await;
        assert_eq!(asked("Host: any.example").await.0, expected);
        assert_eq!(asked("Host: vec.example").await.0, 200);
        app.stop().await;
    }
}
