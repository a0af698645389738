//! Inference on an OS thread of its own, so that no async thread computes or blocks.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use tracing::Span;

use super::{EmbedError, EmbeddingBackend, Encoding};

type Answer = Result<Vec<Vec<f32>>, EmbedError>;

struct Work {
    batch: Vec<Encoding>,
    span: Span,
    answer: oneshot::Sender<Answer>,
}

/// A thread that runs a backend, one batch at a time in the order of submission.
///
/// A panic of the backend ends the thread: the batch in hand, those that wait and all later ones
/// are answered by a closed channel. Dropping this ends the thread after the batch in hand,
/// without waiting for it; batches that still wait are answered by a closed channel.
pub struct BackendThread {
    work: mpsc::Sender<Work>,
    dropped: Arc<AtomicBool>,
    began: Began,
}

/// How often a thread is looked at within the time that a batch may take.
const CHECKS: u32 = 10;

/// When the batch in hand began, which tells it from others; none while there is none.
type Began = Arc<Mutex<Option<Instant>>>;

impl BackendThread {
    /// Starts a thread of the given name. Fails when the system gives no thread.
    pub fn spawn(name: &str, backend: Arc<dyn EmbeddingBackend>) -> io::Result<Self> {
        let (work, inbox) = mpsc::channel();
        let dropped = Arc::new(AtomicBool::new(false));
        let owner_left = dropped.clone();
        let began = Began::default();
        let begins = began.clone();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(backend.as_ref(), &inbox, &owner_left, &begins))?;
        Ok(Self { work, dropped, began })
    }

    fn began(&self) -> Option<Instant> {
        *self.began.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when a batch has been computed for `limit`. Only time in which this process runs
    /// counts: one that was stopped, with its model in the middle of a batch, does not hang.
    pub async fn hangs(&self, limit: Duration) {
        let (mut batch, mut seen) = (self.began(), 0);
        while seen < CHECKS {
            tokio::time::sleep(limit / CHECKS).await;
            let now = self.began();
            seen = if now.is_some() && now == batch { seen + 1 } else { 0 };
            batch = now;
        }
    }

    /// Hands a batch to the thread, and returns at once. The computation runs inside the current
    /// tracing span. A batch whose receiver is gone before its turn is not computed.
    ///
    /// The receiver fails with `RecvError` when the thread is lost; a new one is needed then.
    pub fn submit(&self, batch: Vec<Encoding>) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        // A lost thread has closed its inbox: the work is dropped here, and `answer` with it.
        let _ = self.work.send(Work { batch, span: Span::current(), answer });
        receiver
    }
}

impl Drop for BackendThread {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::Relaxed);
    }
}

fn run(
    backend: &dyn EmbeddingBackend,
    inbox: &mpsc::Receiver<Work>,
    owner_left: &AtomicBool,
    began: &Mutex<Option<Instant>>,
) {
    // Each change is one assignment, so that a panic cannot leave half of it.
    let note = |at| *began.lock().unwrap_or_else(PoisonError::into_inner) = at;
    while let Ok(work) = inbox.recv() {
        if owner_left.load(Ordering::Relaxed) {
            return;
        }
        if work.answer.is_closed() {
            continue;
        }
        note(Some(Instant::now()));
        let vectors = work.span.in_scope(|| backend.embed(&work.batch));
        note(None);
        // The asker may have left meanwhile.
        let _ = work.answer.send(vectors);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::sync::Mutex;

    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

    fn text(id: u32) -> Vec<Encoding> {
        vec![Encoding { ids: vec![id], truncated: false }]
    }

    /// Echoes the ids; panics at 13; at 7 it waits until the test opens the gate.
    struct Echo {
        gate: Mutex<mpsc::Receiver<()>>,
        began: Mutex<mpsc::Sender<u32>>,
    }

    impl EmbeddingBackend for Echo {
        fn dimension(&self) -> usize {
            1
        }

        fn embed(&self, batch: &[Encoding]) -> Result<Vec<Vec<f32>>, EmbedError> {
            let id = batch[0].ids[0];
            self.began.lock().unwrap().send(id).unwrap();
            match id {
                7 => self.gate.lock().unwrap().recv().unwrap(),
                13 => panic!("planned"),
                _ => {}
            }
            Ok(vec![vec![id as f32]])
        }
    }

    struct Setup {
        backend: Arc<Echo>,
        thread: BackendThread,
        open: mpsc::Sender<()>,
        began: mpsc::Receiver<u32>,
    }

    fn setup() -> Setup {
        let (open, gate) = mpsc::channel();
        let (began_sender, began) = mpsc::channel();
        let backend = Arc::new(Echo { gate: Mutex::new(gate), began: Mutex::new(began_sender) });
        let thread = BackendThread::spawn("test-embedder", backend.clone()).unwrap();
        Setup { backend, thread, open, began }
    }

    /// Notes on which threads a span is entered.
    #[derive(Clone, Default)]
    struct Entered(Arc<Mutex<Vec<String>>>);

    impl<S: tracing::Subscriber> Layer<S> for Entered {
        fn on_enter(&self, _: &tracing::Id, _: Context<'_, S>) {
            let name = thread::current().name().unwrap_or_default().to_owned();
            self.0.lock().unwrap().push(name);
        }
    }

    #[tokio::test]
    async fn the_callers_span_goes_with_the_batch() {
        let setup = setup();
        let entered = Entered::default();
        let subscriber = tracing_subscriber::registry().with(entered.clone());
        let _default = tracing::subscriber::set_default(subscriber);
        let asker = tracing::error_span!("asker");
        let answer = asker.in_scope(|| setup.thread.submit(text(1)));
        assert_eq!(answer.await.unwrap().unwrap(), [[1.0]]);
        assert_eq!(entered.0.lock().unwrap().last().unwrap(), "test-embedder");
    }

    #[tokio::test]
    async fn a_panic_loses_the_thread_and_tells_every_asker() {
        let setup = setup();
        let first = setup.thread.submit(text(7));
        let fatal = setup.thread.submit(text(13));
        let waiting = setup.thread.submit(text(1));
        setup.open.send(()).unwrap();
        assert_eq!(first.await.unwrap().unwrap(), [[7.0]]);
        assert!(fatal.await.is_err());
        assert!(waiting.await.is_err());
        assert!(setup.thread.submit(text(1)).await.is_err());
        let replacement = BackendThread::spawn("test-embedder", setup.backend).unwrap();
        assert_eq!(replacement.submit(text(2)).await.unwrap().unwrap(), [[2.0]]);
    }

    #[tokio::test]
    async fn dropping_ends_the_thread_after_the_batch_in_hand() {
        let setup = setup();
        let in_hand = setup.thread.submit(text(7));
        assert_eq!(setup.began.recv().unwrap(), 7);
        let waiting = setup.thread.submit(text(1));
        drop(setup.thread);
        setup.open.send(()).unwrap();
        assert_eq!(in_hand.await.unwrap().unwrap(), [[7.0]]);
        assert!(waiting.await.is_err());
    }

    #[tokio::test]
    async fn a_batch_that_does_not_end_hangs_and_many_short_ones_do_not() {
        let setup = setup();
        let limit = Duration::from_millis(100);
        let mut hangs = std::pin::pin!(setup.thread.hangs(limit));
        for _ in 0..30 {
            setup.thread.submit(text(1)).await.unwrap().unwrap();
            let wait = tokio::time::timeout(limit / 10, &mut hangs).await;
            assert!(wait.is_err(), "no batch took long");
        }
        let in_hand = setup.thread.submit(text(7));
        hangs.await;
        setup.open.send(()).unwrap();
        in_hand.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_batch_that_nobody_waits_for_is_not_computed() {
        let setup = setup();
        let in_hand = setup.thread.submit(text(7));
        drop(setup.thread.submit(text(5)));
        let last = setup.thread.submit(text(6));
        setup.open.send(()).unwrap();
        in_hand.await.unwrap().unwrap();
        last.await.unwrap().unwrap();
        assert_eq!(setup.began.try_iter().collect::<Vec<_>>(), [7, 6]);
    }
}
