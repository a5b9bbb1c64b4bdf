//! Documents from files: text, folders of code, JSON lines, tokens.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use offshoot_models::{ChatTemplate, Checkpoint, Message, RenderOptions, Special, Tokenizer};
use serde::Deserialize;

use super::{BuildEvent, Builder, DatastoreError};
use crate::error::one_line;
use crate::model::{Text, text_of};

/// Bytes of a text that are read at once; a longer text becomes several documents.
const PIECE: u64 = 8 << 20;
/// Tokens of a document at most where tokens are read.
const PIECE_TOKENS: usize = 1 << 20;

/// Bits of a token in a file of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenBits {
    /// Two bytes each.
    Sixteen,
    /// Four bytes each.
    ThirtyTwo,
}

/// Which documents are taken, and how.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// Ends of the names of the files that are taken from folders, without a dot.
    pub extensions: Vec<String>,
    /// Takes every `of`-th document, from the one numbered `which` on, counting from 0.
    pub share: Option<Share>,
    /// The token that stands between documents in files of tokens.
    pub separator: Option<u32>,
}

/// One of `of` equal shares of the documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Which, from 0.
    pub which: u64,
    /// Of how many.
    pub of: u64,
}

/// Turns files into documents with a model's tokenizer and chat template.
#[derive(Debug)]
pub struct Sources {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    options: SourceOptions,
    /// Documents seen, those of other shares among them.
    seen: u64,
}

/// A line of JSON: a text, a chat, or a prompt with its completion.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Text { text: String },
    Chat { messages: Vec<Message> },
    Pair { prompt: String, completion: String },
}

type Flow = Result<ControlFlow<()>, DatastoreError>;

impl Sources {
    /// Sources for the model of `checkpoint`.
    ///
    /// # Errors
    /// If the model has no usable tokenizer or its template does not compile.
    pub fn new(checkpoint: &Checkpoint, options: SourceOptions) -> Result<Self, crate::Error> {
        let Text { tokenizer, template, .. } = text_of(checkpoint)?;
        Ok(Self { tokenizer, template, options, seen: 0 })
    }

    /// Adds what is at `path`: a folder with all its files of the wanted extensions, by name, a
    /// `.jsonl` file, a file of tokens (`.u16`, `.u32`), or a text. Breaks when `builder` has as
    /// many tokens as were asked for.
    ///
    /// In a folder, what is no UTF-8 is left out and told; a link is not followed.
    ///
    /// # Errors
    /// [`DatastoreError`] if a file cannot be read or is not what its name says.
    pub fn add(&mut self, path: &Path, builder: &mut Builder<'_>) -> Flow {
        if path.is_dir() {
            return self.add_folder(path, builder);
        }
        match path.extension().and_then(|e| e.to_str()) {
            Some("jsonl") => self.add_lines(path, builder),
            Some("u16") => self.add_tokens(path, TokenBits::Sixteen, builder),
            Some("u32") => self.add_tokens(path, TokenBits::ThirtyTwo, builder),
            _ => self.add_text(path, builder),
        }
    }

    fn add_folder(&mut self, folder: &Path, builder: &mut Builder<'_>) -> Flow {
        let wrong = || DatastoreError::io("list", folder);
        let mut entries = Vec::new();
        for entry in fs::read_dir(folder).map_err(wrong())? {
            let entry = entry.map_err(wrong())?;
            entries.push((entry.path(), entry.file_type().map_err(wrong())?));
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (path, kind) in entries {
            let wanted = |e: &str| self.options.extensions.iter().any(|wanted| wanted == e);
            let flow = if kind.is_dir() {
                self.add_folder(&path, builder)?
            } else if kind.is_file()
                && path.extension().and_then(|e| e.to_str()).is_some_and(wanted)
            {
                match self.add(&path, builder) {
                    Err(DatastoreError::Source { what, .. }) => {
                        builder.tell(BuildEvent::Skipped { path: &path, why: what })?;
                        ControlFlow::Continue(())
                    }
                    flow => flow?,
                }
            } else {
                continue;
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn add_text(&mut self, path: &Path, builder: &mut Builder<'_>) -> Flow {
        let mut file = open(path)?;
        let mut text = Vec::new();
        loop {
            let kept = text.len() as u64;
            let read = file.by_ref().take(PIECE).read_to_end(&mut text);
            let read = read.map_err(DatastoreError::io("read", path))?;
            // What follows the last line's end waits for its rest, unless it is too long for that.
            let line = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            let end = if read == 0 || kept >= PIECE { text.len() } else { line };
            let rest = text.split_off(end);
            let flow = self.encode(path, &text, builder)?;
            if flow.is_break() || read == 0 {
                return Ok(flow);
            }
            text = rest;
        }
    }

    fn encode(&mut self, path: &Path, text: &[u8], builder: &mut Builder<'_>) -> Flow {
        if text.is_empty() || !self.is_ours() {
            return Ok(ControlFlow::Continue(()));
        }
        let text = std::str::from_utf8(text).map_err(|e| {
            DatastoreError::source(path, format!("byte {} is not UTF-8", e.valid_up_to()))
        })?;
        let tokens = self.tokens(path, text, Special::Text)?;
        builder.add(path, &tokens)
    }

    fn tokens(
        &self,
        path: &Path,
        text: &str,
        special: Special,
    ) -> Result<Vec<u32>, DatastoreError> {
        self.tokenizer.encode(text, special).map_err(|e| DatastoreError::source(path, e))
    }

    /// Counts a document; whether it is of our share.
    fn is_ours(&mut self) -> bool {
        self.seen += 1;
        self.options.share.is_none_or(|share| (self.seen - 1) % share.of == share.which)
    }

    fn add_lines(&mut self, path: &Path, builder: &mut Builder<'_>) -> Flow {
        let mut flow = ControlFlow::Continue(());
        let each = &mut |number: usize, line: &[u8]| {
            if !self.is_ours() {
                return Ok(flow);
            }
            let wrong = |what: &dyn ToString| {
                DatastoreError::source(path, format!("line {number}: {}", what.to_string()))
            };
            let line = serde_json::from_slice(line).map_err(|e| match e.classify() {
                serde_json::error::Category::Data => {
                    wrong(&"expected a field `text`, `messages`, or `prompt` and `completion`")
                }
                _ => wrong(&one_line(&e)),
            })?;
            let (text, special) = match line {
                Line::Text { text } => (text, Special::Text),
                Line::Pair { prompt, completion } => (prompt + &completion, Special::Text),
                Line::Chat { messages } => match &self.template {
                    Some(template) => {
                        let text = template.render(&messages, &RenderOptions::default());
                        (text.map_err(|e| wrong(&e))?, Special::Parse)
                    }
                    None => (contents(messages), Special::Text),
                },
            };
            let tokens = self.tokens(path, &text, special)?;
            flow = builder.add(path, &tokens)?;
            Ok(flow)
        };
        for_each_line(path, each)
    }

    /// Tells `builder` to leave out documents that share a passage with the texts of a `.jsonl` file
    /// or of a plain one. Of a line, all strings are taken one by one, and a prompt with each of the
    /// answers that benchmarks give beside it.
    ///
    /// # Errors
    /// [`DatastoreError`] if the file cannot be read or a line is no JSON.
    pub fn exclude(&self, path: &Path, builder: &mut Builder<'_>) -> Result<(), DatastoreError> {
        if path.extension().is_none_or(|e| e != "jsonl") {
            let text = fs::read_to_string(path).map_err(DatastoreError::io("read", path))?;
            builder.exclude(&self.tokens(path, &text, Special::Text)?);
            return Ok(());
        }
        let each = &mut |number: usize, line: &[u8]| {
            let line: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(line)
                .map_err(|e| {
                    DatastoreError::source(path, format!("line {number}: {}", one_line(&e)))
                })?;
            let text = |name: &str| line.get(name).and_then(|value| value.as_str());
            let mut texts: Vec<String> =
                line.values().filter_map(|value| value.as_str()).map(str::to_owned).collect();
            let answers = ["completion", "canonical_solution", "answer"].into_iter();
            let prompt = text("prompt").into_iter();
            texts.extend(
                prompt.flat_map(|p| answers.clone().filter_map(|a| Some(p.to_owned() + text(a)?))),
            );
            for text in texts {
                builder.exclude(&self.tokens(path, &text, Special::Text)?);
            }
            Ok(ControlFlow::Continue(()))
        };
        for_each_line(path, each).map(drop)
    }

    fn add_tokens(&mut self, path: &Path, bits: TokenBits, builder: &mut Builder<'_>) -> Flow {
        let size = fs::metadata(path).map_err(DatastoreError::io("read", path))?.len();
        let separator = self.options.separator;
        let mut file = open(path)?;
        token_documents(
            &mut file,
            path,
            size,
            bits,
            separator,
            &mut |tokens| match self.is_ours() {
                true => builder.add(path, tokens),
                false => Ok(ControlFlow::Continue(())),
            },
        )
    }
}

/// Adds the tokens of a store of the reference implementation of REST,
/// <https://github.com/FasterDecoding/REST>. Such a file is, again and again, the bytes of tokens as
/// a `u32`, the tokens, the bytes of suffixes, the suffixes; nothing in it tells the width of a
/// token, the tokenizer, or where documents end. The suffix array is not believed but made anew.
///
/// `separator` is a token between documents, as the begin-of-text token is where the tokenizer
/// put one before each.
///
/// # Errors
/// [`DatastoreError::Source`] if lengths do not go together or a token is outside the vocabulary.
pub fn import_reference(
    path: &Path,
    bits: TokenBits,
    separator: Option<u32>,
    builder: &mut Builder<'_>,
) -> Flow {
    let size = fs::metadata(path).map_err(DatastoreError::io("read", path))?.len();
    let mut file = open(path)?;
    let mut at = 0;
    while at < size {
        let tokens = section_bytes(&mut file, path, at, size)?;
        let n = tokens / bits.bytes();
        let flow = token_documents(&mut file, path, tokens, bits, separator, &mut |tokens| {
            builder.add(path, tokens)
        })?;
        if flow.is_break() {
            return Ok(flow);
        }
        at += 4 + tokens;
        let suffixes = section_bytes(&mut file, path, at, size)?;
        if suffixes != 4 * n {
            let what = format!(
                "byte {at}: {suffixes} bytes of suffixes, expected {}; check the width of tokens",
                4 * n
            );
            return Err(DatastoreError::source(path, what));
        }
        let skip = i64::try_from(suffixes).unwrap_or(i64::MAX);
        file.seek_relative(skip).map_err(DatastoreError::io("read", path))?;
        at += 4 + suffixes;
    }
    Ok(ControlFlow::Continue(()))
}

/// The length of a section at byte `at` of a reference file, checked against the file.
fn section_bytes(
    file: &mut BufReader<File>,
    path: &Path,
    at: u64,
    size: u64,
) -> Result<u64, DatastoreError> {
    let mut word = [0; 4];
    let cut = || DatastoreError::source(path, format!("byte {at}: cut off, fetch it again"));
    file.read_exact(&mut word).map_err(|_| cut())?;
    let bytes = u64::from(u32::from_le_bytes(word));
    if bytes > size.saturating_sub(at + 4) { Err(cut()) } else { Ok(bytes) }
}

impl TokenBits {
    fn bytes(self) -> u64 {
        match self {
            Self::Sixteen => 2,
            Self::ThirtyTwo => 4,
        }
    }
}

/// Calls `each` with the documents among the next `bytes` of `file`.
fn token_documents(
    file: &mut BufReader<File>,
    path: &Path,
    bytes: u64,
    bits: TokenBits,
    separator: Option<u32>,
    each: &mut dyn FnMut(&[u32]) -> Flow,
) -> Flow {
    let width = bits.bytes();
    if !bytes.is_multiple_of(width) {
        let what = format!("{bytes} bytes of tokens are no multiple of {width}: check their width");
        return Err(DatastoreError::source(path, what));
    }
    let mut document = Vec::new();
    let mut word = [0; 4];
    for _ in 0..bytes / width {
        let read = file.read_exact(&mut word[..width as usize]);
        read.map_err(DatastoreError::io("read", path))?;
        let token = u32::from_le_bytes(word);
        if Some(token) != separator {
            document.push(token);
        }
        if Some(token) == separator || document.len() == PIECE_TOKENS {
            let flow = each(&document)?;
            if flow.is_break() {
                return Ok(flow);
            }
            document.clear();
        }
    }
    each(&document)
}

/// What is said, without who says it.
fn contents(messages: Vec<Message>) -> String {
    let contents = messages.into_iter().filter_map(|message| message.content);
    contents.collect::<Vec<_>>().join("\n")
}

/// Calls `each` with the number, from 1, and the bytes of every line that is not empty.
fn for_each_line(path: &Path, each: &mut dyn FnMut(usize, &[u8]) -> Flow) -> Flow {
    let mut file = open(path)?;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = file.by_ref().take(PIECE).read_until(b'\n', &mut line);
        let read = read.map_err(DatastoreError::io("read", path))?;
        if read as u64 == PIECE && !line.ends_with(b"\n") {
            let what = format!("line {number}: over {PIECE} bytes; cut it");
            return Err(DatastoreError::source(path, what));
        }
        if read == 0 {
            break;
        }
        if !line.trim_ascii().is_empty() && each(number, &line)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn open(path: &Path) -> Result<BufReader<File>, DatastoreError> {
    let file = File::open(path).map_err(DatastoreError::io("open", path))?;
    Ok(BufReader::with_capacity(1 << 16, file))
}
