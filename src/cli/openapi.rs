//! `vecmill openapi`: print the OpenAPI document.

use std::process::ExitCode;

use super::Output;

/// Prints the document.
pub async fn run(out: &mut Output<'_>) -> anyhow::Result<ExitCode> {
    out.raw(&crate::http::openapi_document())?;
    Ok(ExitCode::SUCCESS)
}
