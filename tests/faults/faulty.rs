//! The program with a model that misbehaves, as a process of its own: this test program, started
//! again.

use std::{collections::HashMap, path::Path, process::Command, sync::Arc, thread, time::Duration};

use vecmill::{
    app::{self, App, Role},
    config::Settings,
    inference::{EmbedError, EmbeddingBackend, Encoding, HashBackend, Model},
    runtime::RestartIntensity,
    shutdown, telemetry,
};

use super::common::{Program, hash_model, ids_of, with_short_intervals};

/// Ends the process as a defect in native code would.
pub const CRASH: &str = "crash";
/// Panics.
pub const PANIC: &str = "panic";
/// Never comes back.
pub const HANG: &str = "hang";
/// Gets a vector that is none.
pub const NAN: &str = "nan";

/// How long each batch takes, in milliseconds.
const BATCH_MS: &str = "VECMILL_TEST_BATCH_MS";
const ROLE: &str = "VECMILL_TEST_ROLE";

/// The `hash` model, but some texts have consequences, and each batch takes its time.
struct FaultyModel {
    texts: HashMap<Vec<u32>, &'static str>,
    batch_time: Duration,
}

impl FaultyModel {
    fn new(batch_time: Duration) -> Self {
        let texts = [CRASH, PANIC, HANG, NAN].map(|text| (ids_of(text), text));
        Self { texts: texts.into(), batch_time }
    }
}

impl EmbeddingBackend for FaultyModel {
    fn dimension(&self) -> usize {
        HashBackend.dimension()
    }

    fn embed(&self, batch: &[Encoding]) -> Result<Vec<Vec<f32>>, EmbedError> {
        thread::sleep(self.batch_time);
        let mut vectors = HashBackend.embed(batch)?;
        for (text, vector) in batch.iter().zip(&mut vectors) {
            match self.texts.get(&text.ids).copied() {
                Some(CRASH) => std::process::abort(),
                Some(PANIC) => panic!("planned"),
                Some(HANG) => loop {
                    thread::park();
                },
                Some(_) => vector.fill(f32::NAN),
                None => {}
            }
        }
        Ok(vectors)
    }
}

/// Starts the program with the faulty model; each batch takes `batch_time`.
pub fn start(role: &str, batch_time: Duration, dir: &Path, settings: &[(&str, &str)]) -> Program {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["faulty::faulty_program", "--exact", "--ignored", "--nocapture"]);
    let milliseconds = batch_time.as_millis().to_string();
    let mut environment = with_short_intervals(dir, settings);
    environment.extend([(ROLE, role), (BATCH_MS, milliseconds.as_str())]);
    Program::run(command, &environment)
}

#[test]
#[ignore = "the other tests start it as a process of its own"]
fn faulty_program() {
    let role = match std::env::var(ROLE).as_deref() {
        Ok("serve") => Role::Serve,
        Ok("worker") => Role::Worker,
        _ => return,
    };
    let settings: Vec<(String, String)> = std::env::vars()
        .filter(|(name, _)| name != ROLE && name != BATCH_MS)
        .filter(|(name, _)| name != "PATH" && name != "RUST_LOG")
        .collect();
    let settings: Vec<(&str, &str)> =
        settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let config = Settings::with(&settings).unwrap();
    let batch_time = Duration::from_millis(std::env::var(BATCH_MS).unwrap().parse().unwrap());
    let model = Model { backend: Arc::new(FaultyModel::new(batch_time)), ..hash_model() };
    telemetry::init();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let code = runtime.block_on(async {
        let signals = shutdown::listen().unwrap();
        let start = App::start_with(role, config, Some(model), RestartIntensity::default());
        app::run_until_stopped(signals, start).await.unwrap()
    });
    // The harness would make a failed test of it, and wait for threads that hang.
    std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
}
