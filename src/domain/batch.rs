//! Which texts are embedded together.

/// Splits texts of the given token counts into batches of at most `max_tokens` tokens, counted
/// as the padded batch costs them (longest text × texts), and at most `max_texts` texts.
///
/// Texts of like length go together, longest first, so that little is padding. A single text
/// above the budget is a batch of its own. Returns indices into `token_counts`; each index
/// occurs exactly once.
pub fn plan(token_counts: &[usize], max_tokens: usize, max_texts: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..token_counts.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(token_counts[index]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for index in order {
        match batches.last_mut() {
            Some(batch)
                if batch.len() < max_texts
                    && (batch.len() + 1) * token_counts[batch[0]] <= max_tokens =>
            {
                batch.push(index);
            }
            _ => batches.push(vec![index]),
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
        assert_eq!(plan(&[3, 900, 3], 512, 32), [vec![1], vec![0, 2]]);
        assert!(plan(&[], 512, 32).is_empty());
    }

    proptest! {
        #[test]
        fn every_text_is_in_one_batch_within_the_budget(
            counts in prop::collection::vec(0_usize..600, 0..200),
            max_tokens in 1_usize..2000,
            max_texts in 1_usize..64,
        ) {
            let batches = plan(&counts, max_tokens, max_texts);
            let mut seen: Vec<usize> = batches.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..counts.len()).collect::<Vec<_>>());
            for batch in &batches {
                let longest = batch.iter().map(|&i| counts[i]).max().unwrap_or(0);
                prop_assert!(batch.len() <= max_texts);
                prop_assert!(batch.len() == 1 || batch.len() * longest <= max_tokens);
            }
        }
    }
}
