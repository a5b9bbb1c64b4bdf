//! Products with a matrix that is not trained, and what LoRA adds to them, with their backward passes.
//!
//! Hu et al. 2021, section 4.1, <https://arxiv.org/abs/2106.09685>.
//! ```text
//! y = x W^T + b + s (x A^T) B^T
//! t = s g B            dx = g W + t A        dA = t^T x        dB = s g^T (x A^T)
//! ```
//! `x` is `[n, cols]`, `W` `[rows, cols]`, `A` `[r, cols]`, `B` `[rows, r]`, `g` the gradient of `y`. There
//! is no gradient of `W` and `b`, which is what makes this cheaper than the tensor library's own product:
//! that one computes both operands' gradients, whether or not anyone asks.
//!
//! Cost: a product with `W` each way, and five with a side of `r`.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};
use rayon::prelude::*;

use super::frozen::Frozen;
use super::real::Real;
use super::{by_type, suits, with};

/// Numbers that a thread takes at a time.
const PIECE: usize = 1 << 14;

/// What LoRA adds to a matrix: `scale B A`.
#[derive(Debug, Clone)]
pub(crate) struct LowRankPair {
    /// `[r, cols]`.
    pub(crate) a: Tensor,
    /// `[rows, r]`.
    pub(crate) b: Tensor,
    /// `s`.
    pub(crate) scale: f64,
}

/// `x W^T + bias`, and what `pair` adds.
pub(crate) fn linear(
    x: &Tensor,
    weight: Frozen,
    bias: Option<&Tensor>,
    pair: Option<&LowRankPair>,
) -> Result<Tensor> {
    let operands: Vec<&Tensor> = [x]
        .into_iter()
        .chain(bias)
        .chain(pair.iter().flat_map(|pair| [&pair.a, &pair.b]))
        .collect();
    if !suits(&operands) || !weight.suits(x) {
        return composed(x, &weight, bias, pair);
    }
    let bias = bias.map(|bias| bias.detach().contiguous()).transpose()?;
    let (x, scale) = (x.contiguous()?, pair.map_or(0.0, |pair| pair.scale));
    let op = Linear { weight, bias, scale, read: true };
    match pair {
        None => x.apply_op1(op),
        Some(pair) => x.apply_op3(&pair.a.contiguous()?, &pair.b.contiguous()?, op),
    }
}

/// As [`linear`], where nobody reads the product: zeros in its place, with the gradients of the product.
pub(crate) fn unread_linear(
    x: &Tensor,
    weight: Frozen,
    pair: Option<&LowRankPair>,
) -> Result<Tensor> {
    let operands: Vec<&Tensor> =
        [x].into_iter().chain(pair.iter().flat_map(|pair| [&pair.a, &pair.b])).collect();
    if !suits(&operands) || !weight.suits(x) {
        return composed(x, &weight, None, pair);
    }
    let (x, scale) = (x.contiguous()?, pair.map_or(0.0, |pair| pair.scale));
    let op = Linear { weight, bias: None, scale, read: false };
    match pair {
        None => x.apply_op1(op),
        Some(pair) => x.apply_op3(&pair.a.contiguous()?, &pair.b.contiguous()?, op),
    }
}

/// The same of the tensor library's operations, on any device and of any type.
fn composed(
    x: &Tensor,
    weight: &Frozen,
    bias: Option<&Tensor>,
    pair: Option<&LowRankPair>,
) -> Result<Tensor> {
    let whole = weight.rows(0, weight.shape()?.0, x.dtype())?.to_device(x.device())?;
    let mut y = x.matmul(&whole.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&bias.to_dtype(x.dtype())?)?;
    }
    let Some(LowRankPair { a, b, scale }) = pair else { return Ok(y) };
    let (a, b) = (a.to_dtype(x.dtype())?, b.to_dtype(x.dtype())?);
    y + (x.matmul(&a.t()?)?.matmul(&b.t()?)? * *scale)?
}

struct Linear {
    weight: Frozen,
    bias: Option<Tensor>,
    scale: f64,
    /// Whether anybody reads the product.
    read: bool,
}

impl Linear {
    /// Zeros in place of a product that nobody reads.
    fn unread(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let shape = self.shape_of(layout)?;
        let zeros =
            by_type!(x.dtype(), T => T::to_cpu_storage_owned(vec![0.0; shape.elem_count()]));
        Ok((zeros, shape))
    }

    /// `y += bias + scale v`, where there are these.
    fn finish<T: Real>(&self, y: &mut [T], v: Option<&[T]>) -> Result<()> {
        let width = self.weight.shape()?.0.max(1);
        let height = (PIECE / width).max(1);
        let scale = T::near(self.scale);
        let mut add = |bias: Option<&[T]>| {
            y.par_chunks_mut(width * height).enumerate().for_each(|(piece, y)| {
                if let Some(v) = v {
                    let v = &v[piece * width * height..][..y.len()];
                    y.iter_mut().zip(v).for_each(|(y, &v)| *y += scale * v);
                }
                if let Some(bias) = bias {
                    for y in y.chunks_exact_mut(width) {
                        y.iter_mut().zip(bias).for_each(|(y, &b)| *y += b);
                    }
                }
            });
        };
        match &self.bias {
            Some(bias) => with::<T, _, 1>([bias], |[bias]| add(Some(bias))),
            None if v.is_some() => {
                add(None);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn shape_of(&self, x: &Layout) -> Result<Shape> {
        Ok((x.shape().dims2()?.0, self.weight.shape()?.0).into())
    }
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "frozen_linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        if !self.read {
            return self.unread(x, layout);
        }
        let y = self.weight.forward(x, layout)?;
        let y = by_type!(x.dtype(), T => {
            let mut y: Vec<T> = T::cpu_storage_data(y)?;
            self.finish(&mut y, None)?;
            T::to_cpu_storage_owned(y)
        });
        Ok((y, self.shape_of(layout)?))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        x.track_op().then(|| self.weight.backward_of(g)).transpose()
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "lora_linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, cols) = x_layout.shape().dims2()?;
        let (rows, rank) = b_layout.shape().dims2()?;
        if a_layout.shape().dims2()? != (rank, cols) || self.weight.shape()? != (rows, cols) {
            bail!("A {:?} and B {:?} of a matrix [{rows}, {cols}]", a_layout, b_layout);
        }
        if !self.read {
            return self.unread(x, x_layout);
        }
        let y = self.weight.forward(x, x_layout)?;
        let u = x.matmul(a, (1, n, rank, cols), x_layout, &a_layout.transpose(0, 1)?)?;
        let u_layout = Layout::contiguous((n, rank));
        let v = u.matmul(b, (1, n, rows, rank), &u_layout, &b_layout.transpose(0, 1)?)?;
        let y = by_type!(x.dtype(), T => {
            let mut y: Vec<T> = T::cpu_storage_data(y)?;
            self.finish(&mut y, Some(T::cpu_storage_as_slice(&v)?))?;
            T::to_cpu_storage_owned(y)
        });
        Ok((y, self.shape_of(x_layout)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let wanted = (x.track_op(), a.track_op(), b.track_op());
        let (x, a, b, g) = (x.detach(), a.detach(), b.detach(), g.contiguous()?.detach());
        let t = (g.matmul(&b)? * self.scale)?;
        let dx = match wanted.0 {
            true => Some(added(self.weight.backward_of(&g)?, &t.matmul(&a)?)?),
            false => None,
        };
        let da = wanted.1.then(|| t.t()?.matmul(&x)).transpose()?;
        let u = || x.matmul(&a.t()?)? * self.scale;
        let db = wanted.2.then(|| g.t()?.matmul(&u()?)).transpose()?;
        Ok((dx, da, db))
    }
}

/// `x + y`, made by all threads.
fn added(x: Tensor, y: &Tensor) -> Result<Tensor> {
    by_type!(x.dtype(), T => {
        let sum = with::<T, _, 2>([&x, y], |[x, y]| {
            let mut sum = vec![0.0; x.len()];
            let of = x.par_chunks(PIECE).zip(y.par_chunks(PIECE));
            sum.par_chunks_mut(PIECE).zip(of).for_each(|(sum, (x, y))| {
                sum.iter_mut().zip(x).zip(y).for_each(|((sum, &x), &y)| *sum = x + y);
            });
            sum
        })?;
        let (storage, _) = x.storage_and_layout();
        match &*storage {
            Storage::Cpu(_) => Tensor::from_vec(sum, x.shape(), x.device()),
            _ => bail!("a tensor on another device"),
        }
    })
}
