//! What a command prints: for a person, or for a script.

use std::io::{self, Write};

use serde_json::Value;

/// Where a command prints its result, and in which form.
pub struct Output<'a> {
    json: bool,
    to: &'a mut (dyn Write + Send),
}

impl<'a> Output<'a> {
    /// Prints to `to`: one JSON object a line if `json`, else text.
    pub fn new(json: bool, to: &'a mut (dyn Write + Send)) -> Self {
        Self { json, to }
    }

    /// Prints a result in the form that was asked for.
    pub fn result(&mut self, text: &str, json: &Value) -> io::Result<()> {
        if self.json { writeln!(self.to, "{json}") } else { writeln!(self.to, "{text}") }?;
        self.to.flush()
    }

    /// Prints text as it is, in either form.
    pub fn raw(&mut self, text: &str) -> io::Result<()> {
        self.to.write_all(text.as_bytes())?;
        self.to.flush()
    }
}
