//! The files of a sentence-transformers model, and what their JSON says.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use encoder::{Activation, Architecture, Family, Pooling};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::LoadError;

/// Shape of the network.
pub(super) const CONFIG: &str = "config.json";
/// The tokenizer.
pub(super) const TOKENIZER: &str = "tokenizer.json";
/// The weights.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// Which steps turn a text into a vector; may be absent.
pub(super) const MODULES: &str = "modules.json";
/// How long a text may be; may be absent.
pub(super) const SENTENCE_CONFIG: &str = "sentence_bert_config.json";
/// How token vectors are pooled, where [`MODULES`] does not say otherwise; may be absent.
pub(super) const DEFAULT_POOLING: &str = "1_Pooling/config.json";

/// What the JSON files of a model say.
pub(super) struct ModelSettings {
    /// Shape of the network.
    pub(super) architecture: Architecture,
    /// The whole of [`CONFIG`].
    pub(super) config: Value,
    /// How token vectors become the text's.
    pub(super) pooling: Pooling,
    /// Texts are cut to this many tokens.
    pub(super) max_tokens: usize,
    /// Whether texts are lower-cased before they are tokenised.
    pub(super) lowercase: bool,
}

impl ModelSettings {
    /// Reads the settings in a model's directory.
    pub(super) fn read(directory: &Path) -> Result<Self, LoadError> {
        let (architecture, config) = read_architecture(&directory.join(CONFIG))?;
        let sentence: SentenceConfig = match read_text(&directory.join(SENTENCE_CONFIG))? {
            Some(text) => parse(&directory.join(SENTENCE_CONFIG), &text)?,
            None => SentenceConfig::default(),
        };
        let most = architecture.max_tokens();
        Ok(Self {
            pooling: read_pooling(directory)?,
            max_tokens: sentence.max_seq_length.map_or(most, |length| length.min(most)),
            lowercase: sentence.do_lower_case,
            architecture,
            config,
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
    do_lower_case: bool,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Where a model says how it pools, relative to its directory; `None` when its `modules.json`
/// does not name the step, or there is no such file.
pub(super) fn pooling_file(directory: &Path) -> Result<Option<String>, LoadError> {
    let path = directory.join(MODULES);
    let Some(text) = read_text(&path)? else { return Ok(None) };
    let mut pooling = None;
    for module in parse::<Vec<Module>>(&path, &text)? {
        match module.kind.rsplit('.').next() {
            Some("Transformer") if module.path.is_empty() => {}
            Some("Normalize") => {}
            Some("Pooling") if stays_inside(&module.path) => {
                pooling = Some(format!("{}/config.json", module.path));
            }
            _ => {
                let what = format!("the module {:?} in {:?}", module.kind, module.path);
                return Err(LoadError::Unsupported { path, what });
            }
        }
    }
    Ok(pooling)
}

/// The files of a model are fetched into its directory, and read there.
fn stays_inside(path: &str) -> bool {
    let mut parts = Path::new(path).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn read_pooling(directory: &Path) -> Result<Pooling, LoadError> {
    let named = pooling_file(directory)?;
    let path = directory.join(named.as_deref().unwrap_or(DEFAULT_POOLING));
    let text = match read_text(&path)? {
        Some(text) => text,
        None if named.is_none() => return Ok(Pooling::Mean),
        None => return Err(LoadError::Read { path, source: io::ErrorKind::NotFound.into() }),
    };
    let settings: Map<String, Value> = parse(&path, &text)?;
    let modes: Vec<&str> = settings
        .iter()
        .filter(|(_, on)| **on == Value::Bool(true))
        .filter_map(|(name, _)| name.strip_prefix("pooling_mode_"))
        .collect();
    match modes[..] {
        ["mean_tokens"] => Ok(Pooling::Mean),
        ["cls_token"] => Ok(Pooling::Cls),
        _ => {
            let what = format!("the pooling {modes:?}, not mean_tokens or cls_token alone");
            Err(LoadError::Unsupported { path, what })
        }
    }
}

/// What `config.json` says of a network; each number has one name in BERT and RoBERTa, and
/// another in DistilBERT.
#[derive(Deserialize)]
struct Shape {
    vocab_size: usize,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(alias = "activation")]
    hidden_act: Value,
    /// DistilBERT has it in its code.
    #[serde(default = "distilbert_epsilon")]
    layer_norm_eps: f64,
    max_position_embeddings: usize,
    type_vocab_size: Option<usize>,
    pad_token_id: Option<usize>,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

fn distilbert_epsilon() -> f64 {
    1e-12
}

fn read_architecture(path: &Path) -> Result<(Architecture, Value), LoadError> {
    let text = read_text(path)?.ok_or_else(|| LoadError::Read {
        path: path.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    })?;
    let unsupported = |what| Err(LoadError::Unsupported { path: path.to_owned(), what });
    let config: Value = parse(path, &text)?;
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("bert");
    let family = match kind {
        "bert" => Family::Bert,
        "roberta" | "xlm-roberta" | "camembert" => Family::Roberta,
        "distilbert" => Family::DistilBert,
        _ => {
            return unsupported(format!(
                "the architecture {kind:?}, not \"bert\", \"roberta\", \"xlm-roberta\", \
                 \"camembert\" or \"distilbert\""
            ));
        }
    };
    let shape: Shape = parse(path, &text)?;
    if let Some(kind) = shape.position_embedding_type.filter(|kind| kind != "absolute") {
        return unsupported(format!("{kind:?} positions, not \"absolute\""));
    }
    let heads = shape.num_attention_heads;
    if heads == 0 || !shape.hidden_size.is_multiple_of(heads) {
        return unsupported(format!("{heads} heads over {} components", shape.hidden_size));
    }
    let architecture = Architecture {
        family,
        vocabulary: shape.vocab_size,
        hidden: shape.hidden_size,
        layers: shape.num_hidden_layers,
        heads,
        inner: shape.intermediate_size,
        activation: serde_json::from_value::<Activation>(shape.hidden_act).ok(),
        epsilon: shape.layer_norm_eps,
        positions: shape.max_position_embeddings,
        // Where a file leaves them out, it means what transformers takes for its family.
        first_position: match family {
            Family::Roberta => shape.pad_token_id.unwrap_or(1) + 1,
            Family::Bert | Family::DistilBert => 0,
        },
        token_types: match family {
            Family::Bert | Family::Roberta => shape.type_vocab_size.unwrap_or(2),
            Family::DistilBert => 0,
        },
    };
    Ok((architecture, config))
}

/// A file's text, or `None` when there is no such file.
fn read_text(path: &Path) -> Result<Option<String>, LoadError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LoadError::Read { path: path.to_owned(), source }),
    }
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, LoadError> {
    serde_json::from_str(text)
        .map_err(|source| LoadError::Json { path: PathBuf::from(path), source })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use serde_json::json;

    use super::*;

    fn directory(files: &[(&str, Value)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let bert = json!({
            "vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 8, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
            "max_position_embeddings": 64, "type_vocab_size": 2, "initializer_range": 0.02,
            "layer_norm_eps": 1e-12, "pad_token_id": 0, "model_type": "bert"
        });
        for (name, content) in [(CONFIG, bert)].iter().chain(files) {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content.to_string()).unwrap();
        }
        directory
    }

    fn refusal(files: &[(&str, Value)]) -> String {
        ModelSettings::read(directory(files).path()).err().unwrap().to_string()
    }

    #[test]
    fn absent_files_mean_the_mean_over_all_positions() {
        let settings = ModelSettings::read(directory(&[]).path()).unwrap();
        assert_eq!((settings.pooling, settings.max_tokens), (Pooling::Mean, 64));
        assert!(!settings.lowercase);
    }

    #[test]
    fn the_files_decide_on_pooling_length_and_case() {
        let files = [
            (
                MODULES,
                json!([{"path": "", "type": "sentence_transformers.models.Transformer"},
                {"path": "2_P", "type": "sentence_transformers.models.Pooling"}]),
            ),
            (
                "2_P/config.json",
                json!({"pooling_mode_cls_token": true,
                "pooling_mode_mean_tokens": false, "include_prompt": true}),
            ),
            (SENTENCE_CONFIG, json!({"max_seq_length": 32, "do_lower_case": true})),
        ];
        let settings = ModelSettings::read(directory(&files).path()).unwrap();
        assert_eq!((settings.pooling, settings.max_tokens), (Pooling::Cls, 32));
        assert!(settings.lowercase);
        let long = [(SENTENCE_CONFIG, json!({"max_seq_length": 4096}))];
        assert_eq!(ModelSettings::read(directory(&long).path()).unwrap().max_tokens, 64);
    }

    #[test]
    fn what_would_be_computed_wrongly_is_refused() {
        let module = |kind: &str, path: &str| (MODULES, json!([{"path": path, "type": kind}]));
        assert!(refusal(&[module("a.Dense", "2_Dense")]).contains("a.Dense"));
        assert!(refusal(&[module("a.Pooling", "../1_Pooling")]).contains("../1_Pooling"));
        assert!(refusal(&[module("a.Pooling", "1_Pooling")]).contains("1_Pooling/config.json"));
        let pooling = |modes| (DEFAULT_POOLING, modes);
        assert!(
            refusal(&[pooling(json!({"pooling_mode_max_tokens": true}))]).contains("max_tokens")
        );
        assert!(refusal(&[pooling(json!({}))]).contains("mean_tokens"));
        assert!(refusal(&[(CONFIG, json!({"model_type": "t5"}))]).contains("t5"));
    }
}
