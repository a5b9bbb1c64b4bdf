//! `tokenizer_config.json` and `chat_template.jinja`: special tokens by name, and the chat template.

use serde::Deserialize;

use super::{TEMPLATE, TOKENIZER_CONFIG, not_json, wrong};
use crate::Error;

/// Longest files that are read; published ones have up to some hundred thousand bytes.
pub(super) const BYTES_MAX: usize = 4 << 20;

/// The fields that are looked at.
#[derive(Default, Deserialize)]
pub(super) struct TokenizerConfig {
    pub(super) bos_token: Option<Special>,
    pub(super) eos_token: Option<Special>,
    pub(super) pad_token: Option<Special>,
    pub(super) unk_token: Option<Special>,
    pub(super) add_bos_token: Option<bool>,
    pub(super) add_eos_token: Option<bool>,
    chat_template: Option<Templates>,
}

/// A token by its text, alone or with its settings.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a token's text or an object with its content")]
pub(super) enum Special {
    Text(String),
    Token { content: String },
}

impl Special {
    pub(super) fn text(&self) -> &str {
        match self {
            Special::Text(text) | Special::Token { content: text } => text,
        }
    }
}

/// One template or several with names.
#[derive(Deserialize)]
#[serde(untagged, expecting = "chat_template: expected a text or a list of named ones")]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// Reads the file; a folder without one says nothing.
///
/// # Errors
/// [`Error::File`] with the field.
pub(super) fn read(bytes: Option<&[u8]>) -> Result<TokenizerConfig, Error> {
    let Some(bytes) = bytes else { return Ok(TokenizerConfig::default()) };
    if bytes.len() > BYTES_MAX {
        return Err(wrong(TOKENIZER_CONFIG, format_args!("more than {BYTES_MAX} bytes")));
    }
    serde_json::from_slice(bytes).map_err(|e| not_json(TOKENIZER_CONFIG, &e))
}

/// The template's source: the file of its own if there is one, else the default of `config`.
///
/// # Errors
/// [`Error::File`] if the file is no text.
pub(super) fn template(
    config: TokenizerConfig,
    file: Option<&[u8]>,
) -> Result<Option<String>, Error> {
    let source = match (file, config.chat_template) {
        (Some(bytes), _) => {
            let text = std::str::from_utf8(bytes).map_err(|e| {
                wrong(TEMPLATE, format_args!("not UTF-8 from byte {} on", e.valid_up_to()))
            })?;
            Some(text.to_owned())
        }
        (None, Some(Templates::One(source))) => Some(source),
        (None, Some(Templates::Named(all))) => {
            all.into_iter().find(|named| named.name == "default").map(|named| named.template)
        }
        (None, None) => None,
    };
    Ok(source.filter(|source| !source.is_empty()))
}
