//! A model that cannot be loaded is refused in one line that says why, and what helps.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tiny_bert;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

/// What would not help: the files are as the model's authors made them.
const IN_VAIN: [&str; 3] = ["fetch the model again", "remove its directory", "models pull"];

/// Starts a server on a model's directory, where errors may have backtraces.
fn serve(directory: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vecmill"))
        .arg("serve")
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"))
        .envs([("RUST_BACKTRACE", "1"), ("RUST_LOG", "error"), ("EMBEDDING_ASYNC", "false")])
        .envs([("VECMILL_BIND", "127.0.0.1:0"), ("HF_HUB_OFFLINE", "1")])
        .env("VECMILL_DATA_DIR", directory.join("data"))
        .env("EMBEDDING_MODEL", directory)
        .output()
        .unwrap()
}

/// The line with which a changed model is refused.
fn refusal(change: impl Fn(&Path)) -> String {
    let directory = tempfile::tempdir().unwrap();
    tiny_bert::write(directory.path(), "mean_tokens");
    change(directory.path());
    let output = serve(directory.path());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let said = said.replace(directory.path().to_str().unwrap(), "DIR");
    println!("{said}");
    said
}

fn rename(from: &'static str, to: &'static str) -> impl Fn(&Path) {
    move |directory| fs::rename(directory.join(from), directory.join(to)).unwrap()
}

fn write(file: &'static str, content: Value) -> impl Fn(&Path) {
    move |directory| fs::write(directory.join(file), content.to_string()).unwrap()
}

fn config(member: &'static str, value: Value) -> impl Fn(&Path) {
    let mut config = tiny_bert::config();
    config[member] = value;
    write("config.json", config)
}

fn assert_says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    for words in IN_VAIN {
        assert!(!said.contains(words), "{words:?} is in {said}");
    }
}

#[test]
fn weights_that_only_others_read_are_named_with_what_converts_them() {
    for file in ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5"] {
        let said = refusal(rename("model.safetensors", file));
        assert_says(&said, &[file, "model.safetensors", "AutoModel", "save_pretrained"]);
    }
    let none = refusal(|directory| fs::remove_file(directory.join("model.safetensors")).unwrap());
    assert_says(&none, &["no weights", "model.safetensors.index.json"]);
}

#[test]
fn a_shard_that_is_missing_or_outside_is_named() {
    let index = |shard: &str| {
        json!({"weight_map": {"embeddings.word_embeddings.weight": shard}}).to_string()
    };
    for (shard, words) in [
        ("model-00001-of-00002.safetensors", "model-00001-of-00002.safetensors is missing"),
        ("../model.safetensors", "outside"),
    ] {
        let said = refusal(|directory| {
            fs::remove_file(directory.join("model.safetensors")).unwrap();
            fs::write(directory.join("model.safetensors.index.json"), index(shard)).unwrap();
        });
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_tokenizer_that_only_others_read_is_named_with_what_converts_it() {
    for file in ["vocab.txt", "sentencepiece.bpe.model", "spiece.model", "vocab.json"] {
        let said = refusal(rename("tokenizer.json", file));
        assert_says(&said, &[file, "tokenizer.json", "AutoTokenizer", "save_pretrained"]);
    }
    let none = refusal(|directory| fs::remove_file(directory.join("tokenizer.json")).unwrap());
    assert_says(&none, &["no tokenizer.json"]);
}

#[test]
fn what_is_computed_otherwise_is_named() {
    let module = |kind: &str| {
        write("modules.json", json!([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    };
    let choose = "choose another EMBEDDING_MODEL";
    let kinds =
        ["sentence_transformers.models.StaticEmbedding", "sentence_transformers.models.CLIPModel"];
    for kind in kinds {
        assert_says(&refusal(module(kind)), &[kind, choose]);
    }
    for activation in ["quick_gelu", "silu", "tanh"] {
        let said = refusal(config("hidden_act", json!(activation)));
        assert_says(&said, &["the activation", activation, "hidden_act", choose]);
    }
    for kind in ["qwen3", "mpnet", "t5", "model2vec"] {
        assert_says(&refusal(config("model_type", json!(kind))), &["architecture", kind, choose]);
    }
    let said =
        refusal(write("config.json", json!({"normalize": true, "embedding_dtype": "float32"})));
    assert_says(&said, &["model_type", choose]);
    let said = refusal(write("1_Pooling/config.json", json!({"pooling_mode": "rms"})));
    assert_says(&said, &["rms", "lasttoken", choose]);
    let sparse = json!({"model_type": "SparseEncoder"});
    assert_says(&refusal(write("config_sentence_transformers.json", sparse)), &["SparseEncoder"]);
    let prompt = json!({"prompts": {"query": "q: "}, "default_prompt_name": "passage"});
    let said = refusal(write("config_sentence_transformers.json", prompt));
    assert_says(&said, &["passage", "default_prompt_name"]);
    let long = json!({"prompts": {"query": "one ".repeat(20)}, "default_prompt_name": "query"});
    let said = refusal(write("config_sentence_transformers.json", long));
    assert_says(&said, &["prompt", "fills all 12 tokens"]);
}

#[test]
fn weights_that_do_not_fit_are_refused_without_a_backtrace() {
    let said = refusal(config("hidden_size", json!(16)));
    assert_says(&said, &["model.safetensors", "shape", "choose another"]);
    let said = refusal(|directory| {
        let one = Tensor::zeros(3, candle_core::DType::F32, &Device::Cpu).unwrap();
        let path = directory.join("model.safetensors");
        candle_core::safetensors::save(&[("other".to_owned(), one)].into(), path).unwrap();
    });
    assert_says(&said, &["embeddings.", "not found"]);
    let said = refusal(|directory| {
        fs::write(directory.join("model.safetensors"), b"version https://git-lfs").unwrap();
    });
    assert_says(&said, &["model.safetensors", "copy it anew"]);
}

#[test]
fn a_directory_that_is_no_model_or_lacks_a_file_says_which() {
    let said = refusal(|directory| {
        fs::remove_file(directory.join("config.json")).unwrap();
        fs::remove_file(directory.join("modules.json")).unwrap();
    });
    assert!(said.contains("config.json is missing"), "{said}");
    let said = refusal(|directory| fs::remove_dir_all(directory.join("1_Pooling")).unwrap());
    assert!(said.contains("1_Pooling/config.json is missing"), "{said}");
    let said = refusal(write("config.json", json!({"model_type": "bert"})));
    assert_says(&said, &["config.json", "vocab_size"]);
}
