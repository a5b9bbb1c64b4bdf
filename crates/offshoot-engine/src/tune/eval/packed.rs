//! Scoring many sequences in a step of the packed executor.
//!
//! Sequences that come after each other and begin with the same untrained tokens are one tree: the
//! prompt runs once, and each continuation branches off its last token.
//!
//! ```text
//! prompt p1 p2 p3 .. pn            rows of a segment, a chain
//!                     |- c1 c2     rows behind pn
//!                     |- d1        rows behind pn; of each branch all but the last token
//! ```
//! Candidates of one token need no row of their own: the logits of the prompt's last row say all of
//! them. Trees share steps until a step is full, those too long for one run alone, in pieces. None
//! of that changes a bit of a result, since a row's logits depend neither on the rows beside it nor
//! on the tree that it stands in.

use std::collections::BTreeMap;

use offshoot_kernels::{Cpu, Forming, Greatest, KvCache};
use offshoot_methods::LogProbabilities;
use offshoot_models::{
    Adapter, Beginnings, Hooks, LinearId, LogitRows, NoHooks, PackedAdapters, PackedExecutor,
    PackedScales, RopeId, Segment, SegmentRows, VariantId, chain,
};

use crate::tune::{Scored, Scorer, Sequence};
use crate::{Error, Model};

/// Rows of a step: the weights are read once for all of them, and more gain nothing.
const ROWS: usize = 256;
/// Bytes of logits of a step.
const LOGIT_BYTES: usize = 32 << 20;

/// Scores with the packed executor.
#[derive(Debug)]
pub struct PackedScorer<'m> {
    model: &'m Model,
    executor: PackedExecutor,
    added: Added,
    /// What stands before every text.
    beginning: Beginnings,
    rope: RopeId,
    context: usize,
    /// Rows of a step, and how many of them may have logits.
    rows: usize,
    logit_rows: usize,
    caches: Vec<KvCache>,
}

/// What a variant adds to products.
#[derive(Debug)]
struct Added {
    adapters: Option<PackedAdapters>,
    scales: Option<PackedScales>,
}

impl Added {
    fn is_something(&self) -> bool {
        self.adapters.is_some() || self.scales.is_some()
    }
}

impl Hooks for Added {
    fn forming(&self, linear: LinearId) -> Option<Forming<'_>> {
        self.scales.as_ref()?.forming(linear)
    }

    fn adds(&self, linear: LinearId, variant: VariantId) -> bool {
        self.adapters.as_ref().is_some_and(|adapters| adapters.adds(linear, variant))
    }

    fn addend(&mut self, linear: LinearId, rows: SegmentRows, x: &[f32], y: &mut [f32]) {
        if let Some(adapters) = &mut self.adapters {
            adapters.addend(linear, rows, x, y);
        }
    }
}

/// A tree of sequences as rows of a step.
#[derive(Debug, Default)]
struct Tree {
    tokens: Vec<u32>,
    parents: Vec<Option<u32>>,
    positions: Vec<u32>,
    targets: Targets,
}

/// By row, the sequences and tokens that its logits tell of.
#[derive(Debug, Default)]
struct Targets {
    of_row: BTreeMap<u32, Vec<(usize, u32)>>,
}

impl Targets {
    fn add(&mut self, row: usize, sequence: usize, token: u32) {
        self.of_row.entry(row as u32).or_default().push((sequence, token));
    }

    fn rows(&self) -> Vec<u32> {
        self.of_row.keys().copied().collect()
    }
}

/// Sequences with the same tokens before the first that is trained.
#[derive(Debug)]
struct Group<'s> {
    prompt: &'s [u32],
    /// Their numbers, and themselves.
    members: Vec<(usize, &'s Sequence)>,
}

impl Group<'_> {
    /// Rows that the tree takes, and how many of them have logits.
    fn size(&self) -> (usize, usize) {
        let behind = self.members.iter().map(|(_, s)| s.tokens.len() - self.prompt.len() - 1);
        let targets: usize = self.members.iter().map(|(_, s)| s.targets()).sum();
        (self.prompt.len() + behind.sum::<usize>(), targets)
    }

    fn tree(&self) -> Tree {
        let n = self.prompt.len();
        let mut tree = Tree { tokens: self.prompt.to_vec(), parents: chain(n), ..Tree::default() };
        tree.positions.extend(0..n as u32);
        for &(number, sequence) in &self.members {
            let branch = &sequence.tokens[n..sequence.tokens.len() - 1];
            let first = tree.tokens.len();
            // Where the row of the sequence's token `at` stands.
            let row = |at: usize| if at < n { at } else { first + at - n };
            for (i, &token) in branch.iter().enumerate() {
                tree.tokens.push(token);
                tree.parents.push(Some(row(n + i - 1) as u32));
                tree.positions.push((n + i) as u32);
            }
            for at in trained(sequence) {
                tree.targets.add(row(at - 1), number, sequence.tokens[at]);
            }
        }
        tree
    }
}

/// The places of the tokens that are predicted, none of them the first.
fn trained(sequence: &Sequence) -> impl Iterator<Item = usize> {
    sequence.trained.iter().enumerate().skip(1).filter(|(_, trained)| **trained).map(|(at, _)| at)
}

impl<'m> PackedScorer<'m> {
    /// A scorer of sequences of up to `context` tokens. Numbers of threads and the instruction set
    /// are `cpu`'s.
    ///
    /// # Errors
    /// If the context is longer than the model was trained for, the model was loaded for another
    /// executor, or its adapter does not fit.
    pub fn new(model: &'m Model, cpu: &Cpu, context: usize) -> Result<Self, Error> {
        let (weights, limit) = (model.packed()?, model.trained_context());
        if context == 0 || context > limit {
            return Err(Error::Context { asked: context, limit });
        }
        let lora = model.adapter().and_then(Adapter::lora).map(std::slice::from_ref);
        let adapters = lora.map(|all| PackedAdapters::new(cpu, weights.blueprint(), all));
        let scales = model.adapter().and_then(Adapter::scales).cloned();
        let scales = scales.map(|factors| PackedScales::new(weights.blueprint(), factors));
        let rope = model.config().rope_for(model.positions_before() + context);
        let mut executor = PackedExecutor::new(cpu.clone(), weights.config());
        let tokens = model.adapter().and_then(Adapter::virtual_tokens);
        let tokens = tokens.map(std::slice::from_ref).unwrap_or_default();
        let beginning = Beginnings::new(&mut executor, weights, tokens, rope, false)?;
        let logit_rows = LOGIT_BYTES / (4 * weights.config().vocab_size.max(1));
        Ok(Self {
            model,
            executor,
            beginning,
            added: Added { adapters: adapters.transpose()?, scales: scales.transpose()? },
            rope,
            context,
            rows: ROWS,
            logit_rows: logit_rows.clamp(1, ROWS),
            caches: Vec::new(),
        })
    }

    /// Runs steps of at most `rows` rows, of which at most `logits` have logits. Results do not
    /// depend on it; memory and speed do.
    #[must_use]
    pub fn with_rows(mut self, rows: usize, logits: usize) -> Self {
        (self.rows, self.logit_rows) = (rows.max(1), logits.max(1));
        self
    }

    fn variant(&self) -> VariantId {
        VariantId(u32::from(self.added.adapters.is_some()))
    }

    /// Positions in caches before a text.
    fn before(&self) -> usize {
        self.beginning.positions(0)
    }

    /// Caches without a text, the `i`-th with room for `rooms[i]` of its positions.
    fn make_room(&mut self, rooms: &[usize]) -> Result<(), Error> {
        let (weights, before) = (self.model.packed()?, self.before());
        for (i, &room) in rooms.iter().enumerate() {
            let room = before + room;
            if let Some(cache) = self.caches.get_mut(i).filter(|cache| cache.capacity() >= room) {
                cache.truncate(before);
                continue;
            }
            // Rounded up, so that a slot is seldom made anew.
            let mut cache = weights.new_cache(room.next_power_of_two());
            if before > 0 {
                self.beginning.begin(0, &mut cache)?;
            }
            match self.caches.get_mut(i) {
                Some(old) => *old = cache,
                None => self.caches.push(cache),
            }
        }
        Ok(())
    }

    /// Runs trees that fit into one step together.
    fn step(&mut self, trees: &[Tree], scored: &mut [Scored]) -> Result<(), Error> {
        let rooms: Vec<usize> = trees.iter().map(|tree| tree.tokens.len()).collect();
        self.make_room(&rooms)?;
        let rows: Vec<Vec<u32>> = trees.iter().map(|tree| tree.targets.rows()).collect();
        let before = self.before() as u32;
        let behind = |tree: &Tree| tree.positions.iter().map(|p| before + p).collect();
        let positions: Vec<Vec<u32>> = trees.iter().map(behind).collect();
        let (rope, variant) = (self.rope, self.variant());
        let mut segments: Vec<Segment<'_, KvCache>> = trees
            .iter()
            .zip(rows.iter().zip(&positions))
            .zip(&mut self.caches)
            .map(|((tree, (rows, positions)), cache)| Segment {
                cache,
                tokens: &tree.tokens,
                parents: &tree.parents,
                positions,
                rope,
                variant,
                logits: LogitRows::These(rows),
            })
            .collect();
        let mut none = NoHooks;
        let hooks: &mut dyn Hooks =
            if self.added.is_something() { &mut self.added } else { &mut none };
        self.executor.step(self.model.packed()?, &mut segments, hooks)?;
        let threads = self.executor.cpu().team().threads();
        let targets = trees.iter().flat_map(|tree| tree.targets.of_row.values());
        let targets: Vec<&Vec<(usize, u32)>> = targets.collect();
        let logits = self.executor.logits_mut();
        tell(logits, &targets, threads, scored)
    }

    /// Runs a group that is too long for a step, in pieces: the prompt once, then each branch.
    fn pieces(&mut self, group: &Group<'_>, scored: &mut [Scored]) -> Result<(), Error> {
        let longest = group.members.iter().map(|(_, s)| s.tokens.len()).max().unwrap_or(0);
        self.make_room(&[longest])?;
        // The last token of the prompt runs with each branch, whose first token it predicts.
        let shared = group.prompt.len() - 1;
        let mut begin = 0;
        while begin < shared {
            let end = shared.min(begin + self.rows);
            self.chain(&group.prompt[begin..end], &Targets::default(), scored)?;
            begin = end;
        }
        for &(number, sequence) in &group.members {
            let last = sequence.tokens.len() - 1;
            let mut begin = shared;
            while begin < last {
                let (mut end, mut logits) = (begin, 0);
                while end < last
                    && end - begin < self.rows
                    && logits + usize::from(sequence.trained[end + 1]) <= self.logit_rows
                {
                    logits += usize::from(sequence.trained[end + 1]);
                    end += 1;
                }
                let mut targets = Targets::default();
                for at in (begin + 1..=end).filter(|&at| sequence.trained[at]) {
                    targets.add(at - 1 - begin, number, sequence.tokens[at]);
                }
                self.chain(&sequence.tokens[begin..end], &targets, scored)?;
                begin = end;
            }
            let before = self.before();
            self.caches[0].truncate(before + shared);
        }
        Ok(())
    }

    /// Runs tokens behind what the first cache holds, and keeps them.
    fn chain(
        &mut self,
        tokens: &[u32],
        targets: &Targets,
        scored: &mut [Scored],
    ) -> Result<(), Error> {
        let (rows, parents) = (targets.rows(), chain(tokens.len()));
        let (rope, variant) = (self.rope, self.variant());
        let cache = &mut self.caches[0];
        let base = cache.len() as u32;
        let positions: Vec<u32> = (base..base + tokens.len() as u32).collect();
        let logits = if rows.is_empty() { LogitRows::None } else { LogitRows::These(&rows) };
        let (parents, positions) = (&parents, &positions);
        let segment = Segment { cache, tokens, parents, positions, rope, variant, logits };
        let mut none = NoHooks;
        let hooks: &mut dyn Hooks =
            if self.added.is_something() { &mut self.added } else { &mut none };
        self.executor.step(self.model.packed()?, &mut [segment], hooks)?;
        self.caches[0].commit_chain(tokens.len());
        if rows.is_empty() {
            return Ok(());
        }
        let threads = self.executor.cpu().team().threads();
        let targets: Vec<&Vec<(usize, u32)>> = targets.of_row.values().collect();
        tell(self.executor.logits_mut(), &targets, threads, scored)
    }

    fn check(&self, tokens: usize) -> Result<(), Error> {
        match tokens > self.context {
            true => Err(Error::PromptTooLong { prompt: tokens, context: self.context }),
            false => Ok(()),
        }
    }
}

/// A sequence's token and what the model thinks of it: its log-probability, and whether no token is
/// likelier.
type Told = Vec<(usize, f64, bool)>;

/// Adds what each row of logits tells of its targets, in order of the rows.
fn tell(
    logits: &[f32],
    targets: &[&Vec<(usize, u32)>],
    threads: usize,
    scored: &mut [Scored],
) -> Result<(), Error> {
    if targets.is_empty() {
        return Ok(());
    }
    let width = logits.len() / targets.len();
    let of_rows = |logits: &[f32], targets: &[&Vec<(usize, u32)>]| -> Result<Told, Error> {
        let mut told = Vec::new();
        for (row, targets) in logits.chunks_exact(width).zip(targets) {
            let all = LogProbabilities::of(row)?;
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for &(sequence, token) in *targets {
                let own = row.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
                let logprob = all.get(token).unwrap_or(f64::NEG_INFINITY);
                told.push((sequence, logprob, own >= best));
            }
        }
        Ok(told)
    };
    // Rows are independent, so they are shared out; sums are made in their order.
    let share = targets.len().div_ceil(threads.max(1));
    let told: Result<Vec<Told>, Error> = std::thread::scope(|scope| {
        let parts = logits.chunks(share * width).zip(targets.chunks(share));
        let work: Vec<_> =
            parts.map(|(logits, targets)| scope.spawn(move || of_rows(logits, targets))).collect();
        let joined = work
            .into_iter()
            .map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect()
    });
    for (sequence, logprob, best) in told?.into_iter().flatten() {
        let sum = &mut scored[sequence];
        sum.logprob += logprob;
        sum.tokens += 1;
        sum.greedy += usize::from(best);
    }
    Ok(())
}

/// Sequences in groups of the same prompt, one behind the other.
fn groups<'s>(sequences: &[&'s Sequence]) -> Vec<Group<'s>> {
    let mut groups: Vec<Group<'s>> = Vec::new();
    for (number, &sequence) in sequences.iter().enumerate() {
        let Some(first) = trained(sequence).next() else { continue };
        let prompt = &sequence.tokens[..first];
        match groups.last_mut() {
            Some(group) if group.prompt == prompt => group.members.push((number, sequence)),
            _ => groups.push(Group { prompt, members: vec![(number, sequence)] }),
        }
    }
    groups
}

impl Scorer for PackedScorer<'_> {
    fn score(&mut self, sequences: &[&Sequence]) -> Result<Vec<Scored>, Error> {
        sequences.iter().try_for_each(|sequence| self.check(sequence.tokens.len()))?;
        let none = Scored { logprob: 0.0, tokens: 0, greedy: 0 };
        let mut scored = vec![none; sequences.len()];
        let (mut waiting, mut rows, mut logits) = (Vec::new(), 0, 0);
        for group in groups(sequences) {
            let size = group.size();
            if size.0 > self.rows || size.1 > self.logit_rows {
                self.pieces(&group, &mut scored)?;
                continue;
            }
            if rows + size.0 > self.rows || logits + size.1 > self.logit_rows {
                self.step(&std::mem::take(&mut waiting), &mut scored)?;
                (rows, logits) = (0, 0);
            }
            (rows, logits) = (rows + size.0, logits + size.1);
            waiting.push(group.tree());
        }
        if !waiting.is_empty() {
            self.step(&waiting, &mut scored)?;
        }
        Ok(scored)
    }

    fn generate(&mut self, prompts: &[&[u32]], max_tokens: usize) -> Result<Vec<Vec<u32>>, Error> {
        let mut said = Vec::with_capacity(prompts.len());
        for prompts in prompts.chunks(self.rows) {
            said.extend(self.continued(prompts, max_tokens)?);
        }
        Ok(said)
    }
}

/// An answer in the making.
struct Writing<'p> {
    prompt: &'p [u32],
    said: Vec<u32>,
    /// Tokens that the cache holds.
    fed: usize,
    done: bool,
}

impl Writing<'_> {
    /// Up to `most` tokens that the cache does not hold yet.
    fn next(&self, most: usize) -> Vec<u32> {
        let all = self.prompt.iter().chain(&self.said);
        all.skip(self.fed).take(most).copied().collect()
    }

    fn len(&self) -> usize {
        self.prompt.len() + self.said.len()
    }
}

impl PackedScorer<'_> {
    /// The greedy continuations of prompts that are written together.
    fn continued(&mut self, prompts: &[&[u32]], max_tokens: usize) -> Result<Vec<Vec<u32>>, Error> {
        let room = |prompt: &[u32]| max_tokens.min(self.context.saturating_sub(prompt.len()));
        for prompt in prompts {
            if prompt.is_empty() || prompt.len() >= self.context {
                let (prompt, context) = (prompt.len(), self.context);
                return Err(Error::PromptTooLong { prompt, context });
            }
        }
        let rooms: Vec<usize> = prompts.iter().map(|p| p.len() + room(p)).collect();
        let mut writing: Vec<Writing<'_>> = prompts
            .iter()
            .map(|prompt| Writing { prompt, said: Vec::new(), fed: 0, done: room(prompt) == 0 })
            .collect();
        self.make_room(&rooms)?;
        while writing.iter().any(|answer| !answer.done) {
            self.write(&mut writing)?;
            for answer in &mut writing {
                let room = max_tokens.min(self.context - answer.prompt.len());
                answer.done |= answer.said.len() >= room;
            }
        }
        Ok(writing.into_iter().map(|answer| answer.said).collect())
    }

    /// One step of all answers that are not done.
    fn write(&mut self, writing: &mut [Writing<'_>]) -> Result<(), Error> {
        let open = writing.iter().filter(|answer| !answer.done).count();
        let most = (self.rows / open).max(1);
        let (rope, variant) = (self.rope, self.variant());
        let tokens: Vec<Vec<u32>> = writing.iter().map(|answer| answer.next(most)).collect();
        let parents: Vec<_> = tokens.iter().map(|tokens| chain(tokens.len())).collect();
        let positions = |(answer, tokens): (&Writing<'_>, &Vec<u32>)| {
            let first = self.before() + answer.fed;
            (first as u32..(first + tokens.len()) as u32).collect()
        };
        let positions: Vec<Vec<u32>> = writing.iter().zip(&tokens).map(positions).collect();
        let mut segments = Vec::with_capacity(open);
        for (i, (answer, cache)) in writing.iter().zip(&mut self.caches).enumerate() {
            if !answer.done {
                let whole = answer.fed + tokens[i].len() == answer.len();
                segments.push(Segment {
                    cache,
                    tokens: &tokens[i],
                    parents: &parents[i],
                    positions: &positions[i],
                    rope,
                    variant,
                    logits: if whole { LogitRows::Last } else { LogitRows::None },
                });
            }
        }
        let mut none = NoHooks;
        let hooks: &mut dyn Hooks =
            if self.added.is_something() { &mut self.added } else { &mut none };
        let found = self.executor.step_greatest(self.model.packed()?, &mut segments, hooks)?;
        let mut found = found.iter();
        for (i, answer) in writing.iter_mut().enumerate().filter(|(_, answer)| !answer.done) {
            let whole = answer.fed + tokens[i].len() == answer.len();
            answer.fed += tokens[i].len();
            self.caches[i].commit_chain(tokens[i].len());
            if whole {
                let token = token_of(found.next(), self.model)?;
                match self.model.stop_tokens().contains(&token) {
                    true => answer.done = true,
                    false => answer.said.push(token),
                }
            }
        }
        Ok(())
    }
}

/// The token of a row's greatest logit.
pub(super) fn token_of(found: Option<&Result<Greatest, u32>>, model: &Model) -> Result<u32, Error> {
    match found {
        Some(Ok(found)) if found.value.is_finite() => Ok(found.index),
        Some(Ok(found)) if found.value == f32::INFINITY => {
            Err(offshoot_methods::Error::Logit { token: found.index, got: found.value }.into())
        }
        Some(Err(token)) => {
            Err(offshoot_methods::Error::Logit { token: *token, got: f32::NAN }.into())
        }
        Some(Ok(_)) | None => {
            let n_vocab = model.config().vocab_size;
            Err(offshoot_methods::Error::NoTokenAllowed { n_vocab }.into())
        }
    }
}
