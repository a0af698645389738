//! The `vecmill` program: runs what the command line asks for.

use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;
use tracing::warn;
use vecmill::{
    app::{self, App, Progress, Role},
    cli::{self, Cli, Command, MigrateArgs, Output},
    config::{self, Config, Settings},
    data_dir, inference, shutdown, telemetry, tls,
};

/// Gives memory back that one thread has freed and another needs. The system's allocator keeps up to
/// tens of megabytes for each thread that ever held a large node.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::read();
    telemetry::init();
    tls::install_provider();
    match run(cli).await {
        Ok(code) => code,
        Err(error) => {
            // One line, the whole chain.
            eprintln!("vecmill: {error:#}");
            cli::exit_code(&error)
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let mut stdout = std::io::stdout();
    let mut out = Output::new(cli.json, &mut stdout);
    match cli.command {
        Command::Serve(settings) => run_role(Role::Serve, &settings).await,
        Command::Api(settings) => run_role(Role::Api, &settings).await,
        Command::Worker(settings) => run_role(Role::Worker, &settings).await,
        Command::Migrate(args) => migrate(&args, &mut out).await,
        Command::Openapi => cli::openapi::run(&mut out).await,
        Command::Models(args) => cli::models::run(args, &mut out).await,
        Command::Ingest(args) => cli::ingest::run(args, &mut out).await,
        Command::Status(args) => cli::status::run(args, &mut out).await,
        Command::Requeue(args) => cli::requeue::run(args, &mut out).await,
        Command::Bench(args) => cli::bench::run(*args, app::model_config, &mut out).await,
    }
}

async fn run_role(role: Role, settings: &Settings) -> anyhow::Result<ExitCode> {
    let signals = shutdown::listen().context("cannot listen for signals")?;
    let not_honoured = config::not_honoured(std::env::vars_os());
    if !not_honoured.is_empty() {
        warn!("these variables of ActiveKG change nothing here: {}", not_honoured.join(", "));
    }
    app::run_until_stopped(signals, App::start(role, settings.check()?)).await
}

async fn migrate(args: &MigrateArgs, out: &mut Output<'_>) -> anyhow::Result<ExitCode> {
    let config: Config = args.settings.check()?;
    data_dir::prepare(&config.data_dir, config.has_own_database())?;
    let dimension = inference::dimension_of(&app::model_config(&config.model)).await?;
    let progress = Progress::new(config.start_patience);
    let store = app::open_store(&config, dimension, &progress).await?;
    let mut text = format!("the database is ready for vectors of {dimension} components");
    if args.rls {
        text += "; row-level security is on: ";
        text += &match store.enable_row_level_security().await? {
            Some(admin) => format!("GRANT {admin} to the roles of serve, api and worker"),
            None => "no policy lets a role see all rows, which serve, api and worker need".into(),
        };
    }
    out.result(&text, &json!({ "dimension": dimension, "rls": args.rls }))?;
    Ok(ExitCode::SUCCESS)
}
