//! Threads that compute one small batch together.
//!
//! A layer of a short text takes microseconds, less than it takes to wake a thread. So the
//! members of a team spin between the steps of a batch, and sleep only between batches.

use std::{
    cell::{Cell, UnsafeCell},
    hint,
    marker::PhantomData,
    mem,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use rayon::ThreadPool;

/// Rounds of spinning after which a thread lets others run on its core.
const SPINS: u32 = 2_000;

type Step<'a> = dyn Fn(usize) + Sync + 'a;

/// A thread and those that help it. Steps run on all of them, each with its rank.
pub(crate) struct Team<'a> {
    helpers: Option<&'a Helpers>,
    /// Not `Sync`: steps must be, so that none can begin another.
    of_leader: PhantomData<Cell<()>>,
}

/// What the members of a team share.
struct Helpers {
    count: usize,
    /// Counts the steps; a helper does one when it sees a new number.
    round: AtomicUsize,
    /// The step of the present round.
    step: UnsafeCell<Option<&'static Step<'static>>>,
    /// Helpers that have not done it yet.
    busy: AtomicUsize,
    panicked: AtomicBool,
    is_over: AtomicBool,
}

// SAFETY: `step` is written only by the leader while no helper is busy, and read only by helpers
// that saw the round that the leader published afterwards.
unsafe impl Sync for Helpers {}

impl Team<'_> {
    /// A thread without helpers.
    pub(crate) const SOLO: Team<'static> = Team { helpers: None, of_leader: PhantomData };

    /// Runs `lead` on this thread, with the threads of the pool as its helpers. Nothing else may
    /// run on the pool.
    pub(crate) fn lead<R>(pool: &ThreadPool, lead: impl FnOnce(&Team<'_>) -> R) -> R {
        let helpers = Helpers {
            count: pool.current_num_threads(),
            round: AtomicUsize::new(0),
            step: UnsafeCell::new(None),
            busy: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        };
        pool.in_place_scope(|scope| {
            for rank in 1..=helpers.count {
                let helpers = &helpers;
                scope.spawn(move |_| helpers.help(rank));
            }
            // Also when `lead` panics: the scope waits for the helpers.
            let _over = Finally(|| helpers.is_over.store(true, Ordering::Release));
            lead(&Team { helpers: Some(&helpers), of_leader: PhantomData })
        })
    }

    /// Members, the leader included.
    pub(crate) fn size(&self) -> usize {
        1 + self.helpers.map_or(0, |helpers| helpers.count)
    }

    /// Runs a step on all members, and returns when all have done it. Panics when one did.
    pub(super) fn run(&self, step: &Step<'_>) {
        let Some(helpers) = self.helpers else { return step(0) };
        // SAFETY: only the lifetime changes. The reference is used by helpers in this round alone,
        // and this function does not return, nor unwind, before all have done the round.
        let forever = unsafe { mem::transmute::<&Step<'_>, &'static Step<'static>>(step) };
        // SAFETY: no helper is busy: none reads the step before the round below.
        unsafe { *helpers.step.get() = Some(forever) };
        helpers.busy.store(helpers.count, Ordering::Relaxed);
        helpers.round.fetch_add(1, Ordering::Release);
        {
            let _wait = Finally(|| wait(|| helpers.busy.load(Ordering::Acquire) == 0));
            step(0);
        }
        assert!(!helpers.panicked.load(Ordering::Relaxed), "a helper panicked");
    }
}

/// A member's share of so many parts, in a team of so many.
pub(super) fn share(rank: usize, size: usize, parts: usize) -> Range<usize> {
    rank * parts / size..(rank + 1) * parts / size
}

impl Helpers {
    /// Does every step with a rank, until the leader has no more.
    fn help(&self, rank: usize) {
        let mut done = 0;
        loop {
            wait(|| {
                self.round.load(Ordering::Acquire) != done || self.is_over.load(Ordering::Acquire)
            });
            if self.round.load(Ordering::Acquire) == done {
                return;
            }
            done += 1;
            // SAFETY: the leader wrote the step before the round, and writes the next one only
            // when this helper, too, is not busy any more.
            if let Some(step) = unsafe { *self.step.get() }
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| step(rank)))
            {
                // Dropping it might panic again, and the leader would wait for ever.
                mem::forget(panic);
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }
}

fn wait(is_over: impl Fn() -> bool) {
    let mut spins = 0;
    while !is_over() {
        spins += 1;
        if spins < SPINS { hint::spin_loop() } else { thread::yield_now() }
    }
}

/// Runs a function when it goes out of scope.
struct Finally<F: Fn()>(F);

impl<F: Fn()> Drop for Finally<F> {
    fn drop(&mut self) {
        self.0();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::sync::Mutex;

    use super::*;

    fn pool(threads: usize) -> ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn every_member_does_every_step_before_the_next_begins() {
        let pool = pool(3);
        let steps = Mutex::new(Vec::new());
        Team::lead(&pool, |team| {
            assert_eq!(team.size(), 4);
            for step in 0..50 {
                team.run(&|rank| steps.lock().unwrap().push((step, rank)));
            }
        });
        let mut steps = steps.into_inner().unwrap();
        assert!(steps.is_sorted_by_key(|&(step, _)| step));
        steps.sort_unstable();
        let all: Vec<(i32, usize)> = (0..50).flat_map(|s| (0..4).map(move |r| (s, r))).collect();
        assert_eq!(steps, all);
    }

    #[test]
    fn the_shares_are_all_parts_once() {
        for (size, parts) in [(1, 7), (3, 0), (3, 2), (3, 9), (4, 10)] {
            let all: Vec<usize> = (0..size).flat_map(|rank| share(rank, size, parts)).collect();
            assert_eq!(all, (0..parts).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_panic_of_any_member_reaches_the_leader_and_the_pool_goes_on() {
        let pool = pool(2);
        for guilty in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                Team::lead(&pool, |team| team.run(&|rank| assert_ne!(rank, guilty)));
            }));
            assert!(result.is_err(), "rank {guilty}");
        }
        let ranks = Mutex::new(0);
        Team::lead(&pool, |team| team.run(&|rank| *ranks.lock().unwrap() += rank));
        assert_eq!(ranks.into_inner().unwrap(), 3);
    }
}
