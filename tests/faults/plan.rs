//! How much is run, where its randomness comes from, and what it found, as rows of a table.

use std::{
    fmt::Write as _,
    fs::OpenOptions,
    io::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::checker::Checked;

/// Whether the whole matrix is wanted (`VECMILL_FAULTS=full`), or the short set.
pub fn is_full() -> bool {
    std::env::var("VECMILL_FAULTS").is_ok_and(|set| set == "full")
}

/// The first in the short set, the second in the whole matrix.
pub fn short_or_full<T>(short: T, full: T) -> T {
    if is_full() { full } else { short }
}

/// Fault runs at a time: each has several processes, and leases that are short.
static ROOM: Semaphore = Semaphore::const_new(2);

/// What a run is made of: its random numbers, and its turn on the machine.
pub struct Plan {
    state: u64,
    _turn: SemaphorePermit<'static>,
}

impl Plan {
    /// Waits for a turn, and prints the seed.
    pub async fn new(fault: &str) -> Self {
        let turn = ROOM.acquire().await.unwrap();
        let seed = std::env::var("VECMILL_FAULT_SEED").ok().map_or_else(
            || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into(),
            |seed| seed.parse().expect("VECMILL_FAULT_SEED is a number"),
        );
        println!("{fault}: VECMILL_FAULT_SEED={seed}");
        Self { state: seed, _turn: turn }
    }

    /// A number from `range`, by SplitMix64.
    pub fn pick(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        range.start + (z ^ (z >> 31)) % (range.end - range.start)
    }
}

/// What the runs of one fault on one pair of stores came to.
pub struct Row {
    fault: String,
    stores: &'static str,
    runs: Vec<Checked>,
    recoveries: Vec<Duration>,
}

impl Row {
    /// No runs yet.
    pub fn new(fault: impl Into<String>, stores: &'static str) -> Self {
        Self { fault: fault.into(), stores, runs: Vec::new(), recoveries: Vec::new() }
    }

    /// From the end of a fault to the first vector stored after it.
    pub fn recovered(&mut self, after: Duration) {
        self.recoveries.push(after);
    }

    /// A run went through the checker.
    pub fn checked(&mut self, run: Checked) {
        self.runs.push(run);
    }
}

impl Drop for Row {
    /// Prints the row, and appends it to the report if one is kept.
    fn drop(&mut self) {
        if std::thread::panicking() || self.runs.is_empty() {
            return;
        }
        let sum = |of: fn(&Checked) -> usize| self.runs.iter().map(of).sum::<usize>();
        self.recoveries.sort();
        let seconds = |at: Option<&Duration>| {
            at.map_or("–".to_owned(), |time| format!("{:.2}", time.as_secs_f64()))
        };
        let mut row = String::new();
        // Writing to a string cannot fail.
        let _ = write!(
            row,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            self.fault,
            self.stores,
            self.runs.len(),
            sum(|run| run.nodes),
            sum(|run| run.failed),
            sum(|run| run.embedded_again),
            seconds(self.recoveries.get(self.recoveries.len() / 2)),
            seconds(self.recoveries.last()),
            sum(|run| run.lost),
        );
        println!("{row}");
        if let Some(report) = std::env::var_os("VECMILL_FAULTS_REPORT") {
            let mut report = OpenOptions::new().create(true).append(true).open(report).unwrap();
            writeln!(report, "{row}").unwrap();
        }
    }
}
