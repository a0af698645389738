//! What sentence-transformers keeps beside a network: how long a text may be, the text before it,
//! and how much of a vector is kept.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{LoadError, json};

/// How long a text may be; the first that is there counts, and none may be.
pub(super) const SENTENCE_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];
/// How long a text may be, where [`SENTENCE_CONFIGS`] do not say; may be absent.
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Prompts and dimension; may be absent.
pub(super) const MODEL_CONFIG: &str = "config_sentence_transformers.json";

/// What a model says of the texts that it takes.
#[derive(Default)]
pub(super) struct Limits {
    /// Texts are cut to this many tokens; none where no file says so.
    pub(super) max_tokens: Option<usize>,
    /// What is done to texts before they are tokenised.
    pub(super) casing: Casing,
}

/// What is done to texts, besides what the tokenizer's own file says.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Casing {
    /// Whether they are lower-cased first.
    pub(super) lowercase: bool,
    /// What a tokenizer of BERT does otherwise than its file says.
    pub(super) bert: BertRules,
}

/// How a tokenizer of BERT is to see texts, where [`TOKENIZER_CONFIG`] says so.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct BertRules {
    pub(super) do_lower_case: Option<bool>,
    pub(super) strip_accents: Option<bool>,
    pub(super) tokenize_chinese_chars: Option<bool>,
}

/// Tokenizers that transformers builds by [`BertRules`]; it takes others as their file has them.
/// One without a name is that of its network.
const OF_BERT: [&str; 4] =
    ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast"];

#[derive(Default, Deserialize)]
#[serde(default)]
struct SentenceConfig {
    max_seq_length: Option<Value>,
    do_lower_case: bool,
    transformer_task: Option<String>,
    #[serde(alias = "tokenizer_args")]
    processor_kwargs: Map<String, Value>,
}

impl Limits {
    /// Reads the limits in the directory of a network; only a model `with_modules` has settings
    /// of sentence-transformers there.
    pub(super) fn read(directory: &Path, with_modules: bool) -> Result<Self, LoadError> {
        let mut settings = SentenceConfig::default();
        for file in SENTENCE_CONFIGS.into_iter().filter(|_| with_modules) {
            let path = directory.join(file);
            if let Some(found) = json::read_optional::<SentenceConfig>(&path)? {
                if let Some(task) = &found.transformer_task
                    && task != "feature-extraction"
                {
                    let what = format!("the task {task:?}");
                    return Err(LoadError::Unsupported { path, what });
                }
                settings = found;
                break;
            }
        }
        let path = directory.join(TOKENIZER_CONFIG);
        let failed = |source| LoadError::Json { path: path.clone(), source };
        let tokenizer = json::read_optional::<Map<String, Value>>(&path)?;
        let own =
            settings.processor_kwargs.get("model_max_length").or(settings.max_seq_length.as_ref());
        let tokenizers = tokenizer.as_ref().and_then(|tokenizer| {
            tokenizer.get("model_max_length").or_else(|| tokenizer.get("max_len"))
        });
        let is_of_bert = |tokenizer: &&Map<String, Value>| {
            let class = tokenizer.get("tokenizer_class").and_then(Value::as_str);
            class.is_none_or(|class| OF_BERT.contains(&class))
        };
        let rules = tokenizer.as_ref().filter(is_of_bert);
        let rules = rules.map(|rules| serde_json::from_value(Value::Object(rules.clone())));
        Ok(Self {
            max_tokens: own.or(tokenizers).and_then(length),
            casing: Casing {
                lowercase: settings.do_lower_case,
                bert: rules.transpose().map_err(failed)?.unwrap_or_default(),
            },
        })
    }
}

/// A number of tokens. Libraries write 10³⁰ where they know none.
fn length(value: &Value) -> Option<usize> {
    let number = value.as_f64()?;
    (number < f64::from(u32::MAX)).then_some(number.max(0.0) as usize)
}

/// Texts that a model may want before each of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompts {
    /// The names of all.
    pub names: Vec<String>,
    /// The name of the one that is put before each text.
    pub default: Option<String>,
    /// Its text, or nothing.
    pub text: String,
}

/// What a model says of all its vectors.
#[derive(Default)]
pub(super) struct Whole {
    pub(super) prompts: Prompts,
    /// So many components of a vector are kept, from the first.
    pub(super) truncate_dim: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ModelConfig {
    model_type: Option<String>,
    prompts: Map<String, Value>,
    default_prompt_name: Option<String>,
    truncate_dim: Option<Value>,
}

impl Whole {
    /// Reads them in a model's directory.
    pub(super) fn read(directory: &Path) -> Result<Self, LoadError> {
        let path = directory.join(MODEL_CONFIG);
        let Some(config) = json::read_optional::<ModelConfig>(&path)? else {
            return Ok(Self::default());
        };
        let unsupported = |what| LoadError::Unsupported { path: path.clone(), what };
        if let Some(kind) = config.model_type.filter(|kind| kind != "SentenceTransformer") {
            return Err(unsupported(format!("a {kind}, not a SentenceTransformer")));
        }
        let text = match config.default_prompt_name.as_deref() {
            None | Some("") => String::new(),
            Some(name) => match config.prompts.get(name) {
                Some(Value::String(text)) => text.clone(),
                // Every model of sentence-transformers has these, and they are empty.
                None if ["query", "document"].contains(&name) => String::new(),
                _ => {
                    let what = format!("the prompt {name:?} (default_prompt_name)");
                    return Err(LoadError::Prompt { path, what });
                }
            },
        };
        let truncate_dim = match config.truncate_dim {
            None => None,
            Some(value) => match value.as_u64() {
                Some(count) if count > 0 => Some(count as usize),
                _ => return Err(unsupported(format!("{value} components (truncate_dim)"))),
            },
        };
        Ok(Self {
            prompts: Prompts {
                names: config.prompts.keys().cloned().collect(),
                default: config.default_prompt_name.filter(|name| !name.is_empty()),
                text,
            },
            truncate_dim,
        })
    }
}
