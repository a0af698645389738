//! Work that the database rolled back in favour of another's, and that can be done again: deadlocks,
//! and what serializable transactions refuse.

use std::{future::Future, time::Duration};

use uuid::Uuid;

/// How often a unit of work is tried before its caller is told.
const TRIES: u32 = 6;
/// The longest pause before the second try; it doubles from then on.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Does a unit of work, which must be a whole transaction or a single statement outside of one, and
/// does it again while it ends with a conflict.
pub(super) async fn repeat_on_conflict<T, E, F>(
    mut unit: impl FnMut() -> F,
    is_conflict: impl Fn(&E) -> bool,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    for before in 1..TRIES {
        match unit().await {
            Err(error) if is_conflict(&error) => tokio::time::sleep(pause(before)).await,
            outcome => return outcome,
        }
    }
    unit().await
}

/// A random part of the longest pause: those who met must not meet again.
fn pause(before: u32) -> Duration {
    let longest = FIRST_PAUSE * 2_u32.pow(before - 1);
    let [random, ..] = Uuid::new_v4().into_bytes();
    longest * (u32::from(random) + 1) / 256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn conflicts_are_tried_again_and_nothing_else() {
        for (conflicts, tries, outcome) in
            [(0, 1, Ok(())), (3, 4, Ok(())), (99, TRIES, Err("conflict"))]
        {
            let mut tried = 0;
            let unit = || {
                tried += 1;
                std::future::ready(if tried <= conflicts { Err("conflict") } else { Ok(()) })
            };
            assert_eq!(repeat_on_conflict(unit, |error| *error == "conflict").await, outcome);
            assert_eq!(tried, tries);
        }
        let mut tried = 0;
        let unit = || {
            tried += 1;
            std::future::ready(Err::<(), _>("other"))
        };
        assert_eq!(repeat_on_conflict(unit, |error| *error == "conflict").await, Err("other"));
        assert_eq!(tried, 1);
    }
}
