//! How a case that fails becomes short. The crate leaves out one step after the other, once; here
//! halves, quarters and so on are left out until not a single step can be, and the steps that are
//! left are made plain: every one of them has its part in the failure.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use proptest::{
    strategy::{NewTree, Strategy, ValueTree},
    test_runner::TestRunner,
};

use crate::{act::Step, plan::Plan};

/// The start of a case, its steps, and how many of them were taken.
pub type Case = (Plan, Vec<Step>, Option<Arc<AtomicUsize>>);

/// A strategy whose cases become minimal. Any step may be left out: one that finds nothing to do
/// does nothing.
#[derive(Debug)]
pub struct Minimal<S>(pub S);

impl<S: Strategy<Value = Case>> Strategy for Minimal<S> {
    type Tree = MinimalTree;
    type Value = Case;

    fn new_tree(&self, runner: &mut TestRunner) -> NewTree<Self> {
        let (plan, steps, taken) = self.0.new_tree(runner)?.current();
        let tried = Tried::Nothing;
        Ok(MinimalTree { plan, steps, taken, tried, at: 0, size: 0, is_better: false })
    }
}

/// See the module.
pub struct MinimalTree {
    plan: Plan,
    steps: Vec<Step>,
    taken: Option<Arc<AtomicUsize>>,
    tried: Tried,
    /// This pass has looked at all steps from here on.
    at: usize,
    /// Steps that are left out together; 0 in the pass that makes steps plain.
    size: usize,
    /// Whether this pass made the case better.
    is_better: bool,
}

/// What was done to the steps, and may have to be undone.
enum Tried {
    Nothing,
    /// These stood at the place of the pass.
    LeftOut(Vec<Step>),
    /// This stands plain at the place of the pass.
    MadePlain(Step),
}

impl MinimalTree {
    /// Goes on to the left, or begins another pass; false when there is nothing left to try.
    fn try_next(&mut self) -> bool {
        loop {
            if self.at == 0 {
                match (self.size, self.is_better) {
                    (0, false) => return false,
                    (0, true) => self.size = 1,
                    (1, true) => {}
                    _ => self.size /= 2,
                }
                self.is_better = false;
                self.at = self.steps.len();
                if self.at == 0 {
                    return false;
                }
            }
            let end = self.at;
            if self.size > 0 {
                self.at = end.saturating_sub(self.size);
                self.tried = Tried::LeftOut(self.steps.drain(self.at..end).collect());
                return true;
            }
            self.at -= 1;
            if let Some(plain) = self.steps[self.at].plain() {
                self.tried = Tried::MadePlain(std::mem::replace(&mut self.steps[self.at], plain));
                return true;
            }
        }
    }
}

impl ValueTree for MinimalTree {
    type Value = Case;

    fn current(&self) -> Case {
        (self.plan.clone(), self.steps.clone(), self.taken.clone())
    }

    /// The case failed: what was tried stays.
    fn simplify(&mut self) -> bool {
        if let Some(taken) = self.taken.take() {
            self.steps.truncate(taken.load(Ordering::SeqCst));
            self.size = self.steps.len();
            self.at = self.steps.len();
        } else {
            self.is_better = true;
        }
        self.try_next()
    }

    /// The case passed: what was tried is undone.
    fn complicate(&mut self) -> bool {
        match std::mem::replace(&mut self.tried, Tried::Nothing) {
            Tried::Nothing => {}
            Tried::LeftOut(steps) => drop(self.steps.splice(self.at..self.at, steps)),
            Tried::MadePlain(step) => self.steps[self.at] = step,
        }
        self.try_next()
    }
}
