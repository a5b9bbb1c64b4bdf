//! What makes the steps of a session: an executor with the cache of one sequence.
//!
//! Steps are the same to whoever asks for them; where a model's weights lie, and whether a row's
//! logits depend on the rows beside it, only its runner knows.

mod dense;
mod packed;

use std::fmt;

use offshoot_kernels::{Cpu, Greatest};
use offshoot_models::{LogitRows, RopeId};

use crate::{Error, ExecutorKind, Model};
use dense::DenseRunner;
use packed::PackedRunner;

/// The rows of a step, as in [`Segment`](offshoot_models::Segment).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) tokens: &'a [u32],
    pub(crate) parents: &'a [Option<u32>],
    pub(crate) positions: &'a [u32],
    pub(crate) rope: RopeId,
    pub(crate) logits: LogitRows<'a>,
}

/// What a step gives of its logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// All of a row's.
    Logits,
    /// Each row's greatest.
    Greatest,
    /// Nothing: the states of all rows are wanted, and `Rows::logits` is `LogitRows::None`.
    States,
}

/// An executor and the cache of one sequence. Where a variant has positions before every text, a runner
/// puts them there and nobody else counts them.
pub(crate) trait Runner: fmt::Debug + Send {
    /// Runs rows of `model` behind what is decided. Nothing of them is kept yet.
    fn step(&mut self, model: &Model, rows: Rows<'_>, want: Want) -> Result<(), Error>;

    /// What the last step gave where all logits were wanted, `[rows, vocab_size]`.
    fn logits_mut(&mut self) -> &mut [f32];

    /// What the last step gave where the greatest were wanted; `Err` names a token whose logit is no
    /// number.
    fn greatest(&self) -> &[Result<Greatest, u32>];

    /// What the output head multiplied for row `row` of the last step, which wanted logits of all rows,
    /// `[hidden_size]`.
    fn head_input_row(&mut self, row: usize) -> Result<&[f32], Error>;

    /// The final norm's result for all rows of the last step, where states were wanted, `[rows,
    /// hidden_size]`.
    fn states(&mut self) -> Result<&[f32], Error>;

    /// Keeps rows `path` of the last step.
    fn commit(&mut self, path: &[usize]) -> Result<(), Error>;

    /// Keeps the first `rows` rows of the last step.
    fn commit_chain(&mut self, rows: usize) -> Result<(), Error>;

    /// Forgets what is decided from token `len` on.
    fn truncate(&mut self, len: usize);

    /// Bytes of keys and values that a token takes.
    fn bytes_per_position(&self) -> usize;

    /// By how much a logit may change with the rows beside its row, and with how the rows before it
    /// came into the cache, over the greatest magnitude in its row; `None` if not by a bit.
    fn noise(&self) -> Option<f32>;
}

/// What runs `model`, with room for `capacity` tokens at positions of the table `rope`.
pub(crate) fn runner(
    model: &Model,
    cpu: &Cpu,
    capacity: usize,
    rope: RopeId,
) -> Result<Box<dyn Runner>, Error> {
    Ok(match model.executor() {
        ExecutorKind::Packed => Box::new(PackedRunner::new(model, cpu, capacity, rope)?),
        ExecutorKind::Dense { dtype, .. } => Box::new(DenseRunner::new(model, dtype, rope)?),
    })
}
