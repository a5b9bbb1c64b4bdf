//! Answers, token by token.

mod rules;

use std::sync::Arc;
use std::time::{Duration, Instant};

use offshoot_kernels::{Cpu, Greatest, KvCache};
use offshoot_methods::draft::{Distribution, TokenTree, follow};
use offshoot_methods::{Sampler, SamplingOptions, StopMatcher, TokenFilter, TokenLogprob};
use offshoot_models::{
    Controls, Detokenizer, LogitRows, NoHooks, PackedExecutor, RopeId, Segment, Tokenizer,
    VariantId,
};

use crate::spec::{Acceptance, Filtering, SamplingClass, SpecStats, Speculator};
use crate::{Error, Model};
use rules::Rule;

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
    /// Which drafted tokens stand, where any are.
    pub acceptance: Acceptance,
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
    /// Whether a drafter had guessed it.
    pub drafted: bool,
}

impl<'a> Piece<'a> {
    /// A piece without a token.
    fn of_text(text: &'a str) -> Self {
        Self { token: None, text, logprob: None, top: &[], drafted: false }
    }
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
    /// What drafting came to, if there was any.
    pub spec: Option<SpecStats>,
}

/// One conversation with a model: its registers, its cache and what the cache holds.
#[derive(Debug)]
pub struct Session {
    executor: PackedExecutor,
    cache: KvCache,
    /// The tokens whose keys and values are decided.
    cached: Vec<u32>,
    context: usize,
    /// The rotary table for texts that may fill the context.
    rope: RopeId,
    parents: Vec<Option<u32>>,
    positions: Vec<u32>,
    speculator: Option<Speculator>,
    /// What the output head multiplied to choose the pending token, for drafters that read it.
    hidden: Vec<f32>,
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
            rope: model.packed().config().rope_for(context),
            parents: offshoot_models::chain(PROMPT_CHUNK),
            positions: Vec::with_capacity(PROMPT_CHUNK),
            speculator: None,
            hidden: Vec::new(),
        })
    }

    /// Makes answers with these drafters from now on, or with none; gives those so far.
    pub fn set_speculator(&mut self, speculator: Option<Speculator>) -> Option<Speculator> {
        std::mem::replace(&mut self.speculator, speculator)
    }

    /// The drafters that answers are made with.
    pub fn speculator(&self) -> Option<&Speculator> {
        self.speculator.as_ref()
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
            rope: self.rope,
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
    /// What the prompt shares with the session's cache from its start is not computed again. Drafters
    /// change the speed of an answer and nothing else, unless [`GenerateOptions::acceptance`] says so.
    ///
    /// # Errors
    /// If the prompt is empty or fills the context, the options are out of bounds, or the model's
    /// logits are no numbers. What was cached stays usable.
    pub fn generate(
        &mut self,
        model: &Model,
        prompt: &[u32],
        options: &GenerateOptions,
        listen: impl FnMut(Piece<'_>) -> Control,
    ) -> Result<Answer, Error> {
        self.answer(model, prompt, options, None, listen)
    }

    /// As [`Session::generate`], of the tokens that `filter` lets through: the text is that of
    /// masking the logits at each position, whoever drafts.
    ///
    /// # Errors
    /// As [`Session::generate`]; and [`Error::Filter`] or
    /// [`NoTokenAllowed`](offshoot_methods::Error::NoTokenAllowed) if the filter contradicts itself
    /// or leaves no token.
    pub fn generate_filtered(
        &mut self,
        model: &Model,
        prompt: &[u32],
        options: &GenerateOptions,
        filter: &mut dyn TokenFilter,
        listen: impl FnMut(Piece<'_>) -> Control,
    ) -> Result<Answer, Error> {
        self.answer(model, prompt, options, Some(Filtering::begin(filter)), listen)
    }

    fn answer<'a>(
        &mut self,
        model: &'a Model,
        prompt: &[u32],
        options: &'a GenerateOptions,
        filtering: Option<Filtering<'a>>,
        mut listen: impl FnMut(Piece<'_>) -> Control,
    ) -> Result<Answer, Error> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() >= self.context {
            return Err(Error::PromptTooLong { prompt: prompt.len(), context: self.context });
        }
        let mut writer = Writer::new(model, options, prompt, self.context, filtering)?;
        let start = Instant::now();
        writer.answer.reused_tokens = self.reuse(prompt);
        if options.max_tokens == Some(0) {
            return Ok(writer.answer);
        }
        let unread = &prompt[writer.answer.reused_tokens..prompt.len() - 1];
        if self.read_while(model, unread, || listen(Piece::of_text("")))? == Control::Stop {
            writer.answer.finish = FinishReason::Stopped;
            writer.answer.timings.prompt = start.elapsed();
            return Ok(writer.answer);
        }
        let mut speculator = self.speculator.take();
        let result = self.decode(model, &mut writer, speculator.as_mut(), start, &mut listen);
        writer.answer.spec = speculator.as_ref().map(|s| s.stats().clone());
        self.speculator = speculator;
        result?;
        writer.finish(listen);
        Ok(writer.answer)
    }

    /// Makes tokens until the answer ends. The last of the writer's context is the pending one.
    fn decode(
        &mut self,
        model: &Model,
        writer: &mut Writer<'_>,
        mut speculator: Option<&mut Speculator>,
        start: Instant,
        listen: &mut impl FnMut(Piece<'_>) -> Control,
    ) -> Result<(), Error> {
        let temperature = writer.options.sampling.temperature;
        let draws = speculator.as_deref().is_some_and(Speculator::draws);
        let acceptance = writer.options.acceptance.at(temperature, draws);
        let mut rule = Rule::new(acceptance, writer.takes_greatest());
        let (mut root_only, mut path) = (TokenTree::default(), Vec::new());
        if let Some(speculator) = &mut speculator {
            let n_vocab = model.packed().config().vocab_size;
            let kind = (acceptance, SamplingClass::of(temperature));
            speculator.begin(&writer.context, n_vocab, kind);
        }
        self.hidden.clear();
        let mut decoding: Option<Instant> = None;
        loop {
            let (tree, chain) = match &mut speculator {
                Some(speculator) => {
                    let hidden = (!self.hidden.is_empty()).then_some(&self.hidden[..]);
                    // A row stands in the context, and its token is one that is asked for.
                    let room = self.context - 1 - self.cached.len();
                    let depth = room.min(writer.wanted() - 1);
                    speculator.draft(writer.behind(hidden), depth)?;
                    (speculator.tree(), Some(speculator.chain()))
                }
                None => {
                    root_only.reset(writer.context[writer.context.len() - 1]);
                    (&root_only, None)
                }
            };
            let checking = Instant::now();
            self.check(model, tree, rule.takes_greatest())?;
            rule.begin_step(writer, &mut self.executor, tree)?;
            let before = writer.context.len();
            let free = self.context - self.cached.len();
            let ended = follow(tree, &mut path, |node| {
                let depth = tree.depths()[node] as usize;
                let way = rule.way(tree, chain, node);
                let token = writer.choose(&mut self.executor, node, way)?;
                match decoding {
                    None => {
                        writer.answer.timings.prompt = start.elapsed();
                        decoding = Some(Instant::now());
                    }
                    Some(since) => writer.answer.timings.decode = since.elapsed(),
                }
                let drafted = tree.child(node, token).is_some();
                let full = depth + 1 >= free;
                Ok::<_, Error>(writer.push(token, drafted, full, listen).then_some(token))
            })?
            .is_none();
            let checked = checking.elapsed();
            let committing = Instant::now();
            self.cache.commit(&path);
            self.cached.extend(path.iter().map(|&node| tree.tokens()[node]));
            if let Some(speculator) = &mut speculator {
                if speculator.wants_hidden() {
                    let row = path[path.len() - 1];
                    self.hidden.clear();
                    self.hidden.extend_from_slice(self.executor.head_input_row(row));
                }
                let commit = committing.elapsed();
                speculator.note(&writer.context[before..], checked, commit);
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// How long a step of `tree` behind what is cached takes. Nothing of it is kept.
    ///
    /// # Errors
    /// If the context has no room for its rows.
    pub fn time_step(&mut self, model: &Model, tree: &TokenTree) -> Result<Duration, Error> {
        let prompt = self.cached.len() + tree.len();
        if prompt > self.context {
            return Err(Error::PromptTooLong { prompt, context: self.context });
        }
        let start = Instant::now();
        self.check(model, tree, false)?;
        Ok(start.elapsed())
    }

    /// Runs `tree` behind what is cached and asks for the logits of every node.
    fn check(&mut self, model: &Model, tree: &TokenTree, greatest: bool) -> Result<(), Error> {
        let base = self.cached.len() as u32;
        self.positions.clear();
        self.positions.extend(tree.depths().iter().map(|depth| base + depth));
        let segment = Segment {
            cache: &mut self.cache,
            tokens: tree.tokens(),
            parents: tree.parents(),
            positions: &self.positions,
            rope: self.rope,
            variant: VariantId::default(),
            logits: LogitRows::All,
        };
        if greatest {
            self.executor.step_greatest(model.packed(), &mut [segment], &mut NoHooks)?;
        } else {
            self.executor.step(model.packed(), &mut [segment], &mut NoHooks)?;
        }
        Ok(())
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
        self.read_while(model, tokens, || Control::Continue).map(drop)
    }

    /// As [`Session::read`], asking after each chunk whether to go on; gives the last answer.
    fn read_while(
        &mut self,
        model: &Model,
        tokens: &[u32],
        mut ask: impl FnMut() -> Control,
    ) -> Result<Control, Error> {
        for chunk in tokens.chunks(PROMPT_CHUNK) {
            self.feed(model, chunk, LogitRows::None)?;
            if ask() == Control::Stop {
                return Ok(Control::Stop);
            }
        }
        Ok(Control::Continue)
    }
}

/// An answer as it is written: from the logits of a row to text.
struct Writer<'a> {
    model: &'a Model,
    options: &'a GenerateOptions,
    sampler: Sampler,
    stop: StopMatcher,
    detokenizer: Detokenizer<Arc<Tokenizer>>,
    answer: Answer,
    /// The prompt and what was made of it.
    context: Vec<u32>,
    /// The most tokens of the answer.
    most: usize,
    /// A row's logits before penalties and biases, where log-probabilities are asked for.
    raw: Vec<f32>,
    /// A row's logits, and the distribution made of one, where a rule of acceptance needs them.
    row: Vec<f32>,
    law: Distribution,
    logprob: Option<f64>,
    top: Vec<TokenLogprob>,
    filtering: Option<Filtering<'a>>,
}

impl<'a> Writer<'a> {
    fn new(
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
            detokenizer: Detokenizer::new(model.tokenizer().clone(), Controls::Skip),
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
    fn takes_greatest(&self) -> bool {
        self.options.logprobs.is_none()
            && self.filtering.is_none()
            && self.options.sampling.takes_greatest()
    }

    /// How many tokens may still come, at least 1 while the answer goes on.
    fn wanted(&self) -> usize {
        self.most - self.answer.tokens.len()
    }

    /// Appends `token` and tells the listener; gives whether the answer goes on. `full` is whether
    /// the context has no room behind it.
    fn push(
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
    fn finish(&mut self, mut listen: impl FnMut(Piece<'_>) -> Control) {
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
