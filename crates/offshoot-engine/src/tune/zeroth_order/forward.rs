//! Runs texts at several points of a space, over one reading of the weights.
//!
//! Every pair of a text and a point is a segment of a step. Which segments share a step changes no bit
//! of a probability, so steps are as large as memory allows and results are the same for all sizes.

use offshoot_kernels::{Greatest, KvCache, KvType, RowScores, Wanted};
use offshoot_methods::tune::Probe;
use offshoot_models::{LogitRows, PackedExecutor, Segment, VariantId, chain};

use super::space::Space;
use super::tree::TextTree;
use crate::Error;

/// What a step may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows of all segments together.
    pub rows: usize,
    /// Sequences that are continued at once.
    pub sequences: usize,
}

impl Default for StepLimits {
    /// Enough rows that reading the weights costs little beside multiplying them.
    fn default() -> Self {
        Self { rows: 1024, sequences: 32 }
    }
}

/// How a token fared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TokenScore {
    /// The natural logarithm of its probability; NaN where the logits are no numbers.
    pub(super) logprob: f64,
    /// Whether no other is likelier, nor as likely with a lower number.
    pub(super) greatest: bool,
}

/// Scores of the targets of each text, at each point.
pub(super) type Scores = Vec<Vec<Vec<TokenScore>>>;

/// The executor, the caches of its segments, and the tokens that it has run.
#[derive(Debug)]
pub(super) struct Forward {
    executor: PackedExecutor,
    caches: Vec<KvCache>,
    /// What the caches are for.
    kept: Kept,
    limits: StepLimits,
    /// Rows run so far.
    pub(super) rows: usize,
}

/// What caches keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// A layer at a time, unrounded: half precision would be noise in a difference of losses.
    Nothing,
    /// What stands before every text, unrounded, and a text behind it.
    Beginning,
    /// A text that is gone on with, as it is where the model serves.
    Text,
}

/// A text at a point.
#[derive(Debug, Clone, Copy)]
struct Pair {
    text: usize,
    point: usize,
}

impl Forward {
    pub(super) fn new(executor: PackedExecutor, limits: StepLimits) -> Self {
        Self { executor, caches: Vec::new(), kept: Kept::Nothing, limits, rows: 0 }
    }

    /// Scores `texts` at each of `probes`.
    pub(super) fn score(
        &mut self,
        space: &mut dyn Space,
        probes: &[Probe],
        texts: &[TextTree],
    ) -> Result<Scores, Error> {
        let empty = |text: &TextTree| Vec::with_capacity(text.targets.len());
        let mut scores: Scores = probes.iter().map(|_| texts.iter().map(empty).collect()).collect();
        let lanes = space.lanes().max(1);
        for (group, some) in probes.chunks(lanes).enumerate() {
            space.stand_at(some)?;
            let pairs = (0..texts.len()).filter(|&text| !texts[text].tokens.is_empty());
            let pairs: Vec<Pair> = pairs
                .flat_map(|text| (0..some.len()).map(move |point| Pair { text, point }))
                .collect();
            let mut left = &pairs[..];
            while !left.is_empty() {
                let n = self.fitting(left, texts);
                self.score_step(space, &left[..n], texts, &mut scores[group * lanes..])?;
                left = &left[n..];
            }
        }
        Ok(scores)
    }

    /// How many of `pairs` fit into a step; at least one.
    fn fitting(&self, pairs: &[Pair], texts: &[TextTree]) -> usize {
        let mut rows = 0;
        let fits = |pair: &&Pair| {
            rows += texts[pair.text].tokens.len();
            rows <= self.limits.rows
        };
        pairs.iter().take_while(fits).count().max(1)
    }

    fn score_step(
        &mut self,
        space: &mut dyn Space,
        pairs: &[Pair],
        texts: &[TextTree],
        scores: &mut [Vec<Vec<TokenScore>>],
    ) -> Result<(), Error> {
        let before = space.positions_before();
        let longest = pairs.iter().map(|pair| texts[pair.text].tokens.len()).max().unwrap_or(0);
        let kept = if before == 0 { Kept::Nothing } else { Kept::Beginning };
        self.make_caches(space, kept, pairs.len(), before + longest);
        for (pair, cache) in pairs.iter().zip(&mut self.caches) {
            space.begin_cache(pair.point, cache)?;
        }
        let positions: Vec<Vec<u32>> = pairs
            .iter()
            .map(|pair| texts[pair.text].depths.iter().map(|d| before as u32 + d).collect())
            .collect();
        let asked: Vec<Vec<u32>> = pairs.iter().map(|pair| texts[pair.text].asked()).collect();
        let order = Order::of(pairs.iter().map(|pair| &texts[pair.text]));
        let Self { executor, caches, rows, .. } = self;
        let mut found = Vec::new();
        space.with_hooks(&mut |model, hooks| {
            let config = model.config();
            let each = pairs.iter().zip(&mut *caches).zip(positions.iter().zip(&asked));
            let mut segments: Vec<_> = each
                .map(|((pair, cache), (positions, asked))| Segment {
                    cache,
                    tokens: &texts[pair.text].tokens,
                    parents: &texts[pair.text].parents,
                    positions,
                    rope: config.rope_for(before + texts[pair.text].longest),
                    variant: VariantId(pair.point as u32 + 1),
                    logits: LogitRows::These(asked),
                })
                .collect();
            *rows += segments.iter().map(|segment| segment.tokens.len()).sum::<usize>();
            let wanted = Wanted { outputs: &order.outputs, ends: &order.ends };
            found = order.scores(executor.step_scores(model, &mut segments, hooks, wanted)?);
            Ok(())
        })?;
        let mut found = found.into_iter();
        for pair in pairs {
            let n = texts[pair.text].targets.len();
            scores[pair.point][pair.text].extend(found.by_ref().take(n));
        }
        Ok(())
    }

    /// Greedy continuations of `prompts` at each of `probes`, as in
    /// [`Scorer::generate`](crate::tune::Scorer::generate); none where a logit is no number.
    pub(super) fn generate(
        &mut self,
        space: &mut dyn Space,
        probes: &[Probe],
        prompts: &[&[u32]],
        max_tokens: usize,
    ) -> Result<Vec<Vec<Option<Vec<u32>>>>, Error> {
        let mut answers = vec![vec![None; prompts.len()]; probes.len()];
        let lanes = space.lanes().max(1);
        for (group, some) in probes.chunks(lanes).enumerate() {
            space.stand_at(some)?;
            let pairs: Vec<Pair> = (0..prompts.len())
                .flat_map(|text| (0..some.len()).map(move |point| Pair { text, point }))
                .collect();
            for pairs in pairs.chunks(self.limits.sequences.max(1)) {
                let made = self.continue_all(space, pairs, prompts, max_tokens)?;
                for (pair, answer) in pairs.iter().zip(made) {
                    answers[group * lanes + pair.point][pair.text] = answer;
                }
            }
        }
        Ok(answers)
    }

    fn continue_all(
        &mut self,
        space: &mut dyn Space,
        pairs: &[Pair],
        prompts: &[&[u32]],
        max_tokens: usize,
    ) -> Result<Vec<Option<Vec<u32>>>, Error> {
        let before = space.positions_before();
        let longest = pairs.iter().map(|pair| prompts[pair.text].len()).max().unwrap_or(0);
        self.make_caches(space, Kept::Text, pairs.len(), before + longest + max_tokens);
        for (pair, cache) in pairs.iter().zip(&mut self.caches) {
            space.begin_cache(pair.point, cache)?;
        }
        let stops = space.model().checkpoint().stop_tokens().to_vec();
        let mut made: Vec<Option<Vec<u32>>> = vec![Some(Vec::new()); pairs.len()];
        let mut next: Vec<Vec<u32>> =
            pairs.iter().map(|pair| prompts[pair.text].to_vec()).collect();
        let mut live: Vec<usize> = (0..pairs.len()).filter(|&i| !next[i].is_empty()).collect();
        for _ in 0..max_tokens {
            let mut left = &live[..];
            while !left.is_empty() {
                let mut rows = 0;
                let fits = |i: &&usize| {
                    rows += next[**i].len();
                    rows <= self.limits.rows
                };
                let n = left.iter().take_while(fits).count().max(1);
                let chosen =
                    self.greedy_step(space, pairs, &left[..n], &next, longest + max_tokens)?;
                for (&i, token) in left[..n].iter().zip(chosen) {
                    match token {
                        Some(token) => next[i] = vec![token],
                        None => made[i] = None,
                    }
                }
                left = &left[n..];
            }
            live.retain(|&i| made[i].is_some() && !stops.contains(&next[i][0]));
            for &i in &live {
                made[i].iter_mut().for_each(|text| text.push(next[i][0]));
            }
            if live.is_empty() {
                break;
            }
        }
        Ok(made)
    }

    /// Runs the `next` tokens of sequences `live`, and gives what each chooses.
    fn greedy_step(
        &mut self,
        space: &mut dyn Space,
        pairs: &[Pair],
        live: &[usize],
        next: &[Vec<u32>],
        context: usize,
    ) -> Result<Vec<Option<u32>>, Error> {
        let of = |i: usize, cache: &KvCache| {
            let first = cache.len() as u32;
            (chain(next[i].len()), (first..first + next[i].len() as u32).collect::<Vec<_>>())
        };
        let chains: Vec<_> = live.iter().map(|&i| of(i, &self.caches[i])).collect();
        let before = space.positions_before();
        let Self { executor, caches, rows, .. } = self;
        let mut chosen = Vec::new();
        space.with_hooks(&mut |model, hooks| {
            let rope = model.config().rope_for(before + context);
            let caches = caches.iter_mut().enumerate().filter(|(i, _)| live.contains(i));
            let mut segments: Vec<_> = caches
                .zip(&chains)
                .map(|((i, cache), (parents, positions))| Segment {
                    cache,
                    tokens: &next[i],
                    parents,
                    positions,
                    rope,
                    variant: VariantId(pairs[i].point as u32 + 1),
                    logits: LogitRows::Last,
                })
                .collect();
            *rows += segments.iter().map(|segment| segment.tokens.len()).sum::<usize>();
            let found = executor.step_greatest(model, &mut segments, hooks)?;
            let index = |found: &Result<Greatest, u32>| found.as_ref().ok().map(|best| best.index);
            chosen = found.iter().map(index).collect();
            for segment in &mut segments {
                segment.cache.commit_chain(segment.tokens.len());
            }
            Ok(())
        })?;
        Ok(chosen)
    }

    /// Makes `n` empty caches of `room` positions or more.
    fn make_caches(&mut self, space: &dyn Space, kept: Kept, n: usize, room: usize) {
        if self.kept != kept || self.caches.iter().any(|cache| cache.capacity() < room) {
            self.caches.clear();
            self.kept = kept;
        }
        self.caches.iter_mut().for_each(|cache| cache.truncate(0));
        while self.caches.len() < n {
            let model = space.model();
            self.caches.push(match kept {
                Kept::Nothing => model.passing_cache(KvType::Single, room),
                Kept::Beginning => model.new_cache_of(KvType::Single, room),
                Kept::Text => model.new_cache(room),
            });
        }
    }
}

/// What is asked of the rows of a step: tokens row by row, where the texts' targets go text by text.
struct Order {
    outputs: Vec<u32>,
    ends: Vec<usize>,
    /// Of each target its row among those asked for and its place among `outputs`.
    places: Vec<(usize, usize)>,
}

impl Order {
    fn of<'t>(texts: impl Iterator<Item = &'t TextTree>) -> Self {
        let mut all = Self { outputs: Vec::new(), ends: Vec::new(), places: Vec::new() };
        for text in texts {
            let (first, mut last) = (all.places.len(), None);
            all.places.resize(first + text.targets.len(), (0, 0));
            for place in text.by_row() {
                let target = text.targets[place];
                if last != Some(target.row) {
                    all.ends.push(all.outputs.len());
                    last = Some(target.row);
                }
                all.places[first + place] = (all.ends.len() - 1, all.outputs.len());
                all.outputs.push(target.token);
                if let Some(end) = all.ends.last_mut() {
                    *end = all.outputs.len();
                }
            }
        }
        all
    }

    /// The scores of the targets, text by text.
    fn scores(&self, rows: &RowScores) -> Vec<TokenScore> {
        let score = |&(row, place): &(usize, usize)| TokenScore {
            logprob: rows.logprobs[place],
            greatest: matches!(rows.greatest[row], Ok(best) if best.index == self.outputs[place]),
        };
        self.places.iter().map(score).collect()
    }
}
