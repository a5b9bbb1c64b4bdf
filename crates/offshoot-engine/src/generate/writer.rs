//! An answer as it is written: from a token to text.

use std::sync::Arc;

use offshoot_methods::draft::Distribution;
use offshoot_methods::{Sampler, StopMatcher, TokenLogprob};
use offshoot_models::{Controls, Detokenizer, Tokenizer};

use super::{Answer, Control, FinishReason, GenerateOptions, Piece, Timings};
use crate::spec::Filtering;
use crate::{Error, Model};

/// Bytes of text that an answer has room for, per token of it; English takes between 4 and 5.
const TEXT_PER_TOKEN: usize = 8;

/// An answer as it is written: from the logits of a row to text.
pub(super) struct Writer<'a> {
    pub(super) model: &'a Model,
    pub(super) options: &'a GenerateOptions,
    pub(super) sampler: Sampler,
    stop: StopMatcher,
    detokenizer: Detokenizer<Arc<Tokenizer>>,
    pub(super) answer: Answer,
    /// The prompt and what was made of it.
    pub(super) context: Vec<u32>,
    /// The most tokens of the answer.
    most: usize,
    /// A row's logits before penalties and biases, where log-probabilities are asked for.
    pub(super) raw: Vec<f32>,
    /// A row's logits, and the distribution made of one, where a rule of acceptance needs them.
    pub(super) row: Vec<f32>,
    pub(super) law: Distribution,
    pub(super) logprob: Option<f64>,
    pub(super) top: Vec<TokenLogprob>,
    pub(super) filtering: Option<Filtering<'a>>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        model: &'a Model,
        options: &'a GenerateOptions,
        prompt: &[u32],
        context: usize,
        filtering: Option<Filtering<'a>>,
    ) -> Result<Self, Error> {
        options.acceptance.validate()?;
        // Room for the whole answer, so that making a token allocates nothing.
        let most = options.max_tokens.unwrap_or(usize::MAX).min(context - prompt.len() + 1);
        let answer = Answer {
            text: String::with_capacity(most * TEXT_PER_TOKEN),
            tokens: Vec::with_capacity(most),
            finish: FinishReason::MaxTokens,
            prompt_tokens: prompt.len(),
            reused_tokens: 0,
            timings: Timings::default(),
            spec: None,
        };
        let mut text = Vec::with_capacity(prompt.len() + most);
        text.extend_from_slice(prompt);
        Ok(Self {
            model,
            options,
            sampler: Sampler::new(options.sampling.clone())?,
            stop: StopMatcher::new(options.stop.clone())?,
            detokenizer: match options.goes_on {
                true => Detokenizer::going_on(model.tokenizer().clone(), Controls::Skip),
                false => Detokenizer::new(model.tokenizer().clone(), Controls::Skip),
            },
            answer,
            context: text,
            most,
            raw: Vec::new(),
            row: Vec::new(),
            law: Distribution::new(),
            logprob: None,
            top: Vec::new(),
            filtering,
        })
    }

    /// Whether a row's greatest logit is all that is needed of it.
    pub(super) fn takes_greatest(&self) -> bool {
        self.options.logprobs.is_none()
            && self.filtering.is_none()
            && self.options.sampling.takes_greatest()
    }

    /// How many tokens may still come, at least 1 while the answer goes on.
    pub(super) fn wanted(&self) -> usize {
        self.most - self.answer.tokens.len()
    }

    /// Appends `token` and tells the listener; gives whether the answer goes on. `full` is whether
    /// the context has no room behind it.
    pub(super) fn push(
        &mut self,
        token: u32,
        drafted: bool,
        full: bool,
        listen: &mut impl FnMut(Piece<'_>) -> Control,
    ) -> bool {
        if !self.options.ignore_eos && self.model.stop_tokens().contains(&token) {
            self.answer.finish = FinishReason::EndToken(token);
            return false;
        }
        self.answer.tokens.push(token);
        self.context.push(token);
        let emit = self.stop.push(self.detokenizer.push(token));
        self.answer.text.push_str(emit.text);
        let (text, logprob, top) = (emit.text, self.logprob, &self.top[..]);
        let said = listen(Piece { token: Some(token), text, logprob, top, drafted });
        let most = self.options.max_tokens;
        let ended = match emit.stop {
            Some(index) => Some(FinishReason::StopText(index)),
            None if said == Control::Stop => Some(FinishReason::Stopped),
            None if most.is_some_and(|most| self.answer.tokens.len() >= most) => {
                Some(FinishReason::MaxTokens)
            }
            None if full => Some(FinishReason::ContextFull),
            None => None,
        };
        self.answer.finish = ended.unwrap_or(self.answer.finish);
        ended.is_none()
    }

    /// Lets out the text that was held back.
    pub(super) fn finish(&mut self, mut listen: impl FnMut(Piece<'_>) -> Control) {
        if matches!(self.answer.finish, FinishReason::StopText(_)) {
            return;
        }
        let tail = self.detokenizer.finish();
        let mut rest = self.stop.push(&tail).text.to_owned();
        rest.push_str(self.stop.finish().text);
        self.answer.text.push_str(&rest);
        if !rest.is_empty() {
            listen(Piece::of_text(&rest));
        }
    }
}
