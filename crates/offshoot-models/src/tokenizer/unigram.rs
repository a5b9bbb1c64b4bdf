//! The likeliest pieces of a text.
//!
//! Kudo 2018, <https://arxiv.org/abs/1804.10959>, section 3.1: a text's likelihood is the product of
//! its pieces', and the best way to cut it is found by Viterbi's algorithm:
//! ```text
//! best(0) = 0,   best(t) = max over pieces w that end at byte t of best(t - |w|) + score(w)
//! ```
//! A character that no piece of one character spells may be unknown, at the lowest score less 10, as
//! SentencePiece and the `tokenizers` library have it. Of equals the piece that begins first stays.
//! Cost: a step for each byte of each piece that begins at each character.

use std::collections::HashMap;

use super::vocab::NONE;
use crate::Error;

/// What an unknown character costs beside the unlikeliest piece.
const UNKNOWN_PENALTY: f64 = 10.0;
/// Bytes that all pieces may have together; real vocabularies have some 2 MB.
const PIECES_BYTES_MAX: usize = 16 << 20;

/// Pieces by their bytes, with scores.
pub(super) struct Unigram {
    /// From a node and a byte to a node; the root is 0.
    edges: HashMap<(u32, u8), u32>,
    /// The piece that ends at each node, or [`NONE`].
    ends: Vec<u32>,
    /// By id.
    scores: Vec<f64>,
    unknown_score: f64,
}

/// The best way to the end of a byte.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    start: usize,
    /// [`NONE`] for an unknown character.
    id: u32,
}

impl Unigram {
    /// Prepares `pieces`, which are no empty ones; `scores` are by id.
    pub(super) fn new<'p>(
        pieces: impl Iterator<Item = (&'p [u8], u32)>,
        scores: &[f64],
    ) -> Result<Self, Error> {
        let (mut edges, mut ends, mut bytes) = (HashMap::new(), vec![NONE], 0);
        let mut lowest = f64::INFINITY;
        for (piece, id) in pieces {
            bytes += piece.len();
            if bytes > PIECES_BYTES_MAX {
                return Err(Error::Tokenizer(format!(
                    "the pieces have more than {PIECES_BYTES_MAX} bytes"
                )));
            }
            let mut node = 0;
            for byte in piece {
                node = *edges.entry((node, *byte)).or_insert_with(|| {
                    ends.push(NONE);
                    ends.len() as u32 - 1
                });
            }
            ends[node as usize] = id;
            lowest = lowest.min(scores[id as usize]);
        }
        let unknown_score = if lowest.is_finite() { lowest } else { 0.0 } - UNKNOWN_PENALTY;
        Ok(Self { edges, ends, scores: scores.to_vec(), unknown_score })
    }

    /// The pieces of `word`, each with its range of bytes; [`NONE`] for unknown characters.
    pub(super) fn cut(&self, word: &str) -> Vec<(usize, usize, u32)> {
        let mut best: Vec<Option<Best>> = vec![None; word.len() + 1];
        for (start, c) in word.char_indices() {
            // Every character is reached: unknown at worst.
            let here = best[start].map_or(0.0, |best| best.score);
            let single = start + c.len_utf8();
            let mut spelled = false;
            let (mut node, mut at) = (0, start);
            for byte in &word.as_bytes()[start..] {
                let Some(next) = self.edges.get(&(node, *byte)) else { break };
                (node, at) = (*next, at + 1);
                let id = self.ends[node as usize];
                if id != NONE {
                    let score = here + self.scores[id as usize];
                    improve(&mut best[at], Best { score, start, id });
                    spelled |= at == single;
                }
            }
            if !spelled {
                let score = here + self.unknown_score;
                improve(&mut best[single], Best { score, start, id: NONE });
            }
        }
        let (mut pieces, mut end) = (Vec::new(), word.len());
        while let Some(Best { start, id, .. }) = best[end] {
            pieces.push((start, end, id));
            end = start;
        }
        pieces.reverse();
        pieces
    }
}

fn improve(best: &mut Option<Best>, other: Best) {
    if best.is_none_or(|best| other.score > best.score) {
        *best = Some(other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The score of every way to cut `word`, the best of them.
    fn naive(pieces: &HashMap<&str, f64>, unknown: f64, word: &str) -> f64 {
        let mut best = f64::NEG_INFINITY;
        let Some(first) = word.chars().next() else { return 0.0 };
        for end in word.char_indices().map(|(at, c)| at + c.len_utf8()) {
            if let Some(score) = pieces.get(&word[..end]) {
                best = best.max(score + naive(pieces, unknown, &word[end..]));
            }
        }
        let single = first.len_utf8();
        if !pieces.contains_key(&word[..single]) {
            best = best.max(unknown + naive(pieces, unknown, &word[single..]));
        }
        best
    }

    proptest! {
        #[test]
        fn no_way_to_cut_a_word_is_likelier(
            scores in proptest::collection::vec(-9.0f64..0.0, 8),
            word in "[abcé]{0,10}",
        ) {
            let texts = ["a", "b", "ab", "ba", "abc", "é", "bé", "caa"];
            let pieces = (0u32..).zip(texts).map(|(id, text)| (text.as_bytes(), id));
            let unigram = Unigram::new(pieces, &scores).unwrap();
            let cut = unigram.cut(&word);
            let score = |(_, _, id): &(usize, usize, u32)| match *id {
                NONE => unigram.unknown_score,
                id => scores[id as usize],
            };
            let ours: f64 = cut.iter().map(score).sum();
            let known = texts.into_iter().zip(scores.iter().copied()).collect();
            let best = naive(&known, unigram.unknown_score, &word);
            prop_assert!((ours - best).abs() < 1e-9, "{ours} {best}");
            let text: String = cut.iter().map(|(start, end, _)| &word[*start..*end]).collect();
            prop_assert_eq!(text, word);
        }
    }
}
