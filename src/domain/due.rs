//! When a node is to be embedded again, by its `refresh_policy`.

use std::str::FromStr;

use chrono::{DateTime, TimeDelta, Utc};
use croner::Cron;
use serde_json::Value;

/// Characters of a cron expression at most.
const CRON_MAX_CHARS: usize = 100;

/// Whether a node that was last embedded at `last` is due at `now`.
///
/// A policy is an object: `{"cron": "*/5 * * * *"}`, in UTC, or `{"interval": "5m"}` in `m`, `h` or
/// `d`; of both, cron counts if it can be read. A node with such a policy that was never embedded is
/// due; one with any other policy, or none, never is.
pub fn is_due(policy: &Value, last: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
    let text = |name: &str| policy.get(name)?.as_str();
    if let Some(cron) = text("cron").and_then(read_cron) {
        let Some(last) = last else { return true };
        // An expression that never comes true is never due.
        return cron.find_next_occurrence(&last, false).is_ok_and(|next| next <= now);
    }
    let Some(interval) = text("interval").and_then(read_interval) else { return false };
    last.is_none_or(|last| now - last >= interval)
}

fn read_cron(expression: &str) -> Option<Cron> {
    let is_short = expression.chars().nth(CRON_MAX_CHARS).is_none();
    is_short.then(|| Cron::from_str(expression).ok()).flatten()
}

/// `minute` is an older word for `1m`.
fn read_interval(text: &str) -> Option<TimeDelta> {
    let text = text.to_ascii_lowercase();
    if text == "minute" {
        return Some(TimeDelta::minutes(1));
    }
    let (count, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = count.bytes().all(|byte| byte.is_ascii_digit());
    let count: i64 = count.parse().ok().filter(|_| is_number)?;
    match unit {
        "m" => TimeDelta::try_minutes(count),
        "h" => TimeDelta::try_hours(count),
        "d" => TimeDelta::try_days(count),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn an_interval_is_over_or_not() {
        let now = at("2026-01-02T12:00:00Z");
        for (interval, last, due) in [
            ("5m", "2026-01-02T11:55:00Z", true),
            ("5m", "2026-01-02T11:55:01Z", false),
            ("1H", "2026-01-02T10:59:59Z", true),
            ("2d", "2026-01-01T12:00:00Z", false),
            ("minute", "2026-01-02T11:59:00Z", true),
            ("0m", "2026-01-02T12:00:00Z", true),
        ] {
            let policy = json!({"interval": interval, "drift_threshold": 0.1});
            assert_eq!(is_due(&policy, Some(at(last)), now), due, "{interval} {last}");
            assert!(is_due(&policy, None, now), "{interval}");
        }
    }

    #[test]
    fn a_cron_expression_comes_before_an_interval_if_it_can_be_read() {
        let (now, last) = (at("2026-01-02T12:00:00Z"), Some(at("2026-01-02T11:58:00Z")));
        assert!(is_due(&json!({"cron": "*/5 * * * *", "interval": "9d"}), last, now));
        assert!(!is_due(&json!({"cron": "1 * * * *", "interval": "1m"}), last, now));
        assert!(is_due(&json!({"cron": "often", "interval": "1m"}), last, now));
        assert!(!is_due(&json!({"cron": "0 0 30 2 *"}), last, now), "there is no such day");
        assert!(is_due(&json!({"cron": "1 * * * *"}), None, now));
    }

    #[test]
    fn what_is_no_policy_is_never_due() {
        let now = at("2026-01-02T12:00:00Z");
        for policy in [
            json!({}),
            json!(null),
            json!("daily"),
            json!(["interval"]),
            json!({"interval": ""}),
            json!({"interval": "m"}),
            json!({"interval": "-5m"}),
            json!({"interval": "+5m"}),
            json!({"interval": "5"}),
            json!({"interval": "5é"}),
            json!({"interval": 5}),
            json!({"interval": "99999999999999999d"}),
            json!({"drift_threshold": 0.1}),
        ] {
            assert!(!is_due(&policy, None, now), "{policy}");
        }
    }
}
