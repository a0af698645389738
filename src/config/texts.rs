//! What is embedded of a node, and whether.

use super::{ConfigError, parse::check};

/// The variables and flags about texts; see [`super::Settings`].
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct TextOptions {
    /// Put ActiveKG's prefix of structured fields before the text of resumes and jobs
    #[arg(long, env = "EMBEDDING_PREFIX_ENABLED", default_value = "false", value_name = "BOOL")]
    embedding_prefix_enabled: String,
    /// Embed new nodes; false: they are skipped until a refresh or requeue
    #[arg(long, env = "AUTO_EMBED_ON_CREATE", default_value = "true", value_name = "BOOL")]
    auto_embed_on_create: String,
}

/// See [`TextOptions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextSettings {
    /// Whether resumes and jobs have a prefix.
    pub with_prefix: bool,
    /// Whether new nodes are embedded.
    pub auto_embed: bool,
}

impl TextOptions {
    /// Checks every value.
    pub fn check(&self) -> Result<TextSettings, ConfigError> {
        Ok(TextSettings {
            with_prefix: check!(self.embedding_prefix_enabled, boolean),
            auto_embed: check!(self.auto_embed_on_create, boolean),
        })
    }
}
