//! Rows that the database refuses for what is in them.

use sea_orm::{DbErr, RuntimeErr, sqlx};

use super::StoreError;

/// Why the database refuses a row: another row has what must be unique, or a value, a size, a
/// constraint or a trigger is against it. Says nothing of what the row holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// What is wrong.
    pub fault: Fault,
    reason: String,
}

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Another row is in the way.
    Conflict,
    /// It is larger than a node may be.
    TooLarge,
    /// What it holds.
    Content,
}

impl Refusal {
    /// The database wrote the others and said nothing of this one: a trigger left it out.
    pub(super) fn left_out() -> Self {
        Self {
            fault: Fault::Content,
            reason: "a trigger of the database left the node out".to_owned(),
        }
    }

    /// The node would have more than `most` bytes.
    pub(super) fn too_large(most: usize) -> Self {
        let reason = format!(
            "the node would have more than {most} bytes of JSON (VECMILL_NODE_BYTES); \
             remove some of its properties first"
        );
        Self { fault: Fault::TooLarge, reason }
    }

    /// Why this error is the fault of one row; none if it is not.
    pub(super) fn of(error: &DbErr) -> Option<Self> {
        let (DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error))) = error
        else {
            return None;
        };
        let error = error.as_database_error()?;
        let code = error.code()?;
        if error.is_unique_violation() {
            return Some(Self { fault: Fault::Conflict, reason: in_the_way(error.constraint()) });
        }
        let what = if error.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
            sqlite_fault(&code)?
        } else {
            postgres_fault(&code)?
        };
        let of = error.constraint().map(|name| format!(", constraint {name}")).unwrap_or_default();
        let reason = format!("the database refuses the node: {what} (error {code}{of})");
        Some(Self { fault: Fault::Content, reason })
    }
}

fn in_the_way(constraint: Option<&str>) -> String {
    match constraint {
        Some(name) if name.contains("external_id") => {
            format!("another node of the tenant has this external_id (unique index {name})")
        }
        Some(name) => format!("another node has the same values under the unique index {name}"),
        None => "another node has the same values under a unique index".to_owned(),
    }
}

/// By the classes of SQLSTATE (Postgres manual, appendix A). Messages may repeat what the row
/// holds, so none is passed on.
fn postgres_fault(code: &str) -> Option<&'static str> {
    Some(match code {
        "23502" => "a column that must not be null would be",
        "23503" => "it refers to a row that is not there, or is referred to",
        "23514" | "44000" => "a check of the table is against it",
        _ => match code.get(..2)? {
            "22" => "it holds a value that the database cannot store",
            "23" => "a constraint of the table is against it",
            "54" => "it is larger than the database allows",
            "38" | "39" | "P0" => "a trigger of the table is against it",
            _ => return None,
        },
    })
}

/// By the primary result codes of SQLite.
fn sqlite_fault(code: &str) -> Option<&'static str> {
    match code.parse::<i32>().ok()? & 0xff {
        18 => Some("it is larger than the database allows"),
        19 => Some("a constraint or trigger of the table is against it"),
        20 => Some("it holds a value that the database cannot store"),
        _ => None,
    }
}

/// What an answer about many rows says of each: nothing, or why it was refused.
pub type Refusals = Vec<Option<Refusal>>;

impl StoreError {
    /// The refusal, if one row is at fault.
    pub fn into_refusal(self) -> Result<Refusal, Self> {
        match self {
            Self::Row(refusal) => Ok(refusal),
            other => Err(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_row_holds_is_its_fault() {
        for code in ["22P02", "22003", "23502", "23514", "54000", "P0001", "44000"] {
            assert!(postgres_fault(code).is_some(), "{code}");
        }
        for code in ["42P01", "42501", "40001", "57014", "25006", "XX000", "53100", ""] {
            assert_eq!(postgres_fault(code), None, "{code}");
        }
        for code in ["18", "19", "2067", "3091"] {
            assert!(sqlite_fault(code).is_some(), "{code}");
        }
        for code in ["1", "5", "13", "8"] {
            assert_eq!(sqlite_fault(code), None, "{code}");
        }
    }
}
