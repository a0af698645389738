//! `/debug`: what one looks at when something is odd.

use poem::web::Data;
use poem_openapi::{ApiResponse, OpenApi, payload::Json};

use super::{reports::EmbedInfoAnswer, server::Tag};
use crate::runtime::Runtime;

/// The calls.
pub struct DebugApi;

/// The answer.
#[derive(ApiResponse)]
pub enum EmbedInfoResponse {
    /// How vectors are made.
    #[oai(status = 200)]
    Info(Json<EmbedInfoAnswer>),
}

#[OpenApi(prefix_path = "/debug", tag = "Tag::Debug")]
impl DebugApi {
    /// Show how vectors are made
    #[oai(path = "/embed_info", method = "get", operation_id = "embed_info")]
    async fn embed_info(&self, Data(runtime): Data<&Runtime>) -> EmbedInfoResponse {
        EmbedInfoResponse::Info(Json(runtime.embed_info().clone().into()))
    }
}
