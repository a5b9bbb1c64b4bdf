//! Low-rank differences of a model's matrices, which the model itself is not changed by.
//!
//! Hu et al. 2021, "LoRA", section 4.1, <https://arxiv.org/abs/2106.09685>; with `A` fixed, Zhang et
//! al. 2023, "LoRA-FA", section 3, <https://arxiv.org/abs/2308.03303>:
//! ```text
//! W' = W + (alpha / r) B A      A [r, cols], B [rows, r]      at first B = 0
//! A ~ U(-1 / sqrt(cols), 1 / sqrt(cols))                      Kaiming's uniform with a = sqrt 5
//! ```
//! Every point is a variant of the model, and variants run side by side in one step: all points read
//! the model's weights once. The base may be quantised.
//!
//! Cost: a point takes as much memory as the differences; a row `2 r (rows + cols)` operations a
//! matrix beside the product's `2 rows cols`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use offshoot_kernels::{Cpu, Distribution, Forming, Forms, Philox, Purpose, form_for, tensor_id};
use offshoot_methods::tune::{Layout, SpaceChoice, SpaceKind, TensorSpec};
use offshoot_models::{
    Blueprint, Hooks, LinearId, LinearSpec, LoraAdapter, LowRank, PackedAdapters, PackedModel,
    SegmentRows, VariantId,
};
use serde::{Deserialize, Serialize};

use super::around::{Around, lanes_of};
use super::parameters::Parameters;
use crate::Error;

/// What is added to which matrices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraOptions {
    /// `r`. MeZO's 8.
    pub rank: usize,
    /// `alpha`. MeZO's 16.
    pub alpha: f32,
    /// The last parts of the names of the matrices, `q_proj`. MeZO's: queries and values.
    pub targets: Vec<String>,
    /// Whether `A` stays as it is drawn, as in LoRA-FA.
    pub fixed_a: bool,
    /// What activations are in the base's products.
    pub activations: Activations,
    /// Draws `A` and the directions.
    #[serde(skip)]
    pub seed: u64,
    /// How directions are drawn.
    #[serde(skip)]
    pub distribution: Distribution,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            targets: vec!["q_proj".to_owned(), "v_proj".to_owned()],
            fixed_a: false,
            activations: Activations::Float,
            seed: 0,
            distribution: Distribution::default(),
        }
    }
}

/// A model and the low-rank differences of some of its matrices.
#[derive(Debug)]
pub struct LoraSpace {
    model: Arc<PackedModel>,
    matrices: Vec<Matrix>,
    parameters: Parameters,
    /// By matrix, if they are not tuned.
    fixed: Vec<Vec<f32>>,
    options: LoraOptions,
    /// Whether the base has matrices that round what they multiply.
    can_round: bool,
    hooks: Reached,
}

/// Adds the differences, and keeps the base's products from rounding their inputs.
#[derive(Debug)]
struct Reached {
    adapters: PackedAdapters,
    floats: bool,
}

impl Hooks for Reached {
    fn adds(&self, linear: LinearId, variant: VariantId) -> bool {
        self.adapters.adds(linear, variant)
    }

    fn addend(&mut self, linear: LinearId, rows: SegmentRows, x: &[f32], y: &mut [f32]) {
        self.adapters.addend(linear, rows, x, y);
    }

    fn forming(&self, _: LinearId) -> Option<Forming<'_>> {
        self.floats.then(Forming::default)
    }
}

/// What activations are in the products of the base's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// Single precision, whatever the weights' format.
    #[default]
    Float,
    /// What the weights' format takes, as where the model serves: faster, and noise that may drown what
    /// two points differ by.
    Stored,
}

/// A matrix with a difference, and where its factors are among the parameters.
#[derive(Debug, Clone)]
struct Matrix {
    name: String,
    a: Option<usize>,
    b: usize,
}

impl LoraSpace {
    /// Differences of zero of the matrices of `model`.
    ///
    /// # Errors
    /// [`Error::Training`] if the options are out of bounds or no matrix has one of the names.
    pub fn new(cpu: &Cpu, model: Arc<PackedModel>, options: &LoraOptions) -> Result<Self, Error> {
        let rank = options.rank;
        if !(1..=1 << 14).contains(&rank) || !options.alpha.is_finite() {
            let alpha = options.alpha;
            let what =
                format!("lora: rank {rank} and alpha {alpha}: expected 1 to 16384, and a number");
            return Err(Error::Training(what));
        }
        let chosen = chosen(model.blueprint(), &options.targets)?;
        let mut tensors = BTreeMap::new();
        let mut fixed = Vec::new();
        for linear in &chosen {
            let a = initial_a(linear, options);
            let layer = layer_of(&linear.name);
            let spec = |half, rows, cols| TensorSpec {
                name: format!("{}.{half}.weight", linear.name),
                rows,
                cols,
                layer,
                vector: false,
            };
            match options.fixed_a {
                true => fixed.push(a),
                false => drop(insert(&mut tensors, spec("lora_A", rank, linear.cols), a)),
            }
            let b = vec![0.0; linear.rows * rank];
            insert(&mut tensors, spec("lora_B", linear.rows, rank), b);
        }
        let place = |name: String| tensors.keys().position(|other| *other == name);
        let matrix = |linear: &&LinearSpec| Matrix {
            name: linear.name.clone(),
            a: place(format!("{}.lora_A.weight", linear.name)),
            b: place(format!("{}.lora_B.weight", linear.name)).unwrap_or_default(),
        };
        let matrices = chosen.iter().map(matrix).collect();
        let (specs, values) = tensors.into_values().unzip();
        let layout = Layout { tensors: specs };
        let adapters = PackedAdapters::new(cpu, model.blueprint(), &[])?;
        let can_round = model.checkpoint().tensors().any(|t| form_for(t.block) != Forms::default());
        let floats = can_round && options.activations == Activations::Float;
        let hooks = Reached { adapters, floats };
        Ok(Self {
            matrices,
            parameters: Parameters::new(cpu, layout, values, options.seed, options.distribution)?,
            fixed,
            options: options.clone(),
            can_round,
            hooks,
            model,
        })
    }

    /// The differences as they are.
    pub fn adapter(&self) -> LoraAdapter {
        self.of(self.parameters.values())
    }

    /// The differences that `values` of the parameters make.
    fn of(&self, values: &[Vec<f32>]) -> LoraAdapter {
        let low = |(i, matrix): (usize, &Matrix)| {
            let a = matrix.a.map_or_else(|| &self.fixed[i], |a| &values[a]);
            let b = values[matrix.b].clone();
            let rows = self.parameters.layout().tensors[matrix.b].rows;
            let rank = b.len() / rows;
            (
                matrix.name.clone(),
                LowRank {
                    rank,
                    scale: self.options.alpha / self.options.rank as f32,
                    a: a.clone(),
                    b,
                },
            )
        };
        LoraAdapter { matrices: self.matrices.iter().enumerate().map(low).collect() }
    }
}

type Named = BTreeMap<String, (TensorSpec, Vec<f32>)>;

fn insert(tensors: &mut Named, spec: TensorSpec, values: Vec<f32>) -> Option<()> {
    tensors.insert(spec.name.clone(), (spec, values)).map(drop)
}

/// The matrices that `targets` name: none of experts, whose rows are too few, and not the head, whose
/// matrix may be the embedding's.
pub(super) fn chosen<'b>(
    blueprint: &'b Blueprint,
    targets: &[String],
) -> Result<Vec<&'b LinearSpec>, Error> {
    let body = blueprint.linears.len().saturating_sub(1);
    let last = |linear: &LinearSpec| linear.name.rsplit('.').next().unwrap_or("").to_owned();
    let linears = blueprint.linears[..body].iter().filter(|linear| !linear.routed);
    let chosen: Vec<_> = linears.clone().filter(|linear| targets.contains(&last(linear))).collect();
    let missing = targets.iter().find(|target| !chosen.iter().any(|l| last(l) == **target));
    if missing.is_some() || chosen.is_empty() {
        let mut names: Vec<String> = linears.map(last).collect();
        names.sort_unstable();
        names.dedup();
        return Err(Error::Training(format!(
            "no matrix of the model is called {:?}: there are {}",
            missing.map_or("", String::as_str),
            names.join(", ")
        )));
    }
    Ok(chosen)
}

/// `A` as it is drawn, in row-major order.
fn initial_a(linear: &LinearSpec, options: &LoraOptions) -> Vec<f32> {
    let tensor = tensor_id(&format!("{}.lora_A.weight", linear.name));
    let bound = 1.0 / (linear.cols as f32).sqrt();
    let key = Philox::key(options.seed);
    let draw = |element: usize| {
        let counter = [(element / 4) as u32, tensor, 0, (Purpose::Initial as u32) << 24];
        let word = Philox::block(key, counter)[element % 4];
        // The middles of 2^23 cells of (0, 1), so that no bit is rounded.
        let unit = ((word >> 9) as f32 + 0.5) / (1u32 << 23) as f32;
        bound * (2.0 * unit - 1.0)
    };
    (0..options.rank * linear.cols).map(draw).collect()
}

/// The layer that a name of a tensor speaks of.
pub(crate) fn layer_of(name: &str) -> Option<usize> {
    let (_, rest) = name.split_once("layers.")?;
    rest.split('.').next()?.parse().ok()
}

impl Around for LoraSpace {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    fn kind(&self) -> SpaceKind {
        SpaceKind::Lora
    }

    fn choice(&self) -> SpaceChoice {
        let options = serde_json::to_value(&self.options).unwrap_or_default();
        SpaceChoice { name: "lora".to_owned(), options }
    }

    fn model(&self) -> &PackedModel {
        &self.model
    }

    fn lanes(&self) -> usize {
        let fixed: usize = self.fixed.iter().map(Vec::len).sum();
        lanes_of(self.parameters.layout().elements() + fixed)
    }

    fn adapters(&self, points: &[Vec<Vec<f32>>]) -> Option<Vec<LoraAdapter>> {
        Some(points.iter().map(|values| self.of(values)).collect())
    }

    fn stand(&mut self, points: Vec<Vec<Vec<f32>>>) -> Result<(), Error> {
        let adapters: Vec<LoraAdapter> = points.iter().map(|values| self.of(values)).collect();
        drop(points);
        let packed = |adapters: &[LoraAdapter]| {
            PackedAdapters::new(self.parameters.cpu(), self.model.blueprint(), adapters)
        };
        // The points before go first.
        self.hooks.adapters = packed(&[])?;
        self.hooks.adapters = packed(&adapters)?;
        Ok(())
    }

    fn with_hooks(
        &mut self,
        run: &mut dyn FnMut(&PackedModel, &mut dyn Hooks) -> Result<(), Error>,
    ) -> Result<(), Error> {
        run(&self.model, &mut self.hooks)
    }

    fn rounds(&self) -> bool {
        self.can_round && !self.hooks.floats
    }

    fn set_rounding(&mut self, rounds: bool) {
        self.hooks.floats = self.can_round && !rounds;
    }

    fn write_variant(&self, folder: &Path) -> Result<(), Error> {
        super::super::variant::write_adapter(folder, &self.adapter(), &self.model)
    }
}
