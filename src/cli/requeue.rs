//! `vecmill requeue`: put nodes into the queue again.

use std::process::ExitCode;

use clap::Args;
use uuid::Uuid;

use super::{
    Output, ServerArgs,
    client::{Client, Requeue},
};

/// Which nodes to requeue.
#[derive(Debug, Args)]
pub struct RequeueArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Only nodes of this tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// Only nodes in this status; unless given, failed, or with --node any
    #[arg(
        long,
        value_parser = ["queued", "processing", "ready", "failed", "skipped", "all"]
    )]
    status: Option<String>,
    /// Only this node; may be given more than once.
    #[arg(long = "node", value_name = "ID")]
    nodes: Vec<Uuid>,
    /// Only nodes without a vector.
    #[arg(long)]
    only_missing_embedding: bool,
    /// Do not mark nodes that have a vector as ready first.
    #[arg(long)]
    no_backfill_ready: bool,
    /// Nodes at most, oldest first.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=2000))]
    limit: u64,
    /// All nodes, with as many calls as that takes.
    #[arg(long, conflicts_with_all = ["limit", "nodes"])]
    all: bool,
}

/// Requeues, and says what was done.
pub async fn run(args: RequeueArgs, out: &mut Output<'_>) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server.url)?;
    let mut order = Requeue {
        tenant_id: args.tenant,
        node_ids: Some(args.nodes).filter(|nodes| !nodes.is_empty()),
        status: args.status,
        only_missing_embedding: args.only_missing_embedding,
        backfill_ready: !args.no_backfill_ready,
        limit: args.limit,
        cursor: None,
    };
    let mut done = client.requeue(&order).await?;
    while args.all && done.next_cursor.is_some() {
        order.cursor = done.next_cursor.take();
        let step = client.requeue(&order).await?;
        done.backfilled += step.backfilled;
        done.requested += step.requested;
        done.enqueued += step.enqueued;
        done.next_cursor = step.next_cursor;
    }
    let mut text = format!(
        "{} of {} nodes enqueued, {} marked ready",
        done.enqueued, done.requested, done.backfilled
    );
    if done.enqueued < done.requested {
        text.push_str("; the others have a live job already, or a limit is reached");
    }
    if done.next_cursor.is_some() {
        text.push_str("; there are more: use --all");
    }
    out.result(&text, &serde_json::to_value(done)?)?;
    Ok(ExitCode::SUCCESS)
}
