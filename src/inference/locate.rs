//! Where a model's files are: a directory, the models directory, the hub's cache, the hub.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::{
    CatalogModel, HubConfig, LoadError, ProgressFn, catalog,
    files::CONFIG,
    hub::{self, HubModel, Trust},
    modules::MODULES,
    weights::WEIGHTS,
};

/// Owner of a model whose name has none.
const DEFAULT_OWNER: &str = "sentence-transformers";

/// The branch that is fetched of a model that the catalogue does not know.
const DEFAULT_REVISION: &str = "main";

/// A model's files on this machine.
pub(super) struct Located {
    /// The directory that holds them.
    pub(super) directory: PathBuf,
    /// The catalogue's entry of the name.
    pub(super) known: Option<CatalogModel>,
    /// Whether they came from the hub, so that they must be what the catalogue says.
    pub(super) from_hub: bool,
}

/// Finds a model, and fetches it when it is not on this machine.
pub(super) async fn locate(
    name: &str,
    models_dir: &Path,
    hub: &HubConfig,
) -> Result<Located, LoadError> {
    if Path::new(name).is_dir() {
        return Ok(Located { directory: name.into(), known: None, from_hub: false });
    }
    let id = hub_id(name)?;
    let known = catalog::find(&id)?;
    if let Some(directory) = in_models_dir(models_dir, &id) {
        return Ok(Located { directory, known, from_hub: false });
    }
    let found = match in_cache(hub, &id, known.as_ref(), Trust::Complete).await? {
        None if !hub.offline => {
            tracing::info!(model = name, endpoint = hub.endpoint, "fetching the model");
            let silent: Arc<ProgressFn> = Arc::new(|_, _, _| {});
            Some(fetch(hub, &id, known.as_ref(), &silent).await)
        }
        found => found.map(Ok),
    };
    if let Some(Ok(directory)) = found {
        return Ok(Located { directory, known, from_hub: true });
    }
    let missing =
        || LoadError::Offline { name: name.to_owned(), models_dir: models_dir.to_owned() };
    let error = found.and_then(Result::err).unwrap_or_else(missing);
    let is_away = matches!(
        error,
        LoadError::Offline { .. } | LoadError::Hub { .. } | LoadError::HubSilent { .. }
    );
    match in_cache(hub, &id, known.as_ref(), Trust::Partial).await? {
        Some(directory) if is_away => {
            tracing::warn!(
                model = name,
                "files that the model may have are not in the cache, and the hub is not asked or \
                 does not answer: the model is taken without them"
            );
            Ok(Located { directory, known, from_hub: true })
        }
        _ => Err(error),
    }
}

/// The directory of a model that need not be fetched.
pub(super) async fn on_this_machine(
    name: &str,
    models_dir: &Path,
    hub: &HubConfig,
) -> Result<Option<PathBuf>, LoadError> {
    if Path::new(name).is_dir() {
        return Ok(Some(name.into()));
    }
    let id = hub_id(name)?;
    if let Some(directory) = in_models_dir(models_dir, &id) {
        return Ok(Some(directory));
    }
    in_cache(hub, &id, catalog::find(&id)?.as_ref(), Trust::Complete).await
}

/// Fetches a model from the hub into the hub's cache, and returns its directory there. What is
/// there already is not fetched again. The weights of a model of the catalogue are checked;
/// wrong ones are removed.
pub async fn pull(
    name: &str,
    hub: &HubConfig,
    progress: Arc<ProgressFn>,
) -> Result<PathBuf, LoadError> {
    let id = hub_id(name)?;
    let known = catalog::find(&id)?;
    if hub.offline {
        return match in_cache(hub, &id, known.as_ref(), Trust::Partial).await? {
            Some(directory) => Ok(directory),
            None => {
                Err(LoadError::Offline { name: name.to_owned(), models_dir: hub.cache_dir.clone() })
            }
        };
    }
    fetch(hub, &id, known.as_ref(), &progress).await
}

/// A model of the catalogue, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelListing {
    /// What the catalogue says of it.
    pub model: CatalogModel,
    /// The directory that holds it; `None` when it is not on this machine.
    pub directory: Option<PathBuf>,
}

/// The models of the catalogue, in its order, and where they are on this machine. The hub is not
/// asked.
pub async fn list(models_dir: &Path, hub: &HubConfig) -> Result<Vec<ModelListing>, LoadError> {
    let mut listings = Vec::new();
    for model in catalog::models()? {
        let directory = match in_models_dir(models_dir, &model.hub_id) {
            Some(directory) => Some(directory),
            None => in_cache(hub, &model.hub_id, Some(&model), Trust::Partial).await?,
        };
        listings.push(ModelListing { model, directory });
    }
    Ok(listings)
}

/// The `OWNER/NAME` of a model's name.
fn hub_id(name: &str) -> Result<String, LoadError> {
    let id = match name.contains('/') {
        true => name.to_owned(),
        false => format!("{DEFAULT_OWNER}/{name}"),
    };
    let is_part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part.chars().all(allowed) && !part.starts_with('.')
    };
    match id.split_once('/') {
        Some((owner, model)) if is_part(owner) && is_part(model) => Ok(id),
        _ => Err(LoadError::Name { name: name.to_owned() }),
    }
}

/// `OWNER/NAME` or, of the default owner or the catalogue, `NAME` in the models directory.
fn in_models_dir(models_dir: &Path, id: &str) -> Option<PathBuf> {
    let mut candidates = vec![models_dir.join(id)];
    if let Some((DEFAULT_OWNER, name)) = id.split_once('/') {
        candidates.push(models_dir.join(name));
    }
    // A directory that is a model, but not one that can be loaded, is to say so.
    candidates.into_iter().find(|path| path.join(CONFIG).is_file() || path.join(MODULES).is_file())
}

/// A known model is also taken from the branch that another program cached: its weights are
/// checked when they are loaded.
async fn in_cache(
    hub: &HubConfig,
    id: &str,
    known: Option<&CatalogModel>,
    trust: Trust,
) -> Result<Option<PathBuf>, LoadError> {
    let model = HubModel::new(hub, id)?;
    if let Some(known) = known {
        // The files that a model of the catalogue may have besides change nothing about it.
        if let Some(directory) = model.cached(&known.revision, Trust::Partial).await? {
            return Ok(Some(directory));
        }
        return model.cached(DEFAULT_REVISION, Trust::Partial).await;
    }
    model.cached(DEFAULT_REVISION, trust).await
}

async fn fetch(
    hub: &HubConfig,
    id: &str,
    known: Option<&CatalogModel>,
    progress: &Arc<ProgressFn>,
) -> Result<PathBuf, LoadError> {
    let revision = known.map_or(DEFAULT_REVISION, |known| &known.revision);
    let directory = HubModel::new(hub, id)?.download(revision, progress).await?;
    let Some(known) = known.cloned() else { return Ok(directory) };
    let name = known.name.clone();
    let check = tokio::task::spawn_blocking(move || check_fetched(&known, directory));
    check.await.map_err(|_| LoadError::Panicked { name })?
}

/// Wrong weights do not stay in the cache, where the next start would find them.
fn check_fetched(known: &CatalogModel, directory: PathBuf) -> Result<PathBuf, LoadError> {
    let path = directory.join(WEIGHTS);
    let hash = File::open(&path)
        .and_then(sha256)
        .map_err(|source| LoadError::Read { path: path.clone(), source })?;
    let Err(mismatch) = check_hash(known, &hash, &path) else { return Ok(directory) };
    hub::remove_cached(&path).map_err(|source| LoadError::Remove { path, source })?;
    Err(mismatch)
}

/// Compares the hash of weights with the catalogue's.
pub(super) fn check_hash(known: &CatalogModel, hash: &str, path: &Path) -> Result<(), LoadError> {
    if hash == known.weights_sha256 {
        return Ok(());
    }
    Err(LoadError::HashMismatch {
        name: known.name.clone(),
        expected: known.weights_sha256.clone(),
        actual: hash.to_owned(),
        path: path.to_owned(),
    })
}

/// SHA-256 of a text, in lower-case hex.
pub(super) fn sha256_of(text: &str) -> String {
    hex(&Sha256::digest(text))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of all that a reader gives, in lower-case hex.
pub(super) fn sha256(mut content: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut part = vec![0; 1 << 16];
    loop {
        match content.read(&mut part)? {
            0 => break,
            length => hash.update(&part[..length]),
        }
    }
    Ok(hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn a_bare_name_is_one_of_sentence_transformers() {
        assert_eq!(hub_id("x-1.5").unwrap(), "sentence-transformers/x-1.5");
        assert_eq!(hub_id("BAAI/bge").unwrap(), "BAAI/bge");
        for name in ["", "/", "a/", "/a", "../a", "a/..", "a/b/c", "./models/gone", "a b", "a\n"] {
            assert!(matches!(hub_id(name), Err(LoadError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn hashes_are_lower_case_hex() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(io::empty()).unwrap(), empty);
    }
}
