//! Which model makes the vectors, and how: for those who use them.

use poem::web::Data;
use poem_openapi::{ApiResponse, Object, OpenApi, payload::Json};

use super::server::Tag;
use crate::runtime::{EmbedInfo, Runtime};

/// The call.
pub struct InfoApi;

/// The answer.
#[derive(ApiResponse)]
pub enum InfoResponse {
    /// The model and how it is computed.
    #[oai(status = 200)]
    Info(Json<InfoAnswer>),
}

/// The model. What only a loaded model tells is null where this process has none.
#[derive(Debug, Clone, Object)]
pub struct InfoAnswer {
    /// The version of the program.
    pub version: String,
    /// The model, as it is configured.
    pub model: String,
    /// Identifies the vectors, together with the model's name.
    #[oai(nullable)]
    pub revision: Option<String>,
    /// Components of each vector.
    pub dimension: u64,
    /// Texts are cut to this many tokens, prompt and special ones included.
    #[oai(nullable)]
    pub max_tokens: Option<u64>,
    /// How the vectors of a text's tokens become its own: `cls`, `max`, `mean`,
    /// `mean_sqrt_len_tokens`, `weightedmean`, `lasttoken`, or several, one after another.
    #[oai(nullable)]
    pub pooling: Option<Vec<String>>,
    /// The names of the prompts that the model has.
    #[oai(nullable)]
    pub prompts: Option<Vec<String>>,
    /// The name of the prompt that is put before each text; null also where there is none.
    #[oai(nullable)]
    pub default_prompt: Option<String>,
    /// Whether the model's own steps end with vectors of length 1. The vectors that are stored
    /// always have it.
    #[oai(nullable)]
    pub normalises: Option<bool>,
    /// The type of the operands of matrix products.
    #[oai(nullable)]
    pub dtype: Option<String>,
    /// The code that computes.
    #[oai(nullable)]
    pub kernel: Option<String>,
    /// The device, as it is configured.
    pub device: String,
}

impl From<EmbedInfo> for InfoAnswer {
    fn from(info: EmbedInfo) -> Self {
        let loaded = info.loaded.as_ref();
        let says = loaded.map(|model| &model.description);
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: loaded.map(|model| model.revision.clone()),
            dimension: info.dimension as u64,
            max_tokens: loaded.map(|model| model.max_tokens as u64),
            pooling: says.map(|model| owned(&model.pooling)),
            prompts: says.map(|model| model.prompts.names.clone()),
            default_prompt: says.and_then(|model| model.prompts.default.clone()),
            normalises: says.map(|model| model.normalises),
            dtype: loaded.map(|model| model.dtype.to_owned()),
            kernel: loaded.map(|model| model.kernel.to_owned()),
            model: info.model,
            device: info.device,
        }
    }
}

#[OpenApi]
impl InfoApi {
    /// Show the model that makes the vectors
    #[oai(path = "/info", method = "get", operation_id = "info", tag = "Tag::Health")]
    async fn info(&self, Data(runtime): Data<&Runtime>) -> InfoResponse {
        InfoResponse::Info(Json(runtime.embed_info().clone().into()))
    }
}
