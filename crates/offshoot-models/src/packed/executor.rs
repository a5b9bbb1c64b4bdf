//! One step of a packed model, register by register.

use offshoot_kernels::{
    self as kernels, Activations, AttentionScratch, Buffer, Cpu, Forms, GatedPair, Greatest,
    GreatestScratch, Heads, KvCache, Product, RopeTable, SequenceRows, add_assign, add_normed,
    attend, multiply, multiply_gated, multiply_greatest, multiply_perturbed, rms_norm, soft_cap,
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
    table: RopeTable,
    cos: Rows,
    sin: Rows,
}

/// The registers that steps of one model run in.
#[derive(Debug)]
pub struct PackedExecutor {
    pub(super) cpu: Cpu,
    ropes: Vec<RopeTable>,
    pub(super) residual: Rows,
    query: Rows,
    key: Rows,
    value: Rows,
    /// The two products of a gated layer, where someone adds to them or perturbs them.
    gate: Rows,
    up: Rows,
    /// Products that addends go into before the residual stream.
    spare: Rows,
    logits: Rows,
    pub(super) normed: Activations,
    pub(super) attended: Activations,
    gated: Activations,
    /// What layers of experts run in.
    pub(super) experts: ExpertRegisters,
    head_input: Activations,
    scratch: AttentionScratch,
    /// The step's rows whose logits are asked for, and how many of them each segment has.
    logit_rows: Vec<usize>,
    logit_counts: Vec<usize>,
    /// Rows of logits that the last step wrote.
    logits_given: usize,
    greatest: Vec<Result<Greatest, u32>>,
    greatest_scratch: GreatestScratch,
    tokens: Vec<u32>,
    /// Cosines and sines of each row's position.
    cos: Rows,
    sin: Rows,
    /// The same by the model's local frequencies, where it has them.
    local: Option<Turns>,
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
            residual: Rows::new(config.hidden_size),
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
            logit_rows: Vec::new(),
            logit_counts: Vec::new(),
            logits_given: 0,
            greatest: Vec::new(),
            greatest_scratch: GreatestScratch::default(),
            tokens: Vec::new(),
            cos: Rows::new(config.head_dim / 2),
            sin: Rows::new(config.head_dim / 2),
            local: config.local_rope_table().map(|table| Turns {
                table,
                cos: Rows::new(config.head_dim / 2),
                sin: Rows::new(config.head_dim / 2),
            }),
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

    /// Makes room in rotary table `rope` for all positions below `positions`.
    pub fn reserve_positions(&mut self, rope: RopeId, positions: usize) {
        let local = self.local.as_mut().map(|local| &mut local.table);
        self.ropes.get_mut(rope.0).into_iter().chain(local).for_each(|t| t.reserve(positions));
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

    fn run(
        &mut self,
        model: &PackedModel,
        segments: &mut [Segment<'_, KvCache>],
        hooks: &mut dyn Hooks,
        want: Head,
    ) -> Result<(), Error> {
        let config = model.config();
        self.tokens.clear();
        self.logit_rows.clear();
        self.logit_counts.clear();
        self.greatest.clear();
        self.logits_given = 0;
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
            let first = self.tokens.len();
            self.tokens.extend_from_slice(s.tokens);
            if let Some(&last) = s.positions.iter().max() {
                rope.extend_to(last as usize + 1);
                if let Some(local) = &mut self.local {
                    local.table.extend_to(last as usize + 1);
                }
            }
            let before = self.logit_rows.len();
            let logit_rows = &mut self.logit_rows;
            s.for_logit_rows(|row| logit_rows.push(first + row));
            self.logit_counts.push(logit_rows.len() - before);
        }
        let rows = self.tokens.len();
        if rows == 0 {
            return Ok(());
        }
        for register in [
            &mut self.residual,
            &mut self.query,
            &mut self.key,
            &mut self.value,
            &mut self.spare,
            &mut self.cos,
            &mut self.sin,
        ] {
            register.reserve(rows);
        }
        let half = config.head_dim / 2;
        let positions = segments.iter().flat_map(|s| s.positions.iter().map(|p| (s.rope.0, *p)));
        for (row, (rope, position)) in positions.enumerate() {
            let (cos, sin) = self.ropes[rope].row(position as usize);
            self.cos.data[row * half..(row + 1) * half].copy_from_slice(cos);
            self.sin.data[row * half..(row + 1) * half].copy_from_slice(sin);
        }
        if let Some(Turns { table, cos, sin }) = &mut self.local {
            cos.reserve(rows);
            sin.reserve(rows);
            let positions = segments.iter().flat_map(|s| s.positions);
            for (row, position) in positions.enumerate() {
                let (row_cos, row_sin) = table.row(*position as usize);
                cos.data[row * half..(row + 1) * half].copy_from_slice(row_cos);
                sin.data[row * half..(row + 1) * half].copy_from_slice(row_sin);
            }
        }
        model.architecture.forward(&mut Run { model, registers: self, segments, hooks, rows, want })
    }
}

/// What a step gives of its rows' logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    Logits,
    Greatest,
}

/// A step in progress.
pub(super) struct Run<'a, 's> {
    pub(super) model: &'a PackedModel,
    pub(super) registers: &'a mut PackedExecutor,
    pub(super) segments: &'a mut [Segment<'s, KvCache>],
    pub(super) hooks: &'a mut dyn Hooks,
    pub(super) rows: usize,
    want: Head,
}

/// The forms that a register of `width` inputs can be brought into.
pub(super) fn forms_for(forms: Forms, width: usize) -> Forms {
    Forms { q8: forms.q8 && width.is_multiple_of(32), ..forms }
}

impl Run<'_, '_> {
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
        let mut products = [Product {
            weights: &weights.matrix,
            bias: weights.bias.as_deref(),
            accumulate,
            out: &mut rows.data[..self.rows * width],
        }];
        match self.hooks.perturbation(linear) {
            Some(perturbation) => multiply_perturbed(&r.cpu, acts, &mut products, perturbation),
            None => multiply(&r.cpu, acts, &mut products),
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

    /// Whether someone adds to or perturbs `linear` in this step.
    pub(super) fn hooked(&self, linear: LinearId) -> bool {
        self.hooks.perturbation(linear).is_some()
            || self.segments.iter().any(|s| self.hooks.adds(linear, s.variant))
    }
}

fn output(out: Output) -> fn(&mut PackedExecutor) -> &mut Rows {
    match out {
        Output::Residual => |r| &mut r.residual,
        Output::Query => |r| &mut r.query,
        Output::Key => |r| &mut r.key,
        Output::Value => |r| &mut r.value,
    }
}

impl Executor for Run<'_, '_> {
    type Error = Error;

    fn embed(&mut self, scale: f32) -> Result<(), Error> {
        let r = &mut *self.registers;
        let width = r.residual.width;
        let out = r.residual.get_mut(self.rows);
        for (token, out) in r.tokens.iter().zip(out.chunks_exact_mut(width)) {
            self.model.embed(*token, out)?;
            if scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= scale);
            }
        }
        Ok(())
    }

    fn norm(&mut self, weight: VectorId, eps: f32) -> Result<(), Error> {
        let weight = self.model.vector(weight);
        let PackedExecutor { cpu, residual, normed, .. } = &mut *self.registers;
        let width = residual.width;
        let x = residual.get(self.rows);
        let isa = cpu.isa();
        normed.fill(cpu, (self.rows, width), forms_for(self.model.forms, width), |row, out| {
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
        let PackedExecutor { cpu, residual, query, key, value, normed, attended, gated, .. } =
            &mut *self.registers;
        let acts = match x {
            Input::Normed => normed,
            Input::Attended => attended,
            Input::Gated => gated,
        };
        // Each register is taken once; an architecture never writes one twice in an operation.
        let mut free = [
            (Output::Residual, Some(residual)),
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
            self.product(x, linear, |r| &mut r.residual, true);
            return Ok(());
        }
        self.product(x, linear, |r| &mut r.spare, false);
        let r = &mut *self.registers;
        let width = r.residual.width;
        let (sum, product) = (r.residual.get_mut(self.rows), &r.spare.data[..self.rows * width]);
        match norm {
            Some(norm) => {
                add_normed(&r.cpu, sum, product, self.model.vector(norm.weight), norm.eps);
            }
            None => add_assign(r.cpu.isa(), sum, product),
        }
        Ok(())
    }

    fn attend(&mut self, how: Attention) -> Result<(), Error> {
        let rows = self.rows;
        let PackedExecutor { cpu, query, key, value, cos, sin, local, attended, scratch, .. } =
            &mut *self.registers;
        let (cos, sin) = match (how.frequencies, local) {
            (Frequencies::Segment, _) => (&*cos, &*sin),
            (Frequencies::Local, Some(local)) => (&local.cos, &local.sin),
            (Frequencies::Local, None) => {
                return Err(Error::Step("the model has no local frequencies".to_owned()));
            }
        };
        let width = query.width;
        let norms = how.norms.map(|norms| kernels::HeadNorms {
            query: self.model.vector(norms.query),
            key: self.model.vector(norms.key),
            eps: norms.eps,
        });
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
        let forms = forms_for(self.model.forms, width);
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
        let forms = forms_for(self.model.forms, width);
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
                    self.hooks.tap(site, r.residual.get(self.rows), r.residual.width);
                }
                Site::Final => self.hooks.tap(site, r.normed.x(), r.normed.cols()),
            }
        }
        Ok(())
    }

    fn logits(&mut self, head: LinearId, cap: Option<f32>) -> Result<(), Error> {
        let hooked = self.hooked(head);
        let PackedExecutor {
            cpu,
            normed,
            head_input,
            logits,
            logit_rows,
            logit_counts,
            logits_given,
            greatest,
            greatest_scratch,
            ..
        } = &mut *self.registers;
        if logit_rows.is_empty() {
            return Ok(());
        }
        let (width, n) = (normed.cols(), logit_rows.len());
        let x = normed.x();
        head_input.fill(cpu, (n, width), forms_for(self.model.forms, width), |row, out| {
            let row = logit_rows[row];
            out.copy_from_slice(&x[row * width..(row + 1) * width]);
        });
        let weights = self.model.linear(head);
        // Caps may make logits equal that were not, so the greatest one is looked for behind them.
        if self.want == Head::Greatest && !hooked && cap.is_none() {
            let weights = (&weights.matrix, weights.bias.as_deref());
            multiply_greatest(cpu, head_input, weights, greatest_scratch, greatest);
            return Ok(());
        }
        logits.reserve(n);
        let mut products = [Product {
            weights: &weights.matrix,
            bias: weights.bias.as_deref(),
            accumulate: false,
            out: logits.get_mut(n),
        }];
        match self.hooks.perturbation(head) {
            Some(perturbation) => multiply_perturbed(cpu, head_input, &mut products, perturbation),
            None => multiply(cpu, head_input, &mut products),
        }
        let (mut first, vocab) = (0, logits.width);
        for (segment, (s, &rows)) in self.segments.iter().zip(&*logit_counts).enumerate() {
            if rows > 0 && self.hooks.adds(head, s.variant) {
                let which = SegmentRows { segment, variant: s.variant, rows };
                let x = &head_input.x()[first * width..(first + rows) * width];
                let y = &mut logits.data[first * vocab..(first + rows) * vocab];
                self.hooks.addend(head, which, x, y);
            }
            first += rows;
        }
        if let Some(cap) = cap {
            soft_cap(cpu.isa(), logits.get_mut(n), cap);
        }
        match self.want {
            Head::Logits => *logits_given = n,
            Head::Greatest => {
                greatest.extend(logits.get(n).chunks_exact(vocab).map(Greatest::of));
            }
        }
        Ok(())
    }
}
