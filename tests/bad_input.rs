//! Every request that is refused says why, and leaves nothing behind; and what is accepted,
//! however strange, is embedded.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "bad_input/support.rs"]
mod support;
#[allow(dead_code)]
mod tiny_bert;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use common::{TestApp, TestPostgres, hash_model};
use serde_json::{Value, json};
use support::{Api, Case, TEXT};
use uuid::Uuid;
use vecmill::{
    app::Role,
    inference::{self, BackendKind, ComputeConfig, HubConfig, ModelConfig},
};

const DEADLINE: Duration = Duration::from_secs(60);
const MEGABYTE: usize = 1 << 20;

fn node_with(name: &str, value: Value) -> Value {
    let mut node = json!({"classes": ["Doc"], "props": {"text": TEXT}});
    node[name] = value;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_json_is_malformed() {
    let api = Api::on(None).await;
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let node = |text: &str| format!(r#"{{"classes":["Doc"],"props":{{"text":{text}}}}}"#);
    let bodies: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"{".to_vec(),
        b"nul".to_vec(),
        node(&format!("\"{TEXT}")).into(),
        format!("{} {TEXT}", node("\"x\"")).into(),
        [node("\"x").as_bytes(), b"\xff\""].concat(),
        node(r#""\ud800""#).into(),
        node(r#""\udc00 \ud83d""#).into(),
        node("1e999").into(),
        node("NaN").into(),
        node(&deep).into(),
        node(&"{\"a\":".repeat(100_000)).into(),
    ];
    let change = format!("PATCH /nodes/{}", Uuid::new_v4());
    for call in ["POST /nodes", "POST /nodes/batch", "POST /admin/embedding/requeue", &change] {
        let malformed =
            bodies.iter().map(|body| Case::new(call, body.clone(), 400, "the body is not JSON"));
        api.refuses(malformed.collect()).await;
        let other_types = ["", "text/plain", "application/x-www-form-urlencoded"];
        let case = |content_type| Case {
            content_type,
            ..Case::new(call, node("\"x\""), 415, "Content-Type: application/json")
        };
        api.refuses(other_types.map(case).into()).await;
    }
    api.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_node_is_refused_by_the_name_of_its_field() {
    for api in Api::on_each_database().await {
        let nodes = [
            ("body", json!([TEXT])),
            ("classes", json!({"props": {"text": TEXT}})),
            ("classes", node_with("classes", json!(TEXT))),
            ("classes", node_with("classes", json!([]))),
            ("classes", node_with("classes", json!(vec!["Doc"; 11]))),
            ("classes", node_with("classes", json!(["c".repeat(101)]))),
            ("classes", node_with("classes", json!(["Doc", ""]))),
            ("classes", node_with("classes", json!(["Doc", 7]))),
            ("props", json!({"classes": ["Doc"]})),
            ("props", node_with("props", json!(TEXT))),
            ("props", node_with("props", json!([TEXT]))),
            ("props", node_with("props", json!(null))),
            ("payload_ref", node_with("payload_ref", json!({"text": TEXT}))),
            ("tenant_id", node_with("tenant_id", json!(5))),
            ("tenant_id", node_with("tenant_id", json!("t".repeat(201)))),
            ("tenant_id", node_with("tenant_id", json!("a\nb"))),
            ("tenant_id", node_with("tenant_id", json!("a\u{7f}b"))),
            // U+0000 in every place that a string can have.
            ("classes[0]", node_with("classes", json!(["D\0c"]))),
            ("props.text", node_with("props", json!({"text": format!("{TEXT}\0")}))),
            ("props.a[1].b", node_with("props", json!({"a": [0, {"b": "\0"}], "text": TEXT}))),
            ("props", node_with("props", json!({"\0": TEXT}))),
            ("payload_ref", node_with("payload_ref", json!("\0"))),
            ("metadata", node_with("metadata", json!("\0"))),
            ("metadata[0]", node_with("metadata", json!([{"\0": 1}]))),
            ("refresh_policy.every", node_with("refresh_policy", json!({"every": "\0"}))),
            ("triggers[0]", node_with("triggers", json!(["\0"]))),
            ("tenant_id", node_with("tenant_id", json!("a\0b"))),
            // What is not known would be ignored, whatever it was to mean.
            ("tenant", node_with("tenant", json!("acme"))),
            ("tenantId", node_with("tenantId", json!("acme"))),
            ("id", node_with("id", json!(Uuid::nil()))),
        ];
        let single = nodes.iter().map(|(field, node)| Case::json("POST /nodes", node, 422, field));
        api.refuses(single.collect()).await;

        // In a batch that does not go on after an error, an invalid node fails the good ones.
        let good = node_with("tenant_id", json!("acme"));
        let in_batch = nodes.iter().map(|(_, node)| {
            let body = json!({"nodes": [good, node], "continue_on_error": false});
            Case::json("POST /nodes/batch", &body, 422, "nodes[1]")
        });
        api.refuses(in_batch.collect()).await;

        // In one that goes on and has no good ones, nothing is created.
        let before = api.contents().await;
        let all: Vec<&Value> = nodes.iter().map(|(_, node)| node).collect();
        let (status, answer) = api.app.post("/nodes/batch", &json!({"nodes": all})).await;
        assert_eq!(status.as_u16(), 202, "{answer}");
        assert_eq!((&answer["created"], &answer["failed"]), (&json!(0), &json!(nodes.len())));
        for (index, (field, _)) in nodes.iter().enumerate() {
            let error = answer["results"][index]["error"].as_str().unwrap();
            let place = if *field == "body" {
                format!("nodes[{index}]: ")
            } else {
                format!("nodes[{index}].{field}: ")
            };
            assert!(error.starts_with(&place), "{error:?} does not begin with {place:?}");
        }
        assert!(!answer.to_string().contains(TEXT), "{answer}");
        assert_eq!(api.contents().await, before);
        api.app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_call_is_refused_by_the_name_of_its_field() {
    for api in Api::on_each_database().await {
        let good = node_with("tenant_id", json!("acme"));
        let batch = "POST /nodes/batch";
        let requeue = "POST /admin/embedding/requeue";
        let cases = [
            (batch, json!({}), "nodes"),
            (batch, json!({"nodes": []}), "nodes"),
            (batch, json!({"nodes": TEXT}), "nodes"),
            (batch, json!({"nodes": vec![&good; 201]}), "nodes: must hold 1 to 200 nodes"),
            (batch, json!({"nodes": [&good], "continue_on_error": TEXT}), "continue_on_error"),
            (batch, json!({"nodes": [&good], "tenant": "acme"}), "tenant"),
            (batch, json!({"nodes": [&good], "tenant_id": 1}), "tenant_id"),
            (batch, json!({"nodes": [&good], "tenant_id": "\0"}), "tenant_id"),
            (requeue, json!([]), "body"),
            (requeue, json!({"status": "done"}), "status"),
            (requeue, json!({"status": ["queued"]}), "status"),
            (requeue, json!({"tenant": "acme", "status": "queued"}), "tenant"),
            (requeue, json!({"status": "queued", "limit": 1.5}), "limit"),
            (requeue, json!({"status": "queued", "limit": "all"}), "limit"),
            ("POST /admin/refresh", json!({"ids": [Uuid::nil()]}), "ids"),
            ("POST /admin/refresh", json!({"tenant": "acme"}), "tenant"),
            ("POST /admin/refresh", json!(["7"]), "node_ids[0]"),
            ("POST /admin/refresh", json!(vec![Uuid::nil(); 2001]), "node_ids"),
            ("POST /admin/refresh?tenant_id=a", json!({"tenant_id": "b"}), "tenant_id"),
            (requeue, json!({"status": "all", "node_ids": ["7"]}), "node_ids[0]"),
            (requeue, json!({"node_ids": vec![Uuid::nil(); 2001]}), "node_ids"),
            (requeue, json!({"status": "all", "backfill_ready": "no"}), "backfill_ready"),
            (requeue, json!({"only_missing_embedding": 1}), "only_missing_embedding"),
            (requeue, json!({"status": "all", "tenant_id": "a\0b"}), "tenant_id"),
            ("GET /nodes?status=done", json!(null), "status"),
            ("GET /nodes?status=", json!(null), "status"),
            ("GET /nodes?limit=many", json!(null), "limit"),
            ("GET /nodes?limit=", json!(null), "limit"),
            ("GET /nodes?limit=1&limit=2", json!(null), "limit"),
            ("GET /nodes?offset=-1", json!(null), "offset"),
            ("GET /nodes?offset=50001", json!(null), "offset"),
            ("GET /nodes?cursor=", json!(null), "cursor"),
            ("GET /nodes?cursor=42", json!(null), "cursor"),
            ("GET /nodes?cursor=WzAsbnVsbCxudWxsXQ&offset=0", json!(null), "cursor"),
            (requeue, json!({"cursor": "42"}), "cursor"),
            (requeue, json!({"cursor": "WzAsbnVsbCxudWxsXQ", "node_ids": [Uuid::nil()]}), "cursor"),
            ("GET /nodes?has_embedding=maybe", json!(null), "has_embedding"),
            ("GET /nodes?tenant_id=%ff", json!(null), "tenant_id"),
            ("GET /nodes/by-external-id", json!(null), "external_id"),
            ("GET /nodes/by-external-id?external_id=", json!(null), "external_id"),
            ("GET /nodes?tenant_id=a%00b", json!(null), "tenant_id"),
            ("GET /nodes/42", json!(null), "id"),
            ("GET /nodes/%00", json!(null), "id"),
            ("POST /nodes/42/refresh", json!(null), "id"),
            ("GET /admin/embedding/status?tenant_id=%0A", json!(null), "tenant_id"),
        ];
        let cases = cases.iter().map(|(call, body, field)| Case::json(call, body, 422, field));
        api.refuses(cases.collect()).await;
        api.app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    for api in Api::on_each_database().await {
        let unknown = Uuid::new_v4();
        let page = api.app.get("/nodes?limit=1").await.1;
        let known = page["nodes"][0]["id"].as_str().unwrap();
        let cases = [
            (format!("GET /nodes/{unknown}"), "there is no node"),
            (format!("POST /nodes/{unknown}/refresh"), "there is no node"),
            (format!("GET /nodes/{known}?tenant_id=other"), "there is no node"),
            (format!("POST /nodes/{known}/refresh?tenant_id=other"), "there is no node"),
            (format!("DELETE /nodes/{unknown}"), "there is no node"),
            (format!("DELETE /nodes/{known}?tenant_id=other"), "there is no node"),
            ("GET /nowhere".to_owned(), "nothing at this path"),
            ("POST /nodes/batch/all".to_owned(), "nothing at this path"),
            (format!("GET /nodes/{unknown}/versions"), "there is no node"),
            (format!("GET /nodes/{known}/versions?tenant_id=other"), "there is no node"),
            ("GET /nodes/by-external-id?external_id=7".to_owned(), "there is no node"),
            ("GET /nowhere/".to_owned(), "nothing at this path"),
            ("GET /docs/../etc/passwd%00".to_owned(), "nothing at this path"),
        ];
        api.refuses(cases.map(|(call, detail)| Case::new(&call, "", 404, detail)).into()).await;
        let not_allowed = [
            ("PUT /nodes", "GET, HEAD, POST"),
            ("DELETE /nodes", "GET, HEAD, POST"),
            ("PUT /nodes/42", "DELETE, GET, HEAD, PATCH"),
            ("GET /nodes/batch", "POST"),
            ("GET /admin/embedding/requeue", "POST"),
            ("POST /admin/embedding/status", "GET, HEAD"),
            ("POST /health", "GET, HEAD"),
            ("POST /docs", "GET, HEAD"),
        ];
        let cases = not_allowed.map(|(call, methods)| Case::new(call, TEXT, 405, methods));
        api.refuses(cases.into()).await;
        for (call, methods) in not_allowed {
            let (method, path) = call.split_once(' ').unwrap();
            let url = format!("{}{path}", api.app.url());
            let response = api.client.request(method.parse().unwrap(), url).send().await.unwrap();
            assert_eq!(response.headers()["allow"], methods, "{call}");
        }
        api.app.stop().await;
    }
}

/// Sends a request line, headers and body as they are; the answer.
fn raw_request(url: &str, headers: &str, body: &[u8]) -> String {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let head = format!(
        "POST /nodes HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Connection: close\r\n{headers}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large_is_refused_with_and_without_a_length() {
    let api = Api::on(None).await;
    let text = TEXT.repeat(12 * MEGABYTE / TEXT.len());
    let body = json!({"classes": ["Doc"], "props": {"text": text}}).to_string();
    let detail = "the body is larger than 10485760 bytes";
    let call = |path| Case::new(path, body.clone(), 413, detail);
    api.refuses(vec![call("POST /nodes"), call("POST /nodes/batch")]).await;

    let before = api.contents().await;
    let chunk = |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
    let chunks: Vec<u8> = body.as_bytes().chunks(MEGABYTE).flat_map(chunk).collect();
    let chunked = [chunks.as_slice(), b"0\r\n\r\n"].concat();
    let sent = [
        ("Transfer-Encoding: chunked", chunked),
        // It is not waited for what is announced to be far too large.
        ("Content-Length: 1000000000000", Vec::new()),
    ];
    for (headers, body) in sent {
        let url = api.app.url().to_owned();
        let answer = tokio::task::spawn_blocking(move || raw_request(&url, headers, &body));
        let answer = answer.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 "), "{headers}: {answer}");
        assert!(answer.contains(detail) && !answer.contains(TEXT), "{headers}: {answer}");
        assert_eq!(api.contents().await, before, "{headers}");
    }
    api.app.stop().await;
}

/// A few kilobytes of a real model: its tokenizer is the default model's kind.
async fn tiny_model(dir: &std::path::Path) -> inference::Model {
    let model = dir.join("tiny");
    tiny_bert::write(&model, "mean_tokens");
    let hub = HubConfig {
        endpoint: "http://127.0.0.1:9".to_owned(),
        token: None,
        cache_dir: dir.join("no-cache"),
        offline: true,
    };
    let config = ModelConfig {
        backend: BackendKind::Model,
        model: model.to_str().unwrap().to_owned(),
        compute: ComputeConfig::auto(),
        models_dir: dir.to_owned(),
        hub,
    };
    inference::load(&config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn seven_megabytes_are_embedded_as_far_as_the_model_reads() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model(dir.path()).await;
    let app = TestApp::start(Role::Serve, dir.path(), &[], Some(model)).await;
    // A word of any length is one unknown token, and the words after it are read.
    let texts = ["x".repeat(7 * MEGABYTE - 4) + " one", "one ".repeat(7 * MEGABYTE / 4)];
    let mut ids = Vec::new();
    for text in &texts {
        ids.extend(app.ingest("acme", std::slice::from_ref(text)).await);
    }
    assert_eq!(app.settled(DEADLINE).await["ready"], 2);
    for ((id, text), is_cut) in ids.iter().zip(&texts).zip([false, true]) {
        let node = app.node(id).await;
        assert_eq!(node["embedding_status"], "ready");
        assert_eq!(node["embedding_truncated"], is_cut);
        assert_eq!(node["embedding"].as_array().unwrap().len(), tiny_bert::DIMENSION);
        assert!(node["props"]["text"] == text.as_str(), "the text is stored whole");
    }
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strange_but_valid_nodes_are_taken_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    for settings in [vec![], vec![("ACTIVEKG_DSN", TestPostgres::shared().database().await)]] {
        let settings: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let app = TestApp::start(Role::Serve, dir.path(), &settings, Some(hash_model())).await;
        let node = json!({
            "classes": ["é".repeat(100), "' OR 1=1 --", "{a,b}", "\"", "\\"],
            "props": {"text": "\u{1f600} \u{202e}\u{fffd} ' \" \\ %s $1 ?", "": {"": [null, {}]},
                "big": 9_007_199_254_740_993_u64, "real": 0.1234567890123456, "nested": {"a.b": [1.5]}},
            "payload_ref": "", "metadata": [1, "two"], "refresh_policy": "daily", "triggers": false,
            "tenant_id": "größe: a*[b]?", "extract": {"field": 1}, "extract_before_embed": null,
        });
        let (status, answer) = app.post("/nodes", &node).await;
        assert_eq!(status.as_u16(), 202, "{answer}");
        assert_eq!(app.settled(DEADLINE).await["ready"], 1);
        let stored = app.node(answer["id"].as_str().unwrap()).await;
        for name in ["classes", "metadata", "refresh_policy", "triggers", "tenant_id"] {
            assert_eq!(stored[name], node[name], "{name}");
        }
        // The database may order the keys in its own way.
        let sorted = |value: &Value| {
            let fields = value.as_object().unwrap().clone();
            fields.into_iter().collect::<BTreeMap<_, _>>()
        };
        assert_eq!(sorted(&stored["props"]), sorted(&node["props"]));
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_shows_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    for settings in [vec![], vec![("ACTIVEKG_DSN", TestPostgres::shared().database().await)]] {
        let settings: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let app = TestApp::start(Role::Serve, dir.path(), &settings, Some(hash_model())).await;
        let of_acme: Vec<String> = (0..7).map(|i| format!("text {i}")).collect();
        let acme = app.ingest("acme", &of_acme).await;
        // Empty texts have nothing to embed.
        let other = app.ingest("other", &vec![String::new(); 3]).await;
        let counts = app.settled(DEADLINE).await;
        assert_eq!((&counts["ready"], &counts["skipped"]), (&json!(7), &json!(3)));

        let all: Vec<&String> = acme.iter().chain(&other).collect();
        for (query, expected) in [
            ("", all.clone()),
            ("tenant_id=acme", acme.iter().collect()),
            ("tenant_id=other", other.iter().collect()),
            ("tenant_id=nobody", Vec::new()),
            ("has_embedding=true", acme.iter().collect()),
            ("has_embedding=false", other.iter().collect()),
            ("status=ready", acme.iter().collect()),
            ("status=skipped", other.iter().collect()),
            ("status=failed", Vec::new()),
            ("status=ready&tenant_id=other", Vec::new()),
            ("status=skipped&has_embedding=false&tenant_id=other", other.iter().collect()),
        ] {
            let mut seen = Vec::new();
            for offset in (0..12).step_by(4) {
                let page = app.get(&format!("/nodes?{query}&limit=4&offset={offset}")).await.1;
                assert_eq!(page["total"], expected.len(), "{query}: {page}");
                assert_eq!((&page["limit"], &page["offset"]), (&json!(4), &json!(offset)));
                let ids = page["nodes"].as_array().unwrap().iter();
                seen.extend(ids.map(|node| node["id"].as_str().unwrap().to_owned()));
            }
            assert_eq!(seen.len(), expected.len(), "{query}: no node is on two pages");
            let (mut by_cursor, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = app.get(&format!("/nodes?{query}&limit=4{cursor}")).await.1;
                assert_eq!((&page["total_exact"], &page["offset"]), (&json!(true), &json!(0)));
                let ids = page["nodes"].as_array().unwrap().iter();
                by_cursor.extend(ids.map(|node| node["id"].as_str().unwrap().to_owned()));
                let Some(next) = page["next_cursor"].as_str() else { break };
                cursor = format!("&cursor={next}");
            }
            assert_eq!(by_cursor, seen, "{query}");
            assert_eq!(BTreeSet::from_iter(&seen), BTreeSet::from_iter(expected), "{query}");
        }
        let (own, foreign) = (format!("/nodes/{}?tenant_id=acme", acme[0]), "tenant_id=other");
        assert_eq!(app.get(&own).await.0.as_u16(), 200);
        assert_eq!(app.get(&own.replace("tenant_id=acme", foreign)).await.0.as_u16(), 404);
        let counts = app.get("/admin/embedding/status?tenant_id=other").await.1;
        assert_eq!(counts["status_counts"]["ready"], 0, "{counts}");
        assert_eq!(counts["status_counts"]["skipped"], 3, "{counts}");
        app.stop().await;
    }
}
