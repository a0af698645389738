//! The command line: what can be asked of `vecmill`, and the client commands that talk to a
//! running server over HTTP.

pub mod bench;
pub mod client;
pub mod ingest;
mod lines;
pub mod models;
pub mod openapi;
mod output;
pub mod requeue;
mod sender;
pub mod status;

use std::process::ExitCode;

use clap::{
    Args, CommandFactory, FromArgMatches, Parser, Subcommand,
    error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion},
};

pub use output::Output;

use crate::config::Settings;
use client::ClientError;

/// Everything was done.
pub const OK: u8 = 0;
/// The operation failed, or some nodes did. 2 is clap's, for wrong usage.
pub const FAILED: u8 = 1;
/// The server cannot be reached, or is not ready.
pub const UNREACHABLE: u8 = 3;

/// Turns text into vectors, asynchronously, for many tenants, without losing any.
#[derive(Debug, Parser)]
#[command(name = "vecmill", version, about, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// Print one JSON object, for scripts.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 the operation or some nodes failed, 2 wrong usage, \
                          3 the server cannot be reached or is not ready";

/// What `vecmill migrate` takes.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// Also switch row-level security on for table nodes
    #[arg(long)]
    pub rls: bool,
    /// Which database, and for which model.
    #[command(flatten)]
    pub settings: Settings,
}

/// What `vecmill` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the API and work, in one process.
    Serve(Box<Settings>),
    /// Serve the API only.
    Api(Box<Settings>),
    /// Work only: claim jobs, embed, store.
    Worker(Box<Settings>),
    /// Create what is missing in the database.
    Migrate(Box<MigrateArgs>),
    /// Print the OpenAPI document.
    Openapi,
    /// Fetch and list models.
    Models(models::ModelsArgs),
    /// Send the nodes of a JSON Lines file.
    Ingest(ingest::IngestArgs),
    /// Show nodes by status, and the depths of the queue.
    Status(status::StatusArgs),
    /// Put nodes into the queue again.
    Requeue(requeue::RequeueArgs),
    /// Measure how fast this machine embeds a corpus.
    Bench(Box<bench::BenchArgs>),
}

impl Cli {
    /// Reads the command line and the environment. A variable that is set to nothing, as
    /// `${NAME:-}` of a compose file leaves it, counts as unset. Ends the process when the command
    /// line is wrong, or asks for help.
    pub fn read() -> Self {
        // Help names every variable, also one that is set to nothing.
        if let Err(asked) = Self::command().try_get_matches()
            && let DisplayHelp | DisplayHelpOnMissingArgumentOrSubcommand | DisplayVersion =
                asked.kind()
        {
            asked.exit();
        }
        let matches = without_empty_variables(Self::command()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// The command and its subcommands, without the variables that are set to nothing.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|v| v.is_empty());
    command
        .mut_args(|arg| match arg.get_env().is_some_and(is_empty) {
            true => arg.env(None::<&str>),
            false => arg,
        })
        .mut_subcommands(without_empty_variables)
}

/// Where the server is.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// Address of the server.
    #[arg(
        long,
        env = "VECMILL_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:8000"
    )]
    pub url: String,
}

/// The exit code for a command that failed with `error`.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    let away = error.downcast_ref::<ClientError>().is_some_and(ClientError::is_outage);
    ExitCode::from(if away { UNREACHABLE } else { FAILED })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn json_is_understood_after_the_subcommand() {
        let cli = Cli::try_parse_from(["vecmill", "status", "--json", "--tenant", "a"]).unwrap();
        assert!(cli.json);
    }
}
