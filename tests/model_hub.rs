//! Models come from a hub, once; what is in its cache needs no hub, and what is not what the
//! catalogue says is refused. The hub of these tests is a server in the test.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tiny_bert;

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use vecmill::inference::{
    BackendKind, ComputeConfig, HubConfig, LoadError, ModelConfig, ProgressFn, list, load, pull,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub that has the files of one directory for every model and revision.
struct Hub {
    endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
    /// A file whose `GET` is answered by an error, although its `HEAD` is not.
    failing: Arc<Mutex<Option<&'static str>>>,
}

#[derive(Debug, Clone)]
struct Request {
    line: String,
    authorization: Option<String>,
}

impl Hub {
    async fn start(files: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let failing = Arc::new(Mutex::new(None));
        let hub = Self { endpoint, requests, failing };
        let (files, log, failing) = (files.to_owned(), hub.requests.clone(), hub.failing.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (files, log, failing) = (files.clone(), log.clone(), failing.clone());
                tokio::spawn(async move { serve(stream, &files, &log, &failing).await });
            }
        });
        hub
    }

    /// A hub that does not answer.
    async fn away() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        Self { endpoint, requests: Arc::default(), failing: Arc::default() }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// Answers `HEAD` and `GET /OWNER/NAME/resolve/REVISION/FILE`, one request a connection.
async fn serve(
    stream: TcpStream,
    files: &Path,
    log: &Mutex<Vec<Request>>,
    failing: &Mutex<Option<&str>>,
) {
    let mut stream = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let authorization = lines.iter().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("authorization").then(|| value.to_owned())
    });
    log.lock().unwrap().push(Request { line: lines[0].clone(), authorization });
    let mut words = lines[0].split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let (_, resolved) = path.split_once("/resolve/").unwrap();
    let (revision, file) = resolved.split_once('/').unwrap();
    let commit = if revision == "main" { COMMIT } else { revision };
    let fails = method == "GET" && *failing.lock().unwrap() == Some(file);
    let (status, body) = match fs::read(files.join(file)) {
        Ok(_) if fails => ("503 Service Unavailable", b"later".to_vec()),
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", Vec::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: \"{}\"\r\nx-repo-commit: {commit}\r\n\
         connection: close\r\n\r\n",
        body.len(),
        file.replace('/', "-"),
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    if method == "GET" {
        stream.write_all(&body).await.unwrap();
    }
    let _ = stream.shutdown().await;
}

/// A machine without models.
struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn hub(&self, hub: &Hub) -> HubConfig {
        HubConfig {
            endpoint: hub.endpoint.clone(),
            token: Some("hf_test".to_owned()),
            cache_dir: self.directory.path().join("cache"),
            offline: false,
        }
    }

    fn config(&self, hub: &Hub, model: &str) -> ModelConfig {
        ModelConfig {
            backend: BackendKind::Model,
            model: model.to_owned(),
            compute: ComputeConfig::auto(),
            models_dir: self.directory.path().join("models"),
            hub: self.hub(hub),
        }
    }
}

fn tiny_files(pooling: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    tiny_bert::write(directory.path(), pooling);
    directory
}

fn silent() -> Arc<ProgressFn> {
    Arc::new(|_, _, _| {})
}

#[tokio::test]
async fn a_model_is_fetched_once_and_then_needs_no_hub() {
    let files = tiny_files("cls_token");
    let hub = Hub::start(files.path()).await;
    let machine = Machine::new();
    let mut config = machine.config(&hub, "somebody/tiny");
    let fetched = load(&config).await.unwrap();
    assert_eq!(fetched.backend.dimension(), tiny_bert::DIMENSION);
    assert_eq!(fetched.max_tokens, 12);

    let requests = hub.requests();
    for request in &requests {
        assert!(request.line.contains(" /somebody/tiny/resolve/"), "{request:?}");
        assert_eq!(request.authorization.as_deref(), Some("Bearer hf_test"), "{request:?}");
    }
    let got = |file: &str| {
        requests.iter().filter(|r| r.line.starts_with("GET ") && r.line.contains(file)).count()
    };
    for file in ["/config.json", "/tokenizer.json", "/model.safetensors", "/1_Pooling/config.json"]
    {
        assert_eq!(got(&format!("{COMMIT}{file}")) + got(&format!("main{file}")), 1, "{file}");
    }

    for offline in [false, true] {
        config.hub.offline = offline;
        let cached = load(&config).await.unwrap();
        let batch = [cached.encoder.encode("one two").unwrap()];
        assert_eq!(cached.backend.embed(&batch).unwrap(), fetched.backend.embed(&batch).unwrap());
        assert_eq!(cached.revision, fetched.revision);
    }
    assert_eq!(hub.requests().len(), requests.len(), "the cache was there");
}

#[tokio::test]
async fn offline_the_hub_is_not_asked() {
    let files = tiny_files("mean_tokens");
    let hub = Hub::start(files.path()).await;
    let machine = Machine::new();
    let mut config = machine.config(&hub, "somebody/tiny");
    config.hub.offline = true;
    assert!(matches!(load(&config).await.err().unwrap(), LoadError::Offline { .. }));
    let pulled = pull("somebody/tiny", &config.hub, silent()).await;
    assert!(matches!(pulled, Err(LoadError::Offline { .. })));
    assert!(hub.requests().is_empty());
}

#[tokio::test]
async fn weights_that_are_not_the_catalogues_are_refused_and_not_kept() {
    let files = tiny_files("mean_tokens");
    let hub = Hub::start(files.path()).await;
    let machine = Machine::new();
    let config = machine.config(&hub, "all-MiniLM-L6-v2");
    let expected = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";
    for _ in 0..2 {
        let error = load(&config).await.err().unwrap();
        let LoadError::HashMismatch { actual, .. } = &error else { panic!("{error:?}") };
        let message = error.to_string();
        assert!(message.contains(expected) && message.contains(actual), "{message}");
    }
    let mut offline = config.clone();
    offline.hub.offline = true;
    assert!(matches!(load(&offline).await.err().unwrap(), LoadError::Offline { .. }));
    let revision = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41";
    let requests = hub.requests();
    assert!(
        requests.iter().all(|r| r.line.contains(&format!("all-MiniLM-L6-v2/resolve/{revision}/")))
    );
}

/// Another program may have left anything under the name of a model that we know.
#[tokio::test]
async fn cached_weights_that_are_not_the_catalogues_are_refused() {
    let files = tiny_files("mean_tokens");
    let hub = Hub::start(files.path()).await;
    let machine = Machine::new();
    let config = machine.config(&hub, "all-MiniLM-L6-v2");
    let repository = config.hub.cache_dir.join("models--sentence-transformers--all-MiniLM-L6-v2");
    tiny_bert::write(&repository.join("snapshots").join(COMMIT), "mean_tokens");
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    assert!(matches!(load(&config).await.err().unwrap(), LoadError::HashMismatch { .. }));
    assert!(hub.requests().is_empty());
}

#[tokio::test]
async fn a_pull_reports_progress_and_a_directory_that_loads() {
    let files = tiny_files("mean_tokens");
    let hub = Hub::start(files.path()).await;
    let machine = Machine::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let progress: Arc<ProgressFn> = Arc::new(move |file: &str, done, total| {
        log.lock().unwrap().push((file.to_owned(), done, total));
    });
    let directory = pull("somebody/tiny", &machine.hub(&hub), progress).await.unwrap();
    let size = fs::metadata(files.path().join("model.safetensors")).unwrap().len();
    let whole = ("model.safetensors".to_owned(), size, size);
    assert!(seen.lock().unwrap().contains(&whole), "{:?}", seen.lock().unwrap());
    let model = load(&machine.config(&hub, directory.to_str().unwrap())).await.unwrap();
    assert_eq!(model.backend.dimension(), tiny_bert::DIMENSION);
}

#[tokio::test]
async fn optional_files_that_the_hub_lacks_are_not_missed() {
    let files = tiny_files("mean_tokens");
    for file in ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"] {
        fs::remove_file(files.path().join(file)).unwrap();
    }
    let hub = Hub::start(files.path()).await;
    let machine = Machine::new();
    assert_eq!(load(&machine.config(&hub, "tiny")).await.unwrap().max_tokens, 16);
}

/// The requests of a hub for the weights themselves.
fn fetched_weights(hub: &Hub) -> usize {
    let is_weights = |request: &&Request| {
        let mut words = request.line.split(' ');
        words.next() == Some("GET") && words.next().unwrap().ends_with(".safetensors")
    };
    hub.requests().iter().filter(is_weights).count()
}

/// Runs `vecmill models pull`.
async fn run_pull(machine: &Machine, hub: &Hub) -> (Option<i32>, String) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_vecmill"))
        .args(["models", "pull", "somebody/tiny"])
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"))
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_HUB_CACHE", machine.directory.path().join("cache"))
        .output()
        .await
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn what_cannot_be_loaded_is_refused_before_its_weights_are_fetched() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 9] = [
        ("qwen3", |files| {
            fs::write(files.join("config.json"), r#"{"model_type": "qwen3"}"#).unwrap()
        }),
        ("rms", |files| {
            fs::write(files.join("1_Pooling/config.json"), r#"{"pooling_mode": "rms"}"#).unwrap();
        }),
        ("StaticEmbedding", |files| {
            let module =
                r#"[{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}]"#;
            fs::write(files.join("modules.json"), module).unwrap();
            fs::remove_file(files.join("config.json")).unwrap();
        }),
        ("only in vocab.txt", |files| {
            fs::rename(files.join("tokenizer.json"), files.join("vocab.txt")).unwrap();
        }),
        ("tokenizer.json cannot be used", |files| {
            fs::write(files.join("tokenizer.json"), "{}").unwrap();
        }),
        ("only in pytorch_model.bin", |files| {
            fs::rename(files.join("model.safetensors"), files.join("pytorch_model.bin")).unwrap();
        }),
        ("no weights", |files| fs::remove_file(files.join("model.safetensors")).unwrap()),
        ("somebody/tiny/1_Pooling/config.json is missing", |files| {
            fs::remove_file(files.join("1_Pooling/config.json")).unwrap();
        }),
        ("somebody/tiny/config.json is missing", |files| {
            fs::remove_file(files.join("config.json")).unwrap();
        }),
    ];
    for (words, change) in changes {
        let files = tiny_files("mean_tokens");
        change(files.path());
        let hub = Hub::start(files.path()).await;
        let machine = Machine::new();
        let (code, said) = run_pull(&machine, &hub).await;
        println!("{said}");
        assert_eq!(code, Some(1), "{words}: {said}");
        assert!(said.contains(words) && said.lines().count() == 1, "{words}: {said}");
        for in_vain in ["fetch the model again", "HF_ENDPOINT", "make model"] {
            assert!(!said.contains(in_vain), "{words}: {said}");
        }
        assert_eq!(fetched_weights(&hub), 0, "{words}");
        // A server says the same.
        assert!(load(&machine.config(&hub, "somebody/tiny")).await.is_err(), "{words}");
        assert_eq!(fetched_weights(&hub), 0, "{words}");
    }
    let files = tiny_files("mean_tokens");
    let hub = Hub::start(files.path()).await;
    assert_eq!(run_pull(&Machine::new(), &hub).await.0, Some(0));
    assert_eq!(fetched_weights(&hub), 1);
}

/// All files of a model are fetched, wherever its `modules.json` says that they are.
#[tokio::test]
async fn a_network_in_a_directory_and_weights_in_several_files_are_fetched() {
    let files = tiny_files("mean_tokens");
    let (whole, below) = (files.path(), files.path().join("0_Transformer"));
    fs::create_dir(&below).unwrap();
    for file in ["config.json", "tokenizer.json", "sentence_bert_config.json"] {
        fs::rename(whole.join(file), below.join(file)).unwrap();
    }
    fs::write(below.join("tokenizer_config.json"), r#"{"model_max_length": 7}"#).unwrap();
    fs::write(below.join("sentence_bert_config.json"), "{}").unwrap();
    let prompt = r#"{"prompts": {"p": "one "}, "default_prompt_name": "p"}"#;
    fs::write(whole.join("config_sentence_transformers.json"), prompt).unwrap();
    let modules = fs::read_to_string(whole.join("modules.json")).unwrap();
    let modules = modules.replacen(r#""path":"""#, r#""path":"0_Transformer""#, 1);
    assert!(modules.contains("0_Transformer"));
    fs::write(whole.join("modules.json"), modules).unwrap();
    let path = whole.join("model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    let mut map = serde_json::json!({});
    for (number, (name, tensor)) in tensors.into_iter().enumerate() {
        let file = format!("model-{number}.safetensors");
        map[name.as_str()] = file.clone().into();
        candle_core::safetensors::save(&[(name, tensor)].into(), below.join(file)).unwrap();
    }
    fs::remove_file(path).unwrap();
    let index = serde_json::json!({ "weight_map": map }).to_string();
    fs::write(below.join("model.safetensors.index.json"), index).unwrap();

    let hub = Hub::start(whole).await;
    let machine = Machine::new();
    let config = machine.config(&hub, "somebody/tiny");
    let fetched = load(&config).await.unwrap();
    assert_eq!(fetched.max_tokens, 7);
    assert_eq!(fetched.encoder.encode("two").unwrap().ids, [2, 4, 5, 3]);
    let count = hub.requests().len();
    assert_eq!(load(&config).await.unwrap().revision, fetched.revision);
    assert_eq!(hub.requests().len(), count, "the cache was there");
    let here = load(&machine.config(&hub, whole.to_str().unwrap())).await.unwrap();
    assert_eq!(here.revision, fetched.revision);
}

/// What an earlier version fetched lacks files that the model may have.
#[tokio::test]
async fn a_cache_without_the_small_files_is_filled_up_or_taken_as_it_is() {
    let files = tiny_files("mean_tokens");
    let prompt = r#"{"prompts": {"p": "one "}, "default_prompt_name": "p"}"#;
    fs::write(files.path().join("config_sentence_transformers.json"), prompt).unwrap();
    let hub = Hub::start(files.path()).await;
    let machine = Machine::new();
    let config = machine.config(&hub, "somebody/tiny");
    let repository = config.hub.cache_dir.join("models--somebody--tiny");
    tiny_bert::write(&repository.join("snapshots").join(COMMIT), "mean_tokens");
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();

    let mut offline = config.clone();
    offline.hub.offline = true;
    let without = load(&offline).await.unwrap();
    assert_eq!(without.encoder.encode("two").unwrap().ids, [2, 5, 3]);
    assert!(hub.requests().is_empty());
    let mut away = config.clone();
    away.hub.endpoint = "http://127.0.0.1:9".to_owned();
    assert_eq!(load(&away).await.unwrap().revision, without.revision);

    let with = load(&config).await.unwrap();
    assert_eq!(with.encoder.encode("two").unwrap().ids, [2, 4, 5, 3]);
    assert_ne!(with.revision, without.revision);
    assert_eq!(load(&offline).await.unwrap().revision, with.revision);
}

#[tokio::test]
async fn the_body_of_an_error_is_not_kept_as_a_file() {
    let files = tiny_files("mean_tokens");
    let hub = Hub::start(files.path()).await;
    let machine = Machine::new();
    for file in ["model.safetensors", "modules.json"] {
        *hub.failing.lock().unwrap() = Some(file);
        let error = load(&machine.config(&hub, "somebody/tiny")).await.err().unwrap();
        assert!(matches!(error, LoadError::Hub { .. }), "{error:?}");
        *hub.failing.lock().unwrap() = None;
        load(&machine.config(&hub, "somebody/tiny")).await.unwrap();
        fs::remove_dir_all(machine.hub(&hub).cache_dir).unwrap();
    }
}

#[tokio::test]
async fn a_hub_that_is_away_is_an_error_that_says_so() {
    let machine = Machine::new();
    let hub = Hub::away().await;
    let error = load(&machine.config(&hub, "somebody/tiny")).await.err().unwrap().to_string();
    assert!(error.contains(&hub.endpoint) && error.contains("HF_ENDPOINT"), "{error}");
    assert!(!error.contains("hf_test"), "{error}");
}

#[tokio::test]
async fn the_list_says_where_each_model_of_the_catalogue_is() {
    let machine = Machine::new();
    let hub = Hub::away().await;
    let models_dir = machine.directory.path().join("models");
    let directories = async || -> Vec<_> {
        let listings = list(&models_dir, &machine.hub(&hub)).await.unwrap();
        listings.into_iter().map(|listing| (listing.model.name, listing.directory)).collect()
    };
    assert!(directories().await.iter().all(|(_, directory)| directory.is_none()));
    let directory = models_dir.join("all-MiniLM-L6-v2");
    tiny_bert::write(&directory, "mean_tokens");
    assert_eq!(directories().await[0], ("all-MiniLM-L6-v2".to_owned(), Some(directory)));
}
