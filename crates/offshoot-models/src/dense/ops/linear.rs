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
    CpuStorage, CustomOp1, CustomOp3, Device, Layout, Result, Shape, Tensor, WithDType, bail,
};
use rayon::prelude::*;

use super::frozen::Frozen;
use super::real::{Matrix, Output, Real, product, turned};
use super::{by_type, numbers, shaped, suits, with};

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
        return linear_composed(x, &weight, bias, pair);
    }
    let bias = bias.map(|bias| bias.detach().contiguous()).transpose()?;
    let (x, scale) = (x.contiguous()?, pair.map_or(0.0, |pair| pair.scale));
    let op = Linear { weight, bias, scale, own: true };
    match pair {
        None => x.apply_op1(op),
        Some(pair) => x.apply_op3(&pair.a.contiguous()?, &pair.b.contiguous()?, op),
    }
}

/// The same of the tensor library's operations, on any device and of any type.
pub(crate) fn linear_composed(
    x: &Tensor,
    weight: &Frozen,
    bias: Option<&Tensor>,
    pair: Option<&LowRankPair>,
) -> Result<Tensor> {
    let mut y = x.matmul(&weight.whole(x)?.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&bias.to_dtype(x.dtype())?)?;
    }
    let Some(LowRankPair { a, b, scale }) = pair else { return Ok(y) };
    let (a, b) = (a.to_dtype(x.dtype())?, b.to_dtype(x.dtype())?);
    y + (x.matmul(&a.t()?)?.matmul(&b.t()?)? * *scale)?
}

/// The gradients of `x`, `A` and `B`, where they are wanted.
pub(crate) type LinearGradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

/// The product, with all that it is made of but `x`, `A` and `B`.
pub(crate) struct Linear {
    pub(crate) weight: Frozen,
    pub(crate) bias: Option<Tensor>,
    pub(crate) scale: f64,
    /// Whether products are made here, or by the tensor library. The way back is the same either
    /// way: there is no gradient of `W`.
    pub(crate) own: bool,
}

impl Linear {
    /// The product, which remembers nothing.
    pub(crate) fn of(&self, x: &Tensor, pair: Option<&LowRankPair>) -> Result<Tensor> {
        if !self.own {
            return Ok(linear_composed(x, &self.weight, self.bias.as_ref(), pair)?.detach());
        }
        let x = x.contiguous()?;
        match pair {
            None => x.apply_op1_no_bwd(self),
            Some(pair) => x.apply_op3_no_bwd(&pair.a.contiguous()?, &pair.b.contiguous()?, self),
        }
    }

    /// What the gradient `g` of a product without LoRA says of `x`.
    pub(crate) fn input_gradient(&self, g: &Tensor) -> Result<Tensor> {
        if !self.own {
            return g.matmul(&self.weight.whole(g)?);
        }
        let shape = (g.dims2()?.0, self.weight.shape()?.1);
        by_type!(g.dtype(), T => {
            let dx = with::<T, _, 1>([g], |[g]| self.weight.backward(g))??;
            Tensor::from_vec(dx, shape, &Device::Cpu)
        })
    }

    /// What the gradient `g` of the product says of `x` and of `pair`'s `A` and `B`; `wanted` says which
    /// of them.
    pub(crate) fn gradients(
        &self,
        x: &Tensor,
        pair: &LowRankPair,
        g: &Tensor,
        wanted: (bool, bool, bool),
    ) -> Result<LinearGradients> {
        if !self.own {
            return self.library_gradients(x, pair, g, wanted);
        }
        let LowRankPair { a, b, .. } = pair;
        by_type!(x.dtype(), T => {
            let of = [x, a, b, g];
            let found = with::<T, _, 4>(of, |of| self.low_rank_gradients(of, wanted))??;
            let [dx, da, db] = found;
            let made = |numbers: Option<Vec<T>>, like: &Tensor| {
                numbers.map(|numbers| shaped(numbers, like)).transpose()
            };
            Ok((made(dx, x)?, made(da, a)?, made(db, b)?))
        })
    }

    /// The same of the tensor library's products.
    fn library_gradients(
        &self,
        x: &Tensor,
        pair: &LowRankPair,
        g: &Tensor,
        wanted: (bool, bool, bool),
    ) -> Result<LinearGradients> {
        let (x, g) = (x.detach(), g.detach());
        let (a, b) = (pair.a.detach(), pair.b.detach());
        let t = (g.matmul(&b)? * self.scale)?;
        let dx = || self.input_gradient(&g)? + t.matmul(&a)?;
        let da = || t.t()?.matmul(&x);
        let db = || g.t()?.matmul(&(x.matmul(&a.t()?)? * self.scale)?);
        Ok((
            wanted.0.then(dx).transpose()?,
            wanted.1.then(da).transpose()?,
            wanted.2.then(db).transpose()?,
        ))
    }

    fn low_rank_gradients<T: Real>(
        &self,
        [x, a, b, g]: [&[T]; 4],
        wanted: (bool, bool, bool),
    ) -> Result<[Option<Vec<T>>; 3]> {
        let (rows, cols) = self.weight.shape()?;
        let rank = a.len() / cols.max(1);
        let scale = T::near(self.scale);
        let scaled = |mut x: Vec<T>| {
            x.iter_mut().for_each(|x| *x *= scale);
            x
        };
        let tokens = x.len() / cols.max(1);
        let matrix = |numbers, rows, cols, turned| Matrix { numbers, rows, cols, turned };
        let t = scaled(product(g, matrix(b, rank, rows, true)));
        let dx = match wanted.0 {
            true => {
                let mut dx = self.weight.backward(g)?;
                let out = Output { numbers: &mut dx, stride: cols, accumulate: true };
                T::multiply(&t, matrix(a, cols, rank, true), out);
                Some(dx)
            }
            false => None,
        };
        // The few rows of t^T and u^T are what is multiplied, so that `x` and `g` are read once each.
        let da = wanted.1.then(|| product(&turned(&t, rank), matrix(x, cols, tokens, true)));
        let db = wanted.2.then(|| {
            let u = scaled(product(x, matrix(a, rank, cols, false)));
            turned(&product(&turned(&u, rank), matrix(g, rows, tokens, true)), rows)
        });
        Ok([dx, da, db])
    }

    /// `x W^T + bias`.
    fn forward<T: Real>(&self, x: &[T]) -> Result<Vec<T>> {
        let mut y = self.weight.forward(x)?;
        if let Some(bias) = &self.bias {
            let width = self.weight.shape()?.0.max(1);
            let height = (PIECE / width).max(1);
            with::<T, _, 1>([bias], |[bias]| {
                y.par_chunks_mut(width * height).for_each(|y| {
                    for y in y.chunks_exact_mut(width) {
                        y.iter_mut().zip(bias).for_each(|(y, &b)| *y += b);
                    }
                });
            })?;
        }
        Ok(y)
    }

    /// The same and `scale (x A^T) B^T`.
    fn forward_low_rank<T: Real>(&self, x: &[T], a: &[T], b: &[T]) -> Result<Vec<T>> {
        let (rows, cols) = self.weight.shape()?;
        let rank = a.len() / cols.max(1);
        let mut y = self.forward(x)?;
        let mut u = product(x, Matrix { numbers: a, rows: rank, cols, turned: false });
        let scale = T::near(self.scale);
        u.iter_mut().for_each(|u| *u *= scale);
        let b = Matrix { numbers: b, rows, cols: rank, turned: false };
        T::multiply(&u, b, Output { numbers: &mut y, stride: rows, accumulate: true });
        Ok(y)
    }

    fn shape_of(&self, x: &Layout) -> Result<Shape> {
        Ok((x.shape().dims2()?.0, self.weight.shape()?.0).into())
    }

    fn check(&self, x: &Layout) -> Result<()> {
        let (width, cols) = (x.shape().dims2()?.1, self.weight.shape()?.1);
        if width != cols {
            bail!("rows of {width} for a matrix of {cols} columns");
        }
        Ok(())
    }
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "frozen_linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.check(layout)?;
        let y = by_type!(x.dtype(), T => {
            T::to_cpu_storage_owned(self.forward::<T>(numbers(x, layout)?)?)
        });
        Ok((y, self.shape_of(layout)?))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        x.track_op().then(|| self.input_gradient(g)).transpose()
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
        self.check(x_layout)?;
        let cols = x_layout.shape().dims2()?.1;
        let (rows, rank) = b_layout.shape().dims2()?;
        if a_layout.shape().dims2()? != (rank, cols) || self.weight.shape()? != (rows, cols) {
            bail!("A {:?} and B {:?} of a matrix [{rows}, {cols}]", a_layout, b_layout);
        }
        let y = by_type!(x.dtype(), T => {
            let (a, b) = (numbers(a, a_layout)?, numbers(b, b_layout)?);
            T::to_cpu_storage_owned(self.forward_low_rank::<T>(numbers(x, x_layout)?, a, b)?)
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
        let pair = LowRankPair { a: a.clone(), b: b.clone(), scale: self.scale };
        self.gradients(x, &pair, g, wanted)
    }
}

/// `x + y`, made by all threads.
pub(crate) fn added(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if !suits(&[x, y]) || x.dims() != y.dims() {
        return x + y;
    }
    by_type!(x.dtype(), T => {
        let sum = with::<T, _, 2>([x, y], |[x, y]| {
            let mut sum = vec![0.0; x.len()];
            let of = x.par_chunks(PIECE).zip(y.par_chunks(PIECE));
            sum.par_chunks_mut(PIECE).zip(of).for_each(|(sum, (x, y))| {
                sum.iter_mut().zip(x).zip(y).for_each(|((sum, &x), &y)| *sum = x + y);
            });
            sum
        })?;
        Tensor::from_vec(sum, x.shape(), &Device::Cpu)
    })
}
