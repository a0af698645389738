//! From a configured name to a model that is ready to use.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::Device;
use candle_nn::VarBuilder;

use super::{
    Description, EmbeddingBackend, HashBackend, HashEncoder, HubConfig, LoadError, Model,
    candle::CandleBackend,
    catalog,
    compute::{Computation, ComputeConfig, Dtype, Kernel},
    cpu::{self, CpuBackend},
    device,
    files::{self, ModelSettings},
    hash,
    locate::{self, Located},
    modules,
    weights::WeightFiles,
};

/// Characters of the weights' hash that name the revision of a model that we do not know.
const REVISION_CHARS: usize = 16;

/// What computes the vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    /// A model: on the CPU on kernels of our own, on candle elsewhere.
    Model,
    /// Deterministic vectors without a model, for tests and benches.
    Hash,
}

/// Which model to load, and onto what.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// `EMBEDDING_BACKEND`.
    pub backend: BackendKind,
    /// `EMBEDDING_MODEL`: a directory, a hub id, or the name of a sentence-transformers model.
    pub model: String,
    /// On which device, and how.
    pub compute: ComputeConfig,
    /// Where models are looked for before the hub's cache and the hub.
    pub models_dir: PathBuf,
    /// The hub.
    pub hub: HubConfig,
}

/// Makes a model ready: finds its files, fetching them if need be, and loads them off the async
/// threads.
pub async fn load(config: &ModelConfig) -> Result<Model, LoadError> {
    if config.backend == BackendKind::Hash {
        tracing::warn!("the hash backend is in use: its vectors mean nothing");
        return Ok(Model {
            name: "hash".to_owned(),
            revision: "1".to_owned(),
            fingerprint: "1".to_owned(),
            max_tokens: hash::MAX_TOKENS,
            description: Description { normalises: true, ..Description::default() },
            computation: Computation { kernel: Kernel::Auto, dtype: "f32", threads: 1 },
            encoder: Arc::new(HashEncoder),
            backend: Arc::new(HashBackend),
        });
    }
    let located = locate::locate(&config.model, &config.models_dir, &config.hub).await?;
    let (name, compute) = (config.model.clone(), config.compute.clone());
    tokio::task::spawn_blocking(move || load_files(name, &compute, &located))
        .await
        .map_err(|_| LoadError::Panicked { name: config.model.clone() })?
}

/// The number of components of the model's vectors, without loading its weights. A model of
/// the catalogue need not be on this machine.
pub async fn dimension_of(config: &ModelConfig) -> Result<usize, LoadError> {
    if config.backend == BackendKind::Hash {
        return Ok(HashBackend.dimension());
    }
    let here = locate::on_this_machine(&config.model, &config.models_dir, &config.hub).await?;
    let directory = match (here, catalog::find(&config.model)?) {
        (Some(directory), _) => directory,
        (None, Some(known)) => return Ok(known.dimension),
        (None, None) => {
            locate::locate(&config.model, &config.models_dir, &config.hub).await?.directory
        }
    };
    Ok(ModelSettings::read(&directory)?.dimension)
}

fn load_files(
    name: String,
    compute: &ComputeConfig,
    located: &Located,
) -> Result<Model, LoadError> {
    let device = device::select(&compute.device)?;
    let mut settings = ModelSettings::read(&located.directory)?;
    let config = settings.transformer.join(files::CONFIG);
    let computation = choose(&settings, &device, compute, &config)?;
    let encoder = settings.tokenizer()?;
    let files = WeightFiles::find(&settings.transformer)?;
    let (weights, hash) = files.read(&device)?;
    let revision = revision(located, &settings, &hash, &files.path)?;
    let fingerprint = fingerprint(&settings, &hash, &computation);
    let max_tokens = settings.max_tokens;
    let description = Description {
        pooling: settings.pooling.modes.iter().map(|mode| modules::name_of(*mode)).collect(),
        prompts: settings.prompts.clone(),
        normalises: settings.normalises,
    };
    let backend = build(settings, &computation, weights)
        .map_err(|source| LoadError::weights(&files.path, source))?;
    tracing::info!(
        model = name,
        revision,
        dimension = backend.dimension(),
        max_tokens,
        prompt = description.prompts.default,
        device = ?device.location(),
        kernel = computation.kernel.name(),
        dtype = computation.dtype,
        threads = computation.threads,
        "the model is loaded"
    );
    if !description.normalises {
        tracing::info!(
            model = name,
            "the model itself does not normalise; its vectors here have length 1 all the same"
        );
    }
    Ok(Model {
        name,
        revision,
        fingerprint,
        max_tokens,
        description,
        computation,
        encoder: Arc::new(encoder),
        backend: backend.into(),
    })
}

/// See [`Model::fingerprint`]. It is hashed again with every text.
fn fingerprint(settings: &ModelSettings, hash: &str, computation: &Computation) -> String {
    let ModelSettings { config, pooling, max_tokens, casing, dimension, .. } = settings;
    let all = format!(
        "{hash} {config} {pooling:?} {max_tokens} {casing:?} {dimension} {}",
        computation.dtype
    );
    locate::sha256_of(&all)
}

/// What computes a model, of what the operator allows.
fn choose(
    settings: &ModelSettings,
    device: &Device,
    compute: &ComputeConfig,
    path: &Path,
) -> Result<Computation, LoadError> {
    let is_ours = settings.architecture.activation.is_some();
    if device.is_cpu() && is_ours && compute.kernel != Kernel::Candle {
        let kernel = cpu::choose(compute.kernel, compute.dtype)
            .ok_or(LoadError::NoKernel { kernel: compute.kernel, dtype: compute.dtype })?;
        let dtype = if kernel.is_bf16() { Dtype::Bf16 } else { Dtype::F32 };
        let (kernel, threads) = (Kernel::Ours(kernel), compute.threads());
        return Ok(Computation { kernel, dtype: dtype.name(), threads });
    }
    if matches!(compute.kernel, Kernel::Ours(_)) || compute.dtype == Dtype::Bf16 {
        return Err(LoadError::NoKernel { kernel: compute.kernel, dtype: compute.dtype });
    }
    if !CandleBackend::knows(&settings.architecture) {
        let what = "a DistilBERT, but on candle, whose GELU is another".to_owned();
        return Err(LoadError::Unsupported { path: path.to_owned(), what });
    }
    // Candle takes what the libraries' own pool has.
    Ok(Computation { kernel: Kernel::Candle, dtype: "f32", threads: rayon::current_num_threads() })
}

fn build(
    settings: ModelSettings,
    computation: &Computation,
    weights: VarBuilder<'_>,
) -> candle_core::Result<Box<dyn EmbeddingBackend>> {
    let ModelSettings { architecture, config, pooling, dimension, .. } = settings;
    Ok(match computation.kernel {
        Kernel::Ours(kernel) => Box::new(CpuBackend::load(
            &architecture,
            pooling,
            dimension,
            weights,
            kernel,
            computation.threads,
        )?),
        Kernel::Auto | Kernel::Candle => {
            Box::new(CandleBackend::load(architecture, &config, pooling, dimension, weights)?)
        }
    })
}

/// The catalogue's revision for the catalogue's weights; the weights' hash for all others, so
/// that the same weights have the same revision on every machine. What a model's directory
/// makes of its texts and vectors besides stands behind it: vectors that were stored without it
/// are another model's.
fn revision(
    located: &Located,
    settings: &ModelSettings,
    hash: &str,
    path: &Path,
) -> Result<String, LoadError> {
    let mut revision = hash[..REVISION_CHARS].to_owned();
    if let Some(known) = &located.known {
        match locate::check_hash(known, hash, path) {
            Ok(()) => revision.clone_from(&known.revision),
            Err(mismatch) if located.from_hub => return Err(mismatch),
            Err(_) => tracing::warn!(
                model = known.name,
                path = %path.display(),
                "these are not the weights that models/catalog.toml knows by this name"
            ),
        }
    }
    if settings.is_adapted() {
        let ModelSettings { prompts, include_prompt, dimension, .. } = settings;
        let own = format!("{:?} {include_prompt} {dimension}", prompts.text);
        revision += &format!("+{}", &locate::sha256_of(&own)[..REVISION_CHARS]);
    }
    Ok(revision)
}
