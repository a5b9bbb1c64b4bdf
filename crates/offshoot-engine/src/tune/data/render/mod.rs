//! Rows as tokens: the prompt as it will be when the model is used, what is learned, and where it
//! ends.
//!
//! ```text
//! text         BOS text end                           all but the first token are predicted
//! completion   BOS prompt | completion end            no template, as TRL reads plain text
//! chat         template(turns before) | answer end    for each turn of the assistant (`chat.rs`)
//! choice       BOS prompt | candidate                 each candidate; no end behind it
//! answer       BOS prompt | answer end                the first answer is learned
//! preference   prompt | chosen end, prompt | rejected end
//! ```
//! BOS is there if the model expects one, and once. The end is the token at which the model's
//! answers stop, so that what is tuned stops. Words of a row are never control tokens: where they
//! spell one out, it is read as the text that it is.

mod chat;
mod length;

use std::fmt;
use std::sync::Arc;

use offshoot_models::{
    ChatTemplate, Checkpoint, Message, Special, TemplateId, Tokenizer, TokenizerId,
};

use super::error::DataError;
use super::record::{Record, Said};
use crate::Error;
use crate::model::{Text, text_of};
use crate::tune::{Example, Sequence};
pub use length::{Length, Overlong};

/// A model's tokenizer and chat template, as training data meets them.
pub struct Renderer {
    tokenizer: Arc<Tokenizer>,
    tokenizer_id: TokenizerId,
    template: Option<ChatTemplate>,
    template_id: Option<TemplateId>,
    controls: Vec<String>,
    stops: Vec<u32>,
    end: u32,
}

impl fmt::Debug for Renderer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renderer").field("tokenizer", &self.tokenizer_id).finish_non_exhaustive()
    }
}

/// What a row became.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rendered {
    /// The examples: none if the row was too long and is dropped, several where a conversation has
    /// to be learned answer by answer.
    pub examples: Vec<Example>,
    /// Whether something was too long and is cut, or left out beside examples that are not.
    pub cut: bool,
}

/// Why a row has no tokens.
#[derive(Debug)]
pub(crate) enum Unrendered {
    /// The row is at fault; which field of it, and what is wrong.
    Row(Option<&'static str>, String),
    /// The model is.
    Model(Error),
}

impl From<Error> for Unrendered {
    fn from(error: Error) -> Self {
        match &error {
            // What a template says of a conversation, or where it fails on one.
            Error::Model(
                offshoot_models::Error::Template(_) | offshoot_models::Error::BrokenTemplate(_),
            )
            | Error::NoPrivateCharacterLeft => Self::Row(None, error.to_string()),
            _ => Self::Model(error),
        }
    }
}

impl From<offshoot_models::Error> for Unrendered {
    fn from(error: offshoot_models::Error) -> Self {
        Error::from(error).into()
    }
}

fn no_field(what: &str) -> Unrendered {
    Unrendered::Row(None, what.to_owned())
}

impl Renderer {
    /// That of the model of `checkpoint`. No weights are read.
    ///
    /// # Errors
    /// If the tokenizer or template cannot be used, or no token ends a text.
    pub fn new(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let Text { tokenizer, tokenizer_id, template } = text_of(checkpoint)?;
        let stops = checkpoint.stop_tokens().to_vec();
        let named = tokenizer.eos().filter(|eos| stops.is_empty() || stops.contains(eos));
        let end = named.or_else(|| stops.first().copied()).ok_or(DataError::NoEnd)?;
        Ok(Self {
            controls: tokenizer.control_texts().map(str::to_owned).collect(),
            template_id: checkpoint.chat_template().map(TemplateId::of),
            tokenizer,
            tokenizer_id,
            template,
            stops,
            end,
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Which tokenizer it is.
    pub fn tokenizer_id(&self) -> TokenizerId {
        self.tokenizer_id
    }

    /// Which chat template, if there is one.
    pub fn template_id(&self) -> Option<TemplateId> {
        self.template_id
    }

    /// The token that ends texts and answers where a template does not say another.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// The token that stands before every text, if the model expects one.
    pub fn begin(&self) -> Option<u32> {
        self.tokenizer.bos().filter(|_| self.tokenizer.add_bos())
    }

    /// The examples of a row.
    pub(crate) fn examples(&self, record: &Record, length: Length) -> Result<Rendered, Unrendered> {
        let begin = self.begin();
        match record {
            Record::Text(text) => {
                let mut tokens = self.plain(text)?;
                tokens.push(self.end);
                let sequence = Sequence::of(&[], &tokens);
                Ok(length.texts(vec![targeted(sequence, begin)?], begin))
            }
            Record::Completion { prompt, completion } => {
                let sequence = self.completed(prompt, completion, Some(self.end))?;
                Ok(length.texts(vec![targeted(sequence, None)?], begin))
            }
            Record::Chat { messages, from } => Ok(length.texts(self.chat(messages, *from)?, begin)),
            Record::Choice { prompt, candidates, answers } => {
                let (text, prompt) = self.prompt(prompt)?;
                let candidates = candidates.iter().map(|c| self.behind(&text, &prompt, c));
                let candidates = candidates.collect::<Result<Vec<_>, _>>()?;
                if candidates.iter().any(Vec::is_empty) {
                    return Err(Unrendered::Row(Some("choices"), "one has no token".to_owned()));
                }
                let answers = answers.clone();
                Ok(length.choice(Example::Choice { prompt, candidates, answers }, begin))
            }
            Record::Answer { prompt, separator, answers, end } => {
                let (text, prompt) = self.prompt(prompt)?;
                let said = format!("{separator}{}{}", answers[0], end.as_deref().unwrap_or(""));
                let mut said = self.behind(&text, &prompt, &said)?;
                said.extend(end.is_none().then_some(self.end));
                let gold = Sequence::of(&prompt, &said);
                let answers = answers.clone();
                Ok(length.answer(Example::Answer { gold, prompt: prompt.len(), answers }, begin))
            }
            Record::Preference { prompt, chosen, rejected, rewards } => {
                let chosen = self.side(prompt, chosen)?;
                let rejected = self.side(prompt, rejected)?;
                Ok(length.preference((chosen, rejected), *rewards, begin))
            }
        }
    }

    /// The text with the begin-of-text token that the model expects.
    fn plain(&self, text: &str) -> Result<Vec<u32>, Unrendered> {
        let mut tokens: Vec<u32> = self.begin().into_iter().collect();
        tokens.extend(self.tokenizer.encode(text, Special::Text)?);
        Ok(tokens)
    }

    /// The tokens of `text` behind `before`, whose tokens stay as they are: those of both together
    /// where they begin with them, else its own.
    fn behind(&self, before: &str, tokens: &[u32], text: &str) -> Result<Vec<u32>, Unrendered> {
        let together = self.plain(&format!("{before}{text}"))?;
        match together.strip_prefix(tokens) {
            Some(rest) => Ok(rest.to_vec()),
            None => Ok(self.tokenizer.encode_part(text, Special::Text, false)?),
        }
    }

    fn completed(
        &self,
        prompt: &str,
        completion: &str,
        end: Option<u32>,
    ) -> Result<Sequence, Unrendered> {
        let given = self.plain(prompt)?;
        let mut said = self.behind(prompt, &given, completion)?;
        said.extend(end);
        Ok(Sequence::of(&given, &said))
    }

    /// What a prompt is as text, as far as more text is joined to it, and as tokens.
    fn prompt(&self, prompt: &Said) -> Result<(String, Vec<u32>), Unrendered> {
        let (text, tokens) = match prompt {
            Said::Text(text) => (text.clone(), self.plain(text)?),
            Said::Turns(turns) => (String::new(), self.asked(turns)?),
        };
        match tokens.is_empty() {
            false => Ok((text, tokens)),
            true => {
                let what = "is empty, and this model has no token that begins a text";
                Err(Unrendered::Row(Some("prompt"), what.to_owned()))
            }
        }
    }

    /// A side of a preference, its prompt not trained on.
    fn side(&self, prompt: &Said, said: &Said) -> Result<Sequence, Unrendered> {
        match (prompt, said) {
            (Said::Text(prompt), Said::Text(text)) => {
                targeted(self.completed(prompt, text, Some(self.end))?, None)
            }
            (Said::Turns(given), Said::Turns(turns)) => {
                let all: Vec<Message> = given.iter().chain(turns).cloned().collect();
                // Where a template cuts a conversation into answers, the last one is compared.
                let last = self.chat(&all, given.len())?.pop();
                last.ok_or_else(|| {
                    no_field("no trainable token: there is no turn of the assistant")
                })
            }
            _ => Err(no_field("prompt, chosen and rejected are of different kinds")),
        }
    }
}

/// A sequence in which something is predicted beside the end.
fn targeted(sequence: Sequence, begin: Option<u32>) -> Result<Sequence, Unrendered> {
    let least = 1 + usize::from(begin.is_some());
    match sequence.targets() {
        0 => Err(no_field("no trainable token: the row has a single token and nothing before it")),
        targets if targets < least => Err(no_field("no trainable token: the text has no tokens")),
        _ => Ok(sequence),
    }
}
