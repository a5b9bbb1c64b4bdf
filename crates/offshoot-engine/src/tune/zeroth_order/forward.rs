//! Runs texts at several points of a space, over one reading of the weights.
//!
//! Every pair of a text and a point is a segment of a step. Which segments share a step changes no bit
//! of a probability, so steps are as large as memory allows and results are the same for all sizes. Where
//! a step is of one point alone, as many of them as memory allows run side by side.
//!
//! That is so on the packed executor. On the dense one ([`DensePoints`]) the segments of a step
//! change the last bits of a probability.

use offshoot_kernels::{Greatest, KvCache, KvType, RowScores, Wanted};
use offshoot_methods::tune::Probe;
use offshoot_models::{Asked, LogitRows, PackedExecutor, Segment, StagedStep, VariantId, chain};

use super::dense::DensePoints;
use super::space::Space;
use super::tree::TextTree;
use crate::Error;

/// What a step may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows of all segments together.
    pub rows: usize,
    /// Rows of all steps together that run side by side. Of those that another step works on their
    /// residual stream is kept, and the keys and values of a layer.
    pub side_by_side: usize,
    /// Sequences that are continued at once.
    pub sequences: usize,
}

impl Default for StepLimits {
    /// Enough rows that reading the weights costs little beside multiplying them.
    fn default() -> Self {
        Self { rows: 1024, side_by_side: 8192, sequences: 32 }
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
    /// What runs texts in place of the executor, if that is the dense one.
    pub(super) dense: Option<DensePoints>,
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
pub(super) struct Pair {
    pub(super) text: usize,
    pub(super) point: usize,
}

/// All pairs of `texts` and so many points, those together that can share a step of `space`.
fn pairs(space: &dyn Space, texts: &[usize], points: usize) -> Vec<Pair> {
    let at = |point: usize| texts.iter().map(move |&text| Pair { text, point });
    let mut all: Vec<Pair> = (0..points).flat_map(at).collect();
    if !space.side_by_side() {
        all.sort_by_key(|pair| pair.text);
    }
    all
}

impl Forward {
    pub(super) fn new(executor: PackedExecutor, limits: StepLimits) -> Self {
        Self { executor, caches: Vec::new(), kept: Kept::Nothing, limits, dense: None, rows: 0 }
    }

    /// How many points stand at once. Where each of them is a model of its own, the dense executor
    /// has one.
    fn lanes(&self, space: &dyn Space) -> usize {
        match self.dense.is_some() && space.side_by_side() {
            true => 1,
            false => space.lanes().max(1),
        }
    }

    fn stand_at(&mut self, space: &mut dyn Space, probes: &[Probe]) -> Result<(), Error> {
        match &mut self.dense {
            Some(dense) => space.stand_on(probes, dense),
            None => space.stand_at(probes),
        }
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
        let lanes = self.lanes(space);
        let filled = |&text: &usize| !texts[text].tokens.is_empty();
        let filled: Vec<usize> = (0..texts.len()).filter(filled).collect();
        for (group, some) in probes.chunks(lanes).enumerate() {
            self.stand_at(space, some)?;
            let pairs = pairs(space, &filled, some.len());
            let rows = |pair: &Pair| texts[pair.text].tokens.len();
            for steps in self.steps(space, &pairs, |pair| *pair, rows) {
                self.score_steps(space, &steps, texts, &mut scores[group * lanes..])?;
            }
        }
        Ok(scores)
    }

    /// Cuts `all` into steps, and those into as many as run side by side.
    fn steps<'t, T>(
        &self,
        space: &dyn Space,
        all: &'t [T],
        pair: impl Fn(&T) -> Pair,
        rows: impl Fn(&T) -> usize,
    ) -> Vec<Vec<&'t [T]>> {
        let (apart, mut groups, mut in_group) = (space.side_by_side(), Vec::new(), 0);
        let mut left = all;
        while let Some(first) = left.first() {
            let mut in_step = 0;
            let fits = |&next: &&T| {
                in_step += rows(next);
                in_step <= self.limits.rows && (!apart || pair(next).point == pair(first).point)
            };
            let n = left.iter().take_while(fits).count().max(1);
            let (step, rest) = left.split_at(n);
            let in_step: usize = step.iter().map(&rows).sum();
            match groups.last_mut() {
                Some(group) if apart && in_group + in_step <= self.limits.side_by_side => {
                    Vec::push(group, step);
                    in_group += in_step;
                }
                _ => {
                    groups.push(vec![step]);
                    in_group = in_step;
                }
            }
            left = rest;
        }
        groups
    }

    fn score_steps(
        &mut self,
        space: &mut dyn Space,
        steps: &[&[Pair]],
        texts: &[TextTree],
        scores: &mut [Vec<Vec<TokenScore>>],
    ) -> Result<(), Error> {
        if let Some(dense) = &mut self.dense {
            for step in steps {
                self.rows += step.iter().map(|pair| texts[pair.text].tokens.len()).sum::<usize>();
                hand_out(step, texts, dense.scores(step, texts)?, scores);
            }
            return Ok(());
        }
        let pairs = steps.concat();
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
        let order = |step: &&[Pair]| Order::of(step.iter().map(|pair| &texts[pair.text]));
        let orders: Vec<Order> = steps.iter().map(order).collect();
        let Self { executor, caches, rows, .. } = self;
        *rows += pairs.iter().map(|pair| texts[pair.text].tokens.len()).sum::<usize>();
        let config = space.model().config();
        let mut segments = pairs.iter().zip(caches).zip(positions.iter().zip(&asked)).map(
            |((pair, cache), (positions, asked))| Segment {
                cache,
                tokens: &texts[pair.text].tokens,
                parents: &texts[pair.text].parents,
                positions,
                rope: config.rope_for(before + texts[pair.text].longest),
                variant: VariantId(pair.point as u32 + 1),
                logits: LogitRows::These(asked),
            },
        );
        let staged = steps.iter().zip(&orders).map(|(step, order)| {
            let wanted = Wanted { outputs: &order.outputs, ends: &order.ends };
            StagedStep::new(segments.by_ref().take(step.len()).collect(), Asked::Scores(wanted))
        });
        let mut staged: Vec<_> = staged.collect();
        space.run(executor, &mut staged)?;
        let found =
            orders.iter().zip(&staged).flat_map(|(order, step)| order.scores(step.scores()));
        hand_out(&pairs, texts, found.collect(), scores);
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
        let lanes = self.lanes(space);
        for (group, some) in probes.chunks(lanes).enumerate() {
            self.stand_at(space, some)?;
            let texts: Vec<usize> = (0..prompts.len()).collect();
            let pairs = pairs(space, &texts, some.len());
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
        match &mut self.dense {
            Some(dense) => dense.begin(pairs.len()),
            None => {
                let room = before + longest + max_tokens;
                self.make_caches(space, Kept::Text, pairs.len(), room);
                for (pair, cache) in pairs.iter().zip(&mut self.caches) {
                    space.begin_cache(pair.point, cache)?;
                }
            }
        }
        let stops = space.model().checkpoint().stop_tokens().to_vec();
        let mut made: Vec<Option<Vec<u32>>> = vec![Some(Vec::new()); pairs.len()];
        let mut next: Vec<Vec<u32>> =
            pairs.iter().map(|pair| prompts[pair.text].to_vec()).collect();
        let mut live: Vec<usize> = (0..pairs.len()).filter(|&i| !next[i].is_empty()).collect();
        for _ in 0..max_tokens {
            for steps in self.steps(space, &live, |i| pairs[*i], |i| next[*i].len()) {
                let context = longest + max_tokens;
                let chosen = self.greedy_steps(space, pairs, &steps, &next, context)?;
                for (&i, token) in steps.iter().copied().flatten().zip(chosen) {
                    match token {
                        Some(token) => next[i] = vec![token],
                        None => made[i] = None,
                    }
                }
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

    /// Runs the `next` tokens of sequences in `steps`, and gives what each chooses.
    fn greedy_steps(
        &mut self,
        space: &mut dyn Space,
        pairs: &[Pair],
        steps: &[&[usize]],
        next: &[Vec<u32>],
        context: usize,
    ) -> Result<Vec<Option<u32>>, Error> {
        let live = steps.concat();
        let rope = space.model().config().rope_for(space.positions_before() + context);
        self.rows += live.iter().map(|&i| next[i].len()).sum::<usize>();
        if let Some(dense) = &mut self.dense {
            let chosen = steps.iter().map(|step| dense.greedy(step, pairs, next, rope));
            return Ok(chosen.collect::<Result<Vec<_>, _>>()?.concat());
        }
        let of = |i: usize, cache: &KvCache| {
            let first = cache.len() as u32;
            (chain(next[i].len()), (first..first + next[i].len() as u32).collect::<Vec<_>>())
        };
        let chains: Vec<_> = live.iter().map(|&i| of(i, &self.caches[i])).collect();
        let Self { executor, caches, .. } = self;
        // They stand in ascending order.
        let caches = caches.iter_mut().enumerate().filter(|(i, _)| live.contains(i));
        let mut segments = caches.zip(&chains).map(|((i, cache), (parents, positions))| Segment {
            cache,
            tokens: &next[i],
            parents,
            positions,
            rope,
            variant: VariantId(pairs[i].point as u32 + 1),
            logits: LogitRows::Last,
        });
        let staged = steps.iter().map(|step| {
            StagedStep::new(segments.by_ref().take(step.len()).collect(), Asked::Greatest)
        });
        let mut staged: Vec<_> = staged.collect();
        space.run(executor, &mut staged)?;
        let index = |found: &Result<Greatest, u32>| found.as_ref().ok().map(|best| best.index);
        let chosen = staged.iter().flat_map(|step| step.greatest()).map(index).collect();
        for segment in staged.iter_mut().flat_map(|step| &mut step.segments) {
            segment.cache.commit_chain(segment.tokens.len());
        }
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

/// Hands what was `found` of the targets of `pairs`, text by text, out to the points and texts.
fn hand_out(
    pairs: &[Pair],
    texts: &[TextTree],
    found: Vec<TokenScore>,
    scores: &mut [Vec<Vec<TokenScore>>],
) {
    let mut found = found.into_iter();
    for pair in pairs {
        let n = texts[pair.text].targets.len();
        scores[pair.point][pair.text].extend(found.by_ref().take(n));
    }
}

/// What is asked of the rows of a step: tokens row by row, where the texts' targets go text by text.
pub(super) struct Order {
    outputs: Vec<u32>,
    ends: Vec<usize>,
    /// Of each target its row among those asked for and its place among `outputs`.
    places: Vec<(usize, usize)>,
}

impl Order {
    pub(super) fn of<'t>(texts: impl Iterator<Item = &'t TextTree>) -> Self {
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

    /// Each row among those asked for with each of its tokens.
    pub(super) fn asked(&self) -> Vec<(usize, u32)> {
        let row = |place: usize| self.ends.partition_point(|&end| end <= place);
        self.outputs.iter().enumerate().map(|(place, &token)| (row(place), token)).collect()
    }

    /// The targets, text by text, of which what is asked for was `found`.
    pub(super) fn in_order(&self, found: &[(f64, bool)]) -> Vec<TokenScore> {
        let score = |&(_, place): &(usize, usize)| {
            let (logprob, greatest) = found[place];
            TokenScore { logprob, greatest }
        };
        self.places.iter().map(score).collect()
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
