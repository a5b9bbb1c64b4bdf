//! Losses over the output head by the tensor library's operations, on whatever device the tensors
//! are.
//!
//! The losses and slopes are those of [`super::cross_entropy`] and [`super::divergence`]. Logits
//! live on the device, for as many rows at a time as fit [`LOGITS`]; what goes there of the targets
//! are their places, and what comes back are a few numbers of a row.
//!
//! Axes: m rows, v tokens, d width of a state. Sums over tokens are in the type of the logits, f32
//! at least; those over rows in double precision, in ascending order.

use candle_core::{DType, Result, Tensor, bail};

use super::cross_entropy::{LOGITS, Target, check_targets};
use super::divergence::{Divergence, Scoring};
use super::frozen::Frozen;
use crate::dense::primitives::wide;

/// The choices of some rows.
struct Choices {
    /// `l`, `[m, v]`.
    logits: Tensor,
    /// The greatest of a row's logits, `[m, 1]`.
    greatest: Tensor,
    /// `log sum exp(l)`, `[m, 1]`.
    logs: Tensor,
    /// `softmax(l)`, `[m, v]`.
    shares: Tensor,
    /// `1 - (l / cap)^2`, `[m, v]`, where there is a cap.
    slopes: Option<Tensor>,
}

impl Choices {
    /// Of states `x_md` under the head `w_vd`.
    fn of(x_md: &Tensor, w_vd: &Tensor, cap: Option<f32>) -> Result<Self> {
        let z = x_md.matmul(&w_vd.t()?)?.to_dtype(wide(x_md.dtype()))?;
        let Some(cap) = cap.map(f64::from) else { return Self::of_logits(z) };
        let tanh = (z / cap)?.tanh()?;
        let slopes = Some(tanh.sqr()?.affine(-1.0, 1.0)?);
        Ok(Self { slopes, ..Self::of_logits((tanh * cap)?)? })
    }

    /// Of logits `[m, v]`.
    fn of_logits(logits: Tensor) -> Result<Self> {
        let greatest = logits.max_keepdim(1)?;
        let powers = logits.broadcast_sub(&greatest)?.exp()?;
        let sums = powers.sum_keepdim(1)?;
        let logs = (&greatest + sums.log()?)?;
        let shares = powers.broadcast_div(&sums)?;
        Ok(Self { logits, greatest, logs, shares, slopes: None })
    }

    /// The places of `targets` among all logits, `[targets]`; rows count from `first`.
    fn places(&self, first: usize, targets: &[Target]) -> Result<Tensor> {
        let vocab = self.logits.dim(1)?;
        let place = |t: &Target| ((t.row - first) * vocab) as u32 + t.token;
        let places: Vec<u32> = targets.iter().map(place).collect();
        Tensor::new(places, self.logits.device())
    }

    /// The logarithm of the probability of each of `targets`.
    fn logprobs(&self, first: usize, targets: &[Target]) -> Result<Vec<f64>> {
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        let rows: Vec<u32> = targets.iter().map(|t| (t.row - first) as u32).collect();
        let rows = Tensor::new(rows, self.logits.device())?;
        let numbers = |all: &Tensor, which: &Tensor| {
            let chosen = all.flatten_all()?.index_select(which, 0)?;
            chosen.to_dtype(DType::F64)?.to_vec1::<f64>()
        };
        let logits = numbers(&self.logits, &self.places(first, targets)?)?;
        let logs = numbers(&self.logs, &rows)?;
        Ok(logits.iter().zip(logs).map(|(logit, log)| logit - log).collect())
    }

    /// Of each row the first token of the greatest logit.
    fn best(&self) -> Result<Vec<u32>> {
        let (rows, vocab) = self.logits.dims2()?;
        let device = self.logits.device();
        // Whole numbers that single precision has: there are fewer than 2^24 tokens.
        let order = Tensor::arange(0f32, vocab as f32, device)?.broadcast_as((rows, vocab))?;
        let behind = Tensor::full(vocab as f32, (rows, vocab), device)?;
        let is_greatest = self.logits.broadcast_eq(&self.greatest)?;
        let first = is_greatest.where_cond(&order.contiguous()?, &behind)?.min(1)?;
        Ok(first.to_vec1::<f32>()?.into_iter().map(|token| token as u32).collect())
    }

    /// `dz`, `[m, v]`, of the cross-entropy of `targets`.
    fn slopes(&self, first: usize, targets: &[Target]) -> Result<Tensor> {
        let ((rows, vocab), dtype) = (self.logits.dims2()?, self.logits.dtype());
        let mut totals = vec![0.0; rows];
        targets.iter().for_each(|t| totals[t.row - first] += t.weight);
        let device = self.logits.device();
        let totals = Tensor::from_vec(totals, (rows, 1), device)?.to_dtype(dtype)?;
        let mut dz = self.shares.broadcast_mul(&totals)?;
        if !targets.is_empty() {
            let weights: Vec<f64> = targets.iter().map(|t| -t.weight).collect();
            let weights = Tensor::new(weights, device)?.to_dtype(dtype)?;
            let places = self.places(first, targets)?;
            dz = dz.flatten_all()?.index_add(&places, &weights, 0)?.reshape((rows, vocab))?;
        }
        self.through_cap(dz)
    }

    /// `dz` of `dl`.
    fn through_cap(&self, dl: Tensor) -> Result<Tensor> {
        match &self.slopes {
            Some(slopes) => dl * slopes,
            None => Ok(dl),
        }
    }
}

/// How many rows of a vocabulary of `vocab` tokens are taken at a time.
fn height(vocab: usize) -> usize {
    (LOGITS / vocab.max(1)).clamp(1, 256)
}

/// `m` rows of `vocab` tokens, some at a time: the first, how many, and their targets.
fn pieces(
    (m, vocab): (usize, usize),
    targets: &[Target],
) -> Result<impl Iterator<Item = (usize, usize, &[Target])>> {
    check_targets(targets, m, vocab)?;
    let height = height(vocab);
    let before = |row: usize| targets.partition_point(|target| target.row < row);
    Ok((0..m).step_by(height).map(move |first| {
        let rows = height.min(m - first);
        (first, rows, &targets[before(first)..before(first + rows)])
    }))
}

/// As [`super::log_probabilities`], of `m` rows whose logits, `[rows, vocab]`, `logits` makes for
/// some of them at a time: of so many from one on.
pub(crate) fn scores_of<E: From<candle_core::Error>>(
    (m, vocab): (usize, usize),
    targets: &[Target],
    logits: &mut dyn FnMut(usize, usize) -> std::result::Result<Tensor, E>,
) -> std::result::Result<Vec<(f64, bool)>, E> {
    let mut all = Vec::with_capacity(targets.len());
    for (first, rows, here) in pieces((m, vocab), targets)? {
        let choices = Choices::of_logits(logits(first, rows)?)?;
        let (best, logs) = (choices.best()?, choices.logprobs(first, here)?);
        all.extend(here.iter().zip(logs).map(|(t, log)| (log, best[t.row - first] == t.token)));
    }
    Ok(all)
}

/// As [`super::log_probabilities`].
pub(crate) fn log_probabilities(
    x: &Tensor,
    head: &Frozen,
    cap: Option<f32>,
    targets: &[Target],
) -> Result<Vec<(f64, bool)>> {
    let x = x.detach();
    let w_vd = head.whole(&x)?;
    scores_of((x.dim(0)?, w_vd.dim(0)?), targets, &mut |first, rows| {
        Ok(Choices::of(&x.narrow(0, first, rows)?, &w_vd, cap)?.logits)
    })
}

/// A loss and its slopes, where they are wanted.
pub(super) struct Slopes {
    /// The loss.
    pub(super) value: f64,
    /// `dx`, `[m, d]`.
    pub(super) dx: Option<Tensor>,
    /// `dW`, `[v, d]`.
    pub(super) dw: Option<Tensor>,
}

/// The cross-entropy of `targets`, and `dx` and `dW` if they are `wanted`.
pub(super) fn cross_entropy(
    x: &Tensor,
    head: &Frozen,
    cap: Option<f32>,
    targets: &[Target],
    wanted: (bool, bool),
) -> Result<Slopes> {
    let x = x.detach();
    let w_vd = head.whole(&x)?;
    let (mut value, mut dx, mut dw) = (0.0, Vec::new(), None);
    for (first, rows, here) in pieces((x.dim(0)?, w_vd.dim(0)?), targets)? {
        let x = x.narrow(0, first, rows)?;
        let choices = Choices::of(&x, &w_vd, cap)?;
        let logs = choices.logprobs(first, here)?;
        value = here.iter().zip(logs).fold(value, |sum, (t, log)| sum - t.weight * log);
        if wanted == (false, false) {
            continue;
        }
        let dz = choices.slopes(first, here)?.to_dtype(x.dtype())?;
        if wanted.0 {
            dx.push(dz.matmul(&w_vd)?);
        }
        if wanted.1 {
            add(&mut dw, dz.t()?.matmul(&x)?)?;
        }
    }
    let dx = if wanted.0 { Some(Tensor::cat(&dx, 0)?) } else { None };
    Ok(Slopes { value, dx, dw })
}

/// As [`super::divergence`].
pub(crate) fn divergence(
    model: &Scoring,
    teacher: &Scoring,
    cap: Option<f32>,
    weights: &[f64],
    trained: bool,
) -> Result<Divergence> {
    let (x, y) = (model.x.detach(), teacher.x.detach());
    let (w_vd, taught_ve) = (model.head.whole(&x)?, teacher.head.whole(&y)?);
    let (m, vocab) = (x.dim(0)?, w_vd.dim(0)?);
    if y.dim(0)? != m || weights.len() != m || taught_ve.dim(0)? != vocab {
        bail!("a teacher of other rows or tokens than the model");
    }
    let (mut value, mut dx, mut dw) = (0.0, Vec::new(), None);
    for first in (0..m).step_by(height(vocab)) {
        let rows = height(vocab).min(m - first);
        let here = &weights[first..first + rows];
        let x = x.narrow(0, first, rows)?;
        let p = Choices::of(&x, &w_vd, cap)?;
        let q = Choices::of(&y.narrow(0, first, rows)?, &taught_ve, cap)?;
        // As far as the two agree, their difference is of the last bits.
        let double = |x: &Tensor| x.to_dtype(DType::F64);
        let ahead = double(&(&q.logits - &p.logits)?)?;
        let means = (double(&q.shares)? * ahead)?.sum_keepdim(1)?;
        let gaps = (means + (double(&p.logs)? - double(&q.logs)?)?)?;
        let gaps = gaps.flatten_all()?.to_vec1::<f64>()?;
        value = here.iter().zip(gaps).fold(value, |sum, (weight, gap)| sum + weight * gap);
        let weights = Tensor::from_vec(here.to_vec(), (rows, 1), x.device())?;
        let weights = weights.to_dtype(p.shares.dtype())?;
        let dl = (&p.shares - &q.shares)?.broadcast_mul(&weights)?;
        let dz = p.through_cap(dl)?.to_dtype(x.dtype())?;
        dx.push(dz.matmul(&w_vd)?);
        if trained {
            add(&mut dw, dz.t()?.matmul(&x)?)?;
        }
    }
    Ok(Divergence { value, dx: Tensor::cat(&dx, 0)?, dw })
}

/// Adds `more` to what there is.
fn add(sum: &mut Option<Tensor>, more: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(sum) => (sum + more)?,
        None => more,
    });
    Ok(())
}

/// Zero, with the gradient `slopes` at `x`.
pub(super) fn sloping(x: &Tensor, slopes: &Tensor) -> Result<Tensor> {
    let sum = (x * slopes)?.sum_all()?;
    &sum - sum.detach()
}
