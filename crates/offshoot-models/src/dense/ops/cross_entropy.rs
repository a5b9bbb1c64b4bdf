//! Cross-entropy over the output head without the logits of all rows, with its backward pass.
//!
//! ```text
//! z = x W^T        l = cap tanh(z / cap), or z        log p_t = l_t - log sum exp(l)
//! L = - sum over targets (row, t) of weight log p_t(row)
//! dl = (sum of the row's weights) p - sum of weight e_t        dz = dl (1 - (l / cap)^2)
//! dx = dz W        dW = dz^T x
//! ```
//! `x` is `[m, d]`: only rows that carry loss come here. Logits live for some rows at a time, as many as
//! fit [`LOGITS`], and never longer. As the weights are known beforehand, the gradient is made in the
//! forward pass, while the logits are there, and the backward pass only scales it: two products with
//! the head, and a third where it is trained (the same is done in Liger, Hsu et al. 2024, section 3.2,
//! <https://arxiv.org/abs/2410.10989>).
//!
//! The loss is summed in double precision, in the order of the targets.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::frozen::Frozen;
use super::real::{Matrix, Output, Real, turned};
use super::{by_type, composed, numbers, suits, with};

/// Logits that are held at a time.
pub(super) const LOGITS: usize = 1 << 23;

/// A token that a row is to predict.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Target {
    /// The row.
    pub(crate) row: usize,
    /// The token.
    pub(crate) token: u32,
    /// Its weight in the loss.
    pub(crate) weight: f64,
}

/// What scores the rows.
#[derive(Debug)]
pub(crate) struct CrossEntropy<'a> {
    /// The head, `[vocab_size, d]`.
    pub(crate) head: Frozen,
    /// The cap of logits.
    pub(crate) cap: Option<f32>,
    /// What is to be predicted, in ascending order of rows.
    pub(crate) targets: &'a [Target],
}

impl CrossEntropy<'_> {
    /// `L` as a number without axes, and in double precision. If `trained`, the head has a gradient, too,
    /// and is a tensor.
    pub(crate) fn loss(self, x: &Tensor, trained: bool) -> Result<(Tensor, f64)> {
        let other = matches!(&self.head, Frozen::Tensor(head) if trained && !suits(&[x, head]));
        if other || !self.head.suits(x) {
            return self.loss_composed(x, trained);
        }
        let x = x.contiguous()?;
        let op = Op {
            head: self.head,
            cap: self.cap,
            targets: self.targets.to_vec(),
            wanted: (x.track_op(), trained),
            made: Mutex::new(None),
            loss: Arc::default(),
        };
        let exact = Arc::clone(&op.loss);
        let loss = match (&op.head, trained) {
            (Frozen::Tensor(head), true) => x.apply_op2(&head.contiguous()?, op),
            (_, true) => bail!("a head that is trained and stays in its file"),
            (_, false) => x.apply_op1(op),
        }?;
        let exact = *exact.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((loss, exact))
    }

    /// [`CrossEntropy::loss`] if `own`, else [`CrossEntropy::loss_composed`].
    pub(crate) fn by(self, own: bool, x: &Tensor, trained: bool) -> Result<(Tensor, f64)> {
        if own { self.loss(x, trained) } else { self.loss_composed(x, trained) }
    }

    /// The same of the tensor library's operations, on any device and of any type.
    pub(crate) fn loss_composed(self, x: &Tensor, trained: bool) -> Result<(Tensor, f64)> {
        let Self { head, cap, targets } = self;
        if trained && !matches!(head, Frozen::Tensor(_)) {
            bail!("a head that is trained and stays in its file");
        }
        let wanted = (x.track_op(), trained);
        let found = composed::cross_entropy(x, &head, cap, targets, wanted)?;
        let mut loss = Tensor::new(found.value, x.device())?.to_dtype(x.dtype())?;
        if let Some(dx) = &found.dx {
            loss = (loss + composed::sloping(x, dx)?)?;
        }
        if let (Frozen::Tensor(head), Some(dw)) = (&head, &found.dw) {
            loss = (loss + composed::sloping(head, dw)?)?;
        }
        Ok((loss, found.value))
    }
}

/// For each target the logarithm of its probability, and whether no token has a greater one (of equals,
/// the lowest is first).
pub(crate) fn log_probabilities(
    x: &Tensor,
    head: &Frozen,
    cap: Option<f32>,
    targets: &[Target],
) -> Result<Vec<(f64, bool)>> {
    if !head.suits(x) {
        return composed::log_probabilities(x, head, cap, targets);
    }
    by_type!(x.dtype(), T => {
        let mut all = Vec::with_capacity(targets.len());
        with::<T, _, 1>([x], |[x]| {
            for_chunks(x, head, cap, targets, &mut |chunk| {
                all.extend(chunk.scored.iter().flatten());
                Ok(())
            })
        })??;
        Ok(all)
    })
}

/// Some rows, after their logits have become probabilities.
struct Chunk<'t, T> {
    /// The first of them.
    first: usize,
    rows: usize,
    /// `[rows, vocab_size]`.
    shares: Vec<T>,
    /// `1 - (l / cap)^2`, where there is a cap.
    slopes: Vec<T>,
    /// The targets, and for each row the outcomes of its own.
    targets: &'t [Target],
    scored: Vec<Vec<(f64, bool)>>,
}

/// Checks that targets are of `m` rows and `vocab` tokens, and in order.
pub(super) fn check_targets(targets: &[Target], m: usize, vocab: usize) -> Result<()> {
    let beyond = |t: &Target| t.row >= m || t.token as usize >= vocab;
    if targets.iter().any(beyond) || !targets.is_sorted_by_key(|t| t.row) {
        bail!("targets of other rows or tokens than there are, or out of order");
    }
    Ok(())
}

/// Computes the probabilities of some rows at a time and shows them to `f`.
fn for_chunks<T: Real>(
    x: &[T],
    head: &Frozen,
    cap: Option<f32>,
    targets: &[Target],
    f: &mut dyn FnMut(Chunk<'_, T>) -> Result<()>,
) -> Result<()> {
    let (vocab, d) = head.shape()?;
    let m = x.len() / d.max(1);
    check_targets(targets, m, vocab)?;
    let height = (LOGITS / vocab.max(1)).clamp(1, 256);
    let mut left = targets;
    for first in (0..m).step_by(height) {
        let rows = height.min(m - first);
        let (here, later) = left.split_at(left.partition_point(|t| t.row < first + rows));
        left = later;
        let mut shares = head.forward(&x[first * d..][..rows * d])?;
        let mut slopes = match cap {
            Some(_) => vec![T::one(); shares.len()],
            None => Vec::new(),
        };
        if let Some(cap) = cap {
            let capped = shares.par_chunks_mut(vocab).zip(slopes.par_chunks_mut(vocab));
            capped.for_each(|(l, slopes)| soft_cap(l, slopes, f64::from(cap)));
        }
        let scored = shares.par_chunks_mut(vocab).enumerate();
        let scored = scored.map(|(row, shares)| {
            let of_row = here.iter().filter(|t| t.row == first + row).map(|t| t.token as usize);
            let of_row: Vec<(usize, T)> = of_row.map(|token| (token, shares[token])).collect();
            let best = of_row.iter().map(|&(token, logit)| is_best(shares, token, logit));
            let best: Vec<bool> = best.collect();
            let log = T::softmax(shares).wide();
            of_row.iter().zip(best).map(|((_, logit), best)| (logit.wide() - log, best)).collect()
        });
        let scored = scored.collect();
        f(Chunk { first, rows, shares, slopes, targets: here, scored })?;
    }
    Ok(())
}

fn is_best<T: Real>(logits: &[T], token: usize, logit: T) -> bool {
    logits[..token].iter().all(|&l| l < logit) && logits[token..].iter().all(|&l| l <= logit)
}

pub(super) fn soft_cap<T: Real>(l: &mut [T], slopes: &mut [T], cap: f64) {
    for (l, slope) in l.iter_mut().zip(slopes) {
        let tanh = (l.wide() / cap).tanh();
        (*l, *slope) = (T::near(cap * tanh), T::near(1.0 - tanh * tanh));
    }
}

impl<T: Real> Chunk<'_, T> {
    /// The loss, after making `dz` of the probabilities.
    fn differentiate(&mut self) -> f64 {
        let vocab = self.shares.len() / self.rows.max(1);
        let (first, targets) = (self.first, self.targets);
        self.shares.par_chunks_mut(vocab).enumerate().for_each(|(row, dz)| {
            let of_row = targets.iter().filter(|t| t.row == first + row);
            let total = T::near(of_row.clone().map(|t| t.weight).sum());
            dz.iter_mut().for_each(|p| *p *= total);
            of_row.for_each(|t| dz[t.token as usize] -= T::near(t.weight));
        });
        if !self.slopes.is_empty() {
            self.shares.iter_mut().zip(&self.slopes).for_each(|(dz, &slope)| *dz *= slope);
        }
        self.loss()
    }

    fn loss(&self) -> f64 {
        let scored = self.scored.iter().flatten();
        self.targets.iter().zip(scored).map(|(t, (log, _))| -t.weight * log).sum()
    }
}

struct Op {
    head: Frozen,
    cap: Option<f32>,
    targets: Vec<Target>,
    /// Whether `dx` and `dW` are wanted.
    wanted: (bool, bool),
    /// These, once the forward pass is over.
    made: Mutex<Option<(Option<Tensor>, Option<Tensor>)>>,
    /// The loss, before it is rounded.
    loss: Arc<Mutex<f64>>,
}

impl Op {
    fn forward<T: Real>(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((m, d), vocab) = (layout.shape().dims2()?, self.head.shape()?.0);
        let x: &[T] = numbers(x, layout)?;
        let mut dx: Vec<T> = Vec::new();
        let mut dw = vec![T::zero(); if self.wanted.1 { vocab * d } else { 0 }];
        let mut loss = 0.0;
        for_chunks(x, &self.head, self.cap, &self.targets, &mut |mut chunk| {
            if self.wanted == (false, false) {
                loss += chunk.loss();
                return Ok(());
            }
            loss += chunk.differentiate();
            let rows = chunk.rows;
            if self.wanted.0 {
                dx.extend(self.head.backward(&chunk.shares)?);
            }
            if self.wanted.1 {
                // dW = dz^T x: the rows of dz^T are its tokens.
                let numbers = &x[chunk.first * d..][..rows * d];
                let of_rows = Matrix { numbers, rows: d, cols: rows, turned: true };
                let out = Output { numbers: &mut dw, stride: d, accumulate: true };
                T::multiply(&turned(&chunk.shares, vocab), of_rows, out);
            }
            Ok(())
        })?;
        let tensor = |wanted: bool, numbers: Vec<T>, shape: (usize, usize)| {
            wanted.then(|| Tensor::from_vec(numbers, shape, &Device::Cpu)).transpose()
        };
        let made = (tensor(self.wanted.0, dx, (m, d))?, tensor(self.wanted.1, dw, (vocab, d))?);
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        *self.loss.lock().unwrap_or_else(PoisonError::into_inner) = loss;
        Ok((T::to_cpu_storage_owned(vec![T::near(loss)]), Shape::from(())))
    }

    fn backward(&self, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((dx, dw)) = &*made else { bail!("a backward pass before the forward pass") };
        let g = g.to_dtype(candle_core::DType::F64)?.to_scalar::<f64>()?;
        // The usual gradient of a loss is 1.
        let scaled = |x: &Option<Tensor>| match x {
            Some(x) if g != 1.0 => (x * g).map(Some),
            other => Ok(other.clone()),
        };
        Ok((scaled(dx)?, scaled(dw)?))
    }
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_type!(x.dtype(), T => self.forward::<T>(x, layout))
    }

    fn bwd(&self, _x: &Tensor, _loss: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.backward(g)?.0)
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "cross_entropy_of_head"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        _head: &CpuStorage,
        _head_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_type!(x.dtype(), T => self.forward::<T>(x, layout))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        _head: &Tensor,
        _loss: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(g)
    }
}
