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

use offshoot_kernels::{Cpu, Distribution, Philox, Purpose, tensor_id};
use offshoot_methods::tune::{Layout, Probe, TensorSpec, Update};
use offshoot_models::{
    Blueprint, Hooks, LinearSpec, LoraAdapter, LowRank, PackedAdapters, PackedModel,
};

use super::Space;
use super::parameters::Parameters;
use crate::Error;

/// Points that stand beside the weights at once.
const LANES: usize = 32;

/// What is added to which matrices.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    /// `r`. MeZO's 8.
    pub rank: usize,
    /// `alpha`. MeZO's 16.
    pub alpha: f32,
    /// The last parts of the names of the matrices, `q_proj`. MeZO's: queries and values.
    pub targets: Vec<String>,
    /// Whether `A` stays as it is drawn, as in LoRA-FA.
    pub fixed_a: bool,
    /// Draws `A` and the directions.
    pub seed: u64,
    /// How directions are drawn.
    pub distribution: Distribution,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            targets: vec!["q_proj".to_owned(), "v_proj".to_owned()],
            fixed_a: false,
            seed: 0,
            distribution: Distribution::default(),
        }
    }
}

/// A model and the low-rank differences of some of its matrices.
#[derive(Debug)]
pub struct LoraSpace {
    cpu: Cpu,
    model: Arc<PackedModel>,
    matrices: Vec<Matrix>,
    parameters: Parameters,
    /// By matrix, if they are not tuned.
    fixed: Vec<Vec<f32>>,
    scale: f32,
    hooks: PackedAdapters,
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
        let LoraOptions { rank, alpha, .. } = *options;
        let chosen = chosen(model.blueprint(), options)?;
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
        let hooks = PackedAdapters::new(cpu, model.blueprint(), &[])?;
        Ok(Self {
            cpu: cpu.clone(),
            matrices,
            parameters: Parameters::new(layout, values, options.seed, options.distribution)?,
            fixed,
            scale: alpha / rank as f32,
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
            (matrix.name.clone(), LowRank { rank, scale: self.scale, a: a.clone(), b })
        };
        LoraAdapter { matrices: self.matrices.iter().enumerate().map(low).collect() }
    }
}

type Named = BTreeMap<String, (TensorSpec, Vec<f32>)>;

fn insert(tensors: &mut Named, spec: TensorSpec, values: Vec<f32>) -> Option<()> {
    tensors.insert(spec.name.clone(), (spec, values)).map(drop)
}

/// The matrices that the options name: none of experts, whose rows are too few, and not the head, whose
/// matrix may be the embedding's.
fn chosen<'b>(
    blueprint: &'b Blueprint,
    options: &LoraOptions,
) -> Result<Vec<&'b LinearSpec>, Error> {
    let LoraOptions { rank, alpha, targets, .. } = options;
    if !(1..=1 << 14).contains(rank) || !alpha.is_finite() {
        let what =
            format!("lora: rank {rank} and alpha {alpha}: expected 1 to 16384, and a number");
        return Err(Error::Training(what));
    }
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
            "lora: no matrix of the model is called {:?}: there are {}",
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
pub(super) fn layer_of(name: &str) -> Option<usize> {
    let (_, rest) = name.split_once("layers.")?;
    rest.split('.').next()?.parse().ok()
}

impl Space for LoraSpace {
    fn layout(&self) -> &Layout {
        self.parameters.layout()
    }

    fn seed(&self) -> u64 {
        self.parameters.seed()
    }

    fn distribution(&self) -> Distribution {
        self.parameters.distribution()
    }

    fn model(&self) -> &PackedModel {
        &self.model
    }

    fn read(&self, tensor: usize, out: &mut [f32]) -> Result<(), Error> {
        self.parameters.read(tensor, out)
    }

    fn write(&mut self, tensor: usize, values: &[f32]) -> Result<(), Error> {
        self.parameters.write(tensor, values)
    }

    fn apply(&mut self, update: &Update) -> Result<(), Error> {
        self.parameters.apply(update)
    }

    fn lanes(&self) -> usize {
        LANES
    }

    fn stand_at(&mut self, probes: &[Probe]) -> Result<(), Error> {
        if probes.len() > LANES {
            let n = probes.len();
            return Err(Error::Training(format!("{n} points at once, where {LANES} can stand")));
        }
        let at = |probe: &Probe| Ok(self.of(&self.parameters.at(probe)?));
        let adapters = probes.iter().map(at).collect::<Result<Vec<_>, Error>>()?;
        self.hooks = PackedAdapters::new(&self.cpu, self.model.blueprint(), &adapters)?;
        Ok(())
    }

    fn parts(&mut self) -> (&PackedModel, &mut dyn Hooks) {
        (&self.model, &mut self.hooks)
    }

    fn write_variant(&self, folder: &Path) -> Result<(), Error> {
        super::super::variant::write_adapter(folder, &self.adapter(), &self.model)
    }
}
