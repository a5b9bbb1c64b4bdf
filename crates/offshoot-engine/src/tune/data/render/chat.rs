//! Conversations: which of their tokens an assistant learns.
//!
//! For each turn of the assistant, what is trained is what stands behind the prompt that `run`
//! would give for the turns before it, up to the token at which `run` would stop:
//!
//! ```text
//! prompt_i = tokens(template(turns before i, asking for an answer))     not trained on
//! answer_i = tokens(template(turns up to i)) behind prompt_i            trained on, and
//!            cut behind the first token that ends an answer
//! ```
//! So it holds for any template, without marks in it. A conversation is one sequence as long as
//! `prompt_i` begins with all that came before it. Some templates write earlier turns otherwise once
//! there are later ones: those that leave out old reasoning, or that move the system message to the
//! last question. There the sequence ends, and the next answer begins another one with its own
//! prompt. The law, in either case: the tokens before a trained answer are exactly those that `run`
//! encodes for the turns before it.
//!
//! Where a template's prompt is not how it writes the answer afterwards (it opens a block of
//! reasoning, say), the answer's own words stand behind the prompt.
//!
//! A model without a template gets the texts, a line each, as `run` gives them to it.

use offshoot_models::{Message, Special};

use super::{Renderer, Unrendered};
use crate::conversation::Conversation;
use crate::tune::Sequence;

impl Renderer {
    /// Sequences in which every turn of the assistant from turn `from` on is trained on.
    pub(super) fn chat(
        &self,
        messages: &[Message],
        from: usize,
    ) -> Result<Vec<Sequence>, Unrendered> {
        let template = self.template.as_ref();
        let talk = template
            .map(|template| Conversation::new(&self.tokenizer, template, &self.controls, messages))
            .transpose()?;
        let mut sequences = Vec::new();
        let mut current = Sequence::default();
        for (i, message) in messages.iter().enumerate().skip(from) {
            if message.role != "assistant" {
                continue;
            }
            let (prompt, answer) = match &talk {
                Some(talk) => self.turn(talk, messages, i)?,
                None => self.line(messages, i)?,
            };
            if !prompt.starts_with(&current.tokens) {
                sequences.push(std::mem::take(&mut current));
            }
            current.trained.resize(prompt.len(), false);
            current.trained.resize(prompt.len() + answer.len(), true);
            current.tokens = prompt;
            current.tokens.extend(answer);
        }
        sequences.push(current);
        for sequence in &mut sequences {
            if let Some(first) = sequence.trained.first_mut() {
                *first = false;
            }
            if sequence.targets() == 0 {
                let what = "no trainable token: no token stands before the assistant's turn";
                return Err(Unrendered::Row(Some("messages"), what.to_owned()));
            }
        }
        Ok(sequences)
    }

    /// The prompt that `run` makes of `turns`.
    pub(super) fn asked(&self, turns: &[Message]) -> Result<Vec<u32>, Unrendered> {
        let Some(template) = &self.template else { return self.lines(turns) };
        let talk = Conversation::new(&self.tokenizer, template, &self.controls, turns)?;
        Ok(talk.encode(&talk.render(turns, true)?)?)
    }

    /// The prompt of turn `i` and its answer.
    fn turn(
        &self,
        talk: &Conversation<'_>,
        messages: &[Message],
        i: usize,
    ) -> Result<(Vec<u32>, Vec<u32>), Unrendered> {
        let asked = talk.render(&messages[..i], true)?;
        let prompt = talk.encode(&asked)?;
        let said = talk.render(&messages[..=i], false)?;
        let whole = talk.encode(&said)?;
        let stops = |token: &u32| self.stops.contains(token);
        let mut answer = match said.strip_prefix(asked.as_str()) {
            Some(rest) => {
                let behind = match whole.strip_prefix(&prompt[..]) {
                    Some(behind) => behind.to_vec(),
                    None => talk.encode_behind(rest)?,
                };
                let end = behind.iter().position(stops).map_or(behind.len(), |at| at + 1);
                behind[..end].to_vec()
            }
            None => {
                let words = messages[i].content.as_deref().unwrap_or_default();
                let mut words = self.tokenizer.encode_part(words, Special::Text, false)?;
                let same = whole.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
                words.extend(whole[same..].iter().copied().find(|token| stops(token)));
                words
            }
        };
        if !answer.last().is_some_and(stops) {
            answer.push(self.end);
        }
        Ok((prompt, answer))
    }

    /// The same without a template.
    fn line(&self, messages: &[Message], i: usize) -> Result<(Vec<u32>, Vec<u32>), Unrendered> {
        let prompt = self.lines(&messages[..i])?;
        let words = messages[i].content.as_deref().unwrap_or_default();
        let words = if i == 0 { words.to_owned() } else { format!("\n{words}") };
        let mut answer = self.tokenizer.encode_part(&words, Special::Text, i == 0)?;
        answer.push(self.end);
        Ok((prompt, answer))
    }

    /// As `Model::encode_messages` for a model without a template.
    fn lines(&self, turns: &[Message]) -> Result<Vec<u32>, Unrendered> {
        let texts: Vec<&str> = turns.iter().filter_map(|m| m.content.as_deref()).collect();
        let mut tokens: Vec<u32> = self.begin().into_iter().collect();
        tokens.extend(self.tokenizer.encode(&texts.join("\n"), Special::Parse)?);
        Ok(tokens)
    }
}
