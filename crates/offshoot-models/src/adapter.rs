//! A variant of a model as what is added to it: positions before every text (`virtual_tokens.rs`),
//! multiples of its scales (`scales.rs`), or low-rank differences of its matrices.
//!
//! Hu et al. 2021, "LoRA", section 4.1, <https://arxiv.org/abs/2106.09685>: a matrix `W` of the base
//! becomes
//! ```text
//! W' = W + s B A        A [r, cols], B [rows, r]        s = alpha / r
//! ```
//! or, with rank-stabilised scaling (Kalajdzievski 2023, <https://arxiv.org/abs/2312.03732>),
//! `s = alpha / sqrt(r)`. The base's weights stay as they are and are shared by all variants; a step
//! adds `s B (A x)` to the products `W x` of the rows that run as the variant.

use std::collections::{BTreeMap, HashMap};

use crate::{Blueprint, Error, LinearId, ScaleFactors, VirtualTokens};

/// The difference of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// `r`, at least 1.
    pub rank: usize,
    /// `s`.
    pub scale: f32,
    /// `A`, `[rank, cols]`.
    pub a: Vec<f32>,
    /// `B`, `[rows, rank]`.
    pub b: Vec<f32>,
}

impl LowRank {
    /// Adds `s B A` to `weights`, which are row `row` of `W`. `sum` has as many places, and is written
    /// over.
    pub(crate) fn add_row(&self, row: usize, sum: &mut [f32], weights: &mut [f32]) {
        sum.fill(0.0);
        let rows = self.a.chunks(weights.len());
        for (b, a) in self.b[row * self.rank..(row + 1) * self.rank].iter().zip(rows) {
            sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
        }
        weights.iter_mut().zip(&*sum).for_each(|(weight, sum)| *weight += self.scale * sum);
    }
}

/// The differences of a variant, by the canonical names of the matrices, as in
/// [`crate::LinearSpec::name`]. Their shapes are those that the model's architecture asks for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoraAdapter {
    /// What is added to which matrix.
    pub matrices: BTreeMap<String, LowRank>,
}

/// What a variant adds to its base, whose weights stay as they are.
#[derive(Debug, Clone, PartialEq)]
pub enum Adapter {
    /// Differences of matrices.
    Lora(LoraAdapter),
    /// Positions before every text.
    Virtual(VirtualTokens),
    /// Multiples of the scales of quantised matrices.
    Scales(ScaleFactors),
}

impl Adapter {
    /// The differences of matrices, if it is those.
    pub fn lora(&self) -> Option<&LoraAdapter> {
        match self {
            Self::Lora(adapter) => Some(adapter),
            Self::Virtual(_) | Self::Scales(_) => None,
        }
    }

    /// The positions before every text, if it is those.
    pub fn virtual_tokens(&self) -> Option<&VirtualTokens> {
        match self {
            Self::Virtual(tokens) => Some(tokens),
            Self::Lora(_) | Self::Scales(_) => None,
        }
    }

    /// The multiples of scales, if it is those.
    pub fn scales(&self) -> Option<&ScaleFactors> {
        match self {
            Self::Scales(factors) => Some(factors),
            Self::Lora(_) | Self::Virtual(_) => None,
        }
    }

    /// How many positions stand before every text.
    pub fn positions_before(&self) -> usize {
        self.virtual_tokens().map_or(0, VirtualTokens::tokens)
    }

    /// A short name of what it adds, by all its numbers.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        match self {
            Self::Lora(adapter) => adapter.hash(&mut hasher),
            Self::Scales(factors) => factors.hash(&mut hasher),
            Self::Virtual(tokens) => {
                hasher.update(format!("{:?}", tokens.kind()).as_bytes());
                for number in tokens.numbers() {
                    hasher.update(&number.to_le_bytes());
                }
            }
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// Bytes of its numbers in single precision.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Lora(adapter) => adapter.bytes(),
            Self::Scales(factors) => 4 * factors.count(),
            Self::Virtual(tokens) => 4 * tokens.numbers().len(),
        }
    }
}

impl LoraAdapter {
    /// The differences by the matrices of `blueprint`.
    ///
    /// # Errors
    /// [`Error::Adapter`] if a matrix is missing there or has another shape.
    pub(crate) fn by_matrix<'a>(
        &'a self,
        blueprint: &Blueprint,
    ) -> Result<Vec<(LinearId, &'a LowRank)>, Error> {
        let places = blueprint.linears.iter().map(|linear| linear.name.as_str());
        let places: HashMap<&str, usize> = places.zip(0..).collect();
        let one = |(name, low): (&String, &'a LowRank)| {
            let wrong = |what: &str| Error::Adapter(format!("matrix {name}: {what}"));
            let id = places.get(name.as_str()).copied().map(LinearId);
            let id = id.ok_or_else(|| wrong("the model has none"))?;
            let linear = &blueprint.linears[id.index()];
            let fits =
                low.a.len() == low.rank * linear.cols && low.b.len() == linear.rows * low.rank;
            match fits && low.rank > 0 {
                true => Ok((id, low)),
                false => Err(wrong("of another shape than the model's")),
            }
        };
        self.matrices.iter().map(one).collect()
    }

    fn hash(&self, hasher: &mut blake3::Hasher) {
        for (name, low) in &self.matrices {
            hasher.update(name.as_bytes()).update(&(low.rank as u64).to_le_bytes());
            for number in low.a.iter().chain(&low.b).chain([&low.scale]) {
                hasher.update(&number.to_le_bytes());
            }
        }
    }

    /// Bytes of the differences in single precision.
    fn bytes(&self) -> usize {
        self.matrices.values().map(|m| 4 * (m.a.len() + m.b.len())).sum()
    }
}
