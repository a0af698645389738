//! The shape of the network: `config.json`.

use std::path::Path;

use encoder::{Activation, Architecture, Family};
use serde::Deserialize;
use serde_json::Value;

use super::{LoadError, candle, json};

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
    #[serde(alias = "activation", default = "gelu")]
    hidden_act: Value,
    #[serde(default = "epsilon")]
    layer_norm_eps: f64,
    max_position_embeddings: usize,
    type_vocab_size: Option<usize>,
    pad_token_id: Option<usize>,
    position_embedding_type: Option<String>,
}

fn gelu() -> Value {
    "gelu".into()
}

/// DistilBERT has it in its code, and it is what the others take.
fn epsilon() -> f64 {
    1e-12
}

/// Reads a network's shape, and the whole of its file. Fails on what would be computed wrongly.
pub(super) fn read(path: &Path) -> Result<(Architecture, Value), LoadError> {
    let unsupported = |what| LoadError::Unsupported { path: path.to_owned(), what };
    let config: Value = json::read(path)?;
    let family = family(&config).map_err(unsupported)?;
    let shape: Shape = serde_json::from_value(config.clone())
        .map_err(|source| LoadError::Json { path: path.to_owned(), source })?;
    if let Some(kind) = shape.position_embedding_type.filter(|kind| kind != "absolute") {
        return Err(unsupported(format!("{kind:?} positions, not \"absolute\"")));
    }
    let heads = shape.num_attention_heads;
    if heads == 0 || !shape.hidden_size.is_multiple_of(heads) {
        return Err(unsupported(format!("{heads} heads over {} components", shape.hidden_size)));
    }
    let activation = serde_json::from_value::<Activation>(shape.hidden_act.clone()).ok();
    if activation.is_none() && !candle::has_activation(family, &shape.hidden_act) {
        return Err(unsupported(format!("the activation {} (hidden_act)", shape.hidden_act)));
    }
    // Where a file leaves them out, it means what transformers takes for its family.
    let padding = match family {
        Family::Roberta => Some(shape.pad_token_id.unwrap_or(1)),
        Family::Bert | Family::DistilBert => None,
    };
    let architecture = Architecture {
        family,
        vocabulary: shape.vocab_size,
        hidden: shape.hidden_size,
        layers: shape.num_hidden_layers,
        heads,
        inner: shape.intermediate_size,
        activation,
        epsilon: shape.layer_norm_eps,
        positions: shape.max_position_embeddings,
        first_position: padding.map_or(0, |padding| padding + 1),
        padding: padding.map(|padding| padding as u32),
        token_types: match family {
            Family::Bert | Family::Roberta => shape.type_vocab_size.unwrap_or(2),
            Family::DistilBert => 0,
        },
    };
    Ok((architecture, config))
}

/// The family of a network, or what it is instead.
fn family(config: &Value) -> Result<Family, String> {
    let kind = match config.get("model_type").and_then(Value::as_str) {
        Some(kind) => kind,
        // The first checkpoints do not say what they are.
        None if config.get("hidden_size").is_some() => "bert",
        None => return Err("an architecture that it does not name (model_type)".to_owned()),
    };
    Ok(match kind {
        "bert" => Family::Bert,
        "roberta" | "xlm-roberta" | "camembert" => Family::Roberta,
        "distilbert" => Family::DistilBert,
        _ => {
            return Err(format!(
                "the architecture {kind:?}, not \"bert\", \"roberta\", \"xlm-roberta\", \
                 \"camembert\" or \"distilbert\""
            ));
        }
    })
}
