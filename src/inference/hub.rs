//! The model hub and its cache on this machine, shared with every other program that uses it.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hf_hub::{
    HFClient, HFError, HFRepository, RepoTypeModel,
    progress::{DownloadEvent, Progress, ProgressEvent, ProgressHandler},
};

use super::{
    LoadError,
    files::{CONFIG, ModelSettings, TOKENIZER},
    modules::{Layout, MODULES},
    sentence::{MODEL_CONFIG, SENTENCE_CONFIGS, TOKENIZER_CONFIG},
    tokenizer::FOREIGN as FOREIGN_TOKENIZERS,
    weights::{self, INDEX, WEIGHTS},
};

/// A hub that says nothing for so long is away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Called with a file's name, the bytes that are there and the bytes in all (0 when the hub does
/// not say), whenever more of it has arrived. Must not block.
pub type ProgressFn = dyn Fn(&str, u64, u64) + Send + Sync;

/// How to reach the hub, and where its files are kept.
#[derive(Clone)]
pub struct HubConfig {
    /// `HF_ENDPOINT`: base address of the hub or of a mirror.
    pub endpoint: String,
    /// `HF_TOKEN`: sent with every request. When it is unset, the hub client looks for the file
    /// in which its own login command keeps a token.
    pub token: Option<String>,
    /// `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache_dir: PathBuf,
    /// `HF_HUB_OFFLINE`: the hub is never asked.
    pub offline: bool,
}

impl HubConfig {
    /// Reads the variables that every program of the hub reads.
    pub fn from_env() -> Self {
        let variable = |name| env::var(name).ok().filter(|value: &String| !value.is_empty());
        let offline = variable("HF_HUB_OFFLINE").unwrap_or_default().to_lowercase();
        Self {
            endpoint: variable("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: variable("HF_TOKEN"),
            cache_dir: hf_hub::resolve_cache_dir(),
            offline: ["1", "true", "yes", "on"].contains(&offline.as_str()),
        }
    }
}

impl fmt::Debug for HubConfig {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .finish()
    }
}

/// Which files in the cache are a model.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trust {
    /// Those of which it is known that the hub has no others.
    Complete,
    /// Those that cannot be done without.
    Partial,
}

/// Where files are got from.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Cache(Trust),
    Hub(&'a Arc<ProgressFn>),
}

/// One model at the hub.
pub(super) struct HubModel<'a> {
    config: &'a HubConfig,
    id: &'a str,
    repository: HFRepository<RepoTypeModel>,
}

impl<'a> HubModel<'a> {
    /// The model of a hub id, `OWNER/NAME`. Asks nothing yet.
    pub(super) fn new(config: &'a HubConfig, id: &'a str) -> Result<Self, LoadError> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("vecmill/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(ANSWER_TIMEOUT)
            .read_timeout(ANSWER_TIMEOUT)
            .build()
            .map_err(LoadError::HttpClient)?;
        let mut client = HFClient::builder()
            .client(http)
            .endpoint(&config.endpoint)
            .cache_dir(&config.cache_dir)
            .retry_max_attempts(3);
        if let Some(token) = &config.token {
            client = client.token(token);
        }
        let client = client.build().map_err(|source| hub_error(config, id, source))?;
        let (owner, name) = hf_hub::split_id(id);
        Ok(Self { config, id, repository: client.model(owner, name) })
    }

    /// The directory of a revision in the cache, if everything that a model needs is there.
    pub(super) async fn cached(
        &self,
        revision: &str,
        trust: Trust,
    ) -> Result<Option<PathBuf>, LoadError> {
        match self.collect(revision, Origin::Cache(trust)).await {
            // The name of a file that is nowhere; only what is fetched is to be complete.
            Err(LoadError::Hub { source, .. })
                if matches!(*source, HFError::LocalEntryNotFound { .. }) =>
            {
                Ok(None)
            }
            Err(
                LoadError::Missing { .. }
                | LoadError::NoWeights { .. }
                | LoadError::NoTokenizer { .. },
            ) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Fetches what is not yet in the cache of a revision, and returns its directory there. What
    /// cannot be loaded is refused before its weights are fetched.
    pub(super) async fn download(
        &self,
        revision: &str,
        progress: &Arc<ProgressFn>,
    ) -> Result<PathBuf, LoadError> {
        self.collect(revision, Origin::Hub(progress)).await
    }

    /// Gets the files of a model one by one, the weights last: where they are, all are.
    async fn collect(&self, revision: &str, from: Origin<'_>) -> Result<PathBuf, LoadError> {
        // A network by itself has no other file.
        let first = tokio::time::timeout(ANSWER_TIMEOUT, self.get(MODULES, revision, from));
        let first = first.await.map_err(|_| LoadError::HubSilent {
            name: self.id.to_owned(),
            endpoint: self.config.endpoint.clone(),
            seconds: ANSWER_TIMEOUT.as_secs(),
        })??;
        let is_whole = first.is_some();
        let first = match first {
            Some(path) => path,
            None => self.required(CONFIG, revision, from).await?,
        };
        let directory = first.parent().map(Path::to_owned).unwrap_or_default();
        // A branch may move while files are fetched: the rest is of the same commit.
        let commit = directory.file_name().and_then(|name| name.to_str()).unwrap_or(revision);
        let layout = Layout::read(&directory)?;
        let inside = |file: &str| match layout.transformer.as_str() {
            "" => file.to_owned(),
            path => format!("{path}/{file}"),
        };
        self.required(&inside(CONFIG), commit, from).await?;
        if is_whole {
            for file in SENTENCE_CONFIGS {
                if self.get(&inside(file), commit, from).await?.is_some() {
                    break;
                }
            }
            self.get(MODEL_CONFIG, commit, from).await?;
        }
        self.get(&inside(TOKENIZER_CONFIG), commit, from).await?;
        if let Some(pooling) = &layout.pooling {
            self.required(pooling, commit, from).await?;
        }
        let mut settings = ModelSettings::read(&directory)?;
        if self.get(&inside(TOKENIZER), commit, from).await?.is_none() {
            let foreign = self.first_of(&FOREIGN_TOKENIZERS, &inside, commit, from).await;
            return Err(LoadError::NoTokenizer { place: self.id.to_owned(), foreign });
        }
        if let Origin::Hub(_) = from {
            settings.tokenizer()?;
        }
        if self.get(&inside(WEIGHTS), commit, from).await?.is_some() {
            return Ok(directory);
        }
        let Some(index) = self.get(&inside(INDEX), commit, from).await? else {
            let foreign = self.first_of(&weights::FOREIGN, &inside, commit, from).await;
            return Err(LoadError::NoWeights { place: self.id.to_owned(), foreign });
        };
        for file in weights::shards(&index)? {
            self.required(&inside(&file), commit, from).await?;
        }
        Ok(directory)
    }

    /// The first of these files that the hub has; none where it is not asked.
    async fn first_of(
        &self,
        files: &[&'static str],
        inside: impl Fn(&str) -> String,
        commit: &str,
        from: Origin<'_>,
    ) -> Option<&'static str> {
        let Origin::Hub(_) = from else { return None };
        for file in files {
            let lookup =
                self.repository.get_file_metadata().filepath(inside(file)).revision(commit);
            if lookup.send().await.is_ok() {
                return Some(file);
            }
        }
        None
    }

    async fn required(
        &self,
        file: &str,
        revision: &str,
        from: Origin<'_>,
    ) -> Result<PathBuf, LoadError> {
        let missing = || LoadError::Missing { path: format!("{}/{file}", self.id).into() };
        self.get(file, revision, from).await?.ok_or_else(missing)
    }

    /// A file, or `None` when the model has none of that name.
    async fn get(
        &self,
        file: &str,
        revision: &str,
        from: Origin<'_>,
    ) -> Result<Option<PathBuf>, LoadError> {
        let result = match from {
            Origin::Hub(progress) => self.fetch(file, revision, progress).await,
            Origin::Cache(_) => {
                let lookup = self.repository.download_file().filename(file).revision(revision);
                lookup.local_files_only(true).send().await
            }
        };
        match (result, from) {
            (Ok(path), _) => Ok(Some(path)),
            (Err(HFError::EntryNotFound { .. }), _)
            | (Err(HFError::LocalEntryNotFound { .. }), Origin::Cache(Trust::Partial)) => Ok(None),
            (Err(source), _) => Err(hub_error(self.config, self.id, source)),
        }
    }

    async fn fetch(
        &self,
        file: &str,
        revision: &str,
        progress: &Arc<ProgressFn>,
    ) -> Result<PathBuf, HFError> {
        let total = Arc::new(AtomicU64::new(0));
        let path = loop {
            let progress = FileProgress {
                file: file.to_owned(),
                report: progress.clone(),
                total: total.clone(),
            };
            let download = self.repository.download_file().filename(file).revision(revision);
            match download.progress(Progress::new(progress)).send().await {
                // Another process is fetching the same file; its lock ends with it.
                Err(HFError::CacheLockTimeout { .. }) => {}
                result => break result?,
            }
        };
        check_length(&path, total.load(Ordering::Relaxed))?;
        Ok(path)
    }
}

fn hub_error(config: &HubConfig, id: &str, source: HFError) -> LoadError {
    LoadError::Hub {
        name: id.to_owned(),
        endpoint: config.endpoint.clone(),
        source: Box::new(source),
    }
}

/// The hub client also keeps the body of an error answer as the file: such a file is removed,
/// so that the next attempt fetches it again. `total` is what the hub announced, or 0.
fn check_length(path: &Path, total: u64) -> Result<(), HFError> {
    let length = fs::metadata(path)?.len();
    if total == 0 || length == total {
        return Ok(());
    }
    remove_cached(path)?;
    let what = format!("{length} bytes came instead of {total}");
    Err(HFError::MalformedResponse { what, url: None })
}

/// Removes a file from the cache: its name in a snapshot, and its content, which several
/// snapshots may share.
pub(super) fn remove_cached(path: &Path) -> io::Result<()> {
    let content = fs::canonicalize(path)?;
    fs::remove_file(path)?;
    if content == path { Ok(()) } else { fs::remove_file(content) }
}

/// Passes on how much of one file has arrived, and notes its announced length.
struct FileProgress {
    file: String,
    report: Arc<ProgressFn>,
    total: Arc<AtomicU64>,
}

impl FileProgress {
    fn report(&self, done: u64, total: u64) {
        self.total.fetch_max(total, Ordering::Relaxed);
        (self.report)(&self.file, done, total);
    }
}

impl ProgressHandler for FileProgress {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        match event {
            DownloadEvent::Start { total_bytes, .. } => self.report(0, *total_bytes),
            DownloadEvent::Progress { files } => {
                for file in files {
                    self.report(file.bytes_completed, file.total_bytes);
                }
            }
            DownloadEvent::AggregateProgress { bytes_completed, total_bytes, .. } => {
                self.report(*bytes_completed, *total_bytes);
            }
            DownloadEvent::Complete => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_not_shown() {
        let mut config = HubConfig::from_env();
        config.token = Some("hf_secret".to_owned());
        assert!(!format!("{config:?}").contains("hf_secret"));
    }
}
