//! `vecmill status`: nodes by status, and the depths of the queue.

use std::{process::ExitCode, time::Duration};

use clap::Args;

use super::{
    Output, ServerArgs,
    client::{Client, Status},
};

/// What to show.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Count only nodes of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// Show it again and again, until interrupted.
    #[arg(long)]
    watch: bool,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,
}

/// Shows the status once, or until interrupted.
pub async fn run(args: StatusArgs, out: &mut Output<'_>) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server.url)?;
    loop {
        let status = client.status(args.tenant.as_deref()).await?;
        out.result(&describe(&status), &serde_json::to_value(&status)?)?;
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(Duration::from_secs(args.interval)).await;
    }
}

fn describe(status: &Status) -> String {
    let tenant = status.tenant_id.as_deref().unwrap_or("(all)");
    let queue = &status.queue;
    let about = if status.total_exact { "" } else { " (large numbers are estimates)" };
    let age = queue.oldest_age_seconds.map_or("none".to_owned(), |age| format!("{age:.1} s"));
    format!(
        "tenant {tenant}\nnodes  {}{about}\nqueue  waiting {}, in flight {}, retry {}, dead {}, \
         oldest {age}",
        status.status_counts, queue.queue, queue.inflight, queue.retry, queue.dlq,
    )
}
