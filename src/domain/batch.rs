//! Which texts are embedded together.

use std::cmp::Reverse;

/// What a batch of texts costs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// The tokens of its texts together.
    Sum,
    /// Its longest text times its texts: the others are padded.
    Padded,
}

/// Splits texts of the given token counts into batches that cost at most `max_tokens`, of at most
/// `max_texts` texts each. A single text above the budget is a batch of its own.
///
/// Where batches are padded, texts of like length go together, longest first; elsewhere texts stay
/// in the order in which they came. Returns indices into `token_counts`; each index occurs exactly
/// once.
pub fn plan(
    token_counts: &[usize],
    cost: Cost,
    max_tokens: usize,
    max_texts: usize,
) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..token_counts.len()).collect();
    if cost == Cost::Padded {
        order.sort_by_key(|&index| Reverse(token_counts[index]));
    }
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for index in order {
        let own = token_counts[index];
        match batches.last_mut() {
            Some(batch)
                if batch.len() < max_texts
                    && max_tokens
                        >= match cost {
                            Cost::Sum => tokens + own,
                            Cost::Padded => (batch.len() + 1) * token_counts[batch[0]],
                        } =>
            {
                batch.push(index);
                tokens += own;
            }
            _ => {
                batches.push(vec![index]);
                tokens = own;
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_above_the_budget_is_alone() {
        assert_eq!(plan(&[3, 900, 3], Cost::Padded, 512, 32), [vec![1], vec![0, 2]]);
        assert_eq!(plan(&[3, 900, 3], Cost::Sum, 512, 32), [vec![0], vec![1], vec![2]]);
        assert!(plan(&[], Cost::Padded, 512, 32).is_empty());
    }

    #[test]
    fn without_padding_a_short_text_costs_what_it_has_and_order_is_kept() {
        assert_eq!(plan(&[100, 2, 2, 2], Cost::Sum, 106, 32), [vec![0, 1, 2, 3]]);
        assert_eq!(plan(&[2, 100, 2], Cost::Padded, 106, 32), [vec![1], vec![0, 2]]);
    }

    proptest! {
        #[test]
        fn every_text_is_in_one_batch_within_the_budget(
            counts in prop::collection::vec(0_usize..600, 0..200),
            is_padded: bool,
            max_tokens in 1_usize..2000,
            max_texts in 1_usize..64,
        ) {
            let cost = if is_padded { Cost::Padded } else { Cost::Sum };
            let batches = plan(&counts, cost, max_tokens, max_texts);
            let mut seen: Vec<usize> = batches.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..counts.len()).collect::<Vec<_>>());
            for batch in &batches {
                let tokens = batch.iter().map(|&i| counts[i]);
                let costs = match cost {
                    Cost::Sum => tokens.sum(),
                    Cost::Padded => batch.len() * tokens.max().unwrap_or(0),
                };
                prop_assert!(batch.len() <= max_texts);
                prop_assert!(batch.len() == 1 || costs <= max_tokens);
            }
        }
    }
}
