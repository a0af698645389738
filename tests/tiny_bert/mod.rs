//! A BERT of a few kilobytes with made-up weights, as the files of a sentence-transformers model.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarMap;
use candle_transformers::models::bert::{BertModel, Config};
use serde_json::{Value, json};

/// Components of its vectors.
pub const DIMENSION: usize = 8;

/// The words that it knows; the id of a word is its place.
pub const WORDS: [&str; 9] =
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "four", "##s"];

/// Its `config.json`.
pub fn config() -> Value {
    json!({
        "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": DIMENSION,
        "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "max_position_embeddings": 16,
        "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0
    })
}

/// Writes a model with the pooling `mean_tokens` or `cls_token` into a directory.
pub fn write(directory: &Path, pooling: &str) {
    let vocabulary: HashMap<&str, usize> =
        WORDS.iter().enumerate().map(|(id, word)| (*word, id)).collect();
    let special = |name: &str| json!({"id": name, "ids": [vocabulary[name]], "tokens": [name]});
    let part = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [part("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, part("[SEP]")],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"[CLS]": special("[CLS]"), "[SEP]": special("[SEP]")}},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary}
    });
    let modules = json!([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    ]);
    fs::create_dir_all(directory.join("1_Pooling")).unwrap();
    for (file, content) in [
        ("config.json", config()),
        ("tokenizer.json", tokenizer),
        ("modules.json", modules),
        ("1_Pooling/config.json", json!({format!("pooling_mode_{pooling}"): true})),
        ("sentence_bert_config.json", json!({"max_seq_length": 12, "do_lower_case": false})),
    ] {
        fs::write(directory.join(file), content.to_string()).unwrap();
    }
    weights().save(directory.join("model.safetensors")).unwrap();
}

/// Weights without a pattern, the same in every run, asked for by the model itself and so of the
/// right names and shapes. Biases are 0 and norms 1, so that each text has its own vector.
fn weights() -> VarMap {
    let weights = VarMap::new();
    let builder = candle_nn::VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
    let config: Config = serde_json::from_value(config()).unwrap();
    BertModel::load(builder, &config).unwrap();
    for (name, variable) in weights.data().lock().unwrap().iter() {
        let phase = name.bytes().fold(0.0, |phase, byte| phase * 1.1 + f32::from(byte)) % 100.0;
        let value = |index: usize| match variable.rank() {
            1 if name.ends_with("bias") => 0.0,
            1 => 1.0,
            _ => ((index + 1) as f32 * 12.9898 + phase).sin(),
        };
        let values: Vec<f32> = (0..variable.elem_count()).map(value).collect();
        variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    weights
}
