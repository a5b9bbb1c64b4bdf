//! A model's own answers with its states at each place: what heads are trained on.
//!
//! Self-distillation as in Cai et al. 2024, <https://arxiv.org/abs/2401.10774>, section 2.3.2: the
//! model answers seed prompts through its chat template. Departs from the paper in the temperature:
//! half of the answers are greedy, a quarter at the paper's 0.3 and a quarter at 0.8, since people
//! decode at all of these. Nothing is computed twice: the states are kept as the answers are made.
//!
//! A list of prompts is soon too like itself, and heads that learned from it are wrong elsewhere. So
//! the model also writes prompts: it continues the opening of a user's turn, as in Xu et al. 2024,
//! Magpie, section 2, <https://arxiv.org/abs/2406.08464>. One that it does not end within
//! [`OWN_PROMPT_TOKENS`] tokens is dropped, and one of the list takes its place.
//!
//! Many answers grow in one step, so that the weights are read once for all of them. An answer
//! depends on its prompt, the seed and its number alone, never on its neighbours.
//!
//! Two files hold the result. `states.f16` are the states as half-precision rows; `answers.json`,
//! written last, says what they are, so that a run that ended early is begun anew and a finished one
//! is used again.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::f16;
use half::slice::HalfFloatSliceExt;
use offshoot_kernels::{FileMap, KvCache};
use offshoot_methods::{Sampler, SamplingOptions};
use offshoot_models::{
    BaseId, Controls, LogitRows, Message, NoHooks, PackedExecutor, Segment, VariantId,
};
use serde::{Deserialize, Serialize};

use super::prompts::SeedPrompts;
use crate::{Control, Error, Model};

/// Answers that grow at once.
const SLOTS: usize = 32;
/// The temperatures that answers take in turn.
const TEMPERATURES: [f32; 4] = [0.0, 0.3, 0.0, 0.8];
/// The temperature at which the model writes prompts: its own.
const OWN_PROMPT_TEMPERATURE: f32 = 1.0;
/// The longest prompt that the model writes.
const OWN_PROMPT_TOKENS: usize = 96;
const STATES: &str = "states.f16";
const ANSWERS: &str = "answers.json";

/// How answers are made.
#[derive(Debug, Clone, PartialEq)]
pub struct DistillOptions {
    /// Tokens of answers to make; the last answers are finished.
    pub tokens: usize,
    /// Tokens of an answer at most.
    pub answer_tokens: usize,
    /// Of a hundred prompts so many are written by the model; 100 at most.
    pub own_prompts: u8,
    /// Orders the prompts and draws the tokens.
    pub seed: u64,
}

impl Default for DistillOptions {
    fn default() -> Self {
        Self { tokens: 320_000, answer_tokens: 256, own_prompts: 50, seed: 1 }
    }
}

impl DistillOptions {
    /// Whether the model writes prompt `index`: of each hundred so many, whichever every fourth or
    /// tenth is, as temperatures and held-out answers go by those.
    fn own(&self, index: usize) -> bool {
        index / 20 * 37 % 5 * 20 + index * 7 % 20 < usize::from(self.own_prompts)
    }
}

/// One answer: its tokens, the end among them, and the row of the state that its first came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistilledAnswer {
    /// The number of its prompt.
    pub index: usize,
    /// Token `i` was chosen from the state in row `first_row + i`.
    pub tokens: Vec<u32>,
    /// The first of its rows.
    pub first_row: usize,
}

impl DistilledAnswer {
    /// What follows token `i`: head k, from 0 on, that reads the state which chose token `i` is to say
    /// the k-th of them.
    pub(super) fn behind(&self, i: usize) -> &[u32] {
        self.tokens.get(i + 1..).unwrap_or_default()
    }
}

/// What `answers.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    base: BaseId,
    hidden_size: usize,
    tokens: usize,
    answer_tokens: usize,
    own_prompts: u8,
    seed: u64,
    prompts: usize,
    answers: Vec<DistilledAnswer>,
}

/// Answers and their states.
#[derive(Debug)]
pub struct Distilled {
    hidden_size: usize,
    /// In the order of their prompts.
    answers: Vec<DistilledAnswer>,
    states: FileMap,
}

/// An answer that grows, or first the prompt that it will answer.
struct Growing {
    index: usize,
    cache: KvCache,
    /// The prompt, then the answer.
    context: Vec<u32>,
    /// Where what is written begins.
    written_from: usize,
    /// While the prompt is written, the one that is answered if nothing comes of it.
    instead: Option<Vec<u32>>,
    /// Tokens of `context` whose keys and values are not yet cached.
    fed: usize,
    states: Vec<f16>,
    sampler: Sampler,
}

impl Distilled {
    /// Lets `model` answer `prompts` in `folder`, or takes what is there if it is the same.
    /// `progress` is told the tokens made and may end it.
    ///
    /// # Errors
    /// [`Error::Stopped`] if `progress` says so; what a step, a file or a prompt gives.
    pub fn make(
        model: &Model,
        executor: &mut PackedExecutor,
        (base, prompts): (BaseId, &SeedPrompts),
        options: &DistillOptions,
        folder: &Path,
        mut progress: impl FnMut(usize) -> Control,
    ) -> Result<Self, Error> {
        let hidden_size = model.config().hidden_size;
        let DistillOptions { tokens, answer_tokens, own_prompts, seed } = *options;
        let wanted = Manifest {
            base,
            hidden_size,
            tokens,
            answer_tokens,
            own_prompts,
            seed,
            prompts: prompts.count(),
            answers: Vec::new(),
        };
        if let Some(found) = Self::open(folder, &wanted) {
            return Ok(found);
        }
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Model(offshoot_models::Error::Io { path, source })
        };
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        let (states, list) = (folder.join(STATES), folder.join(ANSWERS));
        let _ = std::fs::remove_file(&list);
        let mut out = BufWriter::new(File::create(&states).map_err(io(&states))?);
        let mut answers = Vec::new();
        let (mut rows, mut made) = (0, 0);
        answer_all(model, executor, prompts, options, |grown| {
            let answer = match grown {
                Grown::Token => {
                    made += 1;
                    return match progress(made) {
                        Control::Continue => Ok(()),
                        Control::Stop => Err(Error::Stopped),
                    };
                }
                Grown::Answer(answer) => answer,
            };
            let bytes: Vec<u8> =
                answer.states.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
            out.write_all(&bytes).map_err(io(&states))?;
            let tokens = answer.context[answer.written_from..].to_vec();
            let first_row = rows;
            rows += tokens.len();
            answers.push(DistilledAnswer { index: answer.index, tokens, first_row });
            Ok(())
        })?;
        out.flush().map_err(io(&states))?;
        drop(out);
        answers.sort_by_key(|answer| answer.index);
        let manifest = Manifest { answers, ..wanted };
        let json = serde_json::to_vec(&manifest).expect("a manifest is plain data");
        std::fs::write(&list, json).map_err(io(&list))?;
        let states = FileMap::open(&states).map_err(io(&states))?;
        Ok(Self { hidden_size, answers: manifest.answers, states })
    }

    /// What a finished run of the same options left in `folder`.
    fn open(folder: &Path, wanted: &Manifest) -> Option<Self> {
        let json = std::fs::read(folder.join(ANSWERS)).ok()?;
        let found: Manifest = serde_json::from_slice(&json).ok()?;
        let answers = found.answers.clone();
        if (Manifest { answers: Vec::new(), ..found }) != *wanted {
            return None;
        }
        let states = FileMap::open(&folder.join(STATES)).ok()?;
        let rows = answers.iter().map(|a| a.first_row.checked_add(a.tokens.len()));
        let rows = rows.collect::<Option<Vec<_>>>()?.into_iter().max()?;
        let bytes = rows.checked_mul(wanted.hidden_size)?.checked_mul(2)?;
        (bytes == states.len()).then_some(Self { hidden_size: wanted.hidden_size, answers, states })
    }

    /// Answers with these states, row by row, in half precision.
    #[cfg(test)]
    pub(super) fn of(hidden_size: usize, answers: Vec<DistilledAnswer>, states: &[f32]) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file of the test's own");
        let bytes: Vec<u8> = states.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        std::fs::write(file.path(), bytes).expect("room for it");
        let states = FileMap::open(file.path()).expect("a file that is there");
        Self { hidden_size, answers, states }
    }

    /// Width of a state.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// The answers, in the order of their prompts.
    pub fn answers(&self) -> &[DistilledAnswer] {
        &self.answers
    }

    /// Tokens of all answers.
    pub fn tokens(&self) -> usize {
        self.answers.iter().map(|answer| answer.tokens.len()).sum()
    }

    /// Writes the state in row `row`.
    pub fn state(&self, row: usize, out: &mut [f32]) {
        let bytes = 2 * self.hidden_size;
        let (halves, _) = self.states[row * bytes..(row + 1) * bytes].as_chunks::<2>();
        for (out, half) in out.iter_mut().zip(halves) {
            *out = f16::from_le_bytes(*half).to_f32();
        }
    }
}

/// What happens while answers grow.
enum Grown<'a> {
    Token,
    Answer(&'a Growing),
}

/// Answers prompts until as many tokens are made as asked for, and tells `listen` of each token and
/// each finished answer.
fn answer_all(
    model: &Model,
    executor: &mut PackedExecutor,
    prompts: &SeedPrompts,
    options: &DistillOptions,
    mut listen: impl FnMut(Grown<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let (config, packed) = (model.config(), model.packed()?);
    let context = model.trained_context().min(options.answer_tokens + 512);
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    let turn = UserTurn::of(model)?;
    let mut free: Vec<KvCache> = Vec::new();
    let mut growing: Vec<Growing> = Vec::new();
    let parents = offshoot_models::chain(context);
    let (mut next, mut made, mut refused) = (0, 0, 0);
    loop {
        while growing.len() < SLOTS && made < options.tokens {
            let tokens = model.encode_messages(&said(prompts.get(options.seed, next)))?;
            next += 1;
            if tokens.is_empty() || tokens.len() + 2 > context {
                refused += 1;
                if refused > prompts.count() {
                    return Err(Error::Prompts(format!("none fits a context of {context}")));
                }
                continue;
            }
            let cache = free.pop().unwrap_or_else(|| packed.new_cache(context));
            let own = turn.as_ref().filter(|_| options.own(next - 1));
            growing.push(Growing::new(next - 1, (tokens, own), cache, options)?);
        }
        if growing.is_empty() {
            return Ok(());
        }
        let places: Vec<Vec<u32>> =
            growing.iter().map(|g| (g.fed as u32..g.context.len() as u32).collect()).collect();
        let rope = model.config().rope_for(context);
        let mut segments: Vec<Segment<'_, KvCache>> = growing
            .iter_mut()
            .zip(&places)
            .map(|(g, positions)| Segment {
                cache: &mut g.cache,
                tokens: &g.context[g.fed..],
                parents: &parents[..positions.len()],
                positions,
                rope,
                variant: VariantId::default(),
                logits: LogitRows::Last,
            })
            .collect();
        executor.step(packed, &mut segments, &mut NoHooks)?;
        drop(segments);
        for (i, g) in growing.iter_mut().enumerate() {
            let logits = &mut executor.logits_mut()[i * vocab..(i + 1) * vocab];
            g.grow(logits)?;
            if g.instead.is_some() {
                continue;
            }
            let start = g.states.len();
            g.states.resize(start + hidden, f16::ZERO);
            g.states[start..].convert_from_f32_slice(executor.head_input_row(i));
            made += 1;
            listen(Grown::Token)?;
        }
        for g in growing.iter_mut().filter(|g| g.instead.is_some()) {
            if let Some(turn) = &turn {
                g.ask(model, turn, context, options)?;
            }
        }
        let ends = |g: &Growing| {
            let answer = &g.context[g.written_from..];
            let ended = answer.last().is_some_and(|token| model.stop_tokens().contains(token));
            ended || answer.len() >= options.answer_tokens || g.context.len() >= context
        };
        while let Some(at) = growing.iter().position(|g| g.instead.is_none() && ends(g)) {
            let mut done = growing.remove(at);
            listen(Grown::Answer(&done))?;
            done.cache.truncate(0);
            free.push(done.cache);
        }
    }
}

/// A conversation that begins with `text`.
fn said(text: impl Into<String>) -> [Message; 1] {
    [Message::new("user", text)]
}

/// What stands before and behind what a user says first.
struct UserTurn {
    opening: Vec<u32>,
    /// The first token behind.
    closing: u32,
}

impl UserTurn {
    /// By what two conversations share at both ends; `None` without a template, or if it puts
    /// nothing at one of the ends.
    fn of(model: &Model) -> Result<Option<Self>, Error> {
        let say = |text: &str| model.encode_chat(&said(text));
        let (Some(a), Some(b)) = (say("7")?, say("x")?) else {
            return Ok(None);
        };
        let opening = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        let closing = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
        let closing = a[opening..].len().checked_sub(closing).and_then(|at| a[opening..].get(at));
        Ok(match closing {
            Some(&closing) if opening > 0 => Some(Self { opening: a[..opening].to_vec(), closing }),
            _ => None,
        })
    }
}

impl Growing {
    /// An answer to `prompt`, or to one that the model writes behind the opening of `own`.
    fn new(
        index: usize,
        (prompt, own): (Vec<u32>, Option<&UserTurn>),
        cache: KvCache,
        options: &DistillOptions,
    ) -> Result<Self, Error> {
        let (context, instead, temperature) = match own {
            Some(turn) => (turn.opening.clone(), Some(prompt), OWN_PROMPT_TEMPERATURE),
            None => (prompt, None, TEMPERATURES[index % TEMPERATURES.len()]),
        };
        let written_from = context.len();
        let sampler = sampler(temperature, options)?;
        let states = Vec::new();
        Ok(Self { index, cache, context, written_from, instead, fed: 0, states, sampler })
    }

    /// Keeps what a step computed and takes the next token.
    fn grow(&mut self, logits: &mut [f32]) -> Result<(), Error> {
        self.cache.commit_chain(self.context.len() - self.fed);
        self.fed = self.context.len();
        let position = (self.context.len() - self.written_from) as u64;
        // A prompt and its answer draw from streams of their own.
        let choice = 2 * self.index as u32 + u32::from(self.instead.is_some());
        let token = self.sampler.sample(logits, &self.context, choice, position)?.token;
        self.context.push(token);
        Ok(())
    }

    /// Begins the answer if the prompt that is being written has ended, or gets too long.
    fn ask(
        &mut self,
        model: &Model,
        turn: &UserTurn,
        context: usize,
        options: &DistillOptions,
    ) -> Result<(), Error> {
        let written = &self.context[self.written_from..];
        let ends = |token: &u32| *token == turn.closing || model.stop_tokens().contains(token);
        let ended = written.last().is_some_and(ends);
        if !ended && written.len() < OWN_PROMPT_TOKENS && self.context.len() + 2 < context {
            return Ok(());
        }
        let text = model.tokenizer().decode(&written[..written.len() - 1], Controls::Skip);
        let own = match text.trim() {
            text if ended && !text.is_empty() => model.encode_messages(&said(text))?,
            _ => Vec::new(),
        };
        let instead = self.instead.take().unwrap_or_default();
        let usable = !own.is_empty() && own.len() + 2 <= context;
        let tokens = if usable { own } else { instead };
        let shared = tokens.iter().zip(&self.context[..self.fed]).take_while(|(a, b)| a == b);
        self.fed = shared.count().min(tokens.len() - 1);
        self.cache.truncate(self.fed);
        self.written_from = tokens.len();
        self.context = tokens;
        self.sampler = sampler(TEMPERATURES[self.index % TEMPERATURES.len()], options)?;
        Ok(())
    }
}

/// Draws at `temperature`.
fn sampler(temperature: f32, options: &DistillOptions) -> Result<Sampler, Error> {
    let seed = Some(options.seed);
    Ok(Sampler::new(SamplingOptions { temperature, seed, ..SamplingOptions::default() })?)
}
