//! Imports point down only; and two rules of the house that a compiler does not check.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What each part of the crate may use. A part that is not named here may use nothing.
const MAY_USE: [(&str, &[&str]); 13] = [
    ("domain", &[]),
    ("telemetry", &[]),
    ("shutdown", &[]),
    ("heavy", &[]),
    ("tls", &[]),
    ("data_dir", &[]),
    ("config", &["domain"]),
    ("inference", &["domain", "config", "telemetry"]),
    ("queue", &["domain", "config", "telemetry", "tls", "data_dir"]),
    ("store", &["domain", "heavy", "config", "telemetry", "tls"]),
    ("runtime", &["queue", "store", "inference", "heavy", "domain", "config", "telemetry"]),
    ("http", &["runtime", "queue", "store", "inference", "heavy", "domain", "config", "telemetry"]),
    // The command line prints the document that HTTP serves.
    ("cli", &["http", "runtime", "inference", "domain", "config", "telemetry"]),
];

/// These know everything.
const TOP: [&str; 3] = ["app", "main", "lib"];

/// The longest source file, in lines.
const LONGEST: usize = 400;

#[test]
fn imports_point_down_only() {
    let rules: BTreeMap<&str, &[&str]> = MAY_USE.into_iter().collect();
    let files = sources();
    let parts: BTreeSet<String> = files.iter().map(|(path, _)| part_of(path)).collect();
    let named = rules.keys().chain(&TOP).map(|part| (*part).to_owned()).collect();
    assert_eq!(parts, named, "every part of the crate has its place");

    let mut wrong = Vec::new();
    for (path, source) in &files {
        let part = part_of(path);
        if TOP.contains(&part.as_str()) {
            continue;
        }
        for used in parts_used(source, depth(path), &parts) {
            if used != part && !rules[part.as_str()].contains(&used.as_str()) {
                wrong.push(format!("src/{} uses {used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_queue_the_store_and_the_models_do_not_know_each_other() {
    let layer = ["queue", "store", "inference"];
    for (part, may_use) in MAY_USE {
        let sideways = layer.contains(&part) && may_use.iter().any(|used| layer.contains(used));
        assert!(!sideways, "{part}");
    }
}

#[test]
fn only_the_kernels_are_unsafe() {
    let is_unsafe = |source: &str| tokens(source).iter().any(|token| token == "unsafe");
    for (path, source) in sources() {
        assert!(!is_unsafe(&source), "src/{}", path.display());
    }
    let (kernels, others): (Vec<_>, Vec<_>) =
        files("encoder/src").into_iter().partition(|(path, _)| path.starts_with("kernels"));
    for (path, source) in others {
        assert!(!is_unsafe(&source), "encoder/src/{}", path.display());
    }
    for (path, source) in kernels {
        let (lines, path) = (source.lines().collect::<Vec<_>>(), path.display());
        for (number, line) in lines.iter().enumerate() {
            let is_argued = ["unsafe {", "unsafe impl"].iter().any(|block| line.contains(block));
            let above = lines[..number].iter().rev().take(4).any(|line| line.contains("SAFETY"));
            assert!(!is_argued || above, "encoder/src/{path}:{} says not why", number + 1);
            let says_so = line.contains("unsafe fn ") && !is_told_what_it_asks(&lines[..number]);
            assert!(!says_so, "encoder/src/{path}:{} says not what it asks", number + 1);
        }
    }
}

/// Whether the comments right above an `unsafe fn` say what its caller must see to.
fn is_told_what_it_asks(above: &[&str]) -> bool {
    let own = above.iter().rev().map(|line| line.trim());
    let mut own = own.take_while(|line| line.starts_with("//") || line.starts_with("#["));
    own.any(|line| line.contains("SAFETY") || line.contains("# Safety"))
}

#[test]
fn no_file_has_two_roles() {
    for root in ["src", "encoder/src"] {
        for (path, source) in files(root) {
            let lines = source.lines().count();
            assert!(lines <= LONGEST, "{root}/{} has {lines} lines", path.display());
        }
    }
}

#[test]
fn the_scanner_sees_every_way_to_name_a_part() {
    let parts: BTreeSet<String> =
        ["store", "queue", "domain", "http", "cli"].map(str::to_owned).into();
    let used =
        |source: &str| -> Vec<String> { parts_used(source, 2, &parts).into_iter().collect() };
    assert_eq!(used("use crate::store::Store;"), ["store"]);
    assert_eq!(
        used("use crate::{\n  domain::{Job, queue::Q},\n  store as cli, http,\n};"),
        ["domain", "http", "store"]
    );
    assert_eq!(used("fn f() -> crate :: queue::Queue { crate::cli::run() }"), ["cli", "queue"]);
    assert_eq!(used("pub(crate) use super::super::{store, queue::Queue};"), ["queue", "store"]);
    assert_eq!(used("use super::{super::store::Store, http::X};"), ["store"]);
    assert_eq!(used("use super::store::Inner; use self::queue::Inner;"), [] as [&str; 0]);
    assert_eq!(used("/// See [`crate::store`].\nlet url = \"crate::queue // \";"), [] as [&str; 0]);
    assert_eq!(used("/* crate::store */ let c = '\"'; use crate::queue::Q; // \""), ["queue"]);
    assert_eq!(used("let r = r#\"\" crate::store \"#; fn f<'a>(x: &'a str) {}"), [] as [&str; 0]);
    assert_eq!(used("use vecmill::http::routes;"), ["http"]);
    assert_eq!(tokens("unsafe { \"unsafe\" }"), ["unsafe", "{", "}"]);
}

/// All Rust files under `src/`, by their path in it.
fn sources() -> Vec<(PathBuf, String)> {
    let files = files("src");
    assert!(files.len() > 50, "the sources are there");
    files
}

/// All Rust files under a directory, by their path in it.
fn files(root: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
    let (mut directories, mut files) = (vec![root.clone()], Vec::new());
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(&root).unwrap().to_owned(), source));
            }
        }
    }
    files.sort();
    files
}

/// The part of the crate that a file belongs to.
fn part_of(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// How many `super` lead from a file's module to the root of the crate.
fn depth(path: &Path) -> usize {
    path.components().count() - usize::from(path.ends_with("mod.rs"))
}

/// The parts of the crate that a source names, with `depth` as in [`depth`].
fn parts_used(source: &str, depth: usize, parts: &BTreeSet<String>) -> BTreeSet<String> {
    let tokens = tokens(source);
    let mut used = BTreeSet::new();
    for start in 0..tokens.len() {
        let begins_path = start == 0 || tokens[start - 1] != "::";
        if begins_path {
            follow(&tokens, start, Some(depth), &mut used);
        }
    }
    used.retain(|name| parts.contains(name));
    used
}

/// Follows a path, or a tree of paths, from its first token; notes the names that it finds in
/// the root of the crate. `up` is how many modules above the path the root is, if the path can
/// still reach it. Returns where the path ends.
fn follow(
    tokens: &[String],
    start: usize,
    mut up: Option<usize>,
    used: &mut BTreeSet<String>,
) -> usize {
    let token = |at: usize| tokens.get(at).map_or("", String::as_str);
    let mut at = start;
    loop {
        match token(at) {
            "crate" | "vecmill" => up = Some(0),
            "self" => {}
            "super" => up = up.map(|up| up.saturating_sub(1)),
            "{" if at > start => {
                at += 1;
                while !["}", ""].contains(&token(at)) {
                    // Another name for what an import brings is no path.
                    at = if token(at) == "as" { at + 2 } else { follow(tokens, at, up, used) };
                }
                return at + 1;
            }
            name => {
                if up == Some(0) {
                    used.insert(name.to_owned());
                }
                up = None;
            }
        }
        if token(at + 1) != "::" {
            return at + 1;
        }
        at += 2;
    }
}

/// The words, braces and path separators of a source, without comments and strings.
fn tokens(source: &str) -> Vec<String> {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut tokens, mut i) = (Vec::new(), 0);
    while i < chars.len() {
        match (at(i), at(i + 1)) {
            ('/', '/') => i += chars[i..].iter().take_while(|c| **c != '\n').count(),
            ('/', '*') => i = after(&chars, i + 2, "*/"),
            ('r' | 'b', '#' | '"' | 'r') if raw_string(&chars, i).is_some() => {
                i = raw_string(&chars, i).unwrap();
            }
            ('"', _) => {
                i += 1;
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            // A character, which may be a quotation mark; else a lifetime.
            ('\'', '\\') => i = after(&chars, i + 3, "'"),
            ('\'', _) if at(i + 2) == '\'' => i += 3,
            (':', ':') => {
                tokens.push("::".to_owned());
                i += 2;
            }
            (c @ ('{' | '}'), _) => {
                tokens.push(c.to_string());
                i += 1;
            }
            (c, _) if is_word(c) => {
                let word: String = chars[i..].iter().take_while(|c| is_word(**c)).collect();
                i += word.chars().count();
                tokens.push(word);
            }
            _ => i += 1,
        }
    }
    tokens
}

/// Where the text behind a mark begins, looking from `start`.
fn after(chars: &[char], start: usize, mark: &str) -> usize {
    let mark: Vec<char> = mark.chars().collect();
    (start..chars.len())
        .find(|&i| chars[i..].starts_with(&mark))
        .map_or(chars.len(), |i| i + mark.len())
}

/// The end of the raw string that begins here, if one does.
fn raw_string(chars: &[char], start: usize) -> Option<usize> {
    let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
    if start > 0 && is_word(&chars[start - 1]) {
        return None;
    }
    let r = start + usize::from(chars[start] == 'b');
    if chars.get(r) != Some(&'r') {
        return None;
    }
    let hashes = chars[r + 1..].iter().take_while(|c| **c == '#').count();
    if chars.get(r + 1 + hashes) != Some(&'"') {
        return None;
    }
    Some(after(chars, r + 2 + hashes, &format!("\"{}", "#".repeat(hashes))))
}
