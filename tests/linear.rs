//! Work on what a stranger sends takes time that is linear in it: two and a half times the time for twice the
//! size, at most, up to the size of a body. Two doublings are looked at together, which may take 6.25 times
//! the time: where a cache ends, one of them alone takes longer.
//!
//! The one file of tests that looks at a clock. Its tests run one at a time, take the least of several runs,
//! and look again before they fail, so that neighbours do not decide it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{
    hint::black_box,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_compression::tokio::write::GzipEncoder;
use common::TestApp;
use reqwest::{
    Method,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use serde_json::{Map, Value, json};
use tokio::{io::AsyncWriteExt, runtime::Runtime};
use vecmill::{
    domain::{Job, NodePatch, patch::Editable},
    inference::{BackendKind, ComputeConfig, HubConfig, ModelConfig, load},
};

/// The size of the largest body.
const MOST_BYTES: usize = 10 << 20;
/// Where the doubling begins.
const LEAST_BYTES: usize = 128 << 10;
/// A size whose work takes long enough to be measured.
const MEASURABLE: Duration = Duration::from_millis(2);
/// Of two doublings.
const FACTOR: f64 = 2.5 * 2.5;
const RUNS: usize = 2;
const LOOKS: usize = 5;

/// No other of these tests runs while this is held.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The least time of some runs; what a run works on is made before the clock starts.
fn time_of<T>(make: &impl Fn() -> T, work: &impl Fn(T)) -> Duration {
    let run = || {
        let input = make();
        let began = Instant::now();
        work(black_box(input));
        began.elapsed()
    };
    (0..RUNS).map(|_| run()).min().unwrap()
}

/// Nothing where the whole takes too little to tell.
fn ratio(whole: Duration, part: Duration) -> f64 {
    if whole > MEASURABLE { whole.as_secs_f64() / part.as_secs_f64() } else { 0.0 }
}

/// Doubles the size, up to that of the largest body.
fn is_linear<T>(name: &str, make: impl Fn(usize) -> T, work: impl Fn(T)) {
    let time = |bytes: usize| time_of(&|| make(bytes), &work);
    let mut times: Vec<Duration> = Vec::new();
    let mut bytes = LEAST_BYTES;
    while bytes <= MOST_BYTES {
        times.push(time(bytes));
        if let [.., quarter, _, whole] = times[..] {
            let mut ratios = vec![ratio(whole, quarter)];
            while ratios.iter().all(|&ratio| ratio > FACTOR) {
                assert!(
                    ratios.len() < LOOKS,
                    "{name}: the time for {bytes} bytes, in times of that for a quarter: {ratios:?}"
                );
                ratios.push(ratio(time(bytes), time(bytes / 4)));
            }
        }
        bytes *= 2;
    }
    println!("{name}: {times:.1?} for {LEAST_BYTES} bytes, twice as many, and so on");
}

/// An object of so many bytes, with short names.
fn object(bytes: usize, value: &Value) -> Map<String, Value> {
    (0..bytes / 16).map(|i| (format!("k{i:08}"), value.clone())).collect()
}

#[test]
fn a_merge_patch_that_removes_adds_and_changes() {
    let _alone = alone();
    for (name, value) in
        [("removes", Value::Null), ("changes", json!(2)), ("nests", json!({"a": null}))]
    {
        is_linear(
            name,
            |bytes| {
                let props = object(bytes, &json!({"a": 1}));
                let patch =
                    NodePatch { props: Some(object(bytes, &value)), ..NodePatch::default() };
                (Editable { props, ..Editable::default() }, patch)
            },
            |(node, patch)| drop(black_box(patch.apply(node))),
        );
    }
}

/// A node whose properties hold `begin`, then `unit` again and again, then `end`.
fn node_of(begin: &str, unit: &str, end: &str, bytes: usize) -> String {
    let middle = unit.repeat(bytes / unit.len());
    format!(r#"{{"classes":["a"],"props":{{"text":"x","v":{begin}{middle}{end}}}}}"#)
}

/// Bodies that are refused at their very end, so that all of them is looked at, and no database.
#[test]
fn a_body_that_is_refused_at_its_end() {
    let _alone = alone();
    let runtime = Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let settings = [("EMBEDDING_ASYNC", "false")];
    let app = runtime.block_on(TestApp::serve(dir.path(), &settings));
    let (client, url) = (reqwest::Client::new(), format!("{}/nodes", app.url()));
    let post = |body: String| {
        let request = client.post(&url).header(CONTENT_TYPE, "application/json").body(body);
        let status = runtime.block_on(request.send()).unwrap().status().as_u16();
        assert!(status == 422 || status == 400, "{status}");
    };
    let nul = r#""\u0000""#;
    for (name, begin, unit, end) in [
        ("arrays of one", "[", "[0],", &*format!("{nul}]")),
        ("objects of one", "[", r#"{"a":0},"#, &*format!("{nul}]")),
        ("nested once more", "[", "[[[[]]]],", &*format!("{nul}]")),
        ("numbers", "[", "0.1234567890123456789e10,", &*format!("{nul}]")),
        ("one string", "\"", "ü", "\\u0000\""),
        ("escapes", "\"", "\\u00fc\\n", "\\u0000\""),
        ("white space", "[", "\n \t", &*format!("{nul}]")),
        ("never closed", "[", "[0],", ""),
    ] {
        is_linear(name, |bytes| node_of(begin, unit, end, bytes - 100), post);
    }
    let members = |bytes: usize, last: &str| {
        let members: String = (0..bytes / 16).map(|i| format!(r#""k{i:08}":0,"#)).collect();
        format!(r#"{{"classes":["a"],"props":{{{members}{last}}}}}"#)
    };
    is_linear("members", |bytes| members(bytes, &format!(r#""z":{nul}"#)), post);
    is_linear("a member twice", |bytes| members(bytes, r#""k00000000":1"#), post);
    is_linear(
        "fields that are not known",
        |bytes| members(bytes, r#""z":0"#).replacen(r#""props":{"#, r#""prop":{"#, 1),
        post,
    );

    let gzip = |body: String| {
        runtime.block_on(async {
            let mut encoder = GzipEncoder::new(Vec::new());
            encoder.write_all(body.as_bytes()).await.unwrap();
            encoder.shutdown().await.unwrap();
            encoder.into_inner()
        })
    };
    is_linear(
        "gzip",
        |bytes| gzip(node_of("[", "[0],", &format!("{nul}]"), bytes - 100)),
        |body| {
            let request = client.post(&url).header(CONTENT_TYPE, "application/json");
            let request = request.header(CONTENT_ENCODING, "gzip").body(body);
            assert_eq!(runtime.block_on(request.send()).unwrap().status().as_u16(), 422);
        },
    );
    let to = |path: &str| format!("{}{path}", app.url());
    let node = "/nodes/00000000-0000-4000-8000-000000000000";
    for (name, method, url, begin, unit, end) in [
        (
            "a batch",
            Method::POST,
            to("/nodes/batch"),
            r#"{"nodes":["#,
            r#"{"classes":["a"]},"#,
            "0]}",
        ),
        ("a patch", Method::PATCH, to(node), r#"{"metadata":["#, "[0],", r#"0],"other":0}"#),
        (
            "a requeue",
            Method::POST,
            to("/admin/embedding/requeue"),
            r#"{"node_ids":["#,
            "[0],",
            "0]}",
        ),
        ("a refresh", Method::POST, to("/admin/refresh"), r#"{"node_ids":["#, "[0],", "0]}"),
    ] {
        let make =
            |bytes: usize| format!("{begin}{}{end}", unit.repeat((bytes - 100) / unit.len()));
        is_linear(name, make, |body| {
            let request = client.request(method.clone(), &url);
            let request = request.header(CONTENT_TYPE, "application/json").body(body);
            let status = runtime.block_on(request.send()).unwrap().status().as_u16();
            assert!([404, 422].contains(&status), "{status}");
        });
    }
    runtime.block_on(app.stop());
}

#[test]
fn entries_of_other_producers() {
    let _alone = alone();
    for (name, unit) in [("arrays", "[0],"), ("escapes", r#""\u0000","#), ("numbers", "1e-9,")] {
        let entry = |bytes: usize| {
            let many = unit.repeat(bytes / unit.len());
            format!(r#"{{"node_id":"00000000-0000-4000-8000-000000000000","more":[{many}0]}}"#)
        };
        let decode = |entry: String| assert!(black_box(Job::decode(entry.as_bytes())).is_ok());
        is_linear(&format!("an entry of {name}"), entry, decode);
    }
}

/// Texts of the kinds that tokenizers take long for.
#[test]
fn texts_of_any_kind() {
    let _alone = alone();
    let models_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let hub = HubConfig {
        endpoint: "http://127.0.0.1:9".to_owned(),
        token: None,
        cache_dir: models_dir.join("no-cache"),
        offline: true,
    };
    let config = ModelConfig {
        backend: BackendKind::Model,
        model: "all-MiniLM-L6-v2".to_owned(),
        compute: ComputeConfig::auto(),
        models_dir,
        hub,
    };
    let model = Runtime::new().unwrap().block_on(load(&config)).unwrap_or_else(|error| {
        panic!("this test needs the real weights; `make model` fetches them: {error}")
    });
    for (name, unit) in [
        ("words", "seven quiet mills "),
        ("one word", "ha"),
        ("white space", " \n\t"),
        ("no white space at all", "\u{200b}"),
        ("marks", "e\u{301}\u{302}"),
        ("marks alone", "\u{301}"),
        ("Han", "漢"),
        ("punctuation", "!?.,"),
        ("special tokens", "[PAD][SEP]"),
        ("half of one", "[[[[[PAD"),
    ] {
        is_linear(
            &format!("a text of {name}"),
            |bytes| unit.repeat(bytes / unit.len()),
            |text| assert!(black_box(model.encoder.encode(&text)).is_ok()),
        );
    }
}
