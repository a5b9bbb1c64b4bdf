//! The `tokenizer.ggml.*` keys into a [`TokenizerSpec`] and the ids at which an answer ends.

use super::export::STOP_TOKENS;
use super::value::{Array, Value};
use super::{Gguf, Shown, malformed, pieces};
use crate::{
    Error, Pieces, PreTokenizer, SentencePiece, TokenKind, TokenizerModel, TokenizerSpec,
    stop_tokens,
};

/// `tokenizer.ggml.model` of SentencePiece's pieces by merges.
pub(super) const SENTENCE_PIECE: &str = "llama";
/// `tokenizer.ggml.model` of SentencePiece's likeliest pieces.
pub(super) const UNIGRAM: &str = "t5";
/// `tokenizer.ggml.model` of byte-level merges.
pub(super) const BYTE_LEVEL: &str = "gpt2";

/// What a file says of its tokenizer.
pub(super) struct Told {
    /// The tokenizer, or why offshoot cannot build one though the file may be sound.
    pub(super) spec: Result<TokenizerSpec, String>,
    /// Ids at which an answer ends, ascending.
    pub(super) stop_tokens: Vec<u32>,
}

/// Reads the tokenizer of a model whose embedding has `rows` rows.
///
/// # Errors
/// [`Error::Gguf`] if the keys contradict each other or the embedding. A tokenizer that is merely of
/// a kind offshoot does not build is no error here: [`Told::spec`] says so.
pub(super) fn read(gguf: &Gguf<'_>, rows: usize) -> Result<Told, Error> {
    let Some(tokens) = array(gguf, "tokens")? else {
        let spec = Err("the file has no tokenizer (key \"tokenizer.ggml.tokens\")".to_owned());
        return Ok(Told { spec, stop_tokens: Vec::new() });
    };
    if tokens.len() != rows {
        return Err(malformed(format_args!(
            "key \"tokenizer.ggml.tokens\": {} tokens, but tensor \"token_embd.weight\" has {rows} \
             rows",
            tokens.len()
        )));
    }
    let Some(texts) = tokens.strings() else { return Err(not_an_array("tokens", "strings")) };
    let kinds = kinds(gguf, rows)?;
    let ids = Ids::read(gguf, rows)?;
    let further = stops(gguf, rows)?;
    let named = ids.eos.into_iter().chain(ids.end_of_turn.iter().copied()).chain(further);
    let stop_tokens = stop_tokens::union(named, texts, &kinds);
    let spec = spec(gguf, tokens, kinds, &ids)?;
    Ok(Told { spec, stop_tokens })
}

fn array<'g>(gguf: &'g Gguf<'_>, name: &str) -> Result<Option<&'g Array<'g>>, Error> {
    gguf.typed(&format!("tokenizer.ggml.{name}"), "an array", |value| match value {
        Value::Array(array) => Some(array),
        _ => None,
    })
}

fn not_an_array(name: &str, of: &str) -> Error {
    malformed(format_args!("key \"tokenizer.ggml.{name}\": expected an array of {of}"))
}

/// The ids of offshoot's own key.
fn stops(gguf: &Gguf<'_>, rows: usize) -> Result<Vec<u32>, Error> {
    let wrong =
        || malformed(format_args!("key \"{STOP_TOKENS}\": expected an array of ids below {rows}"));
    let Some(value) = gguf.get(STOP_TOKENS) else { return Ok(Vec::new()) };
    let Value::Array(array) = value else { return Err(wrong()) };
    let ids = array.integers().filter(|_| array.len() <= rows).ok_or_else(wrong)?;
    let id = |id| u32::try_from(id).ok().filter(|id| (*id as usize) < rows).ok_or_else(wrong);
    ids.map(id).collect()
}

/// The kind of each token; a file without kinds has only normal ones.
fn kinds(gguf: &Gguf<'_>, rows: usize) -> Result<Vec<TokenKind>, Error> {
    let Some(types) = array(gguf, "token_type")? else { return Ok(vec![TokenKind::Normal; rows]) };
    if types.len() != rows {
        return Err(malformed(format_args!(
            "key \"tokenizer.ggml.token_type\": {} entries for {rows} tokens",
            types.len()
        )));
    }
    let numbers = types.integers().ok_or_else(|| not_an_array("token_type", "integers"))?;
    numbers.enumerate().map(|(id, number)| kind(id, number)).collect()
}

fn kind(id: usize, number: i128) -> Result<TokenKind, Error> {
    Ok(match number {
        1 => TokenKind::Normal,
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        5 => TokenKind::Unused,
        6 => TokenKind::Byte,
        _ => {
            return Err(malformed(format_args!(
                "key \"tokenizer.ggml.token_type\": {number} for token {id}, expected 1 to 6"
            )));
        }
    })
}

/// The ids that a file names, each known to be a token.
struct Ids {
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
    end_of_turn: Vec<u32>,
}

impl Ids {
    fn read(gguf: &Gguf<'_>, rows: usize) -> Result<Self, Error> {
        // SentencePiece's own ids, which llama.cpp falls back on too.
        let pieces = gguf.text("tokenizer.ggml.model")? == Some(SENTENCE_PIECE);
        let usual = |name: &str| match name {
            "unknown" if pieces => Some(0),
            "bos" if pieces && rows > 1 => Some(1),
            "eos" if pieces && rows > 2 => Some(2),
            _ => None,
        };
        let id = |name: &str| -> Result<Option<u32>, Error> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let Some(id) = gguf.unsigned(&key)? else { return Ok(usual(name)) };
            let inside = u32::try_from(id).ok().filter(|&id| (id as usize) < rows);
            inside.map(Some).ok_or_else(|| {
                malformed(format_args!("key \"{key}\": {id}, but there are {rows} tokens"))
            })
        };
        Ok(Self {
            bos: id("bos")?,
            eos: id("eos")?,
            pad: id("padding")?,
            unk: id("unknown")?,
            end_of_turn: [id("eot")?, id("eom")?].into_iter().flatten().collect(),
        })
    }
}

/// The inner error is a tokenizer that offshoot does not build, the outer one a damaged file.
fn spec(
    gguf: &Gguf<'_>,
    tokens: &Array<'_>,
    kinds: Vec<TokenKind>,
    ids: &Ids,
) -> Result<Result<TokenizerSpec, String>, Error> {
    let mut kinds = kinds;
    let mut texts: Vec<String> =
        tokens.strings().into_iter().flatten().map(str::to_owned).collect();
    let mut matching = Vec::new();
    let (model, add_bos) = match gguf.text("tokenizer.ggml.model")? {
        Some(BYTE_LEVEL) => {
            let merges = merges(gguf)?;
            let pre = match pre_tokenizer(gguf.text("tokenizer.ggml.pre")?) {
                Ok(pre) => pre,
                Err(what) => return Ok(Err(what)),
            };
            // llama.cpp puts a begin-of-text token by default for these two alone.
            let add_bos = matches!(pre, PreTokenizer::Llama3 | PreTokenizer::Tekken);
            (TokenizerModel::ByteLevel { merges, pre }, add_bos)
        }
        Some(name @ (SENTENCE_PIECE | UNIGRAM)) => {
            if let Some(what) = pieces::unsupported(gguf)? {
                return Ok(Err(what));
            }
            pieces::restore(&mut texts, &mut kinds);
            let unigram = name == UNIGRAM;
            let scores = array(gguf, "scores")?;
            let model = pieces::model(gguf, scores, &texts, &kinds, unigram)?;
            let architecture = gguf.text("general.architecture")?.unwrap_or_default();
            matching = pieces::matching(architecture, &texts, &kinds);
            (TokenizerModel::SentencePiece(model), !unigram)
        }
        Some(other) => {
            return Ok(Err(format!(
                "the file's tokenizer is of kind {}; byte-level BPE (\"gpt2\") and \
                 SentencePiece's (\"llama\", \"t5\") are supported",
                Shown(other)
            )));
        }
        None => return Ok(Err("the file lacks key \"tokenizer.ggml.model\"".to_owned())),
    };
    // As in llama.cpp, which puts an end-of-text token behind the likeliest pieces alone.
    let ends = matches!(
        &model,
        TokenizerModel::SentencePiece(SentencePiece { pieces: Pieces::Unigram(_), .. })
    );
    Ok(Ok(TokenizerSpec {
        tokens: texts,
        kinds,
        model,
        matching,
        bos: ids.bos,
        eos: ids.eos,
        pad: ids.pad,
        unk: ids.unk,
        add_bos: gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos && ids.bos.is_some()),
        add_eos: gguf.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(ends && ids.eos.is_some()),
        end_of_turn: ids.end_of_turn.clone(),
    }))
}

/// The rule of a name. Those that share a rule are the ones that llama.cpp's converter gives it
/// (<https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp>).
fn pre_tokenizer(name: Option<&str>) -> Result<PreTokenizer, String> {
    match name {
        Some(
            "gpt-2" | "phi-2" | "default" | "trillion" | "granite-docling" | "exaone4" | "mellum"
            | "gigachat" | "a.x-4.0",
        ) => Ok(PreTokenizer::Gpt2),
        Some(
            "smollm" | "starcoder" | "refact" | "codeshell" | "exaone" | "minerva-7b" | "mellum2",
        ) => Ok(PreTokenizer::SmolLm),
        Some("command-r") => Ok(PreTokenizer::CommandR),
        Some("qwen2" | "deepseek-r1-qwen" | "megrez" | "kormo" | "f2llmv2") => {
            Ok(PreTokenizer::Qwen2)
        }
        Some("qwen35") => Ok(PreTokenizer::Qwen35),
        Some(
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
            | "lfm2" | "jina-v5-nano",
        ) => Ok(PreTokenizer::Llama3),
        Some("tekken") => Ok(PreTokenizer::Tekken),
        Some("gpt-4o" | "llama4" | "kanana2") => Ok(PreTokenizer::Gpt4o),
        Some("deepseek-llm") => Ok(PreTokenizer::DeepSeekLlm),
        Some("deepseek-coder") => Ok(PreTokenizer::DeepSeekCoder),
        Some("deepseek-v3" | "hunyuan-dense") => Ok(PreTokenizer::DeepSeekV3),
        Some(other) => Err(format!(
            "key \"tokenizer.ggml.pre\": {}, expected gpt-2, default, smollm, starcoder, refact, \
             command-r, qwen2, qwen35, llama-bpe, tekken, gpt-4o, deepseek-llm, deepseek-coder, \
             deepseek-v3 or another name of these rules",
            Shown(other)
        )),
        None => Err("the file lacks key \"tokenizer.ggml.pre\", the rule that cuts text into \
                     words; convert the model again with a newer llama.cpp"
            .to_owned()),
    }
}

fn merges(gguf: &Gguf<'_>) -> Result<Vec<(String, String)>, Error> {
    let Some(merges) = array(gguf, "merges")? else {
        return Err(malformed(
            "key \"tokenizer.ggml.merges\": missing, and a BPE tokenizer has it",
        ));
    };
    let texts = merges.strings().ok_or_else(|| not_an_array("merges", "strings"))?;
    texts
        .enumerate()
        .map(|(rank, text)| match text.split_once(' ') {
            Some((left, right))
                if !left.is_empty() && !right.is_empty() && !right.contains(' ') =>
            {
                Ok((left.to_owned(), right.to_owned()))
            }
            _ => Err(malformed(format_args!(
                "key \"tokenizer.ggml.merges\": {} at rank {rank}, expected two tokens with a \
                 space between",
                Shown(text)
            ))),
        })
        .collect()
}
