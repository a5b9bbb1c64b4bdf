//! Tokens and their suffix array, as bytes that may come from anywhere, a mapped file above all.

use std::cmp::Ordering;
use std::ops::Range;

use crate::Error;

/// Tokens of a suffix that a sampled key holds.
pub const SAMPLED_TOKENS: usize = 8;

/// Bytes that a token takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenWidth {
    /// Two bytes: ids up to 65 535.
    Two,
    /// Three bytes: ids up to 16 777 215.
    Three,
    /// Four bytes.
    Four,
}

impl TokenWidth {
    /// The narrowest that holds `token`.
    pub fn holding(token: u32) -> Self {
        match token {
            0..=0xffff => Self::Two,
            0x1_0000..=0xff_ffff => Self::Three,
            _ => Self::Four,
        }
    }

    /// The width of this many bytes.
    pub fn from_bytes(bytes: u32) -> Option<Self> {
        match bytes {
            2 => Some(Self::Two),
            3 => Some(Self::Three),
            4 => Some(Self::Four),
            _ => None,
        }
    }

    /// How many bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Three => 3,
            Self::Four => 4,
        }
    }

    /// Appends `token`, cut to this width, in little-endian order.
    pub fn push(self, token: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(&token.to_le_bytes()[..self.bytes()]);
    }

    /// Token `i` of `bytes`; none behind their end.
    pub fn get(self, bytes: &[u8], i: usize) -> Option<u32> {
        let width = self.bytes();
        let start = i.checked_mul(width)?;
        let bytes = bytes.get(start..start.checked_add(width)?)?;
        let mut word = [0; 4];
        word[..width].copy_from_slice(bytes);
        Some(u32::from_le_bytes(word))
    }
}

/// What a [`Shard`] is made of; all numbers are little-endian.
#[derive(Debug, Clone)]
pub struct ShardParts<B> {
    /// Ids below this are tokens; the id that equals it stands between documents.
    pub vocab_size: u32,
    /// Bytes a token.
    pub width: TokenWidth,
    /// The documents, each with a separator behind it.
    pub tokens: B,
    /// Where each suffix begins, in order of the suffixes: a `u32` a token. A suffix that ends
    /// where another goes on comes before it.
    pub suffixes: B,
    /// For each id up to the separator, how many suffixes begin with a lower one, and last how many
    /// there are: `vocab_size + 2` times `u32`.
    pub buckets: B,
    /// The first [`SAMPLED_TOKENS`] tokens of every `stride`-th suffix, a `u32` each, raised by one
    /// so that 0 can stand for the end of the text.
    pub keys: B,
    /// Suffixes from one sampled key to the next, at least 1.
    pub stride: usize,
}

/// Documents that can be searched for what followed a context.
///
/// The content is not trusted: whatever the bytes hold, a search ends, and nothing outside them is
/// read. Only if they hold what [`ShardParts`] says are its counts right.
#[derive(Debug, Clone)]
pub struct Shard<B> {
    parts: ShardParts<B>,
    len: usize,
}

impl<B: AsRef<[u8]>> Shard<B> {
    /// Joins the parts.
    ///
    /// # Errors
    /// [`Error::Shard`] if their lengths do not go together.
    pub fn new(parts: ShardParts<B>) -> Result<Self, Error> {
        let bytes = parts.tokens.as_ref().len();
        let len = bytes / parts.width.bytes();
        let wrong = |part, got: usize, expected: usize| Error::Shard { part, got, expected };
        let check = |part, got: &B, expected: usize| {
            let got = got.as_ref().len();
            if got == expected { Ok(()) } else { Err(wrong(part, got, expected)) }
        };
        if parts.vocab_size > u32::MAX - 2 {
            return Err(wrong("vocabulary", parts.vocab_size as usize, u32::MAX as usize - 2));
        }
        if len > u32::MAX as usize {
            return Err(wrong("number of tokens", len, u32::MAX as usize));
        }
        if parts.stride == 0 {
            return Err(wrong("stride", 0, 1));
        }
        check("tokens", &parts.tokens, len * parts.width.bytes())?;
        check("suffixes", &parts.suffixes, 4 * len)?;
        check("buckets", &parts.buckets, 4 * (parts.vocab_size as usize + 2))?;
        check("keys", &parts.keys, 4 * SAMPLED_TOKENS * len.div_ceil(parts.stride))?;
        Ok(Self { parts, len })
    }

    /// Tokens, separators among them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to search.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Ids below this are tokens; the id that equals it stands between documents.
    pub fn vocab_size(&self) -> u32 {
        self.parts.vocab_size
    }

    /// What the shard is made of.
    pub fn parts(&self) -> &ShardParts<B> {
        &self.parts
    }

    /// The token at place `at` of the text; none behind its end.
    pub fn token(&self, at: usize) -> Option<u32> {
        self.parts.width.get(self.parts.tokens.as_ref(), at)
    }

    /// Where suffix `rank` begins; behind the end for a rank that does not exist.
    pub fn suffix(&self, rank: usize) -> usize {
        word(self.parts.suffixes.as_ref(), rank).map_or(usize::MAX, |at| at as usize)
    }

    /// The token `offset` behind the beginning of suffix `rank`.
    pub(super) fn token_of(&self, rank: usize, offset: usize) -> Option<u32> {
        self.token(self.suffix(rank).saturating_add(offset))
    }

    /// The ranks of the suffixes that begin with `query`; empty if none does or `query` is empty.
    ///
    /// Cost: the bucket of the first token and the sampled keys leave at most two strides to be
    /// searched by bisection, each probe of which reads the suffix array and the text.
    pub fn find(&self, query: &[u32]) -> Range<usize> {
        let Some(range) = self.narrow(query) else { return 0..0 };
        let start = self.first_not(range.clone(), query, Ordering::is_lt);
        start..self.first_not(start..range.end, query, Ordering::is_le)
    }

    /// Whether any suffix begins with `query`: half the cost of [`Shard::find`].
    pub fn contains(&self, query: &[u32]) -> bool {
        let Some(range) = self.narrow(query) else { return false };
        let at = self.first_not(range.clone(), query, Ordering::is_lt);
        at < range.end && self.compare(at, query).is_eq()
    }

    /// The ranks among which those of `query` are.
    fn narrow(&self, query: &[u32]) -> Option<Range<usize>> {
        if query.iter().any(|&token| token >= self.vocab_size()) {
            return None; // a match ends where its document does
        }
        let first = *query.first()? as usize;
        let buckets = self.parts.buckets.as_ref();
        let end = (word(buckets, first + 1)? as usize).min(self.len);
        let start = (word(buckets, first)? as usize).min(end);
        let stride = self.parts.stride;
        let keys = start.div_ceil(stride)..end.div_ceil(stride);
        let known = &query[..query.len().min(SAMPLED_TOKENS)];
        let below = partition(keys.clone(), |k| self.compare_key(k, known).is_lt());
        let not_above = partition(below..keys.end, |k| self.compare_key(k, known).is_le());
        // The suffixes looked for begin behind the last key below and end before the first above.
        let start = if below > keys.start { ((below - 1) * stride + 1).max(start) } else { start };
        let end = if not_above < keys.end { not_above * stride } else { end };
        Some(start..end.max(start))
    }

    fn first_not(&self, range: Range<usize>, query: &[u32], holds: fn(Ordering) -> bool) -> usize {
        partition(range, |rank| holds(self.compare(rank, query)))
    }

    /// How the beginning of suffix `rank` stands to `query`.
    fn compare(&self, rank: usize, query: &[u32]) -> Ordering {
        let start = self.suffix(rank);
        let tokens = (0..query.len()).map(|i| self.token(start.saturating_add(i)));
        tokens.cmp(query.iter().map(|&token| Some(token)))
    }

    /// How the key of suffix `k * stride` stands to `query`, which is no longer than a key.
    fn compare_key(&self, k: usize, query: &[u32]) -> Ordering {
        let keys = self.parts.keys.as_ref();
        let first = k * SAMPLED_TOKENS;
        let tokens = (0..query.len()).map(|i| word(keys, first + i).unwrap_or(0));
        tokens.cmp(query.iter().map(|token| token + 1))
    }
}

/// The first of `range` for which `below` does not hold, as far as it holds for a beginning of it.
pub(super) fn partition(range: Range<usize>, below: impl Fn(usize) -> bool) -> usize {
    let (mut start, mut end) = (range.start, range.end);
    while start < end {
        let middle = start + (end - start) / 2;
        if below(middle) { start = middle + 1 } else { end = middle }
    }
    start
}

/// Number `i` of `bytes`.
fn word(bytes: &[u8], i: usize) -> Option<u32> {
    TokenWidth::Four.get(bytes, i)
}
