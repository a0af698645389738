//! `vecmill models`: fetch and list models.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::Output;
use crate::inference::{self, HubConfig, ModelListing};

/// What to do with models.
#[derive(Debug, Args)]
pub struct ModelsArgs {
    #[command(subcommand)]
    action: Action,
    /// Where models are kept.
    #[arg(long, global = true, env = "VECMILL_MODELS_DIR", default_value = "models")]
    models_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Fetch a model.
    Pull {
        /// Its name in the list, or its hub id.
        name: String,
    },
    /// List the models that are known, and where they are.
    List,
}

/// Fetches or lists.
pub async fn run(args: ModelsArgs, out: &mut Output<'_>) -> anyhow::Result<ExitCode> {
    let hub = HubConfig::from_env();
    match args.action {
        Action::Pull { name } => {
            let bar = ProgressBar::new(0);
            bar.set_style(ProgressStyle::with_template(
                "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            )?);
            let shown = bar.clone();
            let progress = Arc::new(move |file: &str, done: u64, total: u64| {
                shown.set_message(file.to_owned());
                shown.set_length(total);
                shown.set_position(done);
            });
            let pulled = inference::pull(&name, &hub, progress).await;
            bar.finish_and_clear();
            let location = pulled?;
            let text = format!("{name} is at {}", location.display());
            out.result(&text, &json!({"name": name, "location": location}))?;
        }
        Action::List => {
            let models = inference::list(&args.models_dir, &hub).await?;
            let lines: Vec<String> = models
                .iter()
                .map(|ModelListing { model, directory }| {
                    let place = directory.as_ref().map_or_else(
                        || "not fetched".to_owned(),
                        |place| place.display().to_string(),
                    );
                    format!(
                        "{:<40} {:>5} dimensions {:>5} tokens  {place}",
                        model.name, model.dimension, model.max_tokens
                    )
                })
                .collect();
            let json: Vec<_> = models
                .iter()
                .map(|ModelListing { model, directory }| {
                    json!({
                        "name": model.name, "hub_id": model.hub_id, "revision": model.revision,
                        "dimension": model.dimension, "max_tokens": model.max_tokens,
                        "location": directory,
                    })
                })
                .collect();
            out.result(&lines.join("\n"), &json!({ "models": json }))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
