//! A model's own weights, all of them or those of some names.
//!
//! The weights are held in floats, dequantised where they were quantised, and in tiles: what a point adds to
//! them is made and added where a tile is multiplied, so that no weight changes but by an update. One point
//! is evaluated at a time, each over all texts of a step.
//!
//! Matrices are stored in single precision or, in half the memory, in bfloat16 (`store`), which points widen
//! before they add. An update is computed in single precision and rounded by chance, up or down so that its
//! expectation is what was computed: at the usual learning rates nearly every change is far below half a step
//! of bfloat16's grid, and rounding to nearest would lose it. Chance is the generator of directions, by seed,
//! step and element, so a run is made again to the bit. A weight then moves by whole steps of the grid, at most
//! 2^-7 of it, as often as its updates add up to one: noise that single precision does not have. Weights of a
//! base in a finer format are rounded to nearest first. Vectors, norms and biases, stay in single precision.
//!
//! They may lie in a file instead, from which steps read them layer by layer: the same bits, in the memory
//! of a few layers. All points of a step go through a layer before the next is read, and an update is kept
//! in mind until the next step reads the weights. So a step of tuning reads the file once and writes it
//! once, as far as the rows of its points fit [`StepLimits`](super::super::StepLimits); an embedding that
//! is the output head too is read twice.
//!
//! Cost: four bytes a weight, or two, and nothing beside that grows with the model; an embedding that is the
//! output head too is one tensor, moved along one direction in both uses.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_kernels::{Change, Compute, Cpu, Distribution, FloatStore, Traffic};
use offshoot_methods::tune::{Layout, Probe, SpaceChoice, SpaceKind, TensorSpec, Term, Update};
use offshoot_models::{
    Checkpoint, PackedExecutor, PackedModel, StagedStep, Tensor, TrainableModel, TrainableTensor,
};
use onig::{MatchParam, Regex, SearchOptions};
use serde::{Deserialize, Serialize};

use super::super::dense::{Brought, DensePoints};
use super::super::entries::{Drawn, Entries, terms};
use super::{Space, other_length};
use crate::Error;

/// Longest pattern of names.
const PATTERN_CHARS: usize = 512;
/// Steps back that a pattern may take on a name.
const RETRIES: u32 = 10_000;
/// Points whose steps go side by side where weights are read from a disk.
const LANES: usize = 32;

/// Which weights are tuned, and how products with them are computed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FullOptions {
    /// A regular expression that finds something in the names of tensors that are tuned; all are if
    /// there is none.
    pub train: Option<String>,
    /// One that finds something in the names of those that are not.
    pub freeze: Option<String>,
    /// Whether products are computed in bfloat16, whatever weights are stored as.
    pub bfloat16: bool,
    /// What matrices are stored as: the trajectory's header has it.
    #[serde(skip)]
    pub store: FloatStore,
    /// The folder on whose disk the matrices are kept, if not in memory.
    #[serde(skip)]
    pub folder: Option<PathBuf>,
    /// Draws the directions.
    #[serde(skip)]
    pub seed: u64,
    /// How directions are drawn.
    #[serde(skip)]
    pub distribution: Distribution,
}

/// A model whose weights change.
#[derive(Debug)]
pub struct FullSpace {
    cpu: Cpu,
    model: TrainableModel,
    options: FullOptions,
    layout: Layout,
    /// Of each tensor of the layout, its number among the model's.
    tensors: Vec<usize>,
    entries: Entries,
    /// Of each point that stands, what it adds to each tensor of the model.
    points: Vec<Vec<Vec<Drawn>>>,
    pending: Option<Pending>,
    /// How often the weights have changed.
    changes: u64,
}

/// An update that is not yet made to all tensors.
#[derive(Debug)]
struct Pending {
    update: Update,
    /// The step that it ends.
    step: u32,
    /// Of each tensor of the layout whether it is still to be changed.
    left: Vec<bool>,
    /// Whether a change failed half way, so that a tensor is neither what it was nor what it will be.
    half_made: bool,
}

impl FullSpace {
    /// The weights of `checkpoint`, in the floats that they are stored as.
    ///
    /// # Errors
    /// [`Error::Training`] if a pattern is wrong or nothing is left to be tuned; [`Error::Model`] as
    /// [`TrainableModel::load`].
    pub fn new(
        cpu: &Cpu,
        checkpoint: Arc<Checkpoint>,
        options: &FullOptions,
    ) -> Result<Self, Error> {
        let (train, freeze) = (pattern(&options.train)?, pattern(&options.freeze)?);
        let model =
            TrainableModel::load_in(checkpoint, cpu, options.store, options.folder.as_deref())?;
        let mut tensors = Vec::new();
        for (i, tensor) in model.tensors().iter().enumerate() {
            let tuned = train.as_ref().map_or(Ok(true), |train| found(train, &tensor.name))?;
            let frozen = freeze.as_ref().map_or(Ok(false), |freeze| found(freeze, &tensor.name))?;
            if tuned && !frozen {
                tensors.push(i);
            }
        }
        if tensors.is_empty() {
            let names = model.tensors().iter().take(3).map(|tensor| tensor.name.as_str());
            let names = names.collect::<Vec<_>>().join(", ");
            let what = format!("--train and --freeze leave no tensor to tune of {names}, ...");
            return Err(Error::Training(what));
        }
        let spec = |&i: &usize| {
            let TrainableTensor { name, rows, cols, layer, vector } = model.tensors()[i].clone();
            TensorSpec { name, rows, cols, layer, vector }
        };
        let layout = Layout { tensors: tensors.iter().map(spec).collect() };
        let entries = Entries::new(&layout, options.seed, options.distribution)?;
        let (cpu, options, points) = (cpu.clone(), options.clone(), Vec::new());
        Ok(Self {
            cpu,
            model,
            options,
            layout,
            tensors,
            entries,
            points,
            pending: None,
            changes: 1,
        })
    }

    /// Whether the weights lie in a file.
    fn on_disk(&self) -> bool {
        self.options.folder.is_some()
    }

    /// Whether an update of tensor `tensor` of the layout is still to be made.
    fn owes(&self, tensor: usize) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.left.get(tensor) == Some(&true))
    }

    /// Bytes of the weights of `checkpoint` whose matrices are stored as `store`.
    pub fn weight_bytes(checkpoint: &Checkpoint, store: FloatStore) -> u64 {
        checkpoint.tensors().map(|tensor| Self::tensor_bytes(&tensor, store)).sum()
    }

    /// The same of one of its tensors.
    pub fn tensor_bytes(tensor: &Tensor<'_>, store: FloatStore) -> u64 {
        let store = if tensor.info.shape.len() == 1 { FloatStore::F32 } else { store };
        (store.bytes() * tensor.len()) as u64
    }

    /// The model with its weights as they are.
    pub fn trainable(&self) -> &TrainableModel {
        &self.model
    }
}

impl Pending {
    /// Makes it to tensor `tensor` of `layout`, number `at` of `model`, unless that is done. What failed half
    /// way is not tried again: a part of it would be done twice. Weights that are all written anew, as by
    /// a restored checkpoint, are whole again.
    fn make(
        &mut self,
        tensor: usize,
        (model, at): (&mut TrainableModel, usize),
        (cpu, entries, layout): (&Cpu, &mut Entries, &Layout),
    ) -> Result<(), Error> {
        if !self.left[tensor] {
            return Ok(());
        }
        if std::mem::replace(&mut self.half_made, true) {
            let what = "an update of the weights failed half way: go on from the last checkpoint";
            return Err(Error::Training(what.to_owned()));
        }
        let checkpoint = Arc::clone(model.model().checkpoint());
        let spec = &layout.tensors[tensor];
        let first = || first_numbers(&checkpoint, &spec.name, (spec.rows, spec.cols));
        let rounding = entries.rounding(tensor, self.step);
        let change = &mut |change: &Change<'_>| Ok(model.update(cpu, at, change, &rounding)?);
        entries.change(tensor, &self.update, &first, change)?;
        (self.half_made, self.left[tensor]) = (false, false);
        Ok(())
    }
}

fn pattern(text: &Option<String>) -> Result<Option<Regex>, Error> {
    let Some(text) = text else { return Ok(None) };
    let wrong = |what: &str| {
        let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
        Error::Training(format!("pattern \"{shown}\": {what}"))
    };
    if text.chars().count() > PATTERN_CHARS {
        return Err(wrong("too long"));
    }
    Regex::new(text).map(Some).map_err(|_| wrong("no regular expression"))
}

/// Whether `pattern` finds something in `name`.
fn found(pattern: &Regex, name: &str) -> Result<bool, Error> {
    let mut bounds = MatchParam::default();
    bounds.set_retry_limit_in_match(RETRIES);
    let options = SearchOptions::SEARCH_OPTION_NONE;
    let found = pattern.search_with_param(name, 0, name.len(), options, None, bounds);
    found.map(|at| at.is_some()).map_err(|_| {
        Error::Training(format!("a pattern of names takes too long to match {name}: simplify it"))
    })
}

/// The numbers of tensor `name` of `checkpoint`, of so many rows and columns, row by row.
fn first_numbers(
    checkpoint: &Checkpoint,
    name: &str,
    (rows, cols): (usize, usize),
) -> Result<Vec<f32>, Error> {
    let tensor = checkpoint.require(name)?;
    let mut all = vec![0.0; rows * cols];
    for (row, out) in all.chunks_exact_mut(cols).enumerate() {
        tensor.read_row(row, out)?;
    }
    Ok(all)
}

impl Space for FullSpace {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn seed(&self) -> u64 {
        self.entries.seed()
    }

    fn distribution(&self) -> Distribution {
        self.entries.distribution()
    }

    fn draw_from(&mut self, seed: u64, distribution: Distribution) -> Result<(), Error> {
        self.settle()?;
        self.entries.draw_from(seed, distribution);
        self.changes += 1;
        Ok(())
    }

    fn kind(&self) -> SpaceKind {
        SpaceKind::Full
    }

    fn choice(&self) -> SpaceChoice {
        let options = serde_json::to_value(&self.options).unwrap_or_default();
        SpaceChoice { name: "full".to_owned(), options }
    }

    fn store(&self) -> FloatStore {
        self.options.store
    }

    fn model(&self) -> &PackedModel {
        self.model.model()
    }

    fn read_rows(&self, tensor: usize, first: usize, out: &mut [f32]) -> Result<(), Error> {
        let of = self.tensors.get(tensor).zip(self.layout.tensors.get(tensor));
        let of = of.filter(|(_, spec)| out.len().is_multiple_of(spec.cols));
        let (&at, spec) = of.ok_or_else(|| other_length(tensor, out.len()))?;
        if self.owes(tensor) {
            let what = format!("{} is read before the last step's update is made", spec.name);
            return Err(Error::Training(what));
        }
        for (row, out) in (first..).zip(out.chunks_exact_mut(spec.cols)) {
            self.model.read_row(at, row, out)?;
        }
        self.model.release(at);
        Ok(())
    }

    fn write(&mut self, tensor: usize, values: &[f32]) -> Result<(), Error> {
        let at = self.tensors.get(tensor).copied().unwrap_or(usize::MAX);
        // Whatever was still to be done to it is written over.
        if let Some(left) = self.pending.as_mut().and_then(|p| p.left.get_mut(tensor)) {
            *left = false;
        }
        self.changes += 1;
        Ok(self.model.write(&self.cpu, at, values)?)
    }

    fn apply(&mut self, step: u32, update: &Update) -> Result<(), Error> {
        self.entries.check(update.terms())?;
        self.settle()?;
        self.changes += 1;
        let left = vec![true; self.tensors.len()];
        self.pending = Some(Pending { update: update.clone(), step, left, half_made: false });
        if self.on_disk() { Ok(()) } else { self.settle() }
    }

    fn settle(&mut self) -> Result<(), Error> {
        let Self { cpu, model, layout, tensors, entries, pending, .. } = self;
        if let Some(pending) = pending {
            for (tensor, &at) in tensors.iter().enumerate() {
                pending.make(tensor, (&mut *model, at), (&*cpu, &mut *entries, &*layout))?;
                model.release(at);
            }
        }
        self.pending = None;
        Ok(())
    }

    fn lanes(&self) -> usize {
        if self.on_disk() { LANES } else { 1 }
    }

    fn side_by_side(&self) -> bool {
        self.on_disk()
    }

    fn stand_at(&mut self, probes: &[Probe]) -> Result<(), Error> {
        let (n, lanes) = (probes.len(), self.lanes());
        if n > lanes {
            return Err(Error::Training(format!("{n} points at once, where {lanes} can stand")));
        }
        self.points.clear();
        for probe in probes {
            self.entries.check(&probe.terms)?;
            let mut point = vec![Vec::new(); self.model.tensors().len()];
            let checkpoint = self.model.model().checkpoint();
            for (tensor, (&at, spec)) in self.tensors.iter().zip(&self.layout.tensors).enumerate() {
                let first = || first_numbers(checkpoint, &spec.name, (spec.rows, spec.cols));
                point[at] = self.entries.drawn(tensor, &probe.terms, &first)?;
            }
            self.points.push(point);
        }
        Ok(())
    }

    /// Weights that are not tuned are brought once, as they are stored.
    fn stand_on(&mut self, probes: &[Probe], dense: &mut DensePoints) -> Result<(), Error> {
        let [probe] = probes else {
            let n = probes.len();
            return Err(Error::Training(format!("{n} points at once, where 1 can stand")));
        };
        if self.options.bfloat16 {
            let what =
                "bfloat16: the dense executor multiplies in numbers of its own: give --dtype";
            return Err(Error::Training(what.to_owned()));
        }
        self.entries.check(&probe.terms)?;
        self.settle()?;
        for (at, spec) in self.model.tensors().iter().enumerate() {
            let tensor = self.tensors.binary_search(&at).ok();
            let covers = |term: &&Term| tensor.is_some_and(|t| term.direction.covers(t));
            let brought = Brought {
                changes: if tensor.is_some() { self.changes } else { 0 },
                terms: probe.terms.iter().filter(covers).cloned().collect(),
            };
            if dense.has(at, &brought) {
                continue;
            }
            let checkpoint = self.model.model().checkpoint();
            let first = || first_numbers(checkpoint, &spec.name, (spec.rows, spec.cols));
            let drawn = tensor.map(|t| self.entries.drawn(t, &brought.terms, &first));
            let drawn = drawn.transpose()?.unwrap_or_default();
            let mut values = vec![0.0; spec.rows * spec.cols];
            self.model.read_at(&self.cpu, at, &terms(&drawn), 0, &mut values)?;
            self.model.release(at);
            dense.bring((at, &spec.name), brought, values)?;
        }
        Ok(())
    }

    fn run(
        &mut self,
        executor: &mut PackedExecutor,
        steps: &mut [StagedStep<'_, '_>],
    ) -> Result<(), Error> {
        let on_disk = self.on_disk();
        let Self { cpu, model, layout, tensors, entries, points, pending, .. } = self;
        let compute = if self.options.bfloat16 { Compute::Bfloat16 } else { Compute::Single };
        let each = points.iter();
        let points: Vec<Vec<_>> =
            each.map(|point| point.iter().map(|drawn| terms(drawn)).collect()).collect();
        let of = |step: &StagedStep<'_, '_>| {
            let point = (step.variant().0 as usize).checked_sub(1).and_then(|i| points.get(i));
            let nowhere = || Error::Training("a step at a point that does not stand".to_owned());
            point.map(Vec::as_slice).ok_or_else(nowhere)
        };
        let at = steps.iter().map(of).collect::<Result<Vec<_>, _>>()?;
        if !on_disk {
            for (step, terms) in steps.iter_mut().zip(at) {
                executor.run_step(model.model(), step, &mut model.perturbed(terms, compute))?;
            }
            return Ok(());
        }
        model.run(executor, steps, &at, compute, &mut |model, at| match (
            pending.as_mut(),
            tensors.binary_search(&at),
        ) {
            (Some(pending), Ok(tensor)) => {
                pending.make(tensor, (model, at), (&*cpu, &mut *entries, &*layout))
            }
            _ => Ok(()),
        })?;
        *pending = None;
        Ok(())
    }

    fn traffic(&self) -> Option<Traffic> {
        self.model.traffic()
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(self.model.sync()?)
    }

    fn write_variant(&self, folder: &Path) -> Result<(), Error> {
        super::super::variant::write_model(folder, &self.cpu, self)
    }
}
