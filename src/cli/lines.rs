//! Reads a JSON Lines file of nodes on a thread of its own, a bounded number of lines ahead.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    thread,
};

use serde_json::{Map, Value};
use tokio::sync::mpsc;

/// Lines read ahead.
const READ_AHEAD: usize = 1024;

/// A node as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its line number, from 1.
    pub number: u64,
    /// The JSON of the node.
    pub json: String,
}

/// What a line holds.
#[derive(Debug)]
pub enum Item {
    /// A JSON object.
    Node(Line),
    /// Something else.
    Invalid {
        /// The line number, from 1.
        number: u64,
        /// What is wrong.
        reason: String,
    },
    /// The file cannot be read on.
    Broken(io::Error),
}

/// The lines of a file, in order. Empty lines are passed over.
pub struct Lines {
    /// Bytes of the file; `None` for standard input.
    pub total_bytes: Option<u64>,
    items: mpsc::Receiver<(Item, u64)>,
}

impl Lines {
    /// Opens a file, or standard input for `-`.
    pub fn open(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == "-" {
            return Self::read(io::stdin(), None);
        }
        let file = File::open(path)?;
        let total_bytes = file.metadata().ok().map(|data| data.len()).filter(|bytes| *bytes > 0);
        Self::read(file, total_bytes)
    }

    fn read(source: impl Read + Send + 'static, total_bytes: Option<u64>) -> io::Result<Self> {
        let (items, receiver) = mpsc::channel(READ_AHEAD);
        // Not one of the runtime's threads: it would wait at its end for input that may not come.
        thread::Builder::new()
            .name("lines".to_owned())
            .spawn(move || read_all(BufReader::new(source), &items))?;
        Ok(Self { total_bytes, items: receiver })
    }

    /// The next line, and how many bytes were read up to its end.
    pub async fn next(&mut self) -> Option<(Item, u64)> {
        self.items.recv().await
    }
}

/// Stops when the receiver is gone.
fn read_all(mut source: impl BufRead, items: &mpsc::Sender<(Item, u64)>) {
    let (mut number, mut bytes) = (0, 0);
    loop {
        let mut raw = Vec::new();
        let item = match source.read_until(b'\n', &mut raw) {
            Ok(0) => return,
            Ok(_) => {
                number += 1;
                if raw.iter().all(u8::is_ascii_whitespace) {
                    None
                } else {
                    Some(classify(number, raw.as_slice()))
                }
            }
            Err(error) => Some(Item::Broken(error)),
        };
        bytes += raw.len() as u64;
        let Some(item) = item else { continue };
        let is_end = matches!(item, Item::Broken(_));
        if items.blocking_send((item, bytes)).is_err() || is_end {
            return;
        }
    }
}

fn classify(number: u64, raw: &[u8]) -> Item {
    let object = serde_json::from_slice::<Map<String, Value>>(raw);
    match (object, std::str::from_utf8(raw)) {
        (Ok(_), Ok(json)) => Item::Node(Line { number, json: json.trim().to_owned() }),
        (Err(error), _) if error.is_data() => {
            Item::Invalid { number, reason: "it holds another JSON value".to_owned() }
        }
        // The parser counts lines from its own input: only the column means anything here.
        (Err(error), _) => Item::Invalid {
            number,
            reason: format!("JSON ends or breaks at column {}", error.column()),
        },
        (_, Err(_)) => Item::Invalid { number, reason: "it is not UTF-8".to_owned() },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn lines_keep_their_numbers_and_order() {
        let file: &[u8] = b"{\"a\":1}\n\n  \n[1]\r\n {\"b\":2} \n{\"c\":\xff}\n{";
        let mut lines = Lines::read(file, None).unwrap();
        let mut seen = Vec::new();
        let mut read = 0;
        while let Some((item, bytes)) = lines.next().await {
            read = bytes;
            seen.push(match item {
                Item::Node(line) => (line.number, line.json),
                Item::Invalid { number, .. } => (number, "invalid".to_owned()),
                Item::Broken(error) => panic!("{error}"),
            });
        }
        let expected =
            [(1, r#"{"a":1}"#), (4, "invalid"), (5, r#"{"b":2}"#), (6, "invalid"), (7, "invalid")];
        assert_eq!(seen, expected.map(|(number, json)| (number, json.to_owned())));
        assert_eq!(read, file.len() as u64);
    }
}
