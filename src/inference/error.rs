//! Why a model could not be made ready: each message says what to do about it.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{Dtype, Kernel};

/// Why a model could not be located, fetched or loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The name cannot be one.
    #[error(
        "{name:?} is no model: set EMBEDDING_MODEL to a directory, a hub id (OWNER/NAME) or the \
         NAME of a sentence-transformers model"
    )]
    Name {
        /// What was configured.
        name: String,
    },
    /// The model is not on this machine, and the hub must not be asked.
    #[error(
        "the model {name} is neither in {models_dir} nor in the hub cache, and HF_HUB_OFFLINE is \
         set: run `make model`, or `vecmill models pull {name}` without HF_HUB_OFFLINE"
    )]
    Offline {
        /// The model.
        name: String,
        /// Where models are looked for first.
        models_dir: PathBuf,
    },
    /// The hub could not be asked, or refused.
    #[error(
        "the model {name} cannot be fetched from {endpoint}: check the network, HF_ENDPOINT and \
         HF_TOKEN and run `vecmill models pull {name}`, or run `make model`"
    )]
    Hub {
        /// The model.
        name: String,
        /// The hub.
        endpoint: String,
        /// What the hub client says.
        #[source]
        source: Box<hf_hub::HFError>,
    },
    /// The HTTP client cannot be set up.
    #[error("the HTTP client for the hub cannot be set up: check the proxy variables")]
    HttpClient(#[source] reqwest::Error),
    /// The hub is silent.
    #[error(
        "the hub at {endpoint} did not answer within {seconds} s: check the network and \
         HF_ENDPOINT and run `vecmill models pull {name}`, or run `make model`"
    )]
    HubSilent {
        /// The model.
        name: String,
        /// The hub.
        endpoint: String,
        /// How long we waited.
        seconds: u64,
    },
    /// The weights are not those of the catalogue.
    #[error(
        "the weights of {name} have the SHA-256 {actual}, but models/catalog.toml says \
         {expected}: delete {path} and fetch the model again from a hub that you trust"
    )]
    HashMismatch {
        /// The model.
        name: String,
        /// What the catalogue says.
        expected: String,
        /// What was found.
        actual: String,
        /// The weights.
        path: PathBuf,
    },
    /// A file of the model is missing.
    #[error(
        "{path} is missing: set EMBEDDING_MODEL to a whole model, such as \
         `SentenceTransformer.save` writes, or choose another"
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// There are no weights that can be read.
    #[error("{}", no_weights(place, *foreign))]
    NoWeights {
        /// Where they should be: a directory, or a model at the hub.
        place: String,
        /// Weights that are there for other programs.
        foreign: Option<&'static str>,
    },
    /// There is no tokenizer that can be read.
    #[error("{}", no_tokenizer(place, *foreign))]
    NoTokenizer {
        /// Where it should be: a directory, or a model at the hub.
        place: String,
        /// A tokenizer that is there for other programs.
        foreign: Option<&'static str>,
    },
    /// The model says itself that a prompt is there, and it is not.
    #[error("{path} names {what}, but no such prompt is in it: mend the file")]
    Prompt {
        /// The file.
        path: PathBuf,
        /// What it names.
        what: String,
    },
    /// The model's prompt leaves no token for a text.
    #[error(
        "the default prompt in the model's config_sentence_transformers.json fills all \
         {max_tokens} tokens of a text: make it shorter, or choose another EMBEDDING_MODEL"
    )]
    LongPrompt {
        /// Tokens of a text.
        max_tokens: usize,
    },
    /// A file of the model is unreadable.
    #[error("cannot read {path}: check the rights of the file and its disk")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that the hub sent cannot be removed.
    #[error("cannot remove {path}, whose content is not to be trusted: remove it by hand")]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the model is not what it should be.
    #[error(
        "{path} does not describe a model that Vecmill knows: choose another EMBEDDING_MODEL, or, \
         if the file was damaged, copy it anew"
    )]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The tokenizer cannot be built from its file.
    #[error(
        "the tokenizer in {path} cannot be used: choose another EMBEDDING_MODEL, or, if the file \
         was damaged, copy it anew"
    )]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The weights do not fit the configuration.
    #[error(
        "the weights in {path} cannot be loaded as its config.json says: choose another EMBEDDING_MODEL, \
         or, if the file was damaged, remove it and fetch or copy it anew"
    )]
    Weights {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The model is of a kind that would be computed wrongly.
    #[error("{path} asks for {what}, which Vecmill cannot compute: choose another EMBEDDING_MODEL")]
    Unsupported {
        /// The file that says so.
        path: PathBuf,
        /// What it asks for.
        what: String,
    },
    /// The name is not one of a device.
    #[error("EMBEDDING_DEVICE is {0:?}, but must be cpu, cuda, cuda:N or auto")]
    DeviceName(String),
    /// A GPU is asked for, and this program knows none.
    #[error(
        "EMBEDDING_DEVICE is {0:?}, but this program was built without CUDA: build it with \
         `--features cuda`, or set EMBEDDING_DEVICE to cpu or auto"
    )]
    NoCuda(String),
    /// The GPU does not answer.
    #[error("the device {name} cannot be used ({reason}): set EMBEDDING_DEVICE to cpu or auto")]
    Device {
        /// The device.
        name: String,
        /// What the driver says.
        reason: String,
    },
    /// The CPU, or the model, cannot be computed as is asked for.
    #[error(
        "EMBEDDING_KERNEL={} with EMBEDDING_DTYPE={} is not possible here: set one of them, or \
         both, to auto",
        kernel.name(),
        dtype.name()
    )]
    NoKernel {
        /// What was asked for.
        kernel: Kernel,
        /// What was asked for.
        dtype: Dtype,
    },
    /// `models/catalog.toml` was broken when the program was built.
    #[error("models/catalog.toml is not valid: mend it and build again")]
    Catalog(#[source] toml::de::Error),
    /// The loading thread panicked.
    #[error("loading the model {name} panicked: see the lines above, and choose another model")]
    Panicked {
        /// The model.
        name: String,
    },
}

impl LoadError {
    /// Why the weights in `path` cannot be loaded, without a backtrace.
    pub(super) fn weights(path: &Path, error: candle_core::Error) -> Self {
        Self::Weights { path: path.to_owned(), source: plain(error).into() }
    }
}

/// What an error of candle says; its own words may go on with a backtrace.
pub(super) fn plain(error: candle_core::Error) -> String {
    use candle_core::Error::{Context, WithBacktrace, WithPath};
    match error {
        Context { inner, .. } | WithPath { inner, .. } | WithBacktrace { inner, .. } => {
            plain(*inner)
        }
        error => error.to_string().lines().next().unwrap_or_default().to_owned(),
    }
}

/// Says what makes a file that Vecmill reads of one that is there.
fn no_weights(place: &str, foreign: Option<&str>) -> String {
    match foreign {
        Some(file) => format!(
            "{place} has its weights only in {file}, and Vecmill reads model.safetensors: write it \
             with `AutoModel.from_pretrained(DIR).save_pretrained(DIR)` of Python's transformers \
             in a copy of the model and set EMBEDDING_MODEL to it, or choose another EMBEDDING_MODEL"
        ),
        None => format!(
            "{place} has no weights: there is neither model.safetensors nor \
             model.safetensors.index.json; set EMBEDDING_MODEL to a whole model"
        ),
    }
}

fn no_tokenizer(place: &str, foreign: Option<&str>) -> String {
    match foreign {
        Some(file) => format!(
            "{place} has its tokenizer only in {file}, and Vecmill reads tokenizer.json: write it \
             with `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` of Python's \
             transformers in a copy of the model and set EMBEDDING_MODEL to it, or choose another \
             EMBEDDING_MODEL"
        ),
        None => {
            format!("{place} has no tokenizer.json: set EMBEDDING_MODEL to a whole model")
        }
    }
}
