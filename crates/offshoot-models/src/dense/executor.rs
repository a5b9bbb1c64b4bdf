//! One step of a dense model, register by register.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use offshoot_kernels::RopeTable;

use super::ops::{Target, composed};
use super::primitives::{self, wide};
use super::{DenseCache, DenseHooks, DenseModel};
use crate::{
    Activation, Attention, Error, Executor, ExpertLayer, Frequencies, HeadNorms, Input, LinearId,
    Output, PostNorm, Segment, SegmentRows, Site, VectorId,
};

impl DenseModel {
    /// Runs one step and gives the logits that were asked for, `[rows, vocab_size]` in f32, or f64 if
    /// the model is, in the order of segments and rows.
    ///
    /// # Errors
    /// [`Error::Step`] if a segment is malformed or its cache belongs to another model,
    /// [`Error::Tensors`] if the device fails, and those of `hooks`. Nothing is committed to a cache;
    /// its decided positions are as before.
    pub fn step(
        &self,
        segments: &mut [Segment<'_, DenseCache>],
        hooks: &mut dyn DenseHooks,
    ) -> Result<Tensor, Error> {
        Ok(self.run(segments, hooks, None)?.0)
    }

    /// Runs one step and gives, of each of `asked`, the logarithm of its probability and whether no
    /// token is likelier, nor as likely with a lower number: a row among those whose logits are
    /// asked for, in the order of segments and rows, and a token; ascending by row. Logits stand
    /// for some rows at a time.
    ///
    /// # Errors
    /// As [`DenseModel::step`], also if a row or a token is none of the step's.
    pub fn step_scores(
        &self,
        segments: &mut [Segment<'_, DenseCache>],
        hooks: &mut dyn DenseHooks,
        asked: &[(usize, u32)],
    ) -> Result<Vec<(f64, bool)>, Error> {
        let target = |&(row, token): &(usize, u32)| Target { row, token, weight: 1.0 };
        let asked: Vec<Target> = asked.iter().map(target).collect();
        let scores = self.run(segments, hooks, Some(&asked))?.1;
        match scores.len() == asked.len() {
            true => Ok(scores),
            false => Err(Error::Step("scores of rows whose logits are not asked for".to_owned())),
        }
    }

    /// The logits, or the scores of what is asked for.
    fn run(
        &self,
        segments: &mut [Segment<'_, DenseCache>],
        hooks: &mut dyn DenseHooks,
        asked: Option<&[Target]>,
    ) -> Result<(Tensor, Vec<(f64, bool)>), Error> {
        let none = Tensor::zeros((0, self.config().vocab_size), wide(self.dtype()), self.device())?;
        if segments.is_empty() {
            return Ok((none, Vec::new()));
        }
        let rows = Rows::of(self, segments)?;
        segments.iter_mut().for_each(|s| s.cache.begin());
        let (inputs, outputs) = (HashMap::new(), HashMap::new());
        let (logits, scores) = (none, Vec::new());
        let mut run =
            Run { model: self, segments, hooks, rows, inputs, outputs, logits, asked, scores };
        self.architecture.forward(&mut run)?;
        let (logits, scores) = (run.logits, run.scores);
        segments.iter_mut().for_each(|s| s.cache.end(s.tokens.len()));
        Ok((logits, scores))
    }
}

/// What the rows of a step are, before any layer.
struct Rows {
    /// `[rows]`
    tokens: Tensor,
    /// Cosines and sines of the rotary angles, `[rows, rotary_dim / 2]` each.
    cos: Tensor,
    sin: Tensor,
    /// The same by the model's local frequencies, where it has them.
    local: Option<(Tensor, Tensor)>,
    /// For each segment what is added to its scores, `[rows of it, cached + rows of it]`: nothing for
    /// what a row sees, minus infinity for the rest.
    masks: Vec<Tensor>,
    /// The same within the model's window, if it has one.
    window_masks: Vec<Tensor>,
    /// The step's rows whose logits are asked for, and how many of them each segment has.
    logits: Vec<u32>,
    logit_counts: Vec<usize>,
}

impl Rows {
    fn of(model: &DenseModel, segments: &[Segment<'_, DenseCache>]) -> Result<Self, Error> {
        let (config, device) = (model.config(), model.device());
        let (mut tokens, mut positions) = (Vec::new(), Vec::new());
        let mut turns = Vec::new();
        let (mut masks, mut window_masks) = (Vec::new(), Vec::new());
        let (mut logits, mut logit_counts) = (Vec::new(), Vec::new());
        for (index, s) in segments.iter().enumerate() {
            s.check(index, config.vocab_size)?;
            let Some(rope) = model.ropes.get(s.rope.0) else {
                return Err(Error::Step(format!("segment {index}: no rotary table {}", s.rope.0)));
            };
            if s.cache.layers() != config.num_hidden_layers {
                return Err(Error::Step(format!(
                    "segment {index}: a cache of {} layers for a model of {}",
                    s.cache.layers(),
                    config.num_hidden_layers
                )));
            }
            let first = tokens.len();
            tokens.extend_from_slice(s.tokens);
            positions.extend_from_slice(s.positions);
            turns.push(rotations(model, rope, s.positions)?);
            let mask = |window| mask(s, window, device)?.to_dtype(wide(model.dtype()));
            masks.push(mask(usize::MAX)?);
            if let Some(window) = &config.sliding_window {
                s.check_places(index, s.cache.len())?;
                window_masks.push(mask(window.size.get())?);
            }
            let before = logits.len();
            s.for_logit_rows(|row| logits.push((first + row) as u32));
            logit_counts.push(logits.len() - before);
        }
        let tokens = Tensor::new(tokens, device)?;
        let (cos, sin): (Vec<_>, Vec<_>) = turns.into_iter().unzip();
        let (cos, sin) = (Tensor::cat(&cos, 0)?, Tensor::cat(&sin, 0)?);
        let local = match &model.local_rope {
            Some(rope) => Some(rotations(model, rope, &positions)?),
            None => None,
        };
        Ok(Self { tokens, cos, sin, local, masks, window_masks, logits, logit_counts })
    }
}

/// A row sees itself and its last ancestors and cached positions, `window` in all.
fn mask(
    segment: &Segment<'_, DenseCache>,
    window: usize,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let (cached, rows) = (segment.cache.len(), segment.tokens.len());
    let width = cached + rows;
    let mut mask = vec![f32::NEG_INFINITY; rows * width];
    for (row, mask) in mask.chunks_exact_mut(width).enumerate() {
        let (mut seen, mut left) = (Some(row as u32), window);
        while let Some(row) = seen.filter(|_| left > 0) {
            mask[cached + row as usize] = 0.0;
            (seen, left) = (segment.parents[row as usize], left - 1);
        }
        mask[cached.saturating_sub(left)..cached].fill(0.0);
    }
    Tensor::from_vec(mask, (rows, width), device)
}

/// Cosines and sines of each position's angles. An angle is rounded to f32, as in the reference
/// implementations.
pub(super) fn rotations(
    model: &DenseModel,
    rope: &RopeTable,
    positions: &[u32],
) -> Result<(Tensor, Tensor), Error> {
    let (frequencies, magnitude) = (rope.frequencies(), rope.magnitude());
    let shape = (positions.len(), frequencies.len());
    let angles = positions.iter().flat_map(|&position| {
        frequencies.iter().map(move |frequency| f64::from(position as f32 * frequency))
    });
    let (sin, cos): (Vec<f32>, Vec<f32>) = angles
        .map(|angle| (angle.sin() as f32 * magnitude, angle.cos() as f32 * magnitude))
        .unzip();
    let tensor = |values| Tensor::from_vec(values, shape, model.device())?.to_dtype(model.dtype());
    Ok((tensor(cos)?, tensor(sin)?))
}

/// A step in progress.
pub(super) struct Run<'a, 's> {
    model: &'a DenseModel,
    pub(super) segments: &'a mut [Segment<'s, DenseCache>],
    hooks: &'a mut dyn DenseHooks,
    rows: Rows,
    inputs: HashMap<Input, Tensor>,
    outputs: HashMap<Output, Tensor>,
    logits: Tensor,
    /// Tokens whose scores are asked for instead of logits, and the scores.
    asked: Option<&'a [Target]>,
    scores: Vec<(f64, bool)>,
}

impl Run<'_, '_> {
    /// A register that was written; the tensor's memory is shared.
    pub(super) fn input(&self, register: Input) -> Result<Tensor, Error> {
        self.inputs.get(&register).cloned().ok_or_else(|| unwritten(&register))
    }

    pub(super) fn output(&self, register: Output) -> Result<Tensor, Error> {
        self.outputs.get(&register).cloned().ok_or_else(|| unwritten(&register))
    }

    pub(super) fn set_output(&mut self, register: Output, rows: Tensor) {
        self.outputs.insert(register, rows);
    }

    /// `matrix * x + bias`, and what the hooks add to each segment's rows.
    pub(super) fn product(&mut self, x: Input, linear: LinearId) -> Result<Tensor, Error> {
        let x = self.input(x)?;
        self.with_addends(linear, &x, |run, segment| run.segments[segment].tokens.len())
    }

    /// The product with `x`, of which each segment has as many rows as `rows_of` says.
    pub(super) fn with_addends(
        &mut self,
        linear: LinearId,
        x: &Tensor,
        rows_of: impl Fn(&Self, usize) -> usize,
    ) -> Result<Tensor, Error> {
        let product = self.model.multiply(linear, x)?;
        let (mut parts, mut added, mut first) = (Vec::new(), false, 0);
        for segment in 0..self.segments.len() {
            let (rows, variant) = (rows_of(self, segment), self.segments[segment].variant);
            if rows == 0 {
                continue;
            }
            let which = SegmentRows { segment, variant, rows };
            let part = product.narrow(0, first, rows)?;
            let addend = self.hooks.addend(linear, which, &x.narrow(0, first, rows)?)?;
            added |= addend.is_some();
            parts.push(match addend {
                Some(addend) => part.add(&addend)?,
                None => part,
            });
            first += rows;
        }
        if added { Ok(Tensor::cat(&parts, 0)?) } else { Ok(product) }
    }

    /// The logits of `x`, which are the rows from `first` on of those that are asked for, `[rows,
    /// d]`.
    fn logits_of(
        &mut self,
        head: LinearId,
        cap: Option<f32>,
        x: &Tensor,
        first: usize,
    ) -> Result<Tensor, Error> {
        let last = first + x.dim(0)?;
        let logits = self.with_addends(head, x, |run, segment| {
            let (before, counts) = run.rows.logit_counts.split_at(segment);
            let start: usize = before.iter().sum();
            (start + counts[0]).min(last).saturating_sub(start.max(first))
        })?;
        let logits = logits.to_dtype(wide(self.model.dtype()))?;
        Ok(match cap.map(f64::from) {
            Some(cap) => ((logits / cap)?.tanh()? * cap)?,
            None => logits,
        })
    }

    /// A register's rows of one segment, `[rows, heads, head_dim]`.
    fn heads(&self, register: Output, first: usize, rows: usize) -> Result<Tensor, Error> {
        let head_dim = self.model.config().head_dim;
        Ok(self.output(register)?.narrow(0, first, rows)?.reshape((rows, (), head_dim))?)
    }
}

fn unwritten(register: &impl std::fmt::Debug) -> Error {
    Error::Step(format!("the architecture reads {register:?} before it writes it"))
}

impl Executor for Run<'_, '_> {
    type Error = Error;

    fn embed(&mut self, scale: f32) -> Result<(), Error> {
        let rows = self.model.embedded(&self.rows.tokens)?;
        let mut all = if scale == 1.0 { rows } else { (rows * f64::from(scale))? };
        let mut first = 0;
        for (segment, s) in self.segments.iter().enumerate() {
            let rows = s.tokens.len();
            let which = SegmentRows { segment, variant: s.variant, rows };
            if let Some(own) = self.hooks.embedding(which)? {
                let behind = all.dim(0)? - first - rows;
                let (before, behind) =
                    (all.narrow(0, 0, first)?, all.narrow(0, first + rows, behind)?);
                all = Tensor::cat(&[&before, &own, &behind], 0)?;
            }
            first += rows;
        }
        self.outputs.insert(Output::Residual, all);
        Ok(())
    }

    fn norm(&mut self, weight: VectorId, eps: f32) -> Result<(), Error> {
        let weight = self.model.vector(weight)?;
        let normed = primitives::rms_norm(&self.output(Output::Residual)?, weight, eps)?;
        self.inputs.insert(Input::Normed, normed);
        Ok(())
    }

    fn linear(&mut self, x: Input, outs: &[(LinearId, Output)]) -> Result<(), Error> {
        for &(linear, out) in outs {
            let product = self.product(x, linear)?;
            self.outputs.insert(out, product);
        }
        Ok(())
    }

    fn linear_residual(
        &mut self,
        x: Input,
        linear: LinearId,
        norm: Option<PostNorm>,
    ) -> Result<(), Error> {
        let mut product = self.product(x, linear)?;
        if let Some(PostNorm { weight, eps }) = norm {
            product = primitives::rms_norm(&product, self.model.vector(weight)?, eps)?;
        }
        let sum = (self.output(Output::Residual)? + product)?;
        self.outputs.insert(Output::Residual, sum);
        Ok(())
    }

    fn attend(&mut self, how: Attention) -> Result<(), Error> {
        let norms = match how.norms {
            Some(HeadNorms { query, key, eps }) => {
                Some((self.model.vector(query)?, self.model.vector(key)?, eps))
            }
            None => None,
        };
        let local = self.rows.local.as_ref().map(|(cos, sin)| (cos, sin));
        let (cos, sin) = match how.frequencies {
            Frequencies::Segment => (&self.rows.cos, &self.rows.sin),
            Frequencies::Local => local.ok_or_else(|| unwritten(&how.frequencies))?,
        };
        let masks = match how.window {
            Some(_) => &self.rows.window_masks,
            None => &self.rows.masks,
        };
        let (mut attended, mut first) = (Vec::with_capacity(self.segments.len()), 0);
        for (index, mask) in masks.iter().enumerate() {
            let rows = self.segments[index].tokens.len();
            let by_head = |x: Tensor| x.transpose(0, 1)?.contiguous();
            let (cos, sin) = (cos.narrow(0, first, rows)?, sin.narrow(0, first, rows)?);
            let mut q = self.heads(Output::Query, first, rows)?;
            let mut k = self.heads(Output::Key, first, rows)?;
            if let Some((query, key, eps)) = norms {
                q = primitives::rms_norm(&q, query, eps)?;
                k = primitives::rms_norm(&k, key, eps)?;
            }
            let q = primitives::rotate(&q, &cos, &sin)?;
            let k = primitives::rotate(&k, &cos, &sin)?;
            let k = by_head(k)?;
            let v = by_head(self.heads(Output::Value, first, rows)?)?;
            let (k, v) = self.segments[index].cache.append(how.layer, k, v)?;
            attended.push(primitives::attend(&q, &k, &v, mask, how.scale)?);
            first += rows;
        }
        self.inputs.insert(Input::Attended, Tensor::cat(&attended, 0)?);
        Ok(())
    }

    fn gated(
        &mut self,
        x: Input,
        gate: LinearId,
        up: LinearId,
        activation: Activation,
    ) -> Result<(), Error> {
        let (gate, up) = (self.product(x, gate)?, self.product(x, up)?);
        self.inputs.insert(Input::Gated, primitives::gate(&gate, &up, activation)?);
        Ok(())
    }

    fn experts(&mut self, x: Input, layer: ExpertLayer) -> Result<(), Error> {
        self.run_experts(x, layer)
    }

    fn tap(&mut self, site: Site) -> Result<(), Error> {
        let rows = match site {
            Site::Block(_) => self.output(Output::Residual)?,
            Site::Final => self.input(Input::Normed)?,
        };
        self.hooks.tap(site, &rows)
    }

    fn logits(&mut self, head: LinearId, cap: Option<f32>) -> Result<(), Error> {
        if self.rows.logits.is_empty() {
            return Ok(());
        }
        let rows = Tensor::new(self.rows.logits.as_slice(), self.model.device())?;
        let x = self.input(Input::Normed)?.index_select(&rows, 0)?;
        let Some(asked) = self.asked else {
            self.logits = self.logits_of(head, cap, &x, 0)?;
            return Ok(());
        };
        let sizes = (x.dim(0)?, self.model.config().vocab_size);
        self.scores = composed::scores_of(sizes, asked, &mut |first, rows| {
            self.logits_of(head, cap, &x.narrow(0, first, rows)?, first)
        })?;
        Ok(())
    }
}
