//! A model's directory gives the vectors that sentence-transformers gives, whichever version saved
//! it. What that library computes is in `architectures/models.json`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "architectures/made_up.rs"]
mod made_up;

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
};

use made_up::{kernels, load_with, tensor};
use serde::Deserialize;
use serde_json::{Value, json};
use vecmill::inference::{Encoding, Kernel, Model};

#[derive(Deserialize)]
struct Reference {
    /// By family; each text is pieces, and how often each stands there.
    texts: HashMap<String, Vec<Vec<(String, usize)>>>,
    /// By family.
    shapes: HashMap<String, HashMap<String, Vec<usize>>>,
    contents: Vec<Value>,
    models: Vec<Saved>,
}

#[derive(Deserialize)]
struct Saved {
    name: String,
    family: String,
    max_tokens: usize,
    /// Each the number of its content.
    files: HashMap<String, usize>,
    vectors: Vec<Vec<f32>>,
}

impl Reference {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/architectures/models.json");
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    fn model(&self, name: &str) -> &Saved {
        self.models.iter().find(|model| model.name == name).unwrap()
    }

    /// Writes the files of a model, and its weights into `shards` files.
    fn write(&self, model: &Saved, directory: &Path, shards: usize) {
        for (file, content) in &model.files {
            let path = directory.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, self.contents[*content].to_string()).unwrap();
        }
        let is_below = model.files.contains_key("0_Transformer/config.json");
        let network = directory.join(if is_below { "0_Transformer" } else { "" });
        let mut names: Vec<&String> = self.shapes[&model.family].keys().collect();
        names.sort();
        let file = |shard| match shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
        };
        let mut map = json!({});
        for shard in 0..shards {
            let own = names.iter().enumerate().filter(|(number, _)| number % shards == shard);
            let tensors: HashMap<String, _> = own
                .map(|(_, name)| {
                    map[name.as_str()] = file(shard).into();
                    ((*name).clone(), tensor(name, &self.shapes[&model.family][*name]))
                })
                .collect();
            candle_core::safetensors::save(&tensors, network.join(file(shard))).unwrap();
        }
        if shards > 1 {
            let index = json!({"metadata": {}, "weight_map": map}).to_string();
            fs::write(network.join("model.safetensors.index.json"), index).unwrap();
        }
    }

    fn texts(&self, model: &Saved) -> Vec<String> {
        let whole = |text: &Vec<(String, usize)>| {
            text.iter().map(|(piece, count)| piece.repeat(*count)).collect()
        };
        self.texts[&model.family].iter().map(whole).collect()
    }
}

fn encode(model: &Model, texts: &[String]) -> Vec<Encoding> {
    texts.iter().map(|text| model.encoder.encode(text).unwrap()).collect()
}

fn assert_alike(model: &Model, saved: &Saved, batch: &[Encoding]) {
    let name = &saved.name;
    assert_eq!(model.max_tokens, saved.max_tokens, "{name}");
    assert_eq!(model.backend.dimension(), saved.vectors[0].len(), "{name}");
    let least = if model.computation.dtype == "bf16" { 0.999 } else { 0.999_99 };
    let mut minimum = f32::INFINITY;
    for (number, (encoding, expected)) in batch.iter().zip(&saved.vectors).enumerate() {
        let alone = model.backend.embed(std::slice::from_ref(encoding)).unwrap();
        let cosine: f32 = alone[0].iter().zip(expected).map(|(a, b)| a * b).sum();
        let kernel = model.computation.kernel;
        assert!(cosine >= least, "{name}, text {number}, {kernel:?}: {cosine}");
        minimum = minimum.min(cosine);
    }
    println!("{name}, {:?}: minimum cosine {minimum:.7}", model.computation.kernel);
    let together = model.backend.embed(batch).unwrap();
    for (number, (vector, expected)) in together.iter().zip(&saved.vectors).enumerate() {
        let cosine: f32 = vector.iter().zip(expected).map(|(a, b)| a * b).sum();
        assert!(cosine >= least, "{name}, text {number} in a batch: {cosine}");
    }
}

#[tokio::test]
async fn every_model_gives_the_vectors_of_sentence_transformers() {
    let reference = Reference::read();
    for saved in &reference.models {
        let directory = tempfile::tempdir().unwrap();
        reference.write(saved, directory.path(), 1);
        let texts = reference.texts(saved);
        let mut batch = None;
        for kernel in kernels() {
            let model = load_with(directory.path(), kernel, 1).await.unwrap();
            let batch = batch.get_or_insert_with(|| encode(&model, &texts));
            assert_alike(&model, saved, batch);
        }
    }
}

#[tokio::test]
async fn weights_may_be_in_several_files() {
    let reference = Reference::read();
    for (name, shards) in [("saved", 2), ("roberta", 5), ("0-transformer", 3)] {
        let saved = reference.model(name);
        let directory = tempfile::tempdir().unwrap();
        reference.write(saved, directory.path(), shards);
        for kernel in [Kernel::Auto, Kernel::Candle] {
            let model = load_with(directory.path(), kernel, 1).await.unwrap();
            assert_alike(&model, saved, &encode(&model, &reference.texts(saved)));
        }
    }
}

/// A vector that was made with another prompt or of another length is another model's, although
/// the weights are the same.
#[tokio::test]
async fn prompt_and_dimension_are_part_of_what_identifies_a_vector() {
    let reference = Reference::read();
    let mut seen = BTreeSet::new();
    for name in ["saved", "prompt", "prompt-merges", "prompt-left-out-mean", "truncated"] {
        let directory = tempfile::tempdir().unwrap();
        reference.write(reference.model(name), directory.path(), 1);
        let model = load_with(directory.path(), Kernel::Auto, 1).await.unwrap();
        assert!(seen.insert(model.revision.clone()), "{name}: {}", model.revision);
    }
    let directory = tempfile::tempdir().unwrap();
    reference.write(reference.model("prompt-empty"), directory.path(), 1);
    let unchanged = load_with(directory.path(), Kernel::Auto, 1).await.unwrap();
    assert!(seen.contains(&unchanged.revision), "an empty prompt changes nothing");
}

#[tokio::test]
async fn a_model_says_how_it_pools_and_which_prompts_it_has() {
    let reference = Reference::read();
    for (name, pooling, default, normalises) in [
        ("list", vec!["mean", "max"], None, true),
        ("truncated-prompt", vec!["mean"], Some("passage"), false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        reference.write(reference.model(name), directory.path(), 1);
        let says = load_with(directory.path(), Kernel::Auto, 1).await.unwrap().description;
        assert_eq!((says.pooling, says.normalises), (pooling, normalises));
        assert_eq!(says.prompts.default.as_deref(), default);
        let names: BTreeSet<&str> = says.prompts.names.iter().map(String::as_str).collect();
        assert_eq!(names, BTreeSet::from(["query", default.unwrap_or("document")]));
    }
}
