//! First-order optimisers: what a gradient does to a weight.
//!
//! An optimiser sees one tensor at a time, as slices: its weights, their gradient, and the numbers that
//! it keeps beside them from step to step. It holds no state of its own, so whoever has the slices can
//! write them to a file and go on later with the same bits. All is in single precision, in the order of
//! the tensor's numbers.
//!
//! Weight decay is decoupled from the gradient (Loshchilov & Hutter 2019, section 2,
//! <https://arxiv.org/abs/1711.05101>) and leaves vectors alone: norms and biases do not decay.

mod adamw;
mod clip;
mod muon;
mod sgd;

pub use adamw::AdamW;
pub use clip::{clip_factor, square_norm};
pub use muon::Muon;
pub use sgd::Sgd;

use serde::{Deserialize, Serialize};

use crate::{Error, page_of};

/// An optimiser's row in the list of all of them.
#[derive(Debug, Clone, Copy)]
pub struct Card {
    /// Its name in options.
    pub name: &'static str,
    /// Its paper.
    pub paper: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// It, with its default settings.
    pub default: fn() -> OptimizerOptions,
    /// Its file, whose head is its page.
    page: &'static str,
}

impl Card {
    /// What the optimiser is, where it comes from, what it did and when not to use it.
    pub fn page(&self) -> String {
        page_of(self.page)
    }
}

/// All optimisers.
pub const OPTIMIZERS: [Card; 3] = [adamw::CARD, sgd::CARD, muon::CARD];

/// An optimiser with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase", deny_unknown_fields)]
pub enum OptimizerOptions {
    /// See [`AdamW`].
    AdamW(AdamW),
    /// See [`Sgd`].
    Sgd(Sgd),
    /// See [`Muon`].
    Muon(Muon),
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        Self::AdamW(AdamW::default())
    }
}

impl OptimizerOptions {
    /// The optimiser.
    ///
    /// # Errors
    /// [`Error::Option`] that names the setting that is out of bounds.
    pub fn optimizer(&self) -> Result<Box<dyn Optimizer>, Error> {
        let optimizer: Box<dyn Optimizer> = match *self {
            Self::AdamW(options) => Box::new(options),
            Self::Sgd(options) => Box::new(options),
            Self::Muon(options) => Box::new(options),
        };
        optimizer.validate()?;
        Ok(optimizer)
    }
}

/// The form of a tensor that is tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorShape {
    /// A norm's weight or a bias.
    Vector {
        /// How many numbers.
        len: usize,
    },
    /// A matrix, or an embedding.
    Matrix {
        /// Rows.
        rows: usize,
        /// Columns, contiguous.
        cols: usize,
        /// Whether rows stand for tokens, as in an embedding and in an output head.
        by_token: bool,
    },
}

impl TensorShape {
    /// How many numbers.
    pub fn len(self) -> usize {
        match self {
            Self::Vector { len } => len,
            Self::Matrix { rows, cols, .. } => rows * cols,
        }
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    fn decays(self) -> bool {
        matches!(self, Self::Matrix { .. })
    }
}

/// When a step is made and how far it goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSize {
    /// The number of the step, from 1 on.
    pub step: u64,
    /// The learning rate.
    pub rate: f64,
}

/// Products of matrices, of whoever has faster ones than [`PlainProducts`].
pub trait Products {
    /// `x y`, `[m, n]`, of `x` `[m, k]` and `y` `[k, n]`, by rows.
    fn multiply(&self, x: &[f32], y: &[f32], size: (usize, usize, usize)) -> Vec<f32>;
}

/// Products by three loops, each sum in ascending order.
#[derive(Debug, Clone, Copy)]
pub struct PlainProducts;

impl Products for PlainProducts {
    fn multiply(&self, x: &[f32], y: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
        let mut out = vec![0.0; m * n];
        for (row, out) in out.chunks_exact_mut(n.max(1)).enumerate() {
            for (i, &x) in x[row * k..(row + 1) * k].iter().enumerate() {
                out.iter_mut().zip(&y[i * n..(i + 1) * n]).for_each(|(out, &y)| *out += x * y);
            }
        }
        out
    }
}

/// What makes a step of a tensor's gradient.
pub trait Optimizer: std::fmt::Debug + Send + Sync {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Option`] that names the setting.
    fn validate(&self) -> Result<(), Error>;

    /// How many slices, each as long as the tensor, are kept beside it; they begin as zeros.
    fn states(&self, shape: TensorShape) -> usize;

    /// Changes `weights` along `gradient`. `state` has [`Optimizer::states`] slices; all are of the length
    /// that `shape` says.
    fn update(
        &self,
        shape: TensorShape,
        size: StepSize,
        weights: &mut [f32],
        gradient: &[f32],
        state: &mut [Vec<f32>],
        products: &dyn Products,
    );
}

/// Refuses a setting that is not within `bound`.
fn check(field: &'static str, value: f64, within: bool, bound: &'static str) -> Result<(), Error> {
    match within {
        true => Ok(()),
        false => Err(Error::Option { field, bound, got: value.to_string() }),
    }
}

/// Refuses a decay of weights that is not from 0 to 1.
fn check_decay(decay: f64) -> Result<(), Error> {
    check("weight_decay", decay, (0.0..=1.0).contains(&decay), "from 0 to 1")
}

/// Refuses a share that is not from 0 on and below 1.
fn check_share(field: &'static str, share: f64) -> Result<(), Error> {
    check(field, share, (0.0..1.0).contains(&share), "from 0 on and below 1")
}

#[cfg(test)]
mod tests;
