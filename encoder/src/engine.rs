//! How a batch is spread over threads.

use std::{
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicUsize, Ordering},
    },
};

use candle_core::Result;
use candle_nn::VarBuilder;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{
    architecture::Architecture,
    forward::{Layers, Workspace},
    kernel::Visit,
    kernels::{Simd, Team},
    pooling::Pooling,
    shards::{self, Plan, Shards},
    weights,
};

/// An engine for any instruction set.
pub(crate) trait Embed: Send + Sync {
    /// See [`crate::Encoder::embed`].
    fn embed(&self, texts: &[&[u32]]) -> Vec<Vec<f32>>;
}

/// Vectors, each with the number of its text in the batch.
type Vectors = Vec<(usize, Vec<f32>)>;

struct Engine<S: Simd> {
    layers: Layers<S>,
    pooling: Pooling,
    /// All threads but the one that asks; none for a single thread.
    pool: Option<ThreadPool>,
    /// One for each thread. Locked as a whole while a batch is computed on the pool.
    workspaces: Mutex<Vec<Mutex<Workspace<S>>>>,
}

/// What an engine is made of.
pub(crate) struct Load<'a> {
    pub(crate) architecture: &'a Architecture,
    pub(crate) pooling: Pooling,
    pub(crate) weights: VarBuilder<'a>,
    pub(crate) threads: usize,
}

impl Visit for Load<'_> {
    type Output = Result<Box<dyn Embed>>;

    fn visit<S: Simd>(self, simd: S) -> Self::Output {
        let Self { architecture, pooling, weights, threads } = self;
        let layers = weights::load(simd, architecture, weights)?;
        let pool = (threads > 1)
            .then(|| {
                let name = |index| format!("encoder-{index}");
                ThreadPoolBuilder::new().num_threads(threads - 1).thread_name(name).build()
            })
            .transpose()
            .map_err(candle_core::Error::wrap)?;
        let workspace = || Mutex::new(layers.workspace(shards::TOKENS, shards::TOKENS, 1));
        let workspaces = Mutex::new((0..threads).map(|_| workspace()).collect());
        Ok(Box::new(Engine { layers, pooling, pool, workspaces }))
    }
}

impl<S: Simd> Engine<S> {
    /// Embeds one shard.
    fn shard(
        &self,
        team: &Team<'_>,
        batch: &[&[u32]],
        shard: &[usize],
        workspace: &mut Workspace<S>,
    ) -> Vectors {
        let texts: Vec<&[u32]> = shard.iter().map(|&text| batch[text]).collect();
        workspace.fit(&self.layers, &texts, team);
        let ranges = self.layers.forward(team, &texts, workspace);
        let vector = |range: Range<usize>| {
            self.pooling.pool(|| self.layers.tokens(workspace, range.clone()), self.layers.hidden)
        };
        shard.iter().copied().zip(ranges.into_iter().map(vector)).collect()
    }

    /// Embeds a batch on the pool and this thread.
    fn on_all_threads(
        &self,
        batch: &[&[u32]],
        lengths: &[usize],
        mut workspaces: MutexGuard<'_, Vec<Mutex<Workspace<S>>>>,
    ) -> Vectors {
        match shards::plan(lengths, workspaces.len()) {
            Plan::Apart(shards) => self.apart(batch, &shards, &workspaces),
            Plan::Together(shards) => {
                let first = workspaces[0].get_mut().unwrap_or_else(PoisonError::into_inner);
                self.together(batch, &shards, first)
            }
        }
    }

    /// Embeds each shard on one thread.
    fn apart(
        &self,
        batch: &[&[u32]],
        shards: &Shards,
        workspaces: &[Mutex<Workspace<S>>],
    ) -> Vectors {
        let next = AtomicUsize::new(0);
        let work = |workspace: &Mutex<Workspace<S>>| {
            let mut workspace = workspace.lock().unwrap_or_else(PoisonError::into_inner);
            let mut vectors = Vectors::new();
            while let Some(shard) = shards.get(next.fetch_add(1, Ordering::Relaxed)) {
                vectors.extend(self.shard(&Team::SOLO, batch, shard, &mut workspace));
            }
            vectors
        };
        let Some(pool) = &self.pool else { return work(&workspaces[0]) };
        let vectors = Mutex::new(Vectors::new());
        let keep = |more| vectors.lock().unwrap_or_else(PoisonError::into_inner).extend(more);
        pool.in_place_scope(|scope| {
            for workspace in &workspaces[1..] {
                scope.spawn(|_| keep(work(workspace)));
            }
            keep(work(&workspaces[0]));
        });
        vectors.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Embeds the shards one after another, each on all threads.
    fn together(&self, batch: &[&[u32]], shards: &Shards, workspace: &mut Workspace<S>) -> Vectors {
        match &self.pool {
            Some(pool) => Team::lead(pool, |team| self.in_turn(team, batch, shards, workspace)),
            None => self.in_turn(&Team::SOLO, batch, shards, workspace),
        }
    }

    /// Embeds the shards one after another on a team.
    fn in_turn(
        &self,
        team: &Team<'_>,
        batch: &[&[u32]],
        shards: &Shards,
        workspace: &mut Workspace<S>,
    ) -> Vectors {
        shards.iter().flat_map(|shard| self.shard(team, batch, shard, workspace)).collect()
    }
}

impl<S: Simd> Embed for Engine<S> {
    fn embed(&self, batch: &[&[u32]]) -> Vec<Vec<f32>> {
        let lengths: Vec<usize> = batch.iter().map(|text| text.len()).collect();
        assert!(!lengths.contains(&0), "a text has no tokens");
        let found = match self.workspaces.try_lock() {
            Ok(workspaces) => self.on_all_threads(batch, &lengths, workspaces),
            // What a panic left in a workspace is overwritten before it is read.
            Err(TryLockError::Poisoned(error)) => {
                self.on_all_threads(batch, &lengths, error.into_inner())
            }
            // Another caller has the pool, perhaps one that hangs: this one does not wait for it.
            Err(TryLockError::WouldBlock) => {
                let (Plan::Apart(shards) | Plan::Together(shards)) = shards::plan(&lengths, 1);
                let mut workspace = self.layers.workspace(shards::TOKENS, shards::TOKENS, 1);
                self.in_turn(&Team::SOLO, batch, &shards, &mut workspace)
            }
        };
        let mut vectors = vec![Vec::new(); batch.len()];
        for (text, vector) in found {
            vectors[text] = vector;
        }
        vectors
    }
}
