//! The committed OpenAPI document is the one that the code makes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

#[test]
fn the_committed_document_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let committed = fs::read_to_string(file).unwrap_or_default();
    assert!(
        committed == vecmill::http::openapi_document(),
        "openapi.json differs from the code: run `vecmill openapi > openapi.json`, and commit it"
    );
}

#[test]
fn every_call_of_the_contract_is_documented_with_its_failures() {
    let document: Value = serde_json::from_str(&vecmill::http::openapi_document()).unwrap();
    let mut ids = BTreeSet::new();
    for (method, path, statuses) in [
        ("post", "/nodes", "200 202 400 403 408 409 413 415 421 422 429 500 503"),
        ("post", "/nodes/batch", "200 202 400 403 408 409 413 415 421 422 429 500 503"),
        ("get", "/nodes", "200 400 421 422 500 503"),
        ("get", "/nodes/{id}", "200 400 404 421 422 500 503"),
        ("patch", "/nodes/{id}", "200 202 400 403 404 408 409 413 415 421 422 429 500 503"),
        ("delete", "/nodes/{id}", "204 400 403 404 408 413 415 421 422 500 503"),
        ("post", "/nodes/{id}/refresh", "200 202 400 403 404 408 413 415 421 422 429 500 503"),
        ("get", "/nodes/by-external-id", "200 400 404 421 422 500 503"),
        ("get", "/nodes/{id}/versions", "200 400 404 421 422 500 503"),
        ("post", "/admin/refresh", "200 400 403 408 413 415 421 422 429 500 503"),
        ("get", "/admin/embedding/status", "200 400 421 422 500 503"),
        ("post", "/admin/embedding/requeue", "200 400 403 408 413 415 421 422 429 500 503"),
        ("get", "/debug/embed_info", "200 400 421 422 503"),
        ("get", "/info", "200 400 421 422 503"),
        ("get", "/health", "200 400 421 422"),
        ("get", "/readyz", "200 400 421 422 503"),
        ("get", "/metrics", "200 400 421 422 503"),
        ("get", "/prometheus", "200 400 421 422 503"),
    ] {
        let call = &document["paths"][path][method];
        let responses = call["responses"].as_object().expect(path);
        let documented: BTreeSet<&str> = responses.keys().map(String::as_str).collect();
        assert_eq!(documented, statuses.split(' ').collect(), "{method} {path}");
        for (status, response) in responses {
            let at = format!("{method} {path} {status}");
            assert_ne!(response["description"], "", "{at}");
            let retry_after = &response["headers"]["Retry-After"];
            assert_eq!(retry_after.is_object(), ["429", "503"].contains(&status.as_str()), "{at}");
        }
        let id = call["operationId"].as_str().expect(path);
        assert!(ids.insert(id.to_owned()), "{id} is used twice");
        assert!(call["summary"].is_string() && call["tags"].is_array(), "{method} {path}");
    }
    let documented: usize = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .map(|path| path.as_object().unwrap().len())
        .sum();
    assert_eq!(documented, ids.len(), "a call is documented that this test does not know");
}

#[test]
fn what_a_request_may_hold_is_closed_and_what_an_answer_holds_is_not() {
    let document: Value = serde_json::from_str(&vecmill::http::openapi_document()).unwrap();
    let schemas = &document["components"]["schemas"];
    for request in ["NewNode", "NewNodes", "NodePatch", "Requeue", "Refresh"] {
        assert_eq!(schemas[request]["additionalProperties"], false, "{request}");
    }
    for answer in ["Node", "NodePage", "RequeueAnswer", "HealthAnswer", "Error"] {
        assert!(schemas[answer]["properties"].is_object(), "{answer}");
        assert!(schemas[answer]["additionalProperties"].is_null(), "{answer}");
    }
    // What is taken as the nearest number has no bounds.
    let parameters = document["paths"]["/nodes"]["get"]["parameters"].as_array().unwrap();
    let limit = parameters.iter().find(|parameter| parameter["name"] == "limit").unwrap();
    assert_eq!(limit["schema"]["default"], 100);
    assert!(limit["schema"]["maximum"].is_null() && limit["schema"]["minimum"].is_null());
}
