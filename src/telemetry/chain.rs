//! Errors in log lines.

use std::{error::Error, fmt};

/// Shows an error with all its sources in one line. Only what `Display` says: the debug output
/// of a database error may hold a row, and with it a text.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
