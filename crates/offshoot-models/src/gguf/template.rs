//! The chat template of a file, or the one that its vocabulary speaks for.

use super::Gguf;
use crate::{Error, TokenKind, TokenizerSpec};

/// ChatML (<https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md>), which llama.cpp
/// takes for any model whose file has no template.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
     message['content'] + '<|im_end|>\\n' }}{% endfor %}\
     {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The template's source and whether it is not the file's but assumed, which departs from llama.cpp in
/// that both marks of ChatML must be control tokens of the vocabulary: otherwise a model would see them
/// as plain text that it has hardly met, and a user could write them.
pub(super) fn read(
    gguf: &Gguf<'_>,
    spec: &Result<TokenizerSpec, String>,
) -> Result<(Option<String>, bool), Error> {
    let told = gguf.text("tokenizer.chat_template")?.filter(|template| !template.is_empty());
    if let Some(told) = told {
        return Ok((Some(told.to_owned()), false));
    }
    let is_mark = |mark: &str| match spec {
        Ok(spec) => {
            let mut tokens = spec.tokens.iter().zip(&spec.kinds);
            tokens.any(|(text, kind)| text == mark && *kind == TokenKind::Control)
        }
        Err(_) => false,
    };
    let assumed = is_mark("<|im_start|>") && is_mark("<|im_end|>");
    Ok((assumed.then(|| CHATML.to_owned()), assumed))
}
