//! One step of a packed model, register by register.

use offshoot_kernels::{
    self as kernels, Activations, AttentionScratch, Buffer, Cpu, FormingScratch, Forms, GatedPair,
    Greatest, GreatestScratch, Heads, Isa, KvCache, LogSoftmaxScratch, Product, RopeTable,
    RowScores, SequenceRows, Term, Wanted, add_assign, add_normed, add_terms, attend, multiply,
    multiply_formed, multiply_gated, rms_norm,
};

use super::experts::ExpertRegisters;
use super::hooks::{Hooks, SegmentRows};
use super::weights::PackedModel;
use crate::{
    Activation, Attention, Error, Executor, ExpertLayer, Frequencies, Input, LinearId, ModelConfig,
    Output, PostNorm, RopeId, Segment, Site, VectorId,
};

impl SequenceRows for Segment<'_, KvCache> {
    fn cache(&self) -> &KvCache {
        self.cache
    }

    fn cache_mut(&mut self) -> &mut KvCache {
        self.cache
    }

    fn parents(&self) -> &[Option<u32>] {
        self.parents
    }
}

/// Rows of floats that grow to the largest step seen.
#[derive(Debug)]
pub(super) struct Rows {
    data: Buffer<f32>,
    width: usize,
}

impl Rows {
    pub(super) fn new(width: usize) -> Self {
        Self { data: Buffer::zeroed(0), width }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn reserve(&mut self, rows: usize) {
        self.data.grow(rows * self.width);
    }

    pub(super) fn get(&self, rows: usize) -> &[f32] {
        &self.data[..rows * self.width]
    }

    pub(super) fn get_mut(&mut self, rows: usize) -> &mut [f32] {
        &mut self.data[..rows * self.width]
    }
}

/// Cosines and sines of each row's position by one set of frequencies.
#[derive(Debug)]
struct Turns {
    cos: Rows,
    sin: Rows,
}

impl Turns {
    fn new(config: &ModelConfig) -> Self {
        let half = config.rotary_dim / 2;
        Self { cos: Rows::new(half), sin: Rows::new(half) }
    }

    /// Takes those of row `row` from `table`.
    fn set(&mut self, row: usize, table: &RopeTable, position: u32) {
        let (cos, sin) = table.row(position as usize);
        let half = cos.len();
        self.cos.data[row * half..(row + 1) * half].copy_from_slice(cos);
        self.sin.data[row * half..(row + 1) * half].copy_from_slice(sin);
    }
}

/// What a step keeps from one block to the next: its rows, and the residual stream.
#[derive(Debug)]
pub(super) struct Stream {
    tokens: Vec<u32>,
    /// The step's rows whose logits are asked for, and how many of them each segment has.
    pub(super) logit_rows: Vec<usize>,
    pub(super) logit_counts: Vec<usize>,
    turns: Turns,
    /// The same by the model's local frequencies, where it has them.
    local: Option<Turns>,
    pub(super) residual: Rows,
}

impl Stream {
    pub(super) fn new(config: &ModelConfig) -> Self {
        Self {
            tokens: Vec::new(),
            logit_rows: Vec::new(),
            logit_counts: Vec::new(),
            turns: Turns::new(config),
            local: config.local_rope_table().map(|_| Turns::new(config)),
            residual: Rows::new(config.hidden_size),
        }
    }

    /// Rows of the step.
    pub(super) fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Forgets the step.
    pub(super) fn clear(&mut self) {
        self.tokens.clear();
        self.logit_rows.clear();
        self.logit_counts.clear();
    }

    /// Takes the rows of `segments` up, at the positions that `ropes` and `local` have cosines and sines
    /// of.
    fn take_up(
        &mut self,
        segments: &[Segment<'_, KvCache>],
        ropes: &[RopeTable],
        local: Option<&RopeTable>,
    ) {
        let rows = segments.iter().map(|s| s.tokens.len()).sum();
        self.residual.reserve(rows);
        for turns in std::iter::once(&mut self.turns).chain(&mut self.local) {
            turns.cos.reserve(rows);
            turns.sin.reserve(rows);
        }
        for s in segments {
            let first = self.tokens.len();
            self.tokens.extend_from_slice(s.tokens);
            for (row, &position) in (first..).zip(s.positions) {
                self.turns.set(row, &ropes[s.rope.0], position);
                if let (Some(turns), Some(table)) = (&mut self.local, local) {
                    turns.set(row, table, position);
                }
            }
            let before = self.logit_rows.len();
            let logit_rows = &mut self.logit_rows;
            s.for_logit_rows(|row| logit_rows.push(first + row));
            self.logit_counts.push(logit_rows.len() - before);
        }
    }
}

/// The registers that steps of one model run in.
#[derive(Debug)]
pub struct PackedExecutor {
    pub(super) cpu: Cpu,
    ropes: Vec<RopeTable>,
    /// By the model's local frequencies, where it has them.
    local_rope: Option<RopeTable>,
    pub(super) stream: Stream,
    query: Rows,
    key: Rows,
    value: Rows,
    /// The two products of a gated layer, where someone adds to them or perturbs them.
    gate: Rows,
    up: Rows,
    /// Products that addends go into before the residual stream.
    spare: Rows,
    pub(super) logits: Rows,
    pub(super) normed: Activations,
    pub(super) attended: Activations,
    gated: Activations,
    /// What layers of experts run in.
    pub(super) experts: ExpertRegisters,
    pub(super) head_input: Activations,
    scratch: AttentionScratch,
    /// Rows of logits that the last step wrote.
    pub(super) logits_given: usize,
    pub(super) greatest: Vec<Result<Greatest, u32>>,
    pub(super) greatest_scratch: GreatestScratch,
    /// What is known of rows whose logits are not kept.
    pub(super) scores: RowScores,
    pub(super) scores_scratch: LogSoftmaxScratch,
    /// Where weights are formed, and vectors and biases.
    pub(super) forming: FormingScratch,
    pub(super) moved: [Vec<f32>; 2],
}

impl PackedExecutor {
    /// Registers for models of `config`, run by `cpu`.
    pub fn new(cpu: Cpu, config: &ModelConfig) -> Self {
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let inner = config.intermediate_size;
        Self {
            cpu,
            ropes: config.rope_tables(),
            local_rope: config.local_rope_table(),
            stream: Stream::new(config),
            query: Rows::new(q),
            key: Rows::new(kv),
            value: Rows::new(kv),
            gate: Rows::new(inner),
            up: Rows::new(inner),
            spare: Rows::new(config.hidden_size),
            logits: Rows::new(config.vocab_size),
            normed: Activations::new(),
            attended: Activations::new(),
            gated: Activations::new(),
            experts: ExpertRegisters::new(config),
            head_input: Activations::new(),
            scratch: AttentionScratch::new(),
            logits_given: 0,
            greatest: Vec::new(),
            greatest_scratch: GreatestScratch::default(),
            scores: RowScores::default(),
            scores_scratch: LogSoftmaxScratch::default(),
            forming: FormingScratch::default(),
            moved: [const { Vec::new() }; 2],
        }
    }

    /// The processor that steps run on.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Runs one step and gives the logits that were asked for, `[rows, vocab_size]`, in the order of
    /// segments and rows.
    ///
    /// # Errors
    /// [`Error::Step`] if a segment is malformed or its cache has too little room. Nothing is
    /// committed to a cache; its decided positions are as before.
    pub fn step(
        &mut self,
        model: &PackedModel,
        segments: &mut [Segment<'_, KvCache>],
        hooks: &mut dyn Hooks,
    ) -> Result<&mut [f32], Error> {
        self.run(model, segments, hooks, Head::Logits)?;
        Ok(self.logits_mut())
    }

    /// As [`PackedExecutor::step`], but gives only the greatest logit of each row that was asked for
    /// and its token, the lowest of equals; `Err` names a token whose logit is no number. Unless
    /// someone adds to the output head, no logit is written to memory.
    ///
    /// # Errors
    /// As [`PackedExecutor::step`].
    pub fn step_greatest(
        &mut self,
        model: &PackedModel,
        segments: &mut [Segment<'_, KvCache>],
        hooks: &mut dyn Hooks,
    ) -> Result<&[Result<Greatest, u32>], Error> {
        self.run(model, segments, hooks, Head::Greatest)?;
        Ok(&self.greatest)
    }

    /// As [`PackedExecutor::step`], but gives of each row that was asked for the log-probabilities of
    /// the tokens that are `wanted` of it, and its greatest logit. Unless someone adds to the output
    /// head, no more logits are in memory than a few tokens' of a few outputs.
    ///
    /// # Errors
    /// As [`PackedExecutor::step`], and if `wanted` is not of the rows that are asked for or names a
    /// token beyond the vocabulary.
    pub fn step_scores(
        &mut self,
        model: &PackedModel,
        segments: &mut [Segment<'_, KvCache>],
        hooks: &mut dyn Hooks,
        wanted: Wanted<'_>,
    ) -> Result<&RowScores, Error> {
        self.run(model, segments, hooks, Head::Scores(wanted))?;
        Ok(&self.scores)
    }

    /// Makes room in rotary table `rope` for all positions below `positions`.
    pub fn reserve_positions(&mut self, rope: RopeId, positions: usize) {
        let tables = self.ropes.get_mut(rope.0).into_iter().chain(&mut self.local_rope);
        tables.for_each(|table| table.reserve(positions));
    }

    /// What the last [`PackedExecutor::step`] gave; nothing if it failed or gave something else.
    pub fn logits_mut(&mut self) -> &mut [f32] {
        self.logits.get_mut(self.logits_given)
    }

    /// What the last [`PackedExecutor::step_greatest`] gave.
    pub fn greatest(&self) -> &[Result<Greatest, u32>] {
        &self.greatest
    }

    /// What the output head multiplied for the `i`-th row whose logits were asked for in the last
    /// step: the final norm's result, `hidden_size` long.
    ///
    /// # Panics
    /// If the last step asked for no more than `i` rows.
    pub fn head_input_row(&self, i: usize) -> &[f32] {
        let width = self.head_input.cols();
        &self.head_input.x()[i * width..(i + 1) * width]
    }

    pub(super) fn run(
        &mut self,
        model: &PackedModel,
        segments: &mut [Segment<'_, KvCache>],
        hooks: &mut dyn Hooks,
        want: Head<'_>,
    ) -> Result<(), Error> {
        self.begin(model, segments, want)?;
        let rows = self.stream.rows();
        if rows == 0 {
            return Ok(());
        }
        self.reserve();
        model.architecture.forward(&mut Run { model, registers: self, segments, hooks, rows, want })
    }

    /// Checks a step and takes its rows up.
    pub(super) fn begin(
        &mut self,
        model: &PackedModel,
        segments: &[Segment<'_, KvCache>],
        want: Head<'_>,
    ) -> Result<(), Error> {
        let config = model.config();
        self.scores.clear();
        self.stream.clear();
        self.greatest.clear();
        self.logits_given = 0;
        let mut asked = 0;
        for (index, s) in segments.iter().enumerate() {
            s.check(index, config.vocab_size)?;
            if config.sliding_window.is_some() {
                s.check_places(index, s.cache.len())?;
            }
            if s.cache.len() + s.tokens.len() > s.cache.capacity() {
                return Err(Error::Step(format!(
                    "segment {index}: {} tokens after {} positions pass the context of {}",
                    s.tokens.len(),
                    s.cache.len(),
                    s.cache.capacity()
                )));
            }
            let Some(rope) = self.ropes.get_mut(s.rope.0) else {
                return Err(Error::Step(format!("segment {index}: no rotary table {}", s.rope.0)));
            };
            if let Some(&last) = s.positions.iter().max() {
                let tables = std::iter::once(rope).chain(&mut self.local_rope);
                tables.for_each(|table| table.extend_to(last as usize + 1));
            }
            s.for_logit_rows(|_| asked += 1);
        }
        if let Head::Scores(wanted) = want {
            check_wanted(wanted, asked, config.vocab_size)?;
        }
        self.stream.take_up(segments, &self.ropes, self.local_rope.as_ref());
        Ok(())
    }

    /// Makes room for the rows of the step.
    pub(super) fn reserve(&mut self) {
        let rows = self.stream.rows();
        for register in [&mut self.query, &mut self.key, &mut self.value, &mut self.spare] {
            register.reserve(rows);
        }
    }
}

/// What a step gives of its rows' logits.
#[derive(Debug, Clone, Copy)]
pub(super) enum Head<'a> {
    Logits,
    Greatest,
    Scores(Wanted<'a>),
}

/// Checks that `wanted` is of `rows` rows of logits of `vocab` tokens.
fn check_wanted(wanted: Wanted<'_>, rows: usize, vocab: usize) -> Result<(), Error> {
    let Wanted { outputs, ends } = wanted;
    let ascending = ends.windows(2).all(|ends| ends[0] <= ends[1]);
    if ends.len() != rows || !ascending || ends.last().copied().unwrap_or(0) != outputs.len() {
        let (ends, tokens) = (ends.len(), outputs.len());
        let what = format!("{tokens} wanted tokens in {ends} parts, not of {rows} rows of logits");
        return Err(Error::Step(what));
    }
    match outputs.iter().find(|token| **token as usize >= vocab) {
        Some(token) => Err(Error::Step(format!("token {token} is wanted of {vocab}"))),
        None => Ok(()),
    }
}

/// A step in progress.
pub(super) struct Run<'a, 's> {
    pub(super) model: &'a PackedModel,
    pub(super) registers: &'a mut PackedExecutor,
    pub(super) segments: &'a mut [Segment<'s, KvCache>],
    pub(super) hooks: &'a mut dyn Hooks,
    pub(super) rows: usize,
    pub(super) want: Head<'a>,
}

/// The forms that a register of `width` inputs can be brought into.
pub(super) fn forms_for(forms: Forms, width: usize) -> Forms {
    Forms { q8: forms.q8 && width.is_multiple_of(32), ..forms }
}

/// `plain` with `terms` added, as a tensor of one row: in `room`, unless nothing is.
pub(super) fn moved<'v>(
    isa: Isa,
    plain: &'v [f32],
    terms: &[Term<'_>],
    room: &'v mut Vec<f32>,
) -> &'v [f32] {
    if terms.is_empty() {
        return plain;
    }
    room.clear();
    room.extend_from_slice(plain);
    add_terms(isa, terms, (1, plain.len()), 0, room);
    room
}

impl Run<'_, '_> {
    /// The forms that a register of `width` inputs is brought into.
    pub(super) fn forms(&self, width: usize) -> Forms {
        forms_for(self.model.forms.and(self.hooks.forms()), width)
    }

    /// Multiplies with one matrix and hands the product to whoever adds to it.
    pub(super) fn product(
        &mut self,
        x: Input,
        linear: LinearId,
        out: fn(&mut PackedExecutor) -> &mut Rows,
        accumulate: bool,
    ) {
        let weights = self.model.linear(linear);
        let mut rows = std::mem::replace(out(self.registers), Rows::new(0));
        let r = &mut *self.registers;
        let acts = match x {
            Input::Normed => &r.normed,
            Input::Attended => &r.attended,
            Input::Gated => &r.gated,
        };
        let width = weights.matrix.rows();
        let (room, terms) = (&mut r.moved[0], self.hooks.bias_terms(linear));
        let bias = weights.bias.as_deref().map(|bias| moved(r.cpu.isa(), bias, terms, room));
        let out_rows = &mut rows.data[..self.rows * width];
        let mut product = Product { weights: &weights.matrix, bias, accumulate, out: out_rows };
        match self.hooks.forming(linear) {
            Some(forming) => {
                multiply_formed(&r.cpu, acts, &mut product, forming, &mut r.forming);
            }
            None => multiply(&r.cpu, acts, &mut [product]),
        }
        let x = acts.x();
        let cols = acts.cols();
        let mut first = 0;
        for (segment, s) in self.segments.iter().enumerate() {
            let n = s.tokens.len();
            if self.hooks.adds(linear, s.variant) {
                let which = SegmentRows { segment, variant: s.variant, rows: n };
                let x = &x[first * cols..(first + n) * cols];
                let y = &mut rows.data[first * width..(first + n) * width];
                self.hooks.addend(linear, which, x, y);
            }
            first += n;
        }
        *out(self.registers) = rows;
    }

    /// Whether someone adds to `linear` or forms its weights in this step.
    pub(super) fn hooked(&self, linear: LinearId) -> bool {
        self.hooks.forming(linear).is_some()
            || !self.hooks.bias_terms(linear).is_empty()
            || self.segments.iter().any(|s| self.hooks.adds(linear, s.variant))
    }
}

fn output(out: Output) -> fn(&mut PackedExecutor) -> &mut Rows {
    match out {
        Output::Residual => |r| &mut r.stream.residual,
        Output::Query => |r| &mut r.query,
        Output::Key => |r| &mut r.key,
        Output::Value => |r| &mut r.value,
    }
}

impl Executor for Run<'_, '_> {
    type Error = Error;

    fn embed(&mut self, scale: f32) -> Result<(), Error> {
        let r = &mut *self.registers;
        let width = r.stream.residual.width;
        let out = r.stream.residual.get_mut(self.rows);
        let (terms, config) = (self.hooks.embedding_terms(), self.model.config());
        for (token, out) in r.stream.tokens.iter().zip(out.chunks_exact_mut(width)) {
            self.model.embed(*token, out)?;
            if !terms.is_empty() {
                let shape = (config.vocab_size, width);
                add_terms(r.cpu.isa(), terms, shape, *token as usize, out);
            }
            if scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= scale);
            }
        }
        let mut rest = r.stream.residual.get_mut(self.rows);
        for (segment, s) in self.segments.iter().enumerate() {
            let rows = s.tokens.len();
            let (own, behind) = rest.split_at_mut(rows * width);
            if self.hooks.embeds(s.variant) {
                self.hooks.embedded(SegmentRows { segment, variant: s.variant, rows }, own);
            }
            rest = behind;
        }
        Ok(())
    }

    fn norm(&mut self, weight: VectorId, eps: f32) -> Result<(), Error> {
        let forms = self.forms(self.registers.stream.residual.width);
        let PackedExecutor { cpu, stream, normed, moved: room, .. } = &mut *self.registers;
        let residual = &stream.residual;
        let (width, isa) = (residual.width, cpu.isa());
        let (plain, terms) = (self.model.vector(weight), self.hooks.vector_terms(weight));
        let weight = moved(isa, plain, terms, &mut room[0]);
        let x = residual.get(self.rows);
        normed.fill(cpu, (self.rows, width), forms, |row, out| {
            rms_norm(isa, &x[row * width..(row + 1) * width], weight, eps, out);
        });
        Ok(())
    }

    fn linear(&mut self, x: Input, outs: &[(LinearId, Output)]) -> Result<(), Error> {
        if outs.iter().any(|&(linear, _)| self.hooked(linear)) {
            for &(linear, out) in outs {
                self.product(x, linear, output(out), false);
            }
            return Ok(());
        }
        let PackedExecutor { cpu, stream, query, key, value, normed, attended, gated, .. } =
            &mut *self.registers;
        let acts = match x {
            Input::Normed => normed,
            Input::Attended => attended,
            Input::Gated => gated,
        };
        // Each register is taken once; an architecture never writes one twice in an operation.
        let mut free = [
            (Output::Residual, Some(&mut stream.residual)),
            (Output::Query, Some(query)),
            (Output::Key, Some(key)),
            (Output::Value, Some(value)),
        ];
        let mut products: [Option<Product<'_>>; 4] = [const { None }; 4];
        for (&(linear, out), product) in outs.iter().zip(&mut products) {
            let rows = free
                .iter_mut()
                .find(|(name, _)| *name == out)
                .and_then(|(_, rows)| rows.take())
                .ok_or_else(|| Error::Step(format!("{out:?} is written twice")))?;
            let weights = self.model.linear(linear);
            *product = Some(Product {
                weights: &weights.matrix,
                bias: weights.bias.as_deref(),
                accumulate: false,
                out: rows.get_mut(self.rows),
            });
        }
        multiply(cpu, acts, products.iter_mut().flatten());
        Ok(())
    }

    fn linear_residual(
        &mut self,
        x: Input,
        linear: LinearId,
        norm: Option<PostNorm>,
    ) -> Result<(), Error> {
        if norm.is_none() && !self.hooked(linear) {
            self.product(x, linear, |r| &mut r.stream.residual, true);
            return Ok(());
        }
        self.product(x, linear, |r| &mut r.spare, false);
        let r = &mut *self.registers;
        let residual = &mut r.stream.residual;
        let width = residual.width;
        let (sum, product) = (residual.get_mut(self.rows), &r.spare.data[..self.rows * width]);
        match norm {
            Some(norm) => {
                let terms = self.hooks.vector_terms(norm.weight);
                let plain = self.model.vector(norm.weight);
                let weight = moved(r.cpu.isa(), plain, terms, &mut r.moved[0]);
                add_normed(&r.cpu, sum, product, weight, norm.eps);
            }
            None => add_assign(r.cpu.isa(), sum, product),
        }
        Ok(())
    }

    fn attend(&mut self, how: Attention) -> Result<(), Error> {
        let (rows, forms) = (self.rows, self.forms(self.registers.query.width));
        let PackedExecutor {
            cpu,
            query,
            key,
            value,
            stream,
            attended,
            scratch,
            moved: [room, other_room],
            ..
        } = &mut *self.registers;
        let Turns { cos, sin } = match (how.frequencies, &stream.local) {
            (Frequencies::Segment, _) => &stream.turns,
            (Frequencies::Local, Some(local)) => local,
            (Frequencies::Local, None) => {
                return Err(Error::Step("the model has no local frequencies".to_owned()));
            }
        };
        let width = query.width;
        let of = |id| (self.model.vector(id), self.hooks.vector_terms(id));
        let norms = match how.norms {
            Some(norms) => {
                let ((query, query_terms), (key, key_terms)) = (of(norms.query), of(norms.key));
                Some(kernels::HeadNorms {
                    query: moved(cpu.isa(), query, query_terms, room),
                    key: moved(cpu.isa(), key, key_terms, other_room),
                    eps: norms.eps,
                })
            }
            None => None,
        };
        let heads = Heads {
            q: query.get(rows),
            k: key.get(rows),
            v: value.get(rows),
            heads: width / self.model.config().head_dim,
            scale: how.scale,
            window: how.window,
            norms,
            cos: cos.get(rows),
            sin: sin.get(rows),
        };
        attend(cpu, how.layer, self.segments, heads, scratch, (forms, attended));
        Ok(())
    }

    fn gated(
        &mut self,
        x: Input,
        gate: LinearId,
        up: LinearId,
        activation: Activation,
    ) -> Result<(), Error> {
        let width = self.registers.gate.width;
        let forms = self.forms(width);
        if !self.hooked(gate) && !self.hooked(up) {
            let part = |linear| {
                let linear = self.model.linear(linear);
                (&linear.matrix, linear.bias.as_deref())
            };
            let pair = GatedPair { gate: part(gate), up: part(up), activation };
            let PackedExecutor { cpu, normed, attended, gated, .. } = &mut *self.registers;
            let acts = match x {
                Input::Normed => normed,
                Input::Attended => attended,
                Input::Gated => {
                    return Err(Error::Step("a gated register is not gated again".to_owned()));
                }
            };
            multiply_gated(cpu, acts, pair, forms, gated);
            return Ok(());
        }
        for register in [&mut self.registers.gate, &mut self.registers.up] {
            register.reserve(self.rows);
        }
        self.product(x, gate, |r| &mut r.gate, false);
        self.product(x, up, |r| &mut r.up, false);
        let PackedExecutor { cpu, gate, up, gated, .. } = &mut *self.registers;
        let (gate, up) = (gate.get(self.rows), up.get(self.rows));
        let isa = cpu.isa();
        gated.fill(cpu, (self.rows, width), forms, |row, out| {
            let row = row * width..(row + 1) * width;
            activation.gate(isa, &gate[row.clone()], &up[row], out);
        });
        Ok(())
    }

    fn experts(&mut self, x: Input, layer: ExpertLayer) -> Result<(), Error> {
        self.run_experts(x, layer)
    }

    fn tap(&mut self, site: Site) -> Result<(), Error> {
        if self.hooks.taps(site) {
            let r = &*self.registers;
            match site {
                Site::Block(_) => {
                    let residual = &r.stream.residual;
                    self.hooks.tap(site, residual.get(self.rows), residual.width);
                }
                Site::Final => self.hooks.tap(site, r.normed.x(), r.normed.cols()),
            }
        }
        Ok(())
    }

    fn logits(&mut self, head: LinearId, cap: Option<f32>) -> Result<(), Error> {
        self.head(head, cap)
    }
}
