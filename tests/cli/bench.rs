//! `vecmill bench` says what it measured, in one object on the last line.

use std::fs;

use crate::{support::*, tiny_bert};

/// A model, and a corpus with one text a line.
fn set_up(lines: &[&str]) -> (tempfile::TempDir, String, String) {
    let directory = tempfile::tempdir().unwrap();
    let (model, corpus) = (directory.path().join("model"), directory.path().join("corpus.jsonl"));
    tiny_bert::write(&model, "mean_tokens");
    fs::write(&corpus, lines.join("\n")).unwrap();
    let name = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let (model, corpus) = (name(&model), name(&corpus));
    (directory, model, corpus)
}

#[tokio::test]
async fn it_measures_a_corpus_and_compares_with_the_reference() {
    let (_directory, model, corpus) = set_up(&[
        r#"{"text": "one two"}"#,
        "",
        r#"{"classes": ["a"], "props": {"content": "three four"}}"#,
        r#"{"props": {"name": "no text"}}"#,
        r#"{"text": "beyond the limit"}"#,
    ]);
    let environment = [
        ("EMBEDDING_MODEL", model.as_str()),
        ("EMBEDDING_DTYPE", "f32"),
        ("EMBEDDING_THREADS", "2"),
    ];
    let arguments = ["bench", "--corpus", &corpus, "--limit", "2", "--rounds", "2", "--verify"];
    let arguments = [&arguments[..], &["--latency", "--json"]].concat();
    let report = run_in(&environment, &arguments).await.json();
    for (name, expected) in [("texts", 2), ("tokens", 8), ("threads", 2)] {
        assert_eq!(report[name], expected, "{report}");
    }
    assert_eq!(report["dtype"], "f32");
    for name in ["seconds", "tokens_per_s", "texts_per_s", "load_seconds", "p50_ms", "p99_ms"] {
        assert!(report[name].as_f64().unwrap() > 0.0, "{name} in {report}");
    }
    for name in ["min_cosine", "mean_cosine"] {
        assert!((report[name].as_f64().unwrap() - 1.0).abs() < 1e-5, "{name} in {report}");
    }
}

#[tokio::test]
async fn a_corpus_without_texts_or_with_a_broken_line_is_an_error_that_says_so() {
    for (line, said) in [(r#"{"props": {}}"#, "give a corpus with texts"), ("{", "line 1")] {
        let (_directory, model, corpus) = set_up(&[line]);
        let environment = [("EMBEDDING_MODEL", model.as_str())];
        let ended = run_in(&environment, &["bench", "--corpus", &corpus]).await;
        ended.assert_one_line(&[said]);
    }
}
