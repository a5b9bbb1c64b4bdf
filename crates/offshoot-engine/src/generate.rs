//! Answers, token by token.

use std::time::{Duration, Instant};

use offshoot_kernels::{Cpu, Greatest, KvCache};
use offshoot_methods::{LogProbabilities, Sampler, SamplingOptions, StopMatcher, TokenLogprob};
use offshoot_models::{
    Controls, Detokenizer, LogitRows, NoHooks, PackedExecutor, RopeId, Segment, VariantId,
};

use crate::{Error, Model};

/// Prompt tokens of one step: enough to keep the dot units busy, few enough to stay in the cache
/// and to be interrupted.
const PROMPT_CHUNK: usize = 256;
/// Bytes of text that an answer has room for, per token of it; English takes between 4 and 5.
const TEXT_PER_TOKEN: usize = 8;
/// Room behind the context for tentative rows of a step.
const SLACK: usize = 64;

/// How an answer is made.
#[derive(Debug, Clone, Default)]
pub struct GenerateOptions {
    /// How tokens are chosen. Above temperature 0 the seed must be given.
    pub sampling: SamplingOptions,
    /// Which of several answers to one prompt this is; draws differ by it.
    pub choice: u32,
    /// The most tokens to make; `None` is as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Texts at which the answer ends; they are not part of it.
    pub stop: Vec<String>,
    /// Whether to go on behind the model's own end tokens.
    pub ignore_eos: bool,
    /// How many alternatives' log-probabilities to give with each token, if any are wanted.
    pub logprobs: Option<usize>,
}

/// What a listener says to a piece of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// End the answer here.
    Stop,
}

/// A token of an answer, or the text that was held back at its end. While the prompt is read there
/// are pieces with neither, so that a listener can stop that too.
#[derive(Debug)]
pub struct Piece<'a> {
    /// The token; `None` for the last held-back text and within the prompt.
    pub token: Option<u32>,
    /// Text that became certain with it, often empty.
    pub text: &'a str,
    /// Its log-probability under the model's raw distribution, if asked for.
    pub logprob: Option<f64>,
    /// The likeliest tokens in its place, if asked for.
    pub top: &'a [TokenLogprob],
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it.
    EndToken(u32),
    /// A stop text came up: its place in the list.
    StopText(usize),
    /// As many tokens as were asked for.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The listener stopped it.
    Stopped,
}

/// How long the parts of an answer took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Reading the prompt.
    pub prompt: Duration,
    /// Making the tokens after the first.
    pub decode: Duration,
}

/// A finished answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its text, without what ended it.
    pub text: String,
    /// Its tokens, the end token not among them.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were in the cache already.
    pub reused_tokens: usize,
    /// How long it took.
    pub timings: Timings,
}

/// One conversation with a model: its registers, its cache and what the cache holds.
#[derive(Debug)]
pub struct Session {
    executor: PackedExecutor,
    cache: KvCache,
    /// The tokens whose keys and values are decided.
    cached: Vec<u32>,
    context: usize,
    parents: Vec<Option<u32>>,
    positions: Vec<u32>,
}

impl Session {
    /// A session of up to `context` tokens, at most what the model was trained for.
    pub fn new(model: &Model, cpu: Cpu, context: usize) -> Result<Self, Error> {
        let limit = model.trained_context();
        if context == 0 || context > limit {
            return Err(Error::Context { asked: context, limit });
        }
        Ok(Self {
            executor: PackedExecutor::new(cpu, model.packed().config()),
            cache: model.packed().new_cache(context + SLACK),
            cached: Vec::with_capacity(context),
            context,
            parents: offshoot_models::chain(PROMPT_CHUNK),
            positions: Vec::with_capacity(PROMPT_CHUNK),
        })
    }

    /// Tokens that the context holds.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens whose keys and values are kept.
    pub fn cached(&self) -> &[u32] {
        &self.cached
    }

    /// The processor that steps run on.
    pub fn cpu(&self) -> &Cpu {
        self.executor.cpu()
    }

    /// Bytes of keys and values that one token takes.
    pub fn cache_bytes_per_position(&self) -> usize {
        self.cache.bytes_per_position()
    }

    /// Forgets the conversation from token `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.cached.truncate(len);
        self.cache.truncate(len);
    }

    /// Runs `tokens` behind what is cached and keeps them; gives the logits of the rows asked for.
    ///
    /// # Errors
    /// If the context has no room for them.
    pub fn feed(
        &mut self,
        model: &Model,
        tokens: &[u32],
        logits: LogitRows<'_>,
    ) -> Result<&mut [f32], Error> {
        self.advance(tokens, logits, |executor, segment| {
            executor.step(model.packed(), &mut [segment], &mut NoHooks).map(drop)
        })?;
        Ok(self.executor.logits_mut())
    }

    /// As [`Session::feed`], but gives the token with the greatest logit in each row asked for, or
    /// the token whose logit is no number.
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn feed_greatest(
        &mut self,
        model: &Model,
        tokens: &[u32],
        logits: LogitRows<'_>,
    ) -> Result<&[Result<Greatest, u32>], Error> {
        self.advance(tokens, logits, |executor, segment| {
            executor.step_greatest(model.packed(), &mut [segment], &mut NoHooks).map(drop)
        })?;
        Ok(self.executor.greatest())
    }

    /// Steps with `tokens` behind what is cached, and keeps them.
    fn advance(
        &mut self,
        tokens: &[u32],
        logits: LogitRows<'_>,
        step: impl FnOnce(
            &mut PackedExecutor,
            Segment<'_, KvCache>,
        ) -> Result<(), offshoot_models::Error>,
    ) -> Result<(), Error> {
        let base = self.cached.len();
        if base + tokens.len() > self.context {
            return Err(Error::PromptTooLong {
                prompt: base + tokens.len(),
                context: self.context,
            });
        }
        while self.parents.len() < tokens.len() {
            self.parents.push(self.parents.len().checked_sub(1).map(|p| p as u32));
        }
        self.positions.clear();
        self.positions.extend((base..base + tokens.len()).map(|p| p as u32));
        let segment = Segment {
            cache: &mut self.cache,
            tokens,
            parents: &self.parents[..tokens.len()],
            positions: &self.positions,
            rope: RopeId::default(),
            variant: VariantId::default(),
            logits,
        };
        step(&mut self.executor, segment)?;
        self.cache.commit_chain(tokens.len());
        self.cached.extend_from_slice(tokens);
        Ok(())
    }

    /// Continues `prompt`, telling `listen` each token as it comes.
    ///
    /// What the prompt shares with the session's cache from its start is not computed again.
    ///
    /// # Errors
    /// If the prompt is empty or fills the context, the options are out of bounds, or the model's
    /// logits are no numbers. What was cached stays usable.
    pub fn generate(
        &mut self,
        model: &Model,
        prompt: &[u32],
        options: &GenerateOptions,
        mut listen: impl FnMut(Piece<'_>) -> Control,
    ) -> Result<Answer, Error> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() >= self.context {
            return Err(Error::PromptTooLong { prompt: prompt.len(), context: self.context });
        }
        let mut sampler = Sampler::new(options.sampling.clone())?;
        let mut stop = StopMatcher::new(options.stop.clone())?;
        let mut detokenizer = Detokenizer::new(model.tokenizer().clone(), Controls::Skip);
        let start = Instant::now();
        let reused_tokens = self.reuse(prompt);
        // Room for the whole answer, so that making a token allocates nothing.
        let room = options.max_tokens.unwrap_or(usize::MAX).min(self.context - prompt.len() + 1);
        let mut answer = Answer {
            text: String::with_capacity(room * TEXT_PER_TOKEN),
            tokens: Vec::with_capacity(room),
            finish: FinishReason::MaxTokens,
            prompt_tokens: prompt.len(),
            reused_tokens,
            timings: Timings::default(),
        };
        if options.max_tokens == Some(0) {
            return Ok(answer);
        }
        let mut context = Vec::with_capacity(prompt.len() + room);
        context.extend_from_slice(prompt);
        let mut raw = Vec::new();
        for chunk in prompt[reused_tokens..prompt.len() - 1].chunks(PROMPT_CHUNK) {
            self.feed(model, chunk, LogitRows::None)?;
            let said = listen(Piece { token: None, text: "", logprob: None, top: &[] });
            if said == Control::Stop {
                answer.finish = FinishReason::Stopped;
                answer.timings.prompt = start.elapsed();
                return Ok(answer);
            }
        }
        let mut next = [prompt[prompt.len() - 1]];
        let mut decoding: Option<Instant> = None;
        answer.finish = loop {
            let position = answer.tokens.len() as u64;
            let (mut logprob, mut top) = (None, Vec::new());
            let token = if options.logprobs.is_none() && options.sampling.takes_greatest() {
                let found = self.feed_greatest(model, &next, LogitRows::Last)?;
                greatest_token(found[0], model)?
            } else {
                let logits = self.feed(model, &next, LogitRows::Last)?;
                // Penalties and biases are written into the logits; probabilities are of the raw
                // ones.
                if options.logprobs.is_some() {
                    raw.clear();
                    raw.extend_from_slice(logits);
                }
                let sampled = sampler.sample(logits, &context, options.choice, position)?;
                if let Some(n) = options.logprobs {
                    let all = LogProbabilities::of(&raw)?;
                    (logprob, top) = (all.get(sampled.token), all.top(n));
                }
                sampled.token
            };
            match decoding {
                None => {
                    answer.timings.prompt = start.elapsed();
                    decoding = Some(Instant::now());
                }
                Some(since) => answer.timings.decode = since.elapsed(),
            }
            if !options.ignore_eos && model.stop_tokens().contains(&token) {
                break FinishReason::EndToken(token);
            }
            answer.tokens.push(token);
            context.push(token);
            let emit = stop.push(detokenizer.push(token));
            answer.text.push_str(emit.text);
            let said = listen(Piece { token: Some(token), text: emit.text, logprob, top: &top });
            if let Some(index) = emit.stop {
                break FinishReason::StopText(index);
            }
            if said == Control::Stop {
                break FinishReason::Stopped;
            }
            if options.max_tokens.is_some_and(|max| answer.tokens.len() >= max) {
                break FinishReason::MaxTokens;
            }
            if self.cached.len() >= self.context {
                break FinishReason::ContextFull;
            }
            next = [token];
        };
        if !matches!(answer.finish, FinishReason::StopText(_)) {
            let tail = detokenizer.finish();
            let mut rest = stop.push(&tail).text.to_owned();
            rest.push_str(stop.finish().text);
            answer.text.push_str(&rest);
            if !rest.is_empty() {
                listen(Piece { token: None, text: &rest, logprob: None, top: &[] });
            }
        }
        Ok(answer)
    }

    /// Keeps what `prompt` shares with the cache, but its last token; gives how many tokens that is.
    fn reuse(&mut self, prompt: &[u32]) -> usize {
        let shared = self.cached.iter().zip(&prompt[..prompt.len() - 1]);
        let shared = shared.take_while(|(a, b)| a == b).count();
        self.truncate(shared);
        shared
    }

    /// Runs tokens whose logits nobody needs, in chunks.
    ///
    /// # Errors
    /// If the context has no room for them.
    pub fn read(&mut self, model: &Model, tokens: &[u32]) -> Result<(), Error> {
        for chunk in tokens.chunks(PROMPT_CHUNK) {
            self.feed(model, chunk, LogitRows::None)?;
        }
        Ok(())
    }
}

/// The token found, by the rules of [`Sampler::sample`].
fn greatest_token(found: Result<Greatest, u32>, model: &Model) -> Result<u32, Error> {
    match found {
        Ok(found) if found.value == f32::INFINITY => {
            Err(offshoot_methods::Error::Logit { token: found.index, got: found.value }.into())
        }
        Ok(found) if found.value == f32::NEG_INFINITY => {
            let n_vocab = model.packed().config().vocab_size;
            Err(offshoot_methods::Error::NoTokenAllowed { n_vocab }.into())
        }
        Ok(found) => Ok(found.index),
        Err(token) => Err(offshoot_methods::Error::Logit { token, got: f32::NAN }.into()),
    }
}
