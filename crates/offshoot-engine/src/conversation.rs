//! A conversation as tokens: the one way in which answers are asked for and training rows are made.
//!
//! Control tokens are those of the template alone: where a message spells one out, in whatever
//! field, it stays text. Templates write the begin-of-text token themselves; it is added only where
//! the model expects one and the text does not begin with it.

use offshoot_models::{ChatTemplate, Message, RenderOptions, Special, Tokenizer};

use crate::Error;
use crate::disguise::Disguise;

/// A model's template and tokenizer with what the messages of one conversation spell out.
pub(crate) struct Conversation<'c> {
    tokenizer: &'c Tokenizer,
    template: &'c ChatTemplate,
    disguise: Disguise<'c>,
}

impl<'c> Conversation<'c> {
    /// For renderings of `messages` and of the first of them; `controls` are the texts of the
    /// tokenizer's control tokens.
    ///
    /// # Errors
    /// [`Error::NoPrivateCharacterLeft`].
    pub(crate) fn new(
        tokenizer: &'c Tokenizer,
        template: &'c ChatTemplate,
        controls: &'c [String],
        messages: &[Message],
    ) -> Result<Self, Error> {
        let disguise = Disguise::of(messages, controls).ok_or(Error::NoPrivateCharacterLeft)?;
        Ok(Self { tokenizer, template, disguise })
    }

    /// The template's text of `messages`, control tokens that they spell out disguised; with
    /// `answer`, up to where the assistant's next turn begins.
    ///
    /// # Errors
    /// If the template refuses them.
    pub(crate) fn render(&self, messages: &[Message], answer: bool) -> Result<String, Error> {
        let options = RenderOptions { add_generation_prompt: answer, ..RenderOptions::default() };
        Ok(self.template.render(&self.disguise.put_on(messages), &options)?)
    }

    /// The tokens of a rendered text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(crate) fn encode(&self, rendered: &str) -> Result<Vec<u32>, Error> {
        let mut ids = self.parts(rendered, true)?;
        if let (true, Some(bos)) = (self.tokenizer.add_bos(), self.tokenizer.bos())
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The tokens of a rendered text that begins at once behind another.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub(crate) fn encode_behind(&self, rendered: &str) -> Result<Vec<u32>, Error> {
        self.parts(rendered, false)
    }

    fn parts(&self, rendered: &str, begins: bool) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::new();
        let cut = self.tokenizer.cut_at_controls(rendered);
        for (at, (text, control)) in cut.into_iter().enumerate() {
            let text = self.disguise.take_off(text);
            let first = begins && at == 0;
            ids.extend(self.tokenizer.encode_part(&text, Special::Text, first)?);
            ids.extend(control);
        }
        Ok(ids)
    }
}
