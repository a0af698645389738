//! Every architecture on every kernel gives the vectors of the transformers library, alone and in
//! a batch. What that library computes is in `architectures/reference.json`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "architectures/made_up.rs"]
mod made_up;
mod tiny_bert;

use std::{collections::HashMap, fs, path::Path, sync::Barrier, thread};

use candle_core::Tensor;
use made_up::{kernels, load_with, tensor};
use serde::Deserialize;
use serde_json::Value;
use vecmill::inference::{Encoding, Kernel, LoadError, Model};

#[derive(Deserialize)]
struct Reference {
    texts: Vec<Vec<u32>>,
    models: HashMap<String, ReferenceModel>,
}

#[derive(Deserialize)]
struct ReferenceModel {
    config: Value,
    shapes: HashMap<String, Vec<usize>>,
    vectors: Vec<Vec<f32>>,
}

fn reference() -> Reference {
    let path = "tests/architectures/reference.json";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Writes a model, its tensors under `prefix`.
fn write(directory: &Path, model: &ReferenceModel, prefix: &str) {
    tiny_bert::write(directory, "mean_tokens");
    fs::write(directory.join("config.json"), model.config.to_string()).unwrap();
    let tensors: HashMap<String, Tensor> = model
        .shapes
        .iter()
        .map(|(name, shape)| (format!("{prefix}{name}"), tensor(name, shape)))
        .collect();
    candle_core::safetensors::save(&tensors, directory.join("model.safetensors")).unwrap();
}

fn assert_alike(model: &Model, texts: &[Vec<u32>], expected: &[Vec<f32>], name: &str) {
    // GELU by tanh is farther from the other than that.
    let (least, most) = match model.computation.dtype {
        "bf16" => (0.9995, 0.05),
        _ => (0.999_999, 2e-5),
    };
    let batch: Vec<Encoding> =
        texts.iter().map(|ids| Encoding { ids: ids.clone(), truncated: false }).collect();
    let alone = batch.iter().map(|text| model.backend.embed(std::slice::from_ref(text)).unwrap());
    for vectors in [alone.flatten().collect(), model.backend.embed(&batch).unwrap()] {
        for (number, (vector, expected)) in vectors.iter().zip(expected).enumerate() {
            let cosine: f32 = vector.iter().zip(expected).map(|(a, b)| a * b).sum();
            let kernel = model.computation.kernel;
            assert!(cosine >= least, "{name}, text {number}, {kernel:?}: {cosine}");
            let difference = vector.iter().zip(expected).map(|(a, b)| (a - b).abs());
            let largest = difference.fold(0.0, f32::max);
            assert!(largest <= most, "{name}, text {number}, {kernel:?}: {largest}");
        }
        assert_eq!(vectors.len(), expected.len());
    }
}

#[tokio::test]
async fn every_architecture_gives_the_vectors_of_transformers() {
    let Reference { texts, models } = reference();
    assert_eq!(models.len(), 7);
    for (name, model) in &models {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), model, "");
        for kernel in kernels() {
            for threads in [1, 3] {
                match load_with(directory.path(), kernel, threads).await {
                    Ok(loaded) => assert_alike(&loaded, &texts, &model.vectors, name),
                    // Candle's has another GELU, and is not used.
                    Err(LoadError::Unsupported { .. }) => {
                        assert_eq!((name.as_str(), kernel), ("distilbert", Kernel::Candle));
                    }
                    // Our kernels have not all activations.
                    Err(LoadError::NoKernel { .. }) => {
                        assert!(["bert-tanh", "roberta-silu"].contains(&name.as_str()));
                        assert!(matches!(kernel, Kernel::Ours(_)), "{kernel:?}");
                    }
                    Err(error) => panic!("{name}: {error}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn callers_that_meet_get_the_same_vectors() {
    let Reference { texts, models } = reference();
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &models["bert"], "");
    let model = load_with(directory.path(), Kernel::Auto, 2).await.unwrap();
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                for _ in 0..20 {
                    assert_alike(&model, &texts, &models["bert"].vectors, "bert");
                }
            });
        }
    });
}

#[tokio::test]
async fn an_encoder_is_found_inside_a_larger_model() {
    let Reference { texts, models } = reference();
    for (name, prefix) in [
        ("bert", "bert."),
        ("roberta", "roberta."),
        ("xlm-roberta", "roberta."),
        ("distilbert", "distilbert."),
    ] {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &models[name], prefix);
        let model = load_with(directory.path(), Kernel::Auto, 2).await.unwrap();
        assert_alike(&model, &texts, &models[name].vectors, name);
    }
}

#[tokio::test]
async fn a_text_that_is_too_long_or_foreign_is_refused_and_the_next_is_embedded() {
    let Reference { texts, models } = reference();
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &models["roberta"], "");
    for kernel in kernels() {
        let model = load_with(directory.path(), kernel, 2).await.unwrap();
        for ids in [vec![], vec![5; 43], vec![5, 50]] {
            let text = Encoding { ids, truncated: false };
            assert!(model.backend.embed(&[text]).is_err(), "{kernel:?}");
        }
        assert_alike(&model, &texts, &models["roberta"].vectors, "roberta");
    }
}
