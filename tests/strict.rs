//! A request means what it says, or is refused: nothing in it is passed over in silence.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[allow(dead_code)]
#[path = "bad_input/support.rs"]
mod support;

use async_compression::tokio::write::GzipEncoder;
use reqwest::{Method, Response, header::CONTENT_ENCODING, header::CONTENT_TYPE};
use serde_json::{Value, json};
use support::{Api, Case, TEXT};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

/// Bytes of a body at most in these tests.
const LIMIT: usize = 10_485_760;

/// Every call of the document, with the id of a node that is not there: method, path.
fn calls() -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(&vecmill::http::openapi_document()).unwrap();
    let mut calls = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{id}", &Uuid::nil().to_string());
            calls.push((method.to_uppercase(), path));
        }
    }
    assert!(calls.len() > 10, "{calls:?}");
    calls
}

fn node(text: &str) -> Value {
    json!({"classes": ["Doc"], "props": {"text": text}})
}

async fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzipEncoder::new(Vec::new());
    encoder.write_all(bytes).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

async fn post(api: &Api, encoding: &str, body: Vec<u8>) -> Response {
    let request = api.client.post(format!("{}/nodes", api.app.url()));
    let request = request.header(CONTENT_TYPE, "application/json");
    request.header(CONTENT_ENCODING, encoding).body(body).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_that_a_call_does_not_know_is_refused_by_each() {
    let api = Api::on(None).await;
    let mut cases = Vec::new();
    for (method, path) in calls() {
        let call = format!("{method} {path}?surely_unknown=1");
        cases.push(Case::new(&call, "", 422, "surely_unknown: is not known"));
    }
    for page in ["/docs", "/openapi.json"] {
        cases.push(Case::new(&format!("GET {page}?a=1"), "", 422, "a: is not known"));
    }
    let nearest = [
        ("tenant=acme", "tenant: is not known, did you mean tenant_id?"),
        ("tenantId=acme", "tenantId: is not known, did you mean tenant_id?"),
        ("limits=7", "limits: is not known, did you mean limit?"),
        ("has_embeding=false", "has_embeding: is not known, did you mean has_embedding?"),
        ("limit=7&state=failed", "state: is not known, did you mean status?"),
        ("%74enant=acme", "tenant: is not known, did you mean tenant_id?"),
        ("x&limit=7", "x: is not known"),
        ("tenant_id=%ff", "tenant_id: must be UTF-8"),
        ("tenant_id=a%C3", "tenant_id: must be UTF-8"),
        ("%ff=1", "%ff: must be UTF-8"),
    ];
    for (query, detail) in nearest {
        cases.push(Case::new(&format!("GET /nodes?{query}"), "", 422, detail));
    }
    api.refuses(cases).await;
    // A method that there is not is told as that, and a path that there is not as that.
    let others = [("PUT /nodes?tenant=acme", 405, "GET, HEAD, POST"), ("GET /no?a=1", 404, "path")];
    api.refuses(others.map(|(call, status, detail)| Case::new(call, "", status, detail)).into())
        .await;
    api.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_body_is_of_another_kind_is_refused_also_where_none_is_wanted() {
    let api = Api::on(None).await;
    let known = api.app.get("/nodes?limit=1").await.1["nodes"][0]["id"].clone();
    let known = known.as_str().unwrap();
    let mut cases = Vec::new();
    for (method, path) in calls().into_iter().filter(|(method, _)| method != "GET") {
        let path = path.replace(&Uuid::nil().to_string(), known);
        for content_type in
            ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data"]
        {
            for body in ["", "tenant_id=acme", "{}"] {
                let call = format!("{method} {path}");
                let case = Case::new(&call, body, 415, "Content-Type: application/json");
                cases.push(Case { content_type, ..case });
            }
        }
    }
    assert!(cases.len() >= 7 * 9, "{}", cases.len());
    // A body that does not say what it is.
    for call in [format!("POST /nodes/{known}/refresh"), format!("DELETE /nodes/{known}")] {
        let case = Case::new(&call, "{}", 415, "Content-Type: application/json");
        cases.push(Case { content_type: "", ..case });
    }
    api.refuses(cases).await;
    api.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_where_none_is_wanted_says_nothing_or_is_refused() {
    let api = Api::on(None).await;
    let known = api.app.get("/nodes?limit=1").await.1["nodes"][0]["id"].clone();
    let refresh = format!("POST /nodes/{}/refresh", known.as_str().unwrap());
    let delete = format!("DELETE /nodes/{}", known.as_str().unwrap());
    let mut cases = Vec::new();
    for call in [&refresh, &delete] {
        let other = json!({"tenant_id": "other"});
        cases.push(Case::json(call, &other, 422, "tenant_id: is not known"));
        cases.push(Case::json(call, &json!([1]), 422, "body: must be an object"));
        cases.push(Case::new(call, "{", 400, "the body is not JSON"));
    }
    api.refuses(cases).await;
    let path = refresh.strip_prefix("POST ").unwrap();
    assert_eq!(api.app.post(path, &json!({})).await.0.as_u16(), 202);
    api.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_by_gzip_is_read_within_the_limit() {
    let api = Api::on(None).await;
    let body = node(TEXT).to_string();
    for encoding in ["gzip", "GZIP", "x-gzip"] {
        let response = post(&api, encoding, gzip(body.as_bytes()).await).await;
        assert_eq!(response.status().as_u16(), 202, "{encoding}");
        let answer: Value = response.json().await.unwrap();
        let stored = api.app.node(answer["id"].as_str().unwrap()).await;
        assert_eq!(stored["props"]["text"], TEXT, "{encoding}");
    }
    assert_eq!(post(&api, "identity", body.clone().into()).await.status().as_u16(), 202);
    // In two parts, which are one text.
    let (first, second) = body.as_bytes().split_at(9);
    let parts = [gzip(first).await, gzip(second).await].concat();
    assert_eq!(post(&api, "gzip", parts).await.status().as_u16(), 202);

    let before = api.contents().await;
    let whole = gzip(body.as_bytes()).await;
    let cut = whole[..whole.len() - 4].to_vec();
    let bomb = gzip(&vec![b' '; 100 * LIMIT]).await;
    assert!(bomb.len() < LIMIT / 4, "{}", bomb.len());
    let just_too_large = [body.as_bytes(), &vec![b' '; LIMIT + 1 - body.len()]].concat();
    for (name, sent, status) in [
        ("a bomb", bomb, 413),
        ("one byte too much", gzip(&just_too_large).await, 413),
        ("cut off", cut, 400),
        ("followed by something else", [whole.as_slice(), b"more"].concat(), 400),
        ("not gzip", body.clone().into_bytes(), 400),
        ("nothing", Vec::new(), 400),
        ("gzip of nothing", gzip(b"").await, 400),
    ] {
        let response = post(&api, "gzip", sent).await;
        assert_eq!(response.status().as_u16(), status, "{name}");
        assert!(!response.text().await.unwrap().contains(TEXT), "{name}");
        assert_eq!(api.contents().await, before, "{name}");
    }
    for encoding in ["br", "deflate", "zstd", "gzip, gzip", "identity, gzip", ""] {
        let response = post(&api, encoding, gzip(body.as_bytes()).await).await;
        assert_eq!(response.status().as_u16(), 415, "{encoding:?}");
        let said: Value = response.json().await.unwrap();
        assert!(said["detail"].as_str().unwrap().contains("gzip"), "{encoding}: {said}");
    }
    assert_eq!(api.contents().await, before);
    // What just fits is taken.
    let fits = [body.as_bytes(), &vec![b' '; LIMIT - body.len()]].concat();
    assert_eq!(post(&api, "gzip", gzip(&fits).await).await.status().as_u16(), 202);
    api.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_order_mark_before_a_body_means_nothing() {
    let api = Api::on(None).await;
    let with_mark = |text: String| [b"\xef\xbb\xbf".as_slice(), text.as_bytes()].concat();
    let send = async |path: &str, body: Vec<u8>| {
        let request = api.client.post(format!("{}{path}", api.app.url()));
        let request = request.header(CONTENT_TYPE, "application/json; charset=utf-8");
        request.body(body).send().await.unwrap().status().as_u16()
    };
    assert_eq!(send("/nodes", with_mark(node("x").to_string())).await, 202);
    assert_eq!(send("/admin/embedding/requeue", with_mark("{}".to_owned())).await, 200);
    assert_eq!(send("/nodes", with_mark(format!("\u{feff}{}", node("x")))).await, 400);
    assert_eq!(send("/nodes", with_mark(String::new())).await, 400);
    api.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slash_at_the_end_of_a_path_means_nothing() {
    let api = Api::on(None).await;
    let pages = ["/docs", "/openapi.json"].map(|page| ("GET".to_owned(), page.to_owned()));
    for (method, path) in calls().into_iter().chain(pages) {
        let method: Method = method.parse().unwrap();
        let mut answers = Vec::new();
        for path in [path.clone(), format!("{path}/")] {
            let request = api.client.request(method.clone(), format!("{}{path}", api.app.url()));
            answers.push(request.send().await.unwrap().status().as_u16());
        }
        assert_eq!(answers[0], answers[1], "{method} {path}");
    }
    assert_eq!(api.app.get("/nodes/?limit=1&tenant_id=acme").await.1["total"], 2);
    let nodes = json!({"nodes": [node("a"), node("b")]});
    assert_eq!(api.app.post("/nodes/batch/", &nodes).await.1["created"], 2);
    api.app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_repeats_little_of_what_was_sent() {
    let api = Api::on(None).await;
    let long = "k".repeat(3 << 20);
    let with = |name: &str, value: Value| {
        let mut node = node(TEXT);
        node[name] = value;
        node
    };
    let bodies = [
        with(&long, json!(1)),
        with("props", json!({(&long): "\0"})),
        with("props", json!({(&long): [{(&long): "\0"}]})),
        with("metadata", json!([[{(&long): {"\0": 1}}]])),
    ];
    for body in &bodies {
        let (status, answer) = api.app.post("/nodes", body).await;
        let detail = answer["detail"].as_str().unwrap();
        assert_eq!(status.as_u16(), 422, "{}", &detail[..200]);
        assert!(detail.len() < 1000, "{} characters", detail.len());
        let (_, answer) = api.app.post("/nodes/batch", &json!({"nodes": [body]})).await;
        let error = answer["results"][0]["error"].as_str().unwrap();
        assert!(error.len() < 1000, "{} characters", error.len());
    }
    let (status, answer) = api.app.get(&format!("/nodes?{}=1", "k".repeat(30_000))).await;
    assert_eq!(status.as_u16(), 422);
    assert!(answer["detail"].as_str().unwrap().len() < 1000);
    api.app.stop().await;
}
