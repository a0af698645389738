//! `vecmill ingest`: send the nodes of a JSON Lines file, in order.

use std::{
    io::IsTerminal,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{
    FAILED, Output, ServerArgs,
    client::{Client, ClientError, StatusCounts},
    lines::{Item, Lines},
    sender::{Refusal, Sender},
};

/// `--wait` looks this often when the answer comes at once, and at least as often as the longest.
const SHORTEST_POLL: Duration = Duration::from_millis(25);
const LONGEST_POLL: Duration = Duration::from_millis(500);
/// How much longer than the answer took it pauses: counting a large table costs the server
/// something, which the embedding needs more.
const POLL_FACTOR: u32 = 20;

/// What to send, and how.
#[derive(Debug, Args)]
pub struct IngestArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// The file: one node a line, a JSON object as in POST /nodes; `-` is standard input.
    file: PathBuf,
    /// Nodes in one request; not more than the server's NODE_BATCH_MAX.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// The tenant of all nodes, whatever they say; otherwise each node says its own.
    #[arg(long)]
    tenant: Option<String>,
    /// Wait until no node is queued or processing.
    #[arg(long)]
    wait: bool,
    /// Report lines that hold no JSON object and go on, instead of stopping there.
    #[arg(long)]
    skip_invalid: bool,
    /// Give up when the server has taken nothing for so many seconds.
    #[arg(long, default_value_t = 600)]
    patience: u64,
}

/// Counts of what was read so far.
#[derive(Default)]
struct Tally {
    nodes: u64,
    failed: u64,
}

/// Sends the file, waits if asked to, and prints a summary.
pub async fn run(args: IngestArgs, out: &mut Output<'_>) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server.url)?;
    let tenant = args.tenant.as_deref();
    let patience = Duration::from_secs(args.patience);
    let started = Instant::now();
    let before = client.status(tenant).await?.status_counts;

    let mut sender = Sender::new(&client, tenant, args.batch as usize, patience);
    let mut tally = Tally::default();
    let sent = send_all(&args, &mut sender, &mut tally).await;
    if let Err(error) = sent {
        let accepted = sender.accepted;
        let place = sender.first_unanswered().map_or_else(String::new, |line| {
            format!("; the server has not confirmed line {line} and those after it")
        });
        return Err(error.context(format!("stopped after {accepted} accepted nodes{place}")));
    }
    let accepted = sender.accepted;
    let counts = match args.wait {
        true => wait(&client, tenant, accepted, patience).await?,
        false => client.status(tenant).await?.status_counts,
    };

    let seconds = started.elapsed().as_secs_f64();
    let rate = accepted as f64 / seconds.max(f64::EPSILON);
    let Tally { nodes, failed } = tally;
    let newly_failed = if args.wait { counts.failed.saturating_sub(before.failed) } else { 0 };
    let text = format!(
        "{nodes} nodes: {accepted} accepted, {failed} refused, in {seconds:.1} s \
         ({rate:.0} texts/s)\n{counts}"
    );
    let summary = json!({
        "nodes": nodes, "accepted": accepted, "failed": failed, "seconds": seconds,
        "texts_per_second": rate, "status_counts": counts,
    });
    out.result(&text, &summary)?;
    let is_ok = failed == 0 && newly_failed == 0;
    Ok(if is_ok { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

async fn send_all(
    args: &IngestArgs,
    sender: &mut Sender<'_>,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let mut lines =
        Lines::open(&args.file).with_context(|| format!("cannot open {}", args.file.display()))?;
    let bar = match lines.total_bytes {
        Some(bytes) => bar(bytes, "{wide_bar} {percent}% {msg}, {eta} left")?,
        None => bar(0, "{spinner} {elapsed} {msg}")?,
    };
    let started = Instant::now();
    while let Some((item, bytes)) = lines.next().await {
        let sent = match item {
            Item::Node(line) => {
                tally.nodes += 1;
                sender.push(line).await
            }
            Item::Invalid { number, reason } if args.skip_invalid => {
                tally.nodes += 1;
                let reason = format!("no JSON object: {reason}");
                sender.refusals.push(Refusal { number, reason });
                Ok(())
            }
            Item::Invalid { number, reason } => {
                bail!("line {number} holds no JSON object: {reason}");
            }
            Item::Broken(error) => return Err(error).context("cannot read on"),
        };
        report(sender, &bar, tally);
        sent?;
        bar.set_position(bytes);
        let rate = tally.nodes as f64 / started.elapsed().as_secs_f64().max(1e-3);
        bar.set_message(format!("{} nodes, {rate:.0}/s", tally.nodes));
    }
    let sent = sender.flush().await;
    report(sender, &bar, tally);
    sent?;
    bar.finish_and_clear();
    Ok(())
}

/// Says which nodes were refused, and counts them.
fn report(sender: &mut Sender<'_>, bar: &ProgressBar, tally: &mut Tally) {
    for Refusal { number, reason } in sender.refusals.drain(..) {
        bar.suspend(|| eprintln!("line {number}: {reason}"));
        tally.failed += 1;
    }
}

/// Waits until nothing is queued or processing. A server that is away for a while is waited for.
async fn wait(
    client: &Client,
    tenant: Option<&str>,
    accepted: u64,
    patience: Duration,
) -> Result<StatusCounts, anyhow::Error> {
    let bar = bar(accepted, "embedding {wide_bar} {pos}/{len} {per_sec}, {eta} left")?;
    let mut last_answer = Instant::now();
    loop {
        let asked = Instant::now();
        match client.status(tenant).await {
            Ok(status) => {
                last_answer = Instant::now();
                let unfinished = status.status_counts.unfinished();
                if unfinished == 0 {
                    bar.finish_and_clear();
                    return Ok(status.status_counts);
                }
                bar.set_length(accepted.max(unfinished));
                bar.set_position(accepted.max(unfinished) - unfinished);
            }
            Err(error) if ClientError::is_outage(&error) && last_answer.elapsed() < patience => {}
            Err(error) => return Err(error.into()),
        }
        let pause = (asked.elapsed() * POLL_FACTOR).clamp(SHORTEST_POLL, LONGEST_POLL);
        tokio::time::sleep(pause).await;
    }
}

/// A progress bar on standard error, if a person is looking.
fn bar(length: u64, template: &str) -> anyhow::Result<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let bar = ProgressBar::new(length);
    bar.set_style(ProgressStyle::with_template(template)?);
    Ok(bar)
}
