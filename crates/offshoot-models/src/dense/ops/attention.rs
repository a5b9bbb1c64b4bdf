//! Softmax attention of whole texts with its backward pass: Vaswani et al. 2017, section 3.2.1,
//! <https://arxiv.org/abs/1706.03762>; that the way back computes the shares once more is Dao et al. 2022,
//! section 3.1, <https://arxiv.org/abs/2205.14135>.
//!
//! ```text
//! S = s q k^T         P = softmax(S)         o = P v
//! dv = P^T g          dP = g v^T             dS = s P (dP - sum over t of P dP)
//! dq = dS k           dk = dS^T q
//! ```
//! A row sees itself and what stands before it in its text, `window` rows in all. Head `h` of the
//! queries reads head `h / g` of keys and values.
//!
//! A thread takes one text's one head of keys and the queries that read it, [`ROWS`] rows at a time
//! with the keys that these see: nothing quadratic in the length of a text is ever held. Sums over
//! pieces and over the queries' heads go in ascending order.
//!
//! Axes: n rows, h heads of queries, c heads of keys and values, g = h / c, d width of a head, t keys.
//! Cost: half of `4 n t h d` operations forth, half of `10 n t h d` back.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp3, Device, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};
use rayon::prelude::*;

use super::by_type;
use super::real::{Real, sum};

/// Rows of queries that are scored at a time.
const ROWS: usize = 128;

/// What the rows are.
#[derive(Debug, Clone)]
pub(crate) struct AttentionShape {
    /// Rows of each text, in order.
    pub(crate) lengths: Vec<usize>,
    /// `h`
    pub(crate) heads: usize,
    /// `c`
    pub(crate) kv_heads: usize,
    /// `d`
    pub(crate) head_dim: usize,
    /// Factor of the scores.
    pub(crate) scale: f32,
    /// How many rows a row sees, itself the last.
    pub(crate) window: usize,
}

/// Attention without what it reads.
pub(crate) struct Attention {
    pub(crate) shape: AttentionShape,
}

/// Numbers with the place where they begin.
#[derive(Clone, Copy)]
struct Operand<'a> {
    storage: &'a CpuStorage,
    start: usize,
}

/// A head of keys in a text: its rows and its place.
#[derive(Debug, Clone, Copy)]
struct Task {
    first: usize,
    rows: usize,
    head: usize,
}

/// Some rows of a task: `first..first + rows` of the text, and the first key that one of them sees.
#[derive(Debug, Clone, Copy)]
struct Piece {
    first: usize,
    rows: usize,
    low: usize,
}

impl Piece {
    /// How many keys there are.
    fn keys(&self) -> usize {
        self.first + self.rows - self.low
    }
}

/// Of a task: the gradients of queries `[rows, g d]`, keys and values `[rows, d]`.
type Gradients<T> = [Vec<T>; 3];

impl AttentionShape {
    fn group(&self) -> usize {
        self.heads / self.kv_heads.max(1)
    }

    fn tasks(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        let mut first = 0;
        for &rows in &self.lengths {
            tasks.extend((0..self.kv_heads).map(|head| Task { first, rows, head }));
            first += rows;
        }
        tasks
    }

    fn pieces(&self, rows: usize) -> impl Iterator<Item = Piece> {
        let window = self.window;
        (0..rows).step_by(ROWS).map(move |first| Piece {
            first,
            rows: ROWS.min(rows - first),
            low: (first + 1).saturating_sub(window),
        })
    }

    /// Rows of queries or of the result of a piece, `[g, rows, d]`.
    fn queries(&self, x: Operand<'_>, task: Task, piece: Piece) -> Layout {
        let (d, width) = (self.head_dim, self.heads * self.head_dim);
        let start = x.start + (task.first + piece.first) * width + task.head * self.group() * d;
        // Of a single row the library may take the heads for rows.
        let stride = if piece.rows == 1 { d } else { width };
        Layout::new((self.group(), piece.rows, d).into(), vec![d, stride, 1], start)
    }

    /// Keys or values of a piece, the same for all of the group: `[g, keys, d]`.
    fn keys(&self, x: Operand<'_>, task: Task, piece: Piece) -> Layout {
        let (d, width) = (self.head_dim, self.kv_heads * self.head_dim);
        let start = x.start + (task.first + piece.low) * width + task.head * d;
        Layout::new((self.group(), piece.keys(), d).into(), vec![0, width, 1], start)
    }

    /// The keys that row `row` of a piece sees.
    fn seen(&self, piece: Piece, row: usize) -> std::ops::Range<usize> {
        let end = piece.first + row + 1;
        end.saturating_sub(self.window).max(piece.low) - piece.low..end - piece.low
    }

    /// `P` of a piece, `[g, rows, keys]`, zero where nothing is seen.
    fn shares<T: Real>(
        &self,
        [q, k]: [Operand<'_>; 2],
        task: Task,
        piece: Piece,
    ) -> Result<Vec<T>> {
        let (q_layout, k_layout) = (self.queries(q, task, piece), self.keys(k, task, piece));
        let keys = piece.keys();
        let size = (self.group(), piece.rows, keys, self.head_dim);
        let k_layout = k_layout.transpose(1, 2)?;
        let scores = q.storage.matmul(k.storage, size, &q_layout, &k_layout)?;
        let mut scores: Vec<T> = T::cpu_storage_data(scores)?;
        let scale = T::near(f64::from(self.scale));
        for (row, scores) in scores.chunks_exact_mut(keys.max(1)).enumerate() {
            let seen = self.seen(piece, row % piece.rows);
            scores[..seen.start].fill(T::zero());
            scores[seen.end..].fill(T::zero());
            let scores = &mut scores[seen];
            scores.iter_mut().for_each(|score| *score *= scale);
            T::softmax(scores);
        }
        Ok(scores)
    }

    /// Writes `part`, `[g, rows, d]`, to rows `first..` of `out`, `[.., g d]`.
    fn lay<T: Real>(&self, out: &mut [T], part: &[T], piece: Piece) {
        let (g, d) = (self.group(), self.head_dim);
        for (at, part) in part.chunks_exact(d).enumerate() {
            let (head, row) = (at / piece.rows, at % piece.rows);
            let start = ((piece.first + row) * g + head) * d;
            out[start..start + d].copy_from_slice(part);
        }
    }

    fn forward<T: Real>(&self, [q, k, v]: [Operand<'_>; 3], task: Task) -> Result<Vec<T>> {
        let (g, d) = (self.group(), self.head_dim);
        let mut out = vec![T::zero(); task.rows * g * d];
        for piece in self.pieces(task.rows) {
            let shares = T::to_cpu_storage_owned(self.shares::<T>([q, k], task, piece)?);
            let layout = Layout::contiguous((g, piece.rows, piece.keys()));
            let size = (g, piece.rows, d, piece.keys());
            let v_layout = self.keys(v, task, piece);
            let part = shares.matmul(v.storage, size, &layout, &v_layout)?;
            self.lay(&mut out, T::cpu_storage_as_slice(&part)?, piece);
        }
        Ok(out)
    }

    fn backward<T: Real>(
        &self,
        [q, k, v, o]: [Operand<'_>; 4],
        task: Task,
    ) -> Result<Gradients<T>> {
        let (g, d) = (self.group(), self.head_dim);
        let mut dq = vec![T::zero(); task.rows * g * d];
        let (mut dk, mut dv) = (vec![T::zero(); task.rows * d], vec![T::zero(); task.rows * d]);
        for piece in self.pieces(task.rows) {
            let (rows, keys) = (piece.rows, piece.keys());
            let shares = self.shares::<T>([q, k], task, piece)?;
            let o_layout = self.queries(o, task, piece);
            let v_layout = self.keys(v, task, piece).transpose(1, 2)?;
            let ds = o.storage.matmul(v.storage, (g, rows, keys, d), &o_layout, &v_layout)?;
            let mut ds: Vec<T> = T::cpu_storage_data(ds)?;
            let scale = T::near(f64::from(self.scale));
            for (ds, p) in ds.chunks_exact_mut(keys).zip(shares.chunks_exact(keys)) {
                let mean = sum(keys, |t| p[t] * ds[t]);
                ds.iter_mut().zip(p).for_each(|(ds, &p)| *ds = p * (*ds - mean) * scale);
            }
            let layout = Layout::contiguous((g, rows, keys));
            let turned = layout.transpose(1, 2)?;
            let (shares, ds) = (T::to_cpu_storage_owned(shares), T::to_cpu_storage_owned(ds));
            let k_layout = self.keys(k, task, piece);
            let part = ds.matmul(k.storage, (g, rows, d, keys), &layout, &k_layout)?;
            self.lay(&mut dq, T::cpu_storage_as_slice(&part)?, piece);
            let q_layout = self.queries(q, task, piece);
            let part = ds.matmul(q.storage, (g, keys, d, rows), &turned, &q_layout)?;
            add_heads(&mut dk[piece.low * d..], T::cpu_storage_as_slice(&part)?, keys * d);
            let o_layout = self.queries(o, task, piece);
            let part = shares.matmul(o.storage, (g, keys, d, rows), &turned, &o_layout)?;
            add_heads(&mut dv[piece.low * d..], T::cpu_storage_as_slice(&part)?, keys * d);
        }
        Ok([dq, dk, dv])
    }

    /// Puts what the tasks made of their heads into rows, `width` numbers of each.
    fn gather<T: Real>(&self, parts: &[(Task, &[T])], width: usize) -> Vec<T> {
        let rows: usize = self.lengths.iter().sum();
        let whole = self.kv_heads * width;
        let mut out = vec![T::zero(); rows * whole];
        for (task, part) in parts {
            for (row, part) in part.chunks_exact(width).enumerate() {
                let start = (task.first + row) * whole + task.head * width;
                out[start..start + width].copy_from_slice(part);
            }
        }
        out
    }

    fn check(&self, q: &Layout, k: &Layout, v: &Layout) -> Result<()> {
        let rows: usize = self.lengths.iter().sum();
        let (wide, narrow) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let fit = q.dims() == [rows, wide] && k.dims() == [rows, narrow] && v.dims() == k.dims();
        if !fit || self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            bail!("attention of {:?} to {:?} and {:?}: {self:?}", q.dims(), k.dims(), v.dims());
        }
        Ok(())
    }
}

/// Adds each of the group's parts, of `size` numbers, to `acc`.
fn add_heads<T: Real>(acc: &mut [T], parts: &[T], size: usize) {
    for part in parts.chunks_exact(size) {
        acc.iter_mut().zip(part).for_each(|(acc, &x)| *acc += x);
    }
}

impl Attention {
    /// The attention of `q`, `[n, h d]`, to `k` and `v`, `[n, c d]`: `[n, h d]`, which remembers nothing.
    pub(crate) fn of(&self, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
        q.contiguous()?.apply_op3_no_bwd(&k.contiguous()?, &v.contiguous()?, self)
    }

    /// What the gradient `g` of the result says of queries, keys and values, all contiguous.
    pub(crate) fn gradients(&self, [q, k, v]: [&Tensor; 3], g: &Tensor) -> Result<[Tensor; 3]> {
        let shape = &self.shape;
        let g = g.contiguous()?;
        let guards = [q, k, v, &g].map(|x| x.storage_and_layout());
        let mut operands = Vec::with_capacity(4);
        for (storage, layout) in &guards {
            let Storage::Cpu(storage) = &**storage else { bail!("a tensor on another device") };
            operands.push(Operand { storage, start: layout.start_offset() });
        }
        let operands = [operands[0], operands[1], operands[2], operands[3]];
        by_type!(q.dtype(), T => {
            let tasks = shape.tasks();
            let parts = tasks.par_iter().map(|&task| shape.backward::<T>(operands, task));
            let parts = parts.collect::<Result<Vec<Gradients<T>>>>()?;
            let gathered = |which: usize, width: usize, like: &Tensor| {
                let parts = parts.iter().map(|part| part[which].as_slice());
                let parts: Vec<_> = tasks.iter().copied().zip(parts).collect();
                let numbers = shape.gather(&parts, width);
                Tensor::from_vec(numbers, like.shape(), &Device::Cpu)
            };
            let (d, wide) = (shape.head_dim, shape.group() * shape.head_dim);
            Ok([gathered(0, wide, q)?, gathered(1, d, k)?, gathered(2, d, v)?])
        })
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = &self.shape;
        shape.check(q_layout, k_layout, v_layout)?;
        let operands = [(q, q_layout), (k, k_layout), (v, v_layout)]
            .map(|(storage, layout)| Operand { storage, start: layout.start_offset() });
        by_type!(q.dtype(), T => {
            let tasks = shape.tasks();
            let parts = tasks.par_iter().map(|&task| shape.forward::<T>(operands, task));
            let parts = parts.collect::<Result<Vec<_>>>()?;
            let parts: Vec<_> = tasks.into_iter().zip(parts.iter().map(Vec::as_slice)).collect();
            let out = shape.gather(&parts, shape.group() * shape.head_dim);
            Ok((T::to_cpu_storage_owned(out), q_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _o: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = self.gradients([q, k, v], g)?;
        Ok((Some(dq), Some(dk), Some(dv)))
    }
}
