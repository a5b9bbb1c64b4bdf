//! Examples as tokens in a file, so that training holds none of the texts and is the same each time.
//!
//! ```text
//! 0    8       magic
//! 8    32      key: what the examples are made of, and how
//! 40   32      BLAKE3 of all that follows the header
//! 72   3 x 8   examples, bytes of the body, bytes of the report
//! 96           body; where each example begins in it, 8 bytes each; report as JSON
//! ```
//! Numbers are little-endian. An example is words of four bytes: its kind, then
//!
//! ```text
//! sequence     n, n tokens, n bits that say which are trained on
//! text         0  sequence
//! choice       1  tokens of the prompt, candidates' tokens each, numbers of the answers
//! answer       2  tokens of the prompt, sequence, texts each
//! preference   3  two sequences, 0 or 1, and behind a 1 two rewards of eight bytes
//! ```
//! with its length before every list, and texts filled up to whole words.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use offshoot_kernels::FileMap;

use super::error::DataError;
use super::report::Report;
use crate::beside::Partial;
use crate::error::one_line;
use crate::kept::{Kind, hold};
use crate::tune::{Example, Sequence};

const MAGIC: &[u8; 8] = b"OFFTOKN2";
const HEADER: usize = 96;

/// What tells such files from others.
pub(super) const TOKENS: Kind = Kind { ending: "tokens", magic: b"OFFTOKN" };

/// What the examples of a file are made of.
pub(crate) type Key = [u8; 32];

/// Examples in a file, read one at a time. `B` is where its bytes are: a map of the file, by default.
#[derive(Debug)]
pub struct TokenFile<B = FileMap> {
    bytes: B,
    count: usize,
    body: usize,
    report: Report,
    /// Keeps the file from being removed, if it is one.
    _held: Option<File>,
}

impl TokenFile {
    /// Opens the file at `path` and checks all of it. It is not removed to make room while it is
    /// open.
    ///
    /// # Errors
    /// [`DataError::Tokens`] if it is broken, [`DataError::Io`].
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let wrong = |what: String| DataError::Tokens { path: path.to_owned(), what };
        let held = hold(path);
        let file = Self::parse(FileMap::open(path).map_err(DataError::io(path))?).map_err(wrong)?;
        let sum = blake3::hash(&file.bytes[HEADER..]);
        if file.bytes[40..72] != sum.as_bytes()[..] {
            return Err(wrong("its bytes are not those that were written".to_owned()));
        }
        Ok(Self { _held: held, ..file })
    }
}

impl<B: std::ops::Deref<Target = [u8]>> TokenFile<B> {
    /// Reads a file of `bytes`. The sum in its header is not checked.
    ///
    /// # Errors
    /// In words, if it is no such file.
    pub fn parse(bytes: B) -> Result<Self, String> {
        let number = |at: usize| {
            let eight = bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok());
            eight.and_then(|eight| usize::try_from(u64::from_le_bytes(eight)).ok())
        };
        if bytes.len() < HEADER || &bytes[..8] != MAGIC {
            return Err("it is no file of prepared examples of this version".to_owned());
        }
        let sizes = (number(72), number(80), number(88));
        let (Some(count), Some(body), Some(report)) = sizes else {
            return Err("its header has sizes beyond this machine".to_owned());
        };
        let index = count.checked_mul(8);
        let all = index.and_then(|n| n.checked_add(body)?.checked_add(report)?.checked_add(HEADER));
        if all != Some(bytes.len()) || body % 4 != 0 {
            return Err(format!("its header does not fit its {} bytes", bytes.len()));
        }
        let report = serde_json::from_slice(&bytes[bytes.len() - report..]);
        let report = report.map_err(|e| format!("its report: {}", one_line(&e)))?;
        Ok(Self { bytes, count, body, report, _held: None })
    }

    /// How many examples there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What was found while they were made.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// What they were made of, and how.
    pub fn key(&self) -> &[u8] {
        &self.bytes[8..40]
    }

    /// Example `index`.
    ///
    /// # Errors
    /// In words, if there is none or it is broken.
    pub fn get(&self, index: usize) -> Result<Example, String> {
        if index >= self.count {
            return Err(format!("no example {index} of {}", self.count));
        }
        let start = self.start(index);
        let end = if index + 1 < self.count { self.start(index + 1) } else { Some(self.body) };
        let range = start.zip(end).filter(|(start, end)| start <= end && *end <= self.body);
        let words = range.filter(|(start, end)| start % 4 == 0 && end % 4 == 0);
        let read = words.and_then(|(start, end)| {
            let mut words = Words { bytes: &self.bytes[HEADER + start..HEADER + end] };
            words.example().filter(|_| words.bytes.is_empty())
        });
        read.ok_or_else(|| format!("example {index} is broken"))
    }

    /// All examples, in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<Example, String>> {
        (0..self.count).map(|index| self.get(index))
    }

    fn start(&self, index: usize) -> Option<usize> {
        let at = HEADER + self.body + 8 * index;
        let eight = self.bytes.get(at..at + 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(eight)).ok()
    }
}

/// Words that are left to read.
struct Words<'a> {
    bytes: &'a [u8],
}

impl<'a> Words<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(bytes)?;
        self.bytes = rest;
        Some(taken)
    }

    fn word(&mut self) -> Option<u32> {
        self.take(4).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes)
    }

    fn reward(&mut self) -> Option<f64> {
        let bytes: [u8; 8] = self.take(8)?.try_into().ok()?;
        Some(f64::from_le_bytes(bytes)).filter(|reward| reward.is_finite())
    }

    fn count(&mut self) -> Option<usize> {
        self.word().map(|n| n as usize)
    }

    /// A list of numbers, which is not read before it is known to be there.
    fn list(&mut self) -> Option<Vec<u32>> {
        let n = self.count()?;
        let bytes = self.take(n.checked_mul(4)?)?.chunks_exact(4);
        Some(bytes.map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect())
    }

    fn text(&mut self) -> Option<String> {
        let n = self.count()?;
        let bytes = self.take(n.checked_next_multiple_of(4)?)?;
        let (text, filled) = bytes.split_at(n);
        let text = std::str::from_utf8(text).ok()?;
        filled.iter().all(|&b| b == 0).then(|| text.to_owned())
    }

    /// At most as many as words are left, so that a count alone takes no memory.
    fn many<T>(&mut self, read: fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let n = self.count()?;
        if n > self.bytes.len() / 4 {
            return None;
        }
        (0..n).map(|_| read(self)).collect()
    }

    fn sequence(&mut self) -> Option<Sequence> {
        let tokens = self.list()?;
        let bits = self.take(tokens.len().div_ceil(32) * 4)?;
        let bit = |i: usize| bits[i / 8] >> (i % 8) & 1 == 1;
        let trained: Vec<bool> = (0..tokens.len()).map(bit).collect();
        let spare_clear = (tokens.len()..8 * bits.len()).all(|i| !bit(i));
        (trained.first() == Some(&false) && spare_clear).then_some(Sequence { tokens, trained })
    }

    fn example(&mut self) -> Option<Example> {
        match self.word()? {
            0 => self.sequence().map(Example::Text),
            1 => {
                let (prompt, candidates) = (self.list()?, self.many(Self::list)?);
                let answers: Vec<usize> = self.list()?.iter().map(|&a| a as usize).collect();
                let sound = !prompt.is_empty()
                    && candidates.len() >= 2
                    && candidates.iter().all(|c| !c.is_empty())
                    && answers.windows(2).all(|pair| pair[0] < pair[1])
                    && answers.last().is_some_and(|&last| last < candidates.len());
                sound.then_some(Example::Choice { prompt, candidates, answers })
            }
            2 => {
                let (prompt, gold) = (self.count()?, self.sequence()?);
                let answers = self.many(Self::text)?;
                let sound = (1..gold.tokens.len()).contains(&prompt) && !answers.is_empty();
                sound.then_some(Example::Answer { gold, prompt, answers })
            }
            3 => {
                let (chosen, rejected) = (self.sequence()?, self.sequence()?);
                let rewards = match self.word()? {
                    0 => None,
                    1 => Some([self.reward()?, self.reward()?]),
                    _ => return None,
                };
                Some(Example::Preference { chosen, rejected, rewards })
            }
            _ => None,
        }
    }
}

/// A file in the making, beside its place.
#[derive(Debug)]
pub(crate) struct TokenWriter {
    place: PathBuf,
    partial: Partial,
    file: Option<BufWriter<File>>,
    hasher: blake3::Hasher,
    starts: Vec<u64>,
    len: u64,
    words: Vec<u8>,
}

impl TokenWriter {
    pub(crate) fn new(place: &Path) -> Result<Self, DataError> {
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder).map_err(DataError::io(folder))?;
        }
        let (partial, file) = Partial::file(place).map_err(DataError::io(place))?;
        let mut file = BufWriter::new(file);
        file.write_all(&[0; HEADER]).map_err(DataError::io(place))?;
        Ok(Self {
            place: place.to_owned(),
            partial,
            file: Some(file),
            hasher: blake3::Hasher::new(),
            starts: Vec::new(),
            len: 0,
            words: Vec::new(),
        })
    }

    pub(crate) fn add(&mut self, example: &Example) -> Result<(), DataError> {
        self.words.clear();
        put_example(&mut self.words, example);
        self.starts.push(self.len);
        self.len += self.words.len() as u64;
        let words = std::mem::take(&mut self.words);
        self.write(&words)?;
        self.words = words;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.hasher.update(bytes);
        let file = self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes));
        file.map_err(DataError::io(&self.place))
    }

    /// Completes the file and moves it to its place.
    pub(crate) fn finish(mut self, key: &Key, report: &Report) -> Result<(), DataError> {
        let starts: Vec<u8> = self.starts.iter().flat_map(|start| start.to_le_bytes()).collect();
        let report = serde_json::to_vec(report).map_err(io::Error::other);
        let report = report.map_err(DataError::io(&self.place))?;
        self.write(&starts)?;
        self.write(&report)?;
        let sum = self.hasher.finalize();
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(key);
        header.extend_from_slice(sum.as_bytes());
        for size in [self.starts.len() as u64, self.len, report.len() as u64] {
            header.extend_from_slice(&size.to_le_bytes());
        }
        let written = self.file.take().map_or(Ok(()), |file| {
            let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&header)?;
            file.sync_all()
        });
        written.and_then(|()| self.partial.move_to(&self.place)).map_err(DataError::io(&self.place))
    }
}

fn put(words: &mut Vec<u8>, number: usize) {
    // Rows have at most some millions of tokens, so this never saturates.
    words.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_list(words: &mut Vec<u8>, list: impl ExactSizeIterator<Item = u32>) {
    put(words, list.len());
    list.for_each(|x| words.extend_from_slice(&x.to_le_bytes()));
}

fn put_sequence(words: &mut Vec<u8>, sequence: &Sequence) {
    put_list(words, sequence.tokens.iter().copied());
    for bits in sequence.trained.chunks(32) {
        let set = bits.iter().enumerate().filter(|(_, trained)| **trained);
        let word = set.fold(0u32, |word, (i, _)| word | 1 << i);
        words.extend_from_slice(&word.to_le_bytes());
    }
}

pub(super) fn put_example(words: &mut Vec<u8>, example: &Example) {
    match example {
        Example::Text(sequence) => {
            put(words, 0);
            put_sequence(words, sequence);
        }
        Example::Choice { prompt, candidates, answers } => {
            put(words, 1);
            put_list(words, prompt.iter().copied());
            put(words, candidates.len());
            candidates.iter().for_each(|c| put_list(words, c.iter().copied()));
            put(words, answers.len());
            answers.iter().for_each(|&answer| put(words, answer));
        }
        Example::Answer { gold, prompt, answers } => {
            put(words, 2);
            put(words, *prompt);
            put_sequence(words, gold);
            put(words, answers.len());
            for text in answers {
                put(words, text.len());
                words.extend_from_slice(text.as_bytes());
                words.resize(words.len().next_multiple_of(4), 0);
            }
        }
        Example::Preference { chosen, rejected, rewards } => {
            put(words, 3);
            put_sequence(words, chosen);
            put_sequence(words, rejected);
            put(words, usize::from(rewards.is_some()));
            let rewards = rewards.iter().flatten();
            rewards.for_each(|reward| words.extend_from_slice(&reward.to_le_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequence() -> impl Strategy<Value = Sequence> {
        prop::collection::vec((any::<u32>(), any::<bool>()), 2..70).prop_map(|pairs| {
            let (tokens, mut trained): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            trained[0] = false;
            Sequence { tokens, trained }
        })
    }

    fn example() -> impl Strategy<Value = Example> {
        let list = || prop::collection::vec(any::<u32>(), 1..9);
        prop_oneof![
            sequence().prop_map(Example::Text),
            (list(), prop::collection::vec(list(), 2..5)).prop_map(|(prompt, candidates)| {
                let answers = vec![0, candidates.len() - 1];
                Example::Choice { prompt, candidates, answers }
            }),
            (sequence(), prop::collection::vec("[a-é]{0,9}", 1..4))
                .prop_map(|(gold, answers)| Example::Answer { gold, prompt: 1, answers }),
            (sequence(), sequence(), prop::option::of([-9.0..9.0, -9.0..9.0])).prop_map(
                |(chosen, rejected, rewards)| Example::Preference { chosen, rejected, rewards }
            ),
        ]
    }

    fn written(examples: &[Example]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.tokens");
        let mut writer = TokenWriter::new(&path).unwrap();
        examples.iter().for_each(|example| writer.add(example).unwrap());
        writer.finish(&[7; 32], &Report::default()).unwrap();
        (dir, path)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(examples in prop::collection::vec(example(), 0..6)) {
            let (dir, path) = written(&examples);
            let file = TokenFile::open(&path).unwrap();
            let read: Vec<_> = file.iter().collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(read, examples);
            prop_assert_eq!(file.key(), &[7; 32][..]);
            prop_assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
        }

        #[test]
        fn no_bytes_make_it_panic_and_every_flipped_one_is_noticed(
            examples in prop::collection::vec(example(), 1..4), at in any::<prop::sample::Index>(),
            bit in 0..8u32, cut in any::<prop::sample::Index>(),
        ) {
            let (_dir, path) = written(&examples);
            let mut bytes = fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            if let Ok(file) = TokenFile::parse(&bytes[..]) {
                file.iter().for_each(drop);
            }
            let other_key = (8..40).contains(&at);
            fs::write(&path, &bytes).unwrap();
            prop_assert_eq!(TokenFile::open(&path).is_ok(), other_key);
            let cut = cut.index(bytes.len());
            prop_assert!(TokenFile::parse(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn a_report_of_odd_names_is_told_on_one_line() {
        let (_dir, path) = written(&[]);
        let mut bytes = fs::read(&path).unwrap();
        let name = b"\"dropped\"";
        let at = bytes.windows(name.len()).position(|part| part == name).unwrap();
        bytes[at..at + name.len()].copy_from_slice(b"\"\\ropped\"");
        let told = TokenFile::parse(&bytes[..]).err().unwrap();
        assert!(told.contains("unknown field `\\ropped`"), "{told}");
        assert!(!told.contains(char::is_control), "{told}");
    }

    #[test]
    fn a_file_that_is_not_finished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = TokenWriter::new(&dir.path().join("x.tokens")).unwrap();
        writer.add(&Example::Text(Sequence::of(&[1], &[2]))).unwrap();
        drop(writer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
