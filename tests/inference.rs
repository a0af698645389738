//! The embedder gives the vectors of sentence-transformers, whatever a text is batched with.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tiny_bert;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use candle_core::{Device, Tensor};
use candle_transformers::models::bert::BertModel;
use serde::Deserialize;
use tokio::sync::OnceCell;
use vecmill::{
    config::Settings,
    domain::batch,
    inference::{
        BackendKind, BackendThread, ComputeConfig, Dtype, EmbedError, Encoding, HubConfig, Kernel,
        LoadError, Model, ModelConfig, encode_all, load,
    },
};

#[derive(Deserialize)]
struct Golden {
    text: String,
    tokens: usize,
    embedding: Vec<f32>,
}

fn golden() -> Vec<Golden> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/all-MiniLM-L6-v2.jsonl");
    let lines = fs::read_to_string(path).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Looks for models in a directory only.
fn config(model: &str, models_dir: PathBuf) -> ModelConfig {
    let hub = HubConfig {
        endpoint: "http://127.0.0.1:9".to_owned(),
        token: None,
        cache_dir: models_dir.join("no-cache"),
        offline: true,
    };
    ModelConfig {
        backend: BackendKind::Model,
        model: model.to_owned(),
        compute: ComputeConfig { dtype: Dtype::F32, ..ComputeConfig::auto() },
        models_dir,
        hub,
    }
}

fn mini_lm_config(dtype: Dtype, kernel: Kernel) -> ModelConfig {
    let models_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let mut config = config("all-MiniLM-L6-v2", models_dir);
    (config.compute.dtype, config.compute.kernel) = (dtype, kernel);
    config
}

async fn mini_lm_with(dtype: Dtype, kernel: Kernel) -> Model {
    load(&mini_lm_config(dtype, kernel)).await.unwrap_or_else(|error| {
        panic!("these tests need the real weights; `make model` fetches them: {error}")
    })
}

/// The default model, loaded once for all tests.
async fn mini_lm() -> &'static Model {
    static MODEL: OnceCell<Model> = OnceCell::const_new();
    MODEL.get_or_init(|| mini_lm_with(Dtype::Auto, Kernel::Auto)).await
}

/// The kernels that this CPU can run, and candle.
fn kernels() -> impl Iterator<Item = Kernel> {
    Kernel::NAMES.into_iter().map(|(_, kernel)| kernel).filter(|kernel| match kernel {
        Kernel::Ours(kernel) => kernel.is_available(),
        Kernel::Auto | Kernel::Candle => true,
    })
}

async fn tiny(pooling: &str) -> (tempfile::TempDir, Model) {
    let directory = tempfile::tempdir().unwrap();
    tiny_bert::write(directory.path(), pooling);
    let name = directory.path().to_str().unwrap();
    let model = load(&config(name, directory.path().to_owned())).await.unwrap();
    (directory, model)
}

fn encode(model: &Model, texts: &[&str]) -> Vec<Encoding> {
    texts.iter().map(|text| model.encoder.encode(text).unwrap()).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[tokio::test]
async fn golden_texts_get_their_token_counts_and_vectors() {
    let model = mini_lm().await;
    let golden = golden();
    assert_eq!(golden.len(), 120);
    let texts: Vec<&str> = golden.iter().map(|entry| entry.text.as_str()).collect();
    let encodings = encode(model, &texts);
    let counts: Vec<usize> = encodings.iter().map(|encoding| encoding.ids.len()).collect();
    let expected: Vec<usize> = golden.iter().map(|entry| entry.tokens).collect();
    assert_eq!(counts, expected);

    for kernel in kernels() {
        let model = mini_lm_with(Dtype::Auto, kernel).await;
        let mut minimum = f64::INFINITY;
        for indices in batch::plan(&counts, batch::Cost::Padded, 2048, 32) {
            let texts: Vec<Encoding> = indices.iter().map(|&i| encodings[i].clone()).collect();
            for (vector, &i) in model.backend.embed(&texts).unwrap().iter().zip(&indices) {
                assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5, "length");
                minimum = minimum.min(cosine(vector, &golden[i].embedding));
            }
        }
        println!("{kernel:?}: minimum cosine to the golden vectors {minimum:.9}");
        let least = if model.computation.dtype == "bf16" { 0.9999 } else { 0.99999 };
        assert!(minimum >= least, "{kernel:?}: {minimum}");
    }
}

#[tokio::test]
async fn kernel_and_type_are_the_operators_choice_or_an_error_that_says_so() {
    for (dtype, kernel) in [(Dtype::F32, Kernel::Auto), (Dtype::Auto, Kernel::Candle)] {
        assert_eq!(mini_lm_with(dtype, kernel).await.computation.dtype, "f32");
    }
    let portable = Kernel::Ours(encoder::Kernel::Portable);
    let model = mini_lm_with(Dtype::F32, portable).await;
    assert_eq!((model.computation.kernel, model.computation.dtype), (portable, "f32"));
    for kernel in [portable, Kernel::Candle] {
        let error = load(&mini_lm_config(Dtype::Bf16, kernel)).await.err().unwrap().to_string();
        for part in ["EMBEDDING_KERNEL", kernel.name(), "EMBEDDING_DTYPE", "bf16"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn the_settings_know_every_kernel_and_type_and_no_other() {
    let kernels = Kernel::NAMES.map(|(name, _)| name);
    let dtypes = Dtype::NAMES.map(|(name, _)| name);
    for (variable, names) in
        [("EMBEDDING_KERNEL", kernels.as_slice()), ("EMBEDDING_DTYPE", dtypes.as_slice())]
    {
        for name in names {
            assert!(Settings::with(&[(variable, name)]).is_ok(), "{variable}={name}");
        }
        let error = Settings::with(&[(variable, "other")]).err().unwrap().to_string();
        assert!(error.ends_with(&format!("use one of {}", names.join(", "))), "{error}");
    }
}

#[tokio::test]
async fn texts_are_tokenised_beside_each_other_as_alone() {
    let model = mini_lm().await;
    let texts: Vec<String> = golden().into_iter().map(|entry| entry.text).collect();
    let alone: Vec<&str> = texts.iter().map(String::as_str).collect();
    let together = encode_all(model.encoder.as_ref(), &texts).into_iter().map(Result::unwrap);
    assert_eq!(together.collect::<Vec<_>>(), encode(model, &alone));
}

#[tokio::test]
async fn the_default_model_is_identified_by_the_catalogue() {
    let model = mini_lm().await;
    assert_eq!(model.name, "all-MiniLM-L6-v2");
    assert_eq!(model.revision, "1110a243fdf4706b3f48f1d95db1a4f5529b4d41");
    assert_eq!((model.max_tokens, model.backend.dimension()), (256, 384));
}

#[tokio::test]
async fn a_text_gets_the_same_vector_alone_and_in_company() {
    let model = mini_lm().await;
    let texts = [
        "short",
        "",
        "a text of a few more words, so that the first is padded",
        &"long ".repeat(400),
    ];
    let encodings = encode(model, &texts);
    let together = model.backend.embed(&encodings).unwrap();
    for (encoding, vector) in encodings.iter().zip(&together) {
        let alone = model.backend.embed(std::slice::from_ref(encoding)).unwrap();
        assert!(largest_difference(&alone[0], vector) < 1e-5);
    }
    assert!(model.backend.embed(&[]).unwrap().is_empty());
}

#[tokio::test]
async fn a_text_is_cut_to_the_maximum_and_says_so() {
    let model = mini_lm().await;
    let words = |count: usize| model.encoder.encode(&"word ".repeat(count)).unwrap();
    let (cls, sep) = (101, 102);
    let full = words(254);
    assert_eq!((full.ids.len(), full.truncated), (256, false));
    for count in [255, 256, 5_000, 100_000] {
        let cut = words(count);
        assert_eq!((cut.ids.len(), cut.truncated), (256, true), "{count} words");
        assert_eq!(cut.ids, full.ids);
        assert_eq!((cut.ids[0], cut.ids[255]), (cls, sep));
    }
    let empty = words(0);
    assert_eq!((empty.ids, empty.truncated), (vec![cls, sep], false));
}

/// Only a part of a long text is tokenised; the tokens must be those of the whole.
#[tokio::test]
async fn a_cut_inside_a_word_does_not_change_the_tokens_that_are_kept() {
    let model = mini_lm().await;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/all-MiniLM-L6-v2/tokenizer.json");
    let mut reference = tokenizers::Tokenizer::from_file(path).unwrap();
    let truncation = tokenizers::TruncationParams { max_length: 256, ..Default::default() };
    reference.with_truncation(Some(truncation)).unwrap().with_padding(None);
    let units = [
        "embarrassingly ",
        "ε",
        "漢字",
        "a.b",
        "x\u{301}",
        "\u{0}\u{200b}",
        "🦀🦀 ",
        "   \t\n",
        "pneumonoultramicroscopicsilicovolcanoconiosis ",
        &"z".repeat(120),
        &format!("{} ", "q".repeat(99)),
    ];
    let mut texts = Vec::new();
    for unit in units {
        for bytes in [3_000, 4_094, 4_096, 4_098, 9_000, 20_000, 70_000] {
            texts.push(unit.repeat(bytes / unit.len() + 1));
        }
    }
    // A word that is one unknown token as a whole, and many known ones where it is cut.
    let long_word = format!("{} ", "z".repeat(300));
    for start in (3_500..4_096).step_by(30) {
        let words = format!("{:<17}", "word").repeat(start / 17);
        texts.push(format!("{words}{long_word}{}", "end ".repeat(300)));
    }
    for text in texts {
        let ours = model.encoder.encode(&text).unwrap();
        let whole = reference.encode(text.as_str(), true).unwrap();
        let start: String = text.chars().take(40).collect();
        assert_eq!(ours.ids, whole.get_ids(), "{start:?}…, {} bytes", text.len());
        assert_eq!(ours.truncated, !whole.get_overflowing().is_empty());
    }
}

#[tokio::test]
async fn ten_megabytes_are_handled_like_any_text() {
    let model = mini_lm().await;
    let size = 10_000_000;
    for (text, tokens) in [
        ("x".repeat(size), 3),
        ("word ".repeat(size / 5), 256),
        ("漢".repeat(size / 3), 256),
        (" ".repeat(size) + "word", 3),
        ("\u{200b}".repeat(size / 3) + "word", 3),
    ] {
        let start = Instant::now();
        let encoding = model.encoder.encode(&text).unwrap();
        println!("{size} bytes: {} tokens in {:?}", encoding.ids.len(), start.elapsed());
        assert_eq!((encoding.ids.len(), encoding.truncated), (tokens, tokens == 256));
        assert_eq!(model.backend.embed(&[encoding]).unwrap().len(), 1);
    }
}

#[tokio::test]
async fn cls_pooling_takes_the_first_tokens_vector() {
    let (directory, model) = tiny("cls_token").await;
    let weights = fs::read(directory.path().join("model.safetensors")).unwrap();
    let builder = candle_nn::VarBuilder::from_buffered_safetensors(
        weights,
        candle_core::DType::F32,
        &Device::Cpu,
    )
    .unwrap();
    let bert =
        BertModel::load(builder, &serde_json::from_value(tiny_bert::config()).unwrap()).unwrap();

    let encodings = encode(&model, &["one two three", "Fours unheard-of"]);
    assert_eq!(encodings[0].ids, [2, 4, 5, 6, 3]);
    assert_eq!(encodings[1].ids, [2, 7, 8, 1, 1, 1, 3]);
    let vectors = model.backend.embed(&encodings).unwrap();
    for (encoding, vector) in encodings.iter().zip(&vectors) {
        let ids = Tensor::new(encoding.ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let hidden = bert.forward(&ids, &ids.zeros_like().unwrap(), None).unwrap();
        let first = hidden.to_vec3::<f32>().unwrap()[0][0].clone();
        assert!(cosine(vector, &first) > 0.999_999);
        assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    }

    let pooling = directory.path().join("1_Pooling/config.json");
    fs::write(pooling, r#"{"pooling_mode_mean_tokens": true}"#).unwrap();
    let name = directory.path().to_str().unwrap();
    let mean = load(&config(name, directory.path().to_owned())).await.unwrap();
    assert_eq!(mean.revision, model.revision);
    let means = mean.backend.embed(&encodings).unwrap();
    assert!(cosine(&means[0], &vectors[0]) < 0.999);
}

#[tokio::test]
async fn a_batch_that_the_model_cannot_take_is_an_error_and_not_a_panic() {
    let (_directory, model) = tiny("mean_tokens").await;
    assert_eq!(model.max_tokens, 12);
    let good = Encoding { ids: vec![2, 4, 3], truncated: false };
    for ids in [vec![], vec![4; 17], vec![2, 9, 3]] {
        let batch = [good.clone(), Encoding { ids, truncated: false }];
        assert!(matches!(model.backend.embed(&batch), Err(EmbedError::Model(_))));
    }
    assert_eq!(model.backend.embed(&[good]).unwrap()[0].len(), tiny_bert::DIMENSION);
}

#[tokio::test]
async fn weights_that_are_not_finite_give_an_error_and_no_vector() {
    let directory = tempfile::tempdir().unwrap();
    tiny_bert::write(directory.path(), "mean_tokens");
    let path = directory.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let name = "embeddings.word_embeddings.weight";
    let nan = Tensor::full(f32::NAN, tensors[name].shape(), &Device::Cpu).unwrap();
    tensors.insert(name.to_owned(), nan);
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let name = directory.path().to_str().unwrap();
    let model = load(&config(name, directory.path().to_owned())).await.unwrap();
    let error = model.backend.embed(&encode(&model, &["one"])).unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
}

#[tokio::test]
async fn a_thread_embeds_for_async_callers() {
    let (_directory, model) = tiny("mean_tokens").await;
    let thread = BackendThread::spawn("embedder-0", Arc::clone(&model.backend)).unwrap();
    let batch = encode(&model, &["one", "two three"]);
    let vectors = thread.submit(batch.clone()).await.unwrap().unwrap();
    assert_eq!(vectors, model.backend.embed(&batch).unwrap());
}

#[tokio::test]
async fn the_hash_backend_needs_no_files() {
    let mut config = config("gone", PathBuf::from("gone"));
    config.backend = BackendKind::Hash;
    let model = load(&config).await.unwrap();
    assert_eq!((model.name.as_str(), model.revision.as_str()), ("hash", "1"));
    assert_eq!((model.max_tokens, model.backend.dimension()), (256, 384));
}

#[tokio::test]
async fn an_error_is_one_line_that_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let models_dir = directory.path().to_owned();
    let failure = async |config: &ModelConfig| {
        let error = load(config).await.err().unwrap();
        assert_eq!(error.to_string().lines().count(), 1);
        error
    };

    let offline = failure(&config("all-MiniLM-L6-v2", models_dir.clone())).await.to_string();
    assert!(offline.contains("make model"), "{offline}");
    assert!(offline.contains("vecmill models pull all-MiniLM-L6-v2"), "{offline}");

    let gone = failure(&config("./no/such/directory", models_dir.clone())).await;
    assert!(matches!(gone, LoadError::Name { .. }));

    let broken = models_dir.join("broken");
    tiny_bert::write(&broken, "mean_tokens");
    fs::write(broken.join("model.safetensors"), b"version https://git-lfs").unwrap();
    let weights = failure(&config("broken", models_dir.clone())).await;
    assert!(matches!(weights, LoadError::Weights { .. }) && weights.source().is_some());

    tiny_bert::write(&broken, "mean_tokens");
    let mut gpu = config("broken", models_dir.clone());
    gpu.compute.device = "gpu".to_owned();
    assert!(matches!(failure(&gpu).await, LoadError::DeviceName(_)));
}
