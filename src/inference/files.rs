//! The files of a model's directory, and what they say together.

use std::path::{Path, PathBuf};

use encoder::{Architecture, Mode, Pooling};
use serde_json::Value;

use super::{
    LoadError,
    modules::{self, Layout},
    sentence::{Casing, Limits, Prompts, Whole},
    shape,
    tokenizer::ModelTokenizer,
};

/// Shape of the network.
pub(super) const CONFIG: &str = "config.json";
/// The tokenizer.
pub(super) const TOKENIZER: &str = "tokenizer.json";

/// What the JSON files of a model say.
pub(super) struct ModelSettings {
    /// Shape of the network.
    pub(super) architecture: Architecture,
    /// The whole of [`CONFIG`].
    pub(super) config: Value,
    /// How token vectors become the text's. Which tokens of the prompt are passed over, only the
    /// tokenizer knows.
    pub(super) pooling: Pooling,
    /// Whether the tokens of the prompt are pooled too.
    pub(super) include_prompt: bool,
    /// Texts are cut to this many tokens.
    pub(super) max_tokens: usize,
    /// What is done to texts before they are tokenised.
    pub(super) casing: Casing,
    /// What may stand before each text.
    pub(super) prompts: Prompts,
    /// Whether the model's own steps end with vectors of length 1.
    pub(super) normalises: bool,
    /// Components of each vector.
    pub(super) dimension: usize,
    /// The directory of network and tokenizer.
    pub(super) transformer: PathBuf,
}

impl ModelSettings {
    /// Reads the settings in a model's directory.
    pub(super) fn read(directory: &Path) -> Result<Self, LoadError> {
        let layout = Layout::read(directory)?;
        let transformer = match layout.transformer.as_str() {
            "" => directory.to_owned(),
            path => directory.join(path),
        };
        let (architecture, config) = shape::read(&transformer.join(CONFIG))?;
        let limits = Limits::read(&transformer, layout.pooling.is_some())?;
        let (pooling, include_prompt, whole) = match &layout.pooling {
            Some(file) => {
                let (pooling, include_prompt) = modules::read_pooling(&directory.join(file))?;
                (pooling, include_prompt, Whole::read(directory)?)
            }
            // What sentence-transformers makes of a network by itself.
            None => (Pooling::of(Mode::Mean), true, Whole::default()),
        };
        let most = architecture.max_tokens();
        let components = architecture.hidden * pooling.modes.len();
        Ok(Self {
            pooling,
            include_prompt,
            max_tokens: limits.max_tokens.map_or(most, |length| length.min(most)),
            casing: limits.casing,
            prompts: whole.prompts,
            normalises: layout.normalises,
            dimension: whole.truncate_dim.map_or(components, |kept| kept.min(components)),
            architecture,
            config,
            transformer,
        })
    }

    /// Builds the tokenizer, and learns from it which tokens the pooling passes over.
    pub(super) fn tokenizer(&mut self) -> Result<ModelTokenizer, LoadError> {
        let path = self.transformer.join(TOKENIZER);
        let tokenizer =
            ModelTokenizer::from_file(&path, self.max_tokens, self.casing, &self.prompts.text)?;
        if !self.include_prompt {
            self.pooling.skipped = tokenizer.prompt_tokens();
        }
        Ok(tokenizer)
    }

    /// Whether vectors are not what the network alone would give: texts have a prompt, or
    /// components are left out.
    pub(super) fn is_adapted(&self) -> bool {
        let components = self.architecture.hidden * self.pooling.modes.len();
        !self.prompts.text.is_empty() || self.dimension < components
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::fs;

    use serde_json::json;

    use super::super::{
        modules::MODULES,
        sentence::{MODEL_CONFIG, SENTENCE_CONFIGS, TOKENIZER_CONFIG},
    };
    use super::*;

    const POOLING: &str = "1_Pooling/config.json";

    fn directory(files: &[(&str, Value)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let bert = json!({
            "vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 8, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
            "max_position_embeddings": 64, "type_vocab_size": 2, "initializer_range": 0.02,
            "layer_norm_eps": 1e-12, "pad_token_id": 0, "model_type": "bert"
        });
        let modules = json!([
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
        ]);
        let own = [(CONFIG, bert), (MODULES, modules), (POOLING, json!({}))];
        for (name, content) in own.iter().chain(files) {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content.to_string()).unwrap();
        }
        directory
    }

    fn read(files: &[(&str, Value)]) -> ModelSettings {
        ModelSettings::read(directory(files).path()).unwrap()
    }

    fn refusal(files: &[(&str, Value)]) -> String {
        ModelSettings::read(directory(files).path()).err().unwrap().to_string()
    }

    #[test]
    fn a_network_by_itself_is_pooled_by_the_mean_over_all_positions() {
        let directory = directory(&[(POOLING, json!({"pooling_mode": "cls"}))]);
        fs::remove_file(directory.path().join(MODULES)).unwrap();
        fs::write(directory.path().join(SENTENCE_CONFIGS[0]), r#"{"max_seq_length": 9}"#).unwrap();
        let settings = ModelSettings::read(directory.path()).unwrap();
        assert_eq!((settings.pooling.modes, settings.max_tokens), (vec![Mode::Mean], 64));
        assert!(!settings.casing.lowercase && !settings.normalises);
    }

    #[test]
    fn pooling_is_read_as_each_version_of_sentence_transformers_writes_it() {
        let modes = |content| read(&[(POOLING, content)]).pooling.modes;
        assert_eq!(modes(json!({})), [Mode::Mean]);
        assert_eq!(modes(json!({"pooling_mode_cls_token": true})), [Mode::Cls]);
        let new = json!({"embedding_dimension": 4, "pooling_mode": "max", "include_prompt": true});
        assert_eq!(modes(new), [Mode::Max]);
        assert_eq!(modes(json!({"pooling_mode": ["mean"]})), [Mode::Mean]);
        assert_eq!(
            modes(json!({"pooling_mode": ["lasttoken", "cls"]})),
            [Mode::LastToken, Mode::Cls]
        );
        let both = json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true,
            "pooling_mode": null});
        let settings = read(&[(POOLING, both)]);
        assert_eq!(settings.pooling.modes, [Mode::Cls, Mode::Mean], "in the order of their names");
        assert_eq!(settings.dimension, 8);
        assert!(refusal(&[(POOLING, json!({"pooling_mode": "rms"}))]).contains("rms"));
        assert!(
            refusal(&[(POOLING, json!({"pooling_mode_rms": true}))]).contains("pooling_mode_rms")
        );
    }

    #[test]
    fn the_length_is_the_sentence_configs_or_the_tokenizers() {
        let tokens = |files: &[(&str, Value)]| read(files).max_tokens;
        let tokenizer = |length: Value| (TOKENIZER_CONFIG, json!({"model_max_length": length}));
        for file in SENTENCE_CONFIGS {
            let settings = json!({"max_seq_length": 32, "do_lower_case": null});
            assert_eq!(tokens(&[(file, settings), tokenizer(json!(9))]), 32, "{file}");
        }
        let silent = || (SENTENCE_CONFIGS[0], json!({"max_seq_length": null}));
        assert_eq!(tokens(&[silent(), tokenizer(json!(9))]), 9);
        assert_eq!(tokens(&[tokenizer(json!(512))]), 64);
        assert_eq!(tokens(&[tokenizer(json!(1e30))]), 64);
        assert_eq!(tokens(&[tokenizer(Value::Null)]), 64);
        assert_eq!(tokens(&[(TOKENIZER_CONFIG, json!({"max_len": 7}))]), 7);
        let sentinel = "{\"model_max_length\": 1000000000000000019884624838656}";
        let directory = directory(&[]);
        fs::write(directory.path().join(TOKENIZER_CONFIG), sentinel).unwrap();
        assert_eq!(ModelSettings::read(directory.path()).unwrap().max_tokens, 64);
        let own = json!({"max_seq_length": 32, "tokenizer_args": {"model_max_length": 11}});
        assert_eq!(tokens(&[(SENTENCE_CONFIGS[0], own)]), 11);
    }

    #[test]
    fn what_is_null_is_as_absent() {
        let (architecture, _) = shape::read(
            &directory(&[(
                CONFIG,
                json!({"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "intermediate_size": 8, "hidden_act": null,
                    "max_position_embeddings": 64, "type_vocab_size": null,
                    "layer_norm_eps": null, "pad_token_id": null, "model_type": "roberta",
                    "position_embedding_type": null}),
            )])
            .path()
            .join(CONFIG),
        )
        .unwrap();
        assert_eq!((architecture.padding, architecture.first_position), (Some(1), 2));
        let settings = read(&[
            (SENTENCE_CONFIGS[0], json!({"max_seq_length": 12, "do_lower_case": null})),
            (POOLING, json!({"pooling_mode": "cls", "include_prompt": null})),
            (
                MODEL_CONFIG,
                json!({"prompts": null, "default_prompt_name": null,
                "truncate_dim": null, "model_type": null}),
            ),
        ]);
        assert!(!settings.casing.lowercase && settings.include_prompt && !settings.is_adapted());
    }

    #[test]
    fn prompts_and_dimension_are_the_models_own() {
        let config = json!({"prompts": {"query": "query: ", "passage": "passage: "},
            "default_prompt_name": "passage", "truncate_dim": 3});
        let settings = read(&[(MODEL_CONFIG, config)]);
        assert_eq!(settings.prompts.names, ["query", "passage"]);
        assert_eq!(settings.prompts.text, "passage: ");
        assert_eq!(settings.dimension, 3);
        let long = read(&[(MODEL_CONFIG, json!({"truncate_dim": 9}))]);
        assert_eq!((long.dimension, long.is_adapted()), (4, false));
        let unknown = json!({"prompts": {"query": "q"}, "default_prompt_name": "other"});
        assert!(refusal(&[(MODEL_CONFIG, unknown)]).contains("other"));
        let empty = json!({"prompts": {}, "default_prompt_name": "query"});
        assert!(!read(&[(MODEL_CONFIG, empty)]).is_adapted());
        assert!(refusal(&[(MODEL_CONFIG, json!({"truncate_dim": 0}))]).contains("truncate_dim"));
    }

    #[test]
    fn what_would_be_computed_wrongly_is_refused() {
        let modules = |kinds: &[(&str, &str)]| {
            let module = |(kind, path): &(&str, &str)| json!({"path": path, "type": kind});
            (MODULES, Value::from_iter(kinds.iter().map(module)))
        };
        let (transformer, pooling) = (("a.Transformer", ""), ("a.Pooling", "1_Pooling"));
        let refused = |kinds: &[(&str, &str)]| refusal(&[modules(kinds)]);
        assert!(refused(&[transformer, pooling, ("a.Dense", "2_Dense")]).contains("a.Dense"));
        assert!(refused(&[("a.StaticEmbedding", "")]).contains("a.StaticEmbedding"));
        assert!(refused(&[transformer, ("a.Pooling", "../1")]).contains("../1"));
        assert!(refused(&[("a.Transformer", "../0"), pooling]).contains("../0"));
        assert!(refused(&[transformer, ("a.Pooling", "2")]).contains("2/config.json"));
        assert!(refused(&[transformer]).contains("Pooling"));
        assert!(refused(&[transformer, pooling, pooling]).contains("a.Pooling"));
        let config = |changed: Value| {
            let mut config = read(&[]).config;
            config.as_object_mut().unwrap().extend(changed.as_object().unwrap().clone());
            refusal(&[(CONFIG, config)])
        };
        assert!(config(json!({"model_type": "t5"})).contains("t5"));
        let activation = config(json!({"hidden_act": "quick_gelu"}));
        assert!(activation.contains("the activation \"quick_gelu\""), "{activation}");
        let bare = refusal(&[(CONFIG, json!({"normalize": true}))]);
        assert!(bare.contains("model_type"), "{bare}");
        let sparse = refusal(&[(MODEL_CONFIG, json!({"model_type": "SparseEncoder"}))]);
        assert!(sparse.contains("SparseEncoder"), "{sparse}");
    }
}
