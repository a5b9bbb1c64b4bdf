//! `tokenizer.json` into the [`TokenizerSpec`] that llama.cpp's converter would put into a GGUF file,
//! so that a tokenizer has one identity in both.
//!
//! It has another where the file's maker wrote what no folder says: `eot_token_id`, `eom_token_id`,
//! other special tokens than the folder's, or kinds by a rule of their own.

use std::collections::HashMap;

use serde::de::IgnoredAny;

use super::sentence_piece::{self, Around};
use super::tokenizer_config::{Special, TokenizerConfig};
use super::tokenizer_json::{List, Merge, Model, Stage, Step, TokenizerJson, Vocab};
use super::{TOKENIZER, config, not_json, wrong};
use crate::shown::Shown;
use crate::tokenizer::{byte_of, patterns};
use crate::{Error, Matching, PreTokenizer, TokenKind, TokenizerModel, TokenizerSpec};

/// Longest file that is read; those of 150 thousand tokens have 7 to 17 MB.
pub(super) const BYTES_MAX: usize = 48 << 20;

/// Reads the tokenizer of a model whose embedding has `rows` rows. The inner error is a tokenizer
/// that offshoot does not build.
///
/// # Errors
/// [`Error::File`] if the file is damaged, or contradicts itself or the embedding.
pub(super) fn read(
    bytes: Option<&[u8]>,
    names: &TokenizerConfig,
    told: &config::Told,
) -> Result<Result<TokenizerSpec, String>, Error> {
    let Some(bytes) = bytes else {
        return Ok(Err(format!("the folder has no {TOKENIZER}")));
    };
    if bytes.len() > BYTES_MAX {
        return Err(wrong(TOKENIZER, format_args!("more than {BYTES_MAX} bytes")));
    }
    let file: TokenizerJson = serde_json::from_slice(bytes).map_err(|e| not_json(TOKENIZER, &e))?;
    let pipeline = match pipeline(&file) {
        Ok(pipeline) => pipeline,
        Err(what) => return Ok(Err(format!("{TOKENIZER}: {what}"))),
    };
    let rows = told.config.vocab_size;
    let (tokens, kinds) = tokens(&file, rows)?;
    let matching = matching(&file, &pipeline, &kinds);
    let id = |named: &Option<Special>, other: Option<u32>| {
        let text = named.as_ref().map(Special::text);
        let added = file.added_tokens.0.iter().find(|added| Some(added.content.as_str()) == text);
        added.map(|added| added.id).filter(|id| (*id as usize) < rows).or(other)
    };
    let eos = told.eos.as_ref().and_then(|eos| eos.alone());
    let (bos, eos) = (id(&names.bos_token, told.bos), id(&names.eos_token, eos));
    let [first, last] = ends(&file).map(|text| {
        let added = file.added_tokens.0.iter().find(|added| Some(added.content.as_str()) == text);
        added.map(|added| added.id)
    });
    let mut unk = id(&names.unk_token, told.unk);
    let pad = id(&names.pad_token, told.pad);
    let add_bos = names.add_bos_token.unwrap_or(first.is_some() && first == bos);
    let add_eos = names.add_eos_token.unwrap_or(last.is_some() && last == eos);
    let model = match &pipeline {
        Pipeline::ByteLevel(pre) => {
            let merges = file.model.merges.0.into_iter();
            let merges = merges.map(|Merge(left, right)| (left, right)).collect();
            TokenizerModel::ByteLevel { merges, pre: *pre }
        }
        Pipeline::Pieces(around) => {
            unk = sentence_piece::unknown(&file.model).or(unk);
            let model = sentence_piece::model(around, &file.model, &tokens, &kinds)?;
            TokenizerModel::SentencePiece(model)
        }
    };
    Ok(Ok(TokenizerSpec {
        tokens,
        kinds,
        model,
        matching,
        bos,
        eos,
        pad,
        unk,
        add_bos,
        add_eos,
        end_of_turn: Vec::new(),
    }))
}

/// How text becomes tokens, without what comes from the vocabulary.
enum Pipeline {
    ByteLevel(PreTokenizer),
    Pieces(Around),
}

/// The stages of the file, if offshoot has all that it asks for.
fn pipeline(file: &TokenizerJson) -> Result<Pipeline, String> {
    let pieces = sentence_piece::is_meant(file);
    model(&file.model, pieces)?;
    if let Some(added) = file.added_tokens.0.iter().find(|added| added.single_word) {
        let token = Shown(&added.content);
        return Err(format!(
            "added_tokens: {token} takes only whole words, which is not supported"
        ));
    }
    if pieces {
        let known = ["ByteLevel", "TemplateProcessing"];
        flat(file.post_processor.as_ref(), "post_processor", &known)?;
        return Ok(Pipeline::Pieces(sentence_piece::around(file)?));
    }
    let pre = cutting(file.pre_tokenizer.as_ref(), normalized(file.normalizer.as_ref())?)?;
    // Llama 3 and Tekken take a word that is a token whole; files saved before the library knew that
    // say false and mean it all the same.
    if file.model.ignore_merges && !pre.takes_whole_words() {
        return Err(format!("model.ignore_merges: not supported beside the pattern of {pre:?}"));
    }
    flat(file.post_processor.as_ref(), "post_processor", &["ByteLevel", "TemplateProcessing"])?;
    match flat(file.decoder.as_ref(), "decoder", &["ByteLevel"])? {
        true => Ok(Pipeline::ByteLevel(pre)),
        false => Err("decoder: missing, expected ByteLevel".to_owned()),
    }
}

/// How the added tokens are found that are not simply found by their text.
///
/// A control token is always looked for in the raw text. Byte-level tokenizers have no normaliser
/// that would change a token's text.
fn matching(
    file: &TokenizerJson,
    pipeline: &Pipeline,
    kinds: &[TokenKind],
) -> Vec<(u32, Matching)> {
    let mut matching: Vec<(u32, Matching)> = Vec::new();
    for added in &file.added_tokens.0 {
        let Some(kind) = kinds.get(added.id as usize) else { continue };
        let normalized = added.normalized
            && *kind == TokenKind::UserDefined
            && matches!(pipeline, Pipeline::Pieces(_));
        let how = Matching { lstrip: added.lstrip, rstrip: added.rstrip, normalized };
        if how != Matching::default() {
            matching.push((added.id, how));
        }
    }
    matching.sort_unstable_by_key(|(id, _)| *id);
    matching.dedup_by_key(|(id, _)| *id);
    matching
}

/// Checks that the model is byte-pair merges, and nothing else but what `pieces` have beside them.
fn model(model: &Model, pieces: bool) -> Result<(), String> {
    let usual = if matches!(model.vocab, Vocab::Ids(_)) { "BPE" } else { "Unigram" };
    let kind = model.kind.as_deref().unwrap_or(usual);
    if kind != usual || kind == "Unigram" && !pieces {
        let kind = Shown(kind);
        return Err(format!("model.type: {kind} is not supported with such a vocabulary"));
    }
    let text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let settings = [
        ("dropout", model.dropout.is_some_and(|rate| rate != 0.0)),
        ("unk_token", !pieces && text(&model.unk_token)),
        ("continuing_subword_prefix", text(&model.continuing_subword_prefix)),
        ("end_of_word_suffix", text(&model.end_of_word_suffix)),
        ("byte_fallback", !pieces && model.byte_fallback),
        ("ignore_merges", pieces && model.ignore_merges),
        ("fuse_unk", pieces && usual == "BPE" && text(&model.unk_token) && !model.fuse_unk),
    ];
    match settings.iter().find(|(_, set)| *set) {
        Some(("fuse_unk", _)) => Err("model.fuse_unk: only true is supported".to_owned()),
        Some((name, _)) => {
            let kind = if pieces { "pieces" } else { "byte-level BPE" };
            Err(format!("model.{name}: not supported beside {kind}"))
        }
        None => Ok(()),
    }
}

/// Whether text is brought into NFC first.
fn normalized(normalizer: Option<&Step>) -> Result<bool, String> {
    flat(normalizer, "normalizer", &["NFC"])
}

/// Whether there is a stage, which alone or in sequence is of the `known` kinds.
fn flat(step: Option<&Step>, field: &str, known: &[&str]) -> Result<bool, String> {
    let unknown = |kind: &str| Err(format!("{field}: {} is not supported", Shown(kind)));
    match step {
        None => Ok(false),
        Some(Stage { kind, steps: Some(List(steps)), .. }) if kind == "Sequence" => {
            match steps.iter().find(|step| !known.contains(&step.kind.as_str())) {
                Some(step) => unknown(&step.kind),
                None => Ok(!steps.is_empty()),
            }
        }
        Some(step) if known.contains(&step.kind.as_str()) => Ok(true),
        Some(step) => unknown(&step.kind),
    }
}

/// The rule that a file's stages come to.
fn cutting(step: Option<&Step>, nfc: bool) -> Result<PreTokenizer, String> {
    let other = || {
        Err("pre_tokenizer: cuts text by a rule that is not supported; those of GPT-2, GPT-4o, \
             SmolLM2, Qwen, Llama 3, Mistral and DeepSeek are"
            .to_owned())
    };
    let Some(step) = step else { return other() };
    let pre = match (step.kind.as_str(), &step.steps) {
        ("ByteLevel", _) if byte_level(step, true) => PreTokenizer::Gpt2,
        ("Sequence", Some(List(steps))) => match &steps[..] {
            [only] if byte_level(only, true) => PreTokenizer::Gpt2,
            [first, last] if digits(first) && byte_level(last, true) => match nfc {
                true => PreTokenizer::CommandR,
                false => PreTokenizer::SmolLm,
            },
            [stages @ .., last] if byte_level(last, false) => {
                let known = [
                    PreTokenizer::Qwen2,
                    PreTokenizer::Qwen35,
                    PreTokenizer::Llama3,
                    PreTokenizer::Tekken,
                    PreTokenizer::Gpt4o,
                    PreTokenizer::DeepSeekLlm,
                    PreTokenizer::DeepSeekCoder,
                    PreTokenizer::DeepSeekV3,
                ];
                let found: Option<Vec<&str>> = stages.iter().map(split).collect();
                let is_it = |pre: &PreTokenizer| found.as_deref() == Some(patterns(*pre));
                match known.into_iter().find(is_it) {
                    Some(pre) => pre,
                    None => return other(),
                }
            }
            _ => return other(),
        },
        _ => return other(),
    };
    match (pre.is_nfc(), nfc) {
        (true, false) => Err("normalizer: missing, expected NFC beside Qwen's pattern".to_owned()),
        (false, true) => Err(format!("normalizer: NFC is not supported for {pre:?}")),
        _ => Ok(pre),
    }
}

/// Whether a stage is the byte-level alphabet, with or without GPT-2's pattern, and adds no space.
fn byte_level<S>(stage: &Stage<S>, regex: bool) -> bool {
    stage.kind == "ByteLevel"
        && stage.add_prefix_space == Some(false)
        && stage.use_regex.unwrap_or(true) == regex
}

fn digits(stage: &Stage<IgnoredAny>) -> bool {
    stage.kind == "Digits" && stage.individual_digits == Some(true)
}

/// The pattern of a stage whose matches are words of their own.
fn split(stage: &Stage<IgnoredAny>) -> Option<&str> {
    if stage.kind == "Digits" {
        return Some(if digits(stage) { r"\p{N}" } else { r"\p{N}+" });
    }
    let isolated = stage.kind == "Split" && stage.behavior.as_deref() == Some("Isolated");
    let pattern = stage.pattern.as_ref()?.regex.as_deref()?;
    (isolated && stage.invert != Some(true)).then_some(pattern)
}

/// Text and kind of each of `rows` ids, holes named as llama.cpp's converter does.
fn tokens(file: &TokenizerJson, rows: usize) -> Result<(Vec<String>, Vec<TokenKind>), Error> {
    let mut tokens: Vec<Option<&str>> = vec![None; rows];
    let mut kinds = vec![TokenKind::Unused; rows];
    let mut enter = |field: &str, id: u32, text, kind| {
        let outside = || {
            let text = Shown(text);
            let what = format!("{field}: {text} has id {id}, but there are {rows} tokens");
            wrong(TOKENIZER, what)
        };
        let token = tokens.get_mut(id as usize).ok_or_else(outside)?;
        if let Some(other) = token.replace(text).filter(|other| *other != text) {
            let (text, other) = (Shown(text), Shown(other));
            return Err(wrong(
                TOKENIZER,
                format_args!("{field}: {text} has the id of {other}, {id}"),
            ));
        }
        kinds[id as usize] = kind;
        Ok(())
    };
    let added: HashMap<&str, u32> =
        file.added_tokens.0.iter().map(|added| (added.content.as_str(), added.id)).collect();
    for (text, id) in file.model.vocab.entries() {
        if let Some(other) = added.get(text).filter(|other| **other != id) {
            let what =
                format!("model.vocab: {} has id {id}, added_tokens say {other}", Shown(text));
            return Err(wrong(TOKENIZER, what));
        }
        let byte = file.model.byte_fallback && byte_of(text).is_some();
        let kind = if byte { TokenKind::Byte } else { TokenKind::Normal };
        enter("model.vocab", id, text, kind)?;
    }
    // Gemma 3's files of text alone name tokens of pictures that their embedding lacks.
    for added in file.added_tokens.0.iter().filter(|added| (added.id as usize) < rows) {
        let control = added.special || looks_special(&added.content);
        let kind = if control { TokenKind::Control } else { TokenKind::UserDefined };
        enter("added_tokens", added.id, &added.content, kind)?;
    }
    let text = |(id, text): (usize, Option<&str>)| {
        text.map_or_else(|| format!("[PAD{id}]"), str::to_owned)
    };
    Ok((tokens.into_iter().enumerate().map(text).collect(), kinds))
}

/// Whether llama.cpp's converter takes an added token for a control token by its text. Qwen2's
/// `<|fim_prefix|>` is one that its file does not call special.
fn looks_special(text: &str) -> bool {
    let between = |open: &str, close: &str| text.starts_with(open) && text.ends_with(close);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

/// The tokens that the file's template puts before and after a text, by their texts.
fn ends(file: &TokenizerJson) -> [Option<&str>; 2] {
    let Some(step) = &file.post_processor else { return [None; 2] };
    let inner = step.steps.iter().flat_map(|List(steps)| steps);
    let single = step.single.iter().chain(inner.filter_map(|step| step.single.as_ref())).next();
    let Some(List(pieces)) = single else { return [None; 2] };
    [pieces.first(), pieces.last()]
        .map(|piece| piece.and_then(|piece| piece.token.as_ref()).map(|token| token.id.as_str()))
}
