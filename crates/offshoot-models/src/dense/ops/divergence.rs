//! How far a model's choices are from a teacher's, over the output head, with its slopes.
//!
//! ```text
//! z = x W^T        l = cap tanh(z / cap), or z        p = softmax(l)        q likewise of the teacher
//! D = sum over rows of weight sum over tokens of q (log q - log p)
//! dl = weight (p - q)        dz = dl (1 - (l / cap)^2)        dx = dz W        dW = dz^T x
//! ```
//! The divergence of Kullback and Leibler, as in Hinton et al. 2015, section 2,
//! <https://arxiv.org/abs/1503.02531>, at temperature 1. `x` is `[m, d]`, the teacher's states `[m, d']`,
//! each with a head of its own. The teacher's logits are made where they are needed, beside the
//! model's, for some rows at a time: those of all rows would be the largest thing in memory.
//!
//! Sums over tokens and rows are in double precision, in ascending order.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::cross_entropy::{LOGITS, soft_cap};
use super::frozen::Frozen;
use super::real::{Matrix, Output, Real, turned};
use super::{by_type, composed, suits, with};

/// States and the head that scores them.
#[derive(Debug, Clone)]
pub(crate) struct Scoring {
    /// `[m, d]`.
    pub(crate) x: Tensor,
    /// `[vocab_size, d]`.
    pub(crate) head: Frozen,
}

/// A divergence and its slopes.
#[derive(Debug)]
pub(crate) struct Divergence {
    /// `D`.
    pub(crate) value: f64,
    /// `dx`, `[m, d]`.
    pub(crate) dx: Tensor,
    /// `dW`, `[vocab_size, d]`, if it is wanted.
    pub(crate) dw: Option<Tensor>,
}

/// The divergence of `model` from `teacher`, both with the cap `cap`; `weights` has one of each row.
/// `dW` is made if `trained`.
pub(crate) fn divergence(
    model: &Scoring,
    teacher: &Scoring,
    cap: Option<f32>,
    weights: &[f64],
    trained: bool,
) -> Result<Divergence> {
    let ((m, d), vocab) = (model.x.dims2()?, model.head.shape()?.0);
    let (taught, e) = teacher.x.dims2()?;
    if taught != m || weights.len() != m || teacher.head.shape()?.0 != vocab {
        bail!("a teacher of other rows or tokens than the model");
    }
    if !suits(&[&model.x, &teacher.x]) || !model.head.suits(&model.x) {
        return composed::divergence(model, teacher, cap, weights, trained);
    }
    let height = (LOGITS / vocab.max(1)).clamp(1, 128);
    by_type!(model.x.dtype(), T => with::<T, _, 2>([&model.x, &teacher.x], |[x, y]| {
        let (mut value, mut dx) = (0.0, Vec::<T>::with_capacity(m * d));
        let mut dw = vec![T::near(0.0); if trained { vocab * d } else { 0 }];
        for first in (0..m).step_by(height) {
            let rows = height.min(m - first);
            let numbers = &x[first * d..][..rows * d];
            let mut own: Vec<T> = model.head.forward(numbers)?;
            let mut taught: Vec<T> = teacher.head.forward(&y[first * e..][..rows * e])?;
            value += differentiate(&mut own, &mut taught, cap, &weights[first..first + rows]);
            dx.extend(model.head.backward(&own)?);
            if trained {
                // dW = dz^T x: the rows of dz^T are its tokens.
                let of_rows = Matrix { numbers, rows: d, cols: rows, turned: true };
                let out = Output { numbers: &mut dw, stride: d, accumulate: true };
                T::multiply(&turned(&own, vocab), of_rows, out);
            }
        }
        let dw = trained.then(|| Tensor::from_vec(dw, (vocab, d), &Device::Cpu)).transpose()?;
        Ok(Divergence { value, dx: Tensor::from_vec(dx, (m, d), &Device::Cpu)?, dw })
    })?)
}

/// The divergence of some rows, after making `dz` of the model's products.
fn differentiate<T: Real>(
    logits: &mut [T],
    teacher: &mut [T],
    cap: Option<f32>,
    weights: &[f64],
) -> f64 {
    let vocab = logits.len() / weights.len().max(1);
    let rows = logits.par_chunks_mut(vocab).zip(teacher.par_chunks_mut(vocab)).zip(weights);
    let values: Vec<f64> = rows.map(|((p, q), &weight)| of_row(p, q, cap, weight)).collect();
    values.iter().sum()
}

fn of_row<T: Real>(p: &mut [T], q: &mut [T], cap: Option<f32>, weight: f64) -> f64 {
    let mut slopes = vec![T::one(); if cap.is_some() { p.len() } else { 0 }];
    if let Some(cap) = cap.map(f64::from) {
        soft_cap(q, &mut slopes, cap);
        soft_cap(p, &mut slopes, cap);
    }
    let ahead: Vec<T> = q.iter().zip(&*p).map(|(&q, &p)| q - p).collect();
    let logs = (T::softmax(q).wide(), T::softmax(p).wide());
    let mean: f64 = q.iter().zip(&ahead).map(|(q, ahead)| q.wide() * ahead.wide()).sum();
    let scale = T::near(weight);
    p.iter_mut().zip(&*q).for_each(|(p, &q)| *p = (*p - q) * scale);
    p.iter_mut().zip(&slopes).for_each(|(dz, &slope)| *dz *= slope);
    weight * (mean - logs.0 + logs.1)
}
