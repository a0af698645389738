//! Which steps turn a text into a vector: `modules.json`, and the pooling's own file.

use std::path::{Component, Path};

use encoder::{Mode, Pooling};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{LoadError, json};

/// Which steps turn a text into a vector; may be absent.
pub(super) const MODULES: &str = "modules.json";

/// Where the parts of a model are.
pub(super) struct Layout {
    /// The directory of network and tokenizer, relative to the model's; mostly empty.
    pub(super) transformer: String,
    /// The file that says how token vectors are pooled, relative to the model's directory; none
    /// where there is no [`MODULES`], and so no settings of sentence-transformers.
    pub(super) pooling: Option<String>,
    /// Whether the model's own steps end with vectors of length 1.
    pub(super) normalises: bool,
}

#[derive(Deserialize)]
struct Module {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Layout {
    /// Reads [`MODULES`] in a model's directory.
    pub(super) fn read(directory: &Path) -> Result<Self, LoadError> {
        let path = directory.join(MODULES);
        let Some(modules) = json::read_optional::<Vec<Module>>(&path)? else {
            return Ok(Self { transformer: String::new(), pooling: None, normalises: false });
        };
        let unsupported = |what| LoadError::Unsupported { path: path.clone(), what };
        let (mut transformer, mut pooling, mut normalises) = (None, None, false);
        for Module { path, kind } in modules {
            let step = (kind.rsplit('.').next(), transformer.is_some(), pooling.is_some());
            match step {
                (Some("Transformer"), false, false) if path.is_empty() || stays_inside(&path) => {
                    transformer = Some(path);
                }
                (Some("Pooling"), true, false) if stays_inside(&path) => {
                    pooling = Some(format!("{path}/config.json"));
                }
                (Some("Normalize"), true, true) => normalises = true,
                // It drops something while a model is trained only.
                (Some("Dropout"), true, true) => {}
                _ => return Err(unsupported(format!("the module {kind:?} in {path:?}"))),
            }
        }
        let steps = transformer.zip(pooling);
        let (transformer, pooling) = steps
            .ok_or_else(|| unsupported("modules without a Transformer and a Pooling".into()))?;
        Ok(Self { transformer, pooling: Some(pooling), normalises })
    }
}

/// The files of a model are fetched into its directory, and read there.
pub(super) fn stays_inside(path: &str) -> bool {
    let mut parts = Path::new(path).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// What sentence-transformers calls each mode: now, and in a file with one member a mode.
const MODES: [(&str, &str, Mode); 6] = [
    ("cls", "pooling_mode_cls_token", Mode::Cls),
    ("max", "pooling_mode_max_tokens", Mode::Max),
    ("mean", "pooling_mode_mean_tokens", Mode::Mean),
    ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", Mode::MeanSqrtLen),
    ("weightedmean", "pooling_mode_weightedmean_tokens", Mode::WeightedMean),
    ("lasttoken", "pooling_mode_lasttoken", Mode::LastToken),
];

/// What sentence-transformers calls a mode.
pub(super) fn name_of(mode: Mode) -> &'static str {
    MODES.iter().find(|(.., known)| *known == mode).map_or("", |(name, ..)| name)
}

/// How a model pools, and whether the tokens of a prompt are pooled too.
pub(super) fn read_pooling(path: &Path) -> Result<(Pooling, bool), LoadError> {
    let settings: Map<String, Value> = json::read(path)?;
    let unsupported = |what| LoadError::Unsupported { path: path.to_owned(), what };
    let named = |name: &Value| {
        let known = MODES.iter().find(|(known, ..)| name.as_str() == Some(*known));
        known.map(|(.., mode)| *mode).ok_or_else(|| {
            let names = MODES.map(|(name, ..)| name).join(", ");
            unsupported(format!("the pooling {name}, which is none of {names}"))
        })
    };
    let modes = match settings.get("pooling_mode") {
        Some(Value::Array(names)) if !names.is_empty() => {
            names.iter().map(named).collect::<Result<_, _>>()?
        }
        Some(name) => vec![named(name)?],
        None => by_member(&settings).map_err(unsupported)?,
    };
    let include_prompt = settings.get("include_prompt").and_then(Value::as_bool).unwrap_or(true);
    Ok((Pooling { modes, skipped: 0 }, include_prompt))
}

/// The modes of a file with one member a mode.
fn by_member(settings: &Map<String, Value>) -> Result<Vec<Mode>, String> {
    let is_on = |value: &Value| value.as_bool().unwrap_or(false);
    for (name, _) in settings.iter().filter(|(_, on)| is_on(on)) {
        let is_mode = name.starts_with("pooling_mode_");
        if is_mode && MODES.iter().all(|(_, member, _)| member != name) {
            return Err(format!("the pooling {name:?}"));
        }
    }
    let on = MODES.iter().filter(|(_, member, _)| settings.get(*member).is_some_and(is_on));
    let modes: Vec<Mode> = on.map(|(.., mode)| *mode).collect();
    // As in sentence-transformers, that is what a file without a mode means.
    Ok(if modes.is_empty() { vec![Mode::Mean] } else { modes })
}
