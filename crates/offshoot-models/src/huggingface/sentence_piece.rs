//! The stages of `tokenizer.json` that make SentencePiece's pieces.
//!
//! Converters have written the same thing in three ways over time:
//! ```text
//! Prepend "\u{2581}", Replace " "    a space before each part of a text        Llama 2, Mistral, Phi-3
//! Metaspace "first" or "always"  a space before the text, or each part      later Llama and Mistral
//! Replace " "                    no space before a text                     Gemma
//! ```
//! Stages before those may rewrite characters and leave out spaces:
//! ```text
//! Precompiled                    characters are written otherwise
//! Strip of the right side        white space at the end is left out; only before the next one
//! Replace of Regex " {2,}"       a run of spaces is one
//! ```

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::IgnoredAny;

use super::tokenizer_json::{List, Merge, Model, Stage, Step, TokenizerJson, Vocab};
use super::{TOKENIZER, wrong};
use crate::shown::Shown;
use crate::{Charsmap, Error, ExtraSpaces, Pieces, SentencePiece, SpacePrefix, TokenKind};

/// SentencePiece's sign of a space.
const SPACE: &str = "\u{2581}";
/// The regular expression by which transformers' converters have runs of spaces.
const RUNS: &str = " {2,}";

/// A stage within a sequence, or alone.
enum One<'a> {
    Inner(&'a Stage<IgnoredAny>),
    Alone(&'a Step),
}

/// What is looked at of a stage.
struct Seen<'a> {
    kind: &'a str,
    text: Option<&'a str>,
    string: Option<&'a str>,
    regex: Option<&'a str>,
    /// Whether white space is taken off on the left, and on the right.
    strips: (Option<bool>, Option<bool>),
    charsmap: Option<&'a str>,
    ends: (usize, usize),
    /// Whether a Metaspace stage puts a space before text.
    prepends: bool,
}

impl One<'_> {
    fn seen(&self) -> Seen<'_> {
        fn of<S>(stage: &Stage<S>) -> Seen<'_> {
            Seen {
                kind: &stage.kind,
                text: stage.content.as_deref().or(stage.prepend.as_deref()),
                string: stage.pattern.as_ref().and_then(|pattern| pattern.string.as_deref()),
                regex: stage.pattern.as_ref().and_then(|pattern| pattern.regex.as_deref()),
                strips: (stage.strip_left, stage.strip_right),
                charsmap: stage.precompiled_charsmap.as_deref(),
                ends: (stage.start.unwrap_or(0), stage.stop.unwrap_or(0)),
                prepends: stage.prepend_scheme.as_deref() != Some("never")
                    && stage.add_prefix_space != Some(false),
            }
        }
        match self {
            One::Inner(stage) => of(stage),
            One::Alone(step) => of(step),
        }
    }

    fn is_replace(&self, from: &str, to: &str) -> bool {
        let seen = self.seen();
        seen.kind == "Replace" && seen.string == Some(from) && seen.text == Some(to)
    }
}

/// The stages of a step, none if it is missing.
fn stages(step: Option<&Step>) -> Vec<One<'_>> {
    match step {
        None => Vec::new(),
        Some(Stage { kind, steps: Some(List(steps)), .. }) if kind == "Sequence" => {
            steps.iter().map(One::Inner).collect()
        }
        Some(step) => vec![One::Alone(step)],
    }
}

/// Whether the decoder is one of pieces.
pub(super) fn is_meant(file: &TokenizerJson) -> bool {
    let kinds = ["Replace", "ByteFallback", "Fuse", "Metaspace"];
    stages(file.decoder.as_ref()).iter().any(|stage| kinds.contains(&stage.seen().kind))
}

/// The stages around the pieces, or what of them is not supported.
pub(super) struct Around {
    charsmap: Option<Charsmap>,
    extra_spaces: ExtraSpaces,
    prefix: SpacePrefix,
    strip_space: bool,
    cut_at_spaces: bool,
}

/// Reads all stages but the model.
pub(super) fn around(file: &TokenizerJson) -> Result<Around, String> {
    let normalizer = stages(file.normalizer.as_ref());
    let (charsmap, normalizer) = match normalizer.split_first() {
        Some((first, others)) if first.seen().kind == "Precompiled" => {
            (charsmap(&first.seen())?, others)
        }
        _ => (None, &normalizer[..]),
    };
    let (extra_spaces, normalizer) = extra_spaces(normalizer);
    let replaced = match normalizer {
        [] => None,
        [only] if only.is_replace(" ", SPACE) => Some(SpacePrefix::Never),
        [first, last] if is_prepend(first) && last.is_replace(" ", SPACE) => {
            Some(SpacePrefix::EveryPart)
        }
        [first, ..] => {
            let kind = Shown(first.seen().kind);
            return Err(format!("normalizer: {kind} is not supported in this place"));
        }
    };
    let (prefix, cut_at_spaces) = before_the_model(file, replaced)?;
    let strip_space = decoder(file)?;
    Ok(Around { charsmap, extra_spaces, prefix, strip_space, cut_at_spaces })
}

/// The table of a stage that rewrites characters; an empty one changes none.
fn charsmap(stage: &Seen<'_>) -> Result<Option<Charsmap>, String> {
    let Some(text) = stage.charsmap.filter(|text| !text.is_empty()) else { return Ok(None) };
    let name = "normalizer.precompiled_charsmap";
    let bytes = STANDARD.decode(text).map_err(|e| format!("{name}: not base64 ({e})"))?;
    Charsmap::new(&bytes).map(Some).map_err(|what| format!("{name}: {what}"))
}

/// What the first of `stages` do to spaces beside spaces, and the others.
fn extra_spaces<'s, 'f>(stages: &'s [One<'f>]) -> (ExtraSpaces, &'s [One<'f>]) {
    let strips = |stage: &One<'_>| {
        let seen = stage.seen();
        seen.kind == "Strip" && seen.strips == (Some(false), Some(true))
    };
    let merges = |stage: &One<'_>| {
        let seen = stage.seen();
        // A sign of a space is as good as one: all spaces become signs.
        let one = [Some(" "), Some(SPACE)].contains(&seen.text);
        seen.kind == "Replace" && seen.regex == Some(RUNS) && one
    };
    match stages {
        [first, second, others @ ..] if strips(first) && merges(second) => {
            (ExtraSpaces::Remove, others)
        }
        [first, others @ ..] if merges(first) => (ExtraSpaces::Merge, others),
        _ => (ExtraSpaces::Keep, stages),
    }
}

fn is_prepend(stage: &One<'_>) -> bool {
    let seen = stage.seen();
    seen.kind == "Prepend" && seen.text == Some(SPACE)
}

/// Where a space is put and whether text is cut at spaces, by the pre-tokenizer and what the
/// normaliser did with spaces.
fn before_the_model(
    file: &TokenizerJson,
    replaced: Option<SpacePrefix>,
) -> Result<(SpacePrefix, bool), String> {
    let other = || {
        Err("pre_tokenizer: cuts text by a rule that is not supported beside pieces; Metaspace is"
            .to_owned())
    };
    let cutter = match (&file.pre_tokenizer, replaced) {
        (None, Some(prefix)) => return Ok((prefix, false)),
        (None, None) => return other(),
        (Some(step), _) => step,
    };
    match (cutter.kind.as_str(), replaced) {
        // Gemma's: by then there are no spaces to cut at.
        ("Split", Some(prefix)) => {
            let pattern = cutter.pattern.as_ref().and_then(|pattern| pattern.string.as_deref());
            let kept = cutter.behavior.as_deref() == Some("MergedWithPrevious");
            if pattern == Some(" ") && kept { Ok((prefix, false)) } else { other() }
        }
        ("Metaspace", None) => {
            let sign = cutter.replacement.as_deref().unwrap_or(SPACE);
            let prefix = match (cutter.prepend_scheme.as_deref(), cutter.add_prefix_space) {
                (Some("never"), _) | (None, Some(false)) => SpacePrefix::Never,
                (Some("first"), _) => SpacePrefix::Start,
                (Some("always") | None, _) => SpacePrefix::Parts,
                (Some(scheme), _) => {
                    return Err(format!(
                        "pre_tokenizer.prepend_scheme: {}, expected first, always or never",
                        Shown(scheme)
                    ));
                }
            };
            if sign == SPACE { Ok((prefix, cutter.split.unwrap_or(true))) } else { other() }
        }
        _ => other(),
    }
}

/// Whether decoded text loses the space that it begins with.
fn decoder(file: &TokenizerJson) -> Result<bool, String> {
    let steps = stages(file.decoder.as_ref());
    let mut strips = false;
    for step in &steps {
        let seen = step.seen();
        match seen.kind {
            "Replace" if step.is_replace(SPACE, " ") => {}
            "ByteFallback" | "Fuse" => {}
            "Strip" if seen.text == Some(" ") && seen.ends == (1, 0) => strips = true,
            "Strip" if seen.ends == (0, 0) => {}
            "Metaspace" => strips = seen.prepends,
            kind => return Err(unknown_decoder(kind)),
        }
    }
    let fallback = steps.iter().any(|step| step.seen().kind == "ByteFallback");
    match file.model.byte_fallback && !fallback {
        true => Err("decoder: has no ByteFallback, and the model writes bytes".to_owned()),
        false => Ok(strips),
    }
}

fn unknown_decoder(kind: &str) -> String {
    format!("decoder: {} is not supported in this place", Shown(kind))
}

/// A score as SentencePiece has it, in single precision: reading its digits may miss it by the last
/// bit of double precision. Other scores stay as they are; zero is one number, whatever its sign.
fn single(score: f64) -> f64 {
    let near = f64::from(score as f32);
    let missed = (score - near).abs() <= 4.0 * f64::EPSILON * score.abs();
    if missed { near + 0.0 } else { score }
}

/// The id of the unknown token that the model names.
pub(super) fn unknown(model: &Model) -> Option<u32> {
    let text = model.unk_token.as_deref();
    let entry = model.vocab.entries().find(|(entry, _)| Some(*entry) == text);
    entry.map(|(_, id)| id).or(model.unk_id)
}

/// The pieces of a file whose tokens are these.
///
/// Merges that take or make what is no ordinary token are passed over: no text becomes a control
/// token by merges.
///
/// # Errors
/// [`Error::File`] if a merge takes or makes what is no token.
pub(super) fn model(
    around: &Around,
    model: &Model,
    tokens: &[String],
    kinds: &[TokenKind],
) -> Result<SentencePiece, Error> {
    let sentence_piece = |pieces| SentencePiece {
        charsmap: around.charsmap.clone(),
        extra_spaces: around.extra_spaces,
        pieces,
        prefix: around.prefix,
        strip_space: around.strip_space,
        cut_at_spaces: around.cut_at_spaces,
        byte_fallback: model.byte_fallback,
    };
    if let Vocab::Scores(entries) = &model.vocab {
        let mut scores = vec![0.0; tokens.len()];
        for ((score, kind), (_, told)) in scores.iter_mut().zip(kinds).zip(entries) {
            if *kind == TokenKind::Normal {
                *score = single(*told);
            }
        }
        return Ok(sentence_piece(Pieces::Unigram(scores)));
    }
    let ids: HashMap<&str, u32> = tokens.iter().map(String::as_str).zip(0u32..).collect();
    let mut merges = Vec::with_capacity(model.merges.0.len());
    let mut made = String::new();
    for Merge(left, right) in &model.merges.0 {
        made.clear();
        made.push_str(left);
        made.push_str(right);
        let id = |text: &str| {
            ids.get(text).copied().ok_or_else(|| {
                wrong(TOKENIZER, format_args!("model.merges: {} is no token", Shown(text)))
            })
        };
        let all = [id(left)?, id(right)?, id(&made)?];
        let ordinary =
            |id: &u32| matches!(kinds[*id as usize], TokenKind::Normal | TokenKind::UserDefined);
        if all.iter().all(ordinary) {
            merges.push((all[0], all[1]));
        }
    }
    Ok(sentence_piece(Pieces::Bpe(merges)))
}
