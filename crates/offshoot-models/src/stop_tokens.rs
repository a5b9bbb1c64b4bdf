//! The ids at which an answer ends.

use crate::TokenKind;

/// Texts that end a turn or a text in the chat formats in use, where a file has them as control
/// tokens. llama.cpp knows them by text too, because many files name only one of those they use
/// (<https://github.com/ggml-org/llama.cpp/issues/9606>).
const END_MARKERS: [&str; 16] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "</s>",
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
];

/// The ids that a file has `named` and those of known end markers, ascending.
pub(crate) fn union<'t>(
    named: impl Iterator<Item = u32>,
    texts: impl Iterator<Item = &'t str>,
    kinds: &[TokenKind],
) -> Vec<u32> {
    let marked = (0u32..).zip(texts.zip(kinds)).filter_map(|(id, (text, kind))| {
        (*kind == TokenKind::Control && END_MARKERS.contains(&text)).then_some(id)
    });
    let mut stops: Vec<u32> = marked.chain(named).collect();
    stops.sort_unstable();
    stops.dedup();
    stops
}
