//! How a batch is divided among threads.

/// Tokens in a shard: enough rows for the kernels to run at full speed, few enough for the
/// activations to stay in the second-level cache.
pub(crate) const TOKENS: usize = 128;

/// Tokens for each thread below which threads compute together rather than apart: each apart
/// reads all weights, for too little work.
const APART: usize = 64;

/// Texts of a shard, by their numbers in the batch.
pub(crate) type Shards = [Vec<usize>];

/// How the threads share a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Each shard is computed by one thread.
    Apart(Vec<Vec<usize>>),
    /// Each shard is computed by all threads.
    Together(Vec<Vec<usize>>),
}

/// Divides texts of these lengths, in tokens, among so many threads.
///
/// Shards are of about [`TOKENS`] tokens, or one text, and as even as texts allow: the longest
/// text goes first, each to the shard that has the least (Graham's LPT rule, 1969).
pub(crate) fn plan(lengths: &[usize], threads: usize) -> Plan {
    let total: usize = lengths.iter().sum();
    let count = total.div_ceil(TOKENS);
    let apart = balance(lengths, count.next_multiple_of(threads).min(lengths.len()).max(1));
    let load = |shard: &Vec<usize>| shard.iter().map(|&text| lengths[text]).sum::<usize>();
    let heaviest = apart.iter().map(load).max().unwrap_or(0);
    // Where one shard keeps one thread busy for much longer than the others have work.
    let is_uneven = heaviest * threads > total + total / 8 && apart.len() <= threads;
    if threads > 1 && (total < APART * threads || is_uneven) {
        return Plan::Together(balance(lengths, count.clamp(1, lengths.len().max(1))));
    }
    Plan::Apart(apart)
}

fn balance(lengths: &[usize], shards: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&text| std::cmp::Reverse(lengths[text]));
    let mut filled: Vec<(usize, Vec<usize>)> = vec![(0, Vec::new()); shards];
    for text in order {
        if let Some((load, texts)) = filled.iter_mut().min_by_key(|(load, _)| *load) {
            *load += lengths[text];
            texts.push(text);
        }
    }
    // The heaviest first, so that the last ones to run are light.
    filled.sort_by_key(|(load, _)| std::cmp::Reverse(*load));
    filled.into_iter().map(|(_, texts)| texts).filter(|texts| !texts.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_small_batch_is_computed_together_and_a_large_one_apart() {
        assert_eq!(plan(&[15], 2), Plan::Together(vec![vec![0]]));
        assert_eq!(plan(&[15], 1), Plan::Apart(vec![vec![0]]));
        assert_eq!(plan(&[200], 2), Plan::Together(vec![vec![0]]));
        assert_eq!(plan(&[100, 100], 2), Plan::Apart(vec![vec![0], vec![1]]));
        assert!(matches!(plan(&[128; 16], 2), Plan::Apart(shards) if shards.len() == 16));
        assert!(matches!(plan(&[], 2), Plan::Together(shards) if shards.is_empty()));
    }

    proptest! {
        #[test]
        fn every_text_is_in_one_shard(
            lengths in prop::collection::vec(1_usize..512, 0..100),
            threads in 1_usize..9,
        ) {
            let (Plan::Apart(shards) | Plan::Together(shards)) = plan(&lengths, threads);
            let mut texts = shards.concat();
            texts.sort_unstable();
            prop_assert_eq!(texts, (0..lengths.len()).collect::<Vec<_>>());
            for shard in &shards {
                prop_assert!(!shard.is_empty());
                let tokens: usize = shard.iter().map(|&text| lengths[text]).sum();
                prop_assert!(shard.len() == 1 || tokens < TOKENS + 512);
            }
        }
    }
}
