//! `vecmill bench`: what this machine does with a model and a corpus, without queue and database.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

use super::{
    Output,
    lines::{Item, Lines},
};
use crate::{
    config::ModelOptions,
    domain::{batch, node},
    inference::{
        self, Computation, Dtype, EmbedError, Encoding, Kernel, LoadError, Model, ModelConfig,
    },
};

/// Texts that are tokenised and embedded at once: as many as a worker has in hand.
const CHUNK: usize = 512;

/// What is measured.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// JSON Lines: nodes as for `vecmill ingest`, or objects with a `text`; - is standard input
    #[arg(long, value_name = "FILE")]
    corpus: PathBuf,
    /// Take only the first texts
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// How often; the median counts
    #[arg(long, value_name = "N", default_value = "3")]
    rounds: usize,
    /// Compare the vectors with those of the reference in f32: candle, or the portable kernel for
    /// an encoder that candle computes otherwise
    #[arg(long)]
    verify: bool,
    /// Embed one text at a time, and show how long each takes
    #[arg(long)]
    latency: bool,
    #[command(flatten)]
    model: ModelOptions,
}

/// Measures. `configure` turns settings into the loader's.
pub async fn run(
    args: BenchArgs,
    configure: fn(&crate::config::ModelSettings) -> ModelConfig,
    out: &mut Output<'_>,
) -> anyhow::Result<ExitCode> {
    let config = configure(&args.model.check()?);
    let texts = read(&args.corpus, args.limit.unwrap_or(usize::MAX)).await?;
    if texts.is_empty() || args.rounds == 0 {
        bail!("there is nothing to embed: give a corpus with texts, and at least one round");
    }
    let loading = Instant::now();
    let model = Arc::new(inference::load(&config).await?);
    let load_seconds = loading.elapsed().as_secs_f64();
    let texts = Arc::new(texts);
    let (measured, embedder) = (Arc::clone(&texts), Arc::clone(&model));
    let (rounds, latency) = (args.rounds, args.latency);
    let measure = move || measure(&embedder, &measured, rounds, latency);
    let Measured { vectors, tokens, mut rounds, mut single } =
        tokio::task::spawn_blocking(measure).await??;

    let seconds = median(&mut rounds).as_secs_f64();
    let Computation { kernel, dtype, threads } = model.computation.clone();
    let (texts_per_s, tokens_per_s) = (texts.len() as f64 / seconds, tokens as f64 / seconds);
    let mut report = json!({
        "model": model.name, "texts": texts.len(), "tokens": tokens, "seconds": seconds,
        "texts_per_s": texts_per_s, "tokens_per_s": tokens_per_s,
        "dtype": dtype, "kernel": kernel.name(), "threads": threads,
        "load_seconds": load_seconds, "resident_mb": resident_mb(),
    });
    let mut lines = vec![
        format!("{:<10} {} in {} on {threads} threads", "computed", kernel.name(), dtype),
        format!("{:<10} {} texts, {tokens} tokens in {seconds:.2} s", "embedded", texts.len()),
        format!("{:<10} {texts_per_s:.1} texts/s, {tokens_per_s:.0} tokens/s", "speed"),
    ];
    if args.latency {
        single.sort_unstable();
        let at = |share: f64| {
            let index = ((single.len() - 1) as f64 * share).round() as usize;
            single[index].as_secs_f64() * 1e3
        };
        let (p50, p99) = (at(0.5), at(0.99));
        report["p50_ms"] = p50.into();
        report["p99_ms"] = p99.into();
        lines.push(format!("{:<10} p50 {p50:.2} ms, p99 {p99:.2} ms", "one text"));
    }
    if args.verify {
        let (least, mean) = verify(config, &texts, &vectors).await?;
        report["min_cosine"] = least.into();
        report["mean_cosine"] = mean.into();
        lines.push(format!("{:<10} at least {least:.6}, {mean:.6} on average", "cosine"));
    }
    out.result(&lines.join("\n"), &report)?;
    Ok(ExitCode::SUCCESS)
}

/// The texts of a corpus: of nodes, or of objects with a `text`.
async fn read(path: &Path, limit: usize) -> anyhow::Result<Vec<String>> {
    let name = path.display();
    let mut lines = Lines::open(path).with_context(|| format!("cannot read {name}"))?;
    let mut texts = Vec::new();
    while texts.len() < limit
        && let Some((item, _)) = lines.next().await
    {
        let line = match item {
            Item::Node(line) => line,
            Item::Invalid { number, reason } => bail!("line {number} of {name}: {reason}"),
            Item::Broken(error) => {
                return Err(error).with_context(|| format!("cannot read {name}"));
            }
        };
        let object: Value = serde_json::from_str(&line.json)?;
        let text = match object.get("props").unwrap_or(&object) {
            Value::Object(props) => node::text_of_props(props),
            _ => None,
        };
        texts.extend(text.map(str::to_owned));
    }
    Ok(texts)
}

/// What a measurement brought.
struct Measured {
    vectors: Vec<Vec<f32>>,
    tokens: usize,
    rounds: Vec<Duration>,
    /// The time of each text of the last round, where they were embedded one at a time.
    single: Vec<Duration>,
}

fn measure(
    model: &Model,
    texts: &[String],
    rounds: usize,
    one_at_a_time: bool,
) -> anyhow::Result<Measured> {
    let chunk = if one_at_a_time { 1 } else { CHUNK };
    // The first texts warm up memory and caches.
    embed(model, &texts[..texts.len().min(64)], chunk)?;
    let mut measured =
        Measured { vectors: Vec::new(), tokens: 0, rounds: Vec::new(), single: Vec::new() };
    for _ in 0..rounds {
        let began = Instant::now();
        let (vectors, tokens, times) = embed(model, texts, chunk)?;
        measured.rounds.push(began.elapsed());
        measured = Measured { vectors, tokens, single: times, ..measured };
    }
    Ok(measured)
}

/// Embeds all texts, tokenised in chunks of so many; gives vectors, tokens and the times of the
/// chunks.
fn embed(
    model: &Model,
    texts: &[String],
    chunk: usize,
) -> anyhow::Result<(Vec<Vec<f32>>, usize, Vec<Duration>)> {
    let (mut vectors, mut tokens, mut times) = (Vec::with_capacity(texts.len()), 0, Vec::new());
    for texts in texts.chunks(chunk) {
        let began = Instant::now();
        let encodings = encode(model, texts)?;
        tokens += encodings.iter().map(|encoding| encoding.ids.len()).sum::<usize>();
        vectors.extend(model.backend.embed(&encodings)?);
        times.push(began.elapsed());
    }
    Ok((vectors, tokens, times))
}

/// Tokenises texts, none of which the tokenizer may refuse.
fn encode(model: &Model, texts: &[String]) -> Result<Vec<Encoding>, EmbedError> {
    inference::encode_all(model.encoder.as_ref(), texts).into_iter().collect()
}

/// The least and the mean cosine to the reference.
async fn verify(
    mut config: ModelConfig,
    texts: &Arc<Vec<String>>,
    vectors: &[Vec<f32>],
) -> anyhow::Result<(f64, f64)> {
    (config.compute.kernel, config.compute.dtype) = (Kernel::Candle, Dtype::F32);
    let reference = match inference::load(&config).await {
        Err(LoadError::Unsupported { .. }) => {
            config.compute.kernel = Kernel::Ours(encoder::Kernel::Portable);
            inference::load(&config).await?
        }
        reference => reference?,
    };
    let texts = Arc::clone(texts);
    let embed = move || -> anyhow::Result<Vec<Vec<f32>>> {
        let encodings = encode(&reference, &texts)?;
        let lengths: Vec<usize> = encodings.iter().map(|text| text.ids.len()).collect();
        let mut vectors = vec![Vec::new(); texts.len()];
        for numbers in batch::plan(&lengths, batch::Cost::Padded, 4096, 64) {
            let batch: Vec<Encoding> = numbers.iter().map(|&at| encodings[at].clone()).collect();
            for (number, vector) in numbers.into_iter().zip(reference.backend.embed(&batch)?) {
                vectors[number] = vector;
            }
        }
        Ok(vectors)
    };
    let reference = tokio::task::spawn_blocking(embed).await??;
    let cosines: Vec<f64> = vectors
        .iter()
        .zip(&reference)
        .map(|(a, b)| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum())
        .collect();
    let least = cosines.iter().copied().fold(f64::INFINITY, f64::min);
    Ok((least, cosines.iter().sum::<f64>() / cosines.len() as f64))
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The most memory that this process has had, in MiB; none where the system does not say.
fn resident_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes / 1024.0)
}
