//! Adapters in steps of the packed executor.

use offshoot_kernels::{Activations, BlockType, Cpu, PackedMatrix, Product, form_for, multiply};

use super::{Hooks, SegmentRows};
use crate::{Blueprint, Error, LinearId, LoraAdapter, VariantId};

/// The differences of variants 1, 2, ... packed for the kernels: variant `i` is adapter `i - 1`. Added
/// in single precision, a row like no other: its sums do not depend on the rows beside it.
#[derive(Debug)]
pub struct PackedAdapters {
    cpu: Cpu,
    /// By variant, then by matrix.
    variants: Vec<Vec<Option<Pair>>>,
    input: Activations,
    inner: Vec<f32>,
    inner_input: Activations,
}

#[derive(Debug)]
struct Pair {
    /// `A`, `[rank, cols]`.
    a: PackedMatrix,
    /// `s B`, `[rows, rank]`.
    b: PackedMatrix,
}

impl PackedAdapters {
    /// Packs `adapters` for the model that asks for `blueprint`.
    ///
    /// # Errors
    /// [`Error::Adapter`] if one changes a matrix that the model does not have, or has of another
    /// shape.
    pub fn new(cpu: &Cpu, blueprint: &Blueprint, adapters: &[LoraAdapter]) -> Result<Self, Error> {
        let packed = |adapter: &LoraAdapter| {
            let mut pairs: Vec<Option<Pair>> = blueprint.linears.iter().map(|_| None).collect();
            for (id, low) in adapter.by_matrix(blueprint)? {
                let linear = &blueprint.linears[id.index()];
                let scaled: Vec<f32> = low.b.iter().map(|x| low.scale * x).collect();
                pairs[id.index()] = Some(Pair {
                    a: pack(cpu, (low.rank, linear.cols), &low.a)?,
                    b: pack(cpu, (linear.rows, low.rank), &scaled)?,
                });
            }
            Ok(pairs)
        };
        Ok(Self {
            cpu: cpu.clone(),
            variants: adapters.iter().map(packed).collect::<Result<_, Error>>()?,
            input: Activations::new(),
            inner: Vec::new(),
            inner_input: Activations::new(),
        })
    }
}

fn pack(cpu: &Cpu, (rows, cols): (usize, usize), values: &[f32]) -> Result<PackedMatrix, Error> {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let row = |r: usize| &bytes[4 * r * cols..4 * (r + 1) * cols];
    let packed = PackedMatrix::pack(cpu, BlockType::F32, (rows, cols), row);
    packed.map_err(|e| Error::Adapter(e.to_string()))
}

fn fill(cpu: &Cpu, input: &mut Activations, width: usize, x: &[f32]) {
    let shape = (x.len() / width, width);
    input.fill(cpu, shape, form_for(BlockType::F32), |row, out| {
        out.copy_from_slice(&x[row * width..(row + 1) * width]);
    });
}

/// What `variant` adds to `linear`.
fn pair(variants: &[Vec<Option<Pair>>], linear: LinearId, variant: VariantId) -> Option<&Pair> {
    let at = (variant.0 as usize).checked_sub(1)?;
    variants.get(at)?.get(linear.index())?.as_ref()
}

impl Hooks for PackedAdapters {
    fn adds(&self, linear: LinearId, variant: VariantId) -> bool {
        pair(&self.variants, linear, variant).is_some()
    }

    fn addend(&mut self, linear: LinearId, rows: SegmentRows, x: &[f32], y: &mut [f32]) {
        let Some(Pair { a, b }) = pair(&self.variants, linear, rows.variant) else { return };
        let rank = a.rows();
        fill(&self.cpu, &mut self.input, a.cols(), x);
        self.inner.resize(rows.rows * rank, 0.0);
        let out = &mut self.inner[..];
        let product = Product { weights: a, bias: None, accumulate: false, out };
        multiply(&self.cpu, &self.input, &mut [product]);
        fill(&self.cpu, &mut self.inner_input, rank, &self.inner);
        let product = Product { weights: b, bias: None, accumulate: true, out: y };
        multiply(&self.cpu, &self.inner_input, &mut [product]);
    }
}
