//! Answers, token by token.

mod guard;
mod rules;
mod writer;

use std::time::{Duration, Instant};

use offshoot_kernels::{Cpu, Greatest};
use offshoot_methods::draft::{TokenTree, follow};
use offshoot_methods::{SamplingOptions, TokenFilter, TokenLogprob};
use offshoot_models::{LogitRows, RopeId};

use crate::runner::{Rows, Runner, Want, runner};
use crate::spec::{Acceptance, Filtering, SamplingClass, SpecStats, Speculator};
use crate::{Error, Model};
use guard::Guard;
use rules::Rule;
use writer::Writer;

/// Prompt tokens of one step: enough to keep the dot units busy, few enough to stay in the cache
/// and to be interrupted.
pub(crate) const PROMPT_CHUNK: usize = 256;
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
    /// Whether the text goes on from the prompt's: where the tokenizer puts a space before a text, an
    /// answer loses the one that it begins with, and such a text keeps it.
    pub goes_on: bool,
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
    cpu: Cpu,
    runner: Box<dyn Runner>,
    guard: Guard,
    /// The tokens whose keys and values are decided.
    cached: Vec<u32>,
    /// How many of them, from the first, were read in whole chunks of a prompt.
    whole: usize,
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
        let rope = model.config().rope_for(model.positions_before() + context);
        let runner = runner(model, &cpu, context + SLACK, rope)?;
        Ok(Self {
            guard: Guard::new(runner.noise()),
            runner,
            cpu,
            cached: Vec::with_capacity(context),
            whole: 0,
            context,
            rope,
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
        &self.cpu
    }

    /// By how much a row's logits may change with the rows beside it, over the greatest magnitude
    /// among them, and drafting still changes no token; `None` if no bit of them does.
    pub fn noise(&self) -> Option<f32> {
        self.guard.noise()
    }

    /// Takes `noise` for [`Session::noise`], where that is not `None`: what was measured for this very
    /// model, say. Too little, and drafting may change a text; too much, and it saves less time.
    pub fn set_noise(&mut self, noise: f32) {
        self.guard.set_noise(noise);
    }

    /// Bytes of keys and values that one token takes.
    pub fn cache_bytes_per_position(&self) -> usize {
        self.runner.bytes_per_position()
    }

    /// Forgets the conversation from token `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.cached.truncate(len);
        self.runner.truncate(len);
        self.whole = self.whole.min(len / PROMPT_CHUNK * PROMPT_CHUNK);
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
        self.advance(model, tokens, logits, Want::Logits)?;
        Ok(self.runner.logits_mut())
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
        self.advance(model, tokens, logits, Want::Greatest)?;
        Ok(self.runner.greatest())
    }

    /// As [`Session::feed`], but gives what the output head would multiply: the final norm's result
    /// for each token, `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn feed_states(&mut self, model: &Model, tokens: &[u32]) -> Result<&[f32], Error> {
        self.advance(model, tokens, LogitRows::None, Want::States)?;
        self.runner.states()
    }

    /// Steps with `tokens` behind what is cached, and keeps them.
    fn advance(
        &mut self,
        model: &Model,
        tokens: &[u32],
        logits: LogitRows<'_>,
        want: Want,
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
        let (parents, positions) = (&self.parents[..tokens.len()], &self.positions[..]);
        self.runner.step(
            model,
            Rows { tokens, parents, positions, rope: self.rope, logits },
            want,
        )?;
        self.runner.commit_chain(tokens.len())?;
        self.cached.extend_from_slice(tokens);
        Ok(())
    }

    /// Continues `prompt`, telling `listen` each token as it comes.
    ///
    /// What the prompt shares with the session's cache from its start is not computed again; where a
    /// row depends on the rows beside it, that is what was read as whole chunks of a prompt, so that
    /// the text does not depend on what was said before. Drafters change the speed of an answer and
    /// nothing else, unless [`GenerateOptions::acceptance`] says so.
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
        self.check_rule(options)?;
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
        let guard = self.guard.stats();
        let stats = |s: &Speculator| SpecStats { guard, ..s.stats().clone() };
        writer.answer.spec = speculator.as_ref().map(stats);
        self.speculator = speculator;
        result?;
        writer.finish(listen);
        Ok(writer.answer)
    }

    /// Refuses rules of acceptance that a guard cannot keep exact.
    fn check_rule(&self, options: &GenerateOptions) -> Result<(), Error> {
        let (Some(_), Some(speculator)) = (self.guard.noise(), &self.speculator) else {
            return Ok(());
        };
        match options.acceptance.at(options.sampling.temperature, speculator.draws()) {
            Acceptance::Exact => Ok(()),
            rule => Err(Error::OnlyExact { rule: rule.name() }),
        }
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
        // A guard has to see how far ahead the greatest logit is.
        let guarded = self.guard.noise().is_some() && speculator.is_some();
        let greatest = writer.takes_greatest() && !guarded;
        let mut rule = Rule::new(acceptance, greatest);
        self.guard.begin(self.cached.len());
        let (mut root_only, mut path) = (TokenTree::default(), Vec::new());
        if let Some(speculator) = &mut speculator {
            let n_vocab = model.config().vocab_size;
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
                    let mut depth = room.min(writer.wanted() - 1);
                    if self.guard.owes_a_plain_step() {
                        depth = 0;
                    }
                    speculator.draft(writer.behind(hidden), depth)?;
                    (speculator.tree(), Some(speculator.chain()))
                }
                None => {
                    root_only.reset(writer.context[writer.context.len() - 1]);
                    (&root_only, None)
                }
            };
            let checking = Instant::now();
            self.check(model, tree, rule.want())?;
            self.guard.begin_step(tree.len(), self.cached.len());
            rule.begin_step(writer, self.runner.as_mut(), tree)?;
            let before = writer.context.len();
            let free = self.context - self.cached.len();
            let ended = follow(tree, &mut path, |node| {
                let depth = tree.depths()[node] as usize;
                let way = rule.way(tree, chain, node);
                let row = Row { runner: self.runner.as_mut(), guard: &mut self.guard, node };
                let Some(token) = writer.choose(row, way)? else { return Ok(None) };
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
            let doubted = self.guard.owes_a_plain_step();
            let checked = checking.elapsed();
            let committing = Instant::now();
            if doubted {
                // The node's own token is pending again.
                path.pop();
            }
            self.runner.commit(&path)?;
            self.cached.extend(path.iter().map(|&node| tree.tokens()[node]));
            self.guard.end_step(self.cached.len());
            if doubted {
                self.remake(model)?;
            }
            if let Some(speculator) = &mut speculator {
                if speculator.wants_hidden() {
                    self.hidden.clear();
                    if let (Some(&row), false) = (path.last(), doubted) {
                        self.hidden.extend_from_slice(self.runner.head_input_row(row)?);
                    }
                }
                let commit = committing.elapsed();
                speculator.note(&writer.context[before..], checked, commit);
            }
            if ended && !doubted {
                return Ok(());
            }
        }
    }

    /// Makes the rows anew that plain decoding would have made otherwise, one by one as it does.
    fn remake(&mut self, model: &Model) -> Result<(), Error> {
        let len = self.cached.len();
        let from = self.guard.remake_from(len);
        let tokens = self.cached.split_off(from);
        self.truncate(from);
        tokens.iter().try_for_each(|token| {
            self.advance(model, std::slice::from_ref(token), LogitRows::None, Want::Logits)
        })
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
        self.check(model, tree, Want::Logits)?;
        Ok(start.elapsed())
    }

    /// Runs `tree` behind what is cached and asks for the logits of every node.
    fn check(&mut self, model: &Model, tree: &TokenTree, want: Want) -> Result<(), Error> {
        let base = self.cached.len() as u32;
        self.positions.clear();
        self.positions.extend(tree.depths().iter().map(|depth| base + depth));
        let (tokens, parents) = (tree.tokens(), tree.parents());
        let (positions, rope, logits) = (&self.positions[..], self.rope, LogitRows::All);
        let rows = Rows { tokens, parents, positions, rope, logits };
        self.runner.step(model, rows, want)
    }

    /// Keeps what `prompt` shares with the cache, but its last token; gives how many tokens that is.
    fn reuse(&mut self, prompt: &[u32]) -> usize {
        let shared = self.cached.iter().zip(&prompt[..prompt.len() - 1]);
        let mut shared = shared.take_while(|(a, b)| a == b).count();
        if self.guard.noise().is_some() {
            shared = shared.min(self.whole) / PROMPT_CHUNK * PROMPT_CHUNK;
        }
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
            let base = self.cached.len();
            self.feed(model, chunk, LogitRows::None)?;
            if (base, chunk.len()) == (self.whole, PROMPT_CHUNK) {
                self.whole += PROMPT_CHUNK;
            }
            if ask() == Control::Stop {
                return Ok(Control::Stop);
            }
        }
        Ok(Control::Continue)
    }
}

/// A row of a step that was made, where a token is to be chosen.
struct Row<'a> {
    runner: &'a mut dyn Runner,
    guard: &'a mut Guard,
    /// Its number.
    node: usize,
}

/// The token found, by the rules of [`Sampler::sample`](offshoot_methods::Sampler::sample).
fn greatest_token(found: Result<Greatest, u32>, model: &Model) -> Result<u32, Error> {
    match found {
        Ok(found) if found.value == f32::INFINITY => {
            Err(offshoot_methods::Error::Logit { token: found.index, got: found.value }.into())
        }
        Ok(found) if found.value == f32::NEG_INFINITY => {
            let n_vocab = model.config().vocab_size;
            Err(offshoot_methods::Error::NoTokenAllowed { n_vocab }.into())
        }
        Ok(found) => Ok(found.index),
        Err(token) => Err(offshoot_methods::Error::Logit { token, got: f32::NAN }.into()),
    }
}
