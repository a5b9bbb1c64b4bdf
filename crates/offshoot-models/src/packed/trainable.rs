//! A packed model whose weights change: floats in memory of its own or in a file.
//!
//! Steps run on the packed executor as those of any packed model. What a step adds to weights, along
//! directions that are made again where they are needed, reaches it as [`Perturbed`] hooks and leaves
//! no trace; what tuning does to them for good is an update, tensor by tensor. Memory is that of the
//! weights: a tied embedding is the output head's tiles, and a file's pages are let go while it is read.
//!
//! Matrices are stored in single precision or in bfloat16. A step widens these and adds to them in single
//! precision; an update rounds what it makes of them by chance, so that small ones are not lost. Vectors,
//! of which there are few, are in single precision.
//!
//! Weights that lie in a file are read a layer at a time: while steps run a layer, the next but one is
//! read ahead, and the pages of those behind leave the process. So no more is resident than a few layers
//! or the output head, and bits are the same. Steps at several points go side by side, and what is still
//! to be done to a layer's weights is done when they have been read ([`TrainableModel::run`]): the schedule
//! of ZO2 (Wang et al. 2025, <https://arxiv.org/abs/2503.12668>), for a disk.

use std::path::Path;
use std::sync::Arc;

use offshoot_kernels::{
    Change, Compute, Cpu, FileBlock, FloatStore, Forming, Forms, Rounding, ScratchFile, Term,
    Traffic, add_terms_to_rows, update_matrix, update_rows,
};
use rayon::prelude::*;

use super::executor::PackedExecutor;
use super::hooks::Hooks;
use super::lockstep::{Stage, StagedStep};
use super::weights::{PackedModel, tile_error};
use crate::{Checkpoint, Error, LinearId, VectorId};

/// Layers that are read ahead of the one that steps run.
const AHEAD: usize = 2;
/// Rows that a thread reads at a time.
const READ_ROWS: usize = 64;

/// A tensor of a model that can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainableTensor {
    /// Its canonical name, `model.layers.0.self_attn.q_proj.weight`. An embedding that is the output
    /// head too has the embedding's.
    pub name: String,
    /// Rows; of a vector 1.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// The layer it belongs to, if it belongs to one.
    pub layer: Option<usize>,
    /// Whether it is a vector: a norm's weight or a bias.
    pub vector: bool,
}

/// Where a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Matrix(LinearId),
    Bias(LinearId),
    Vector(VectorId),
    Embedding,
}

/// A packed model in floats whose weights can be read, moved along directions for a step, and
/// changed.
#[derive(Debug)]
pub struct TrainableModel {
    model: PackedModel,
    tensors: Vec<TrainableTensor>,
    /// Of each tensor.
    places: Vec<Place>,
    /// What the matrices lie in, if not in memory.
    file: Option<ScratchFile>,
}

impl TrainableModel {
    /// Reads the weights of `checkpoint`, whatever their format: those that a packed model of it has,
    /// dequantised to single precision.
    ///
    /// # Errors
    /// As [`PackedModel::load`].
    pub fn load(checkpoint: Arc<Checkpoint>, cpu: &Cpu) -> Result<Self, Error> {
        Self::load_in(checkpoint, cpu, FloatStore::F32, None)
    }

    /// The same, with matrices stored as `store`, rounded to nearest, in memory or in a file without a
    /// name on the disk of `folder`.
    ///
    /// # Errors
    /// As [`PackedModel::load`], and [`Error::Io`] if there cannot be such a file, or no room for it.
    pub fn load_in(
        checkpoint: Arc<Checkpoint>,
        cpu: &Cpu,
        store: FloatStore,
        folder: Option<&Path>,
    ) -> Result<Self, Error> {
        let create = |folder: &Path| {
            let io = |source| Error::Io { path: folder.to_owned(), source };
            ScratchFile::create(folder).map_err(io)
        };
        let mut file = folder.map(create).transpose()?;
        let model = PackedModel::in_floats(checkpoint, cpu, store, file.as_mut())?;
        let mut all = places(&model);
        all.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        let (tensors, places) = all.into_iter().unzip();
        Ok(Self { model, tensors, places, file })
    }

    /// Waits until the weights are on the disk, if that is where they are kept.
    ///
    /// # Errors
    /// [`Error::Io`] if some could not be written: they are lost then.
    pub fn sync(&self) -> Result<(), Error> {
        let io = |file: &ScratchFile, source| {
            let path = file.folder().to_owned();
            Error::Io { path, source }
        };
        self.file.as_ref().map_or(Ok(()), |file| file.sync().map_err(|e| io(file, e)))
    }

    /// Lets the pages of a tensor leave memory, if it lies in a file.
    pub fn release(&self, tensor: usize) {
        let place = self.places.get(tensor);
        if let Some(block) = place.and_then(|place| self.block(*place)) {
            block.release();
        }
    }

    /// The block of the file that a tensor lies in.
    fn block(&self, place: Place) -> Option<&FileBlock> {
        match place {
            Place::Matrix(id) => self.model.linear(id).matrix.file_block(),
            Place::Embedding => self.model.own_embedding()?.file_block(),
            Place::Bias(_) | Place::Vector(_) => None,
        }
    }

    /// The blocks of the matrices of `layer`, or of those of none.
    fn blocks(&self, layer: Option<usize>) -> impl Iterator<Item = &FileBlock> {
        let of_it = self.tensors.iter().zip(&self.places).filter(move |(t, _)| t.layer == layer);
        of_it.filter_map(|(_, place)| self.block(*place))
    }

    /// Those of the output head; of an embedding of its own a step needs a few rows alone.
    fn head_blocks(&self) -> impl Iterator<Item = &FileBlock> {
        let heads =
            self.tensors.iter().zip(&self.places).filter(|(tensor, place)| {
                tensor.layer.is_none() && matches!(place, Place::Matrix(_))
            });
        heads.filter_map(|(_, place)| self.block(*place))
    }

    /// What was read and written so far of the file that the matrices lie in, if they do.
    pub fn traffic(&self) -> Option<Traffic> {
        self.file.as_ref().map(ScratchFile::traffic)
    }

    /// Runs `steps` side by side, each at the weights plus its own of `points`, the terms of each tensor.
    /// When something of a tensor is needed for the first time, `settle` is asked with its number, and may
    /// change it. So a file that the matrices lie in is read once for all of the steps, an embedding that
    /// is the output head twice, and written once if all tensors change.
    ///
    /// # Errors
    /// Those of `settle`, and as [`PackedExecutor::run_stage`].
    ///
    /// # Panics
    /// As [`TrainableModel::perturbed`], and if there are other numbers of steps and points.
    pub fn run<E: From<Error>>(
        &mut self,
        executor: &mut PackedExecutor,
        steps: &mut [StagedStep<'_, '_>],
        points: &[&[Vec<Term<'_>>]],
        compute: Compute,
        settle: &mut dyn FnMut(&mut Self, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        assert_eq!(steps.len(), points.len(), "a point of each step");
        self.read_first();
        for stage in Stage::all(self.layers()) {
            for tensor in 0..self.tensors.len() {
                if self.first_use(tensor) == stage {
                    settle(self, tensor)?;
                }
            }
            for (step, terms) in steps.iter_mut().zip(points) {
                let mut hooks = self.perturbed(terms, compute);
                executor.run_stage(&self.model, stage, step, &mut hooks)?;
            }
            self.pass(stage);
        }
        Ok(())
    }

    fn layers(&self) -> usize {
        self.model.config().num_hidden_layers
    }

    /// The stage of a step that needs something of a tensor first.
    fn first_use(&self, tensor: usize) -> Stage {
        match (self.tensors[tensor].layer, self.places[tensor]) {
            (Some(layer), _) => Stage::Block(layer),
            (None, Place::Matrix(id)) if !self.is_embedding(id) => Stage::End,
            // And the last norm, which is in memory.
            (None, _) => Stage::Begin,
        }
    }

    /// Has those layers read that steps begin with.
    fn read_first(&self) {
        (0..AHEAD).for_each(|layer| self.blocks(Some(layer)).for_each(FileBlock::read_ahead));
    }

    /// Behind a stage: lets its pages go, and has those read that are needed soon.
    fn pass(&self, stage: Stage) {
        let Stage::Block(layer) = stage else {
            self.blocks(None).for_each(FileBlock::release);
            return;
        };
        self.blocks(Some(layer)).for_each(FileBlock::release);
        match layer + AHEAD {
            next if next < self.layers() => {
                self.blocks(Some(next)).for_each(FileBlock::read_ahead);
            }
            _ => self.head_blocks().for_each(FileBlock::read_ahead),
        }
    }

    /// The model as the packed executor takes it.
    pub fn model(&self) -> &PackedModel {
        &self.model
    }

    /// All tensors, in ascending order of names. Elements count in row-major order of these shapes.
    pub fn tensors(&self) -> &[TrainableTensor] {
        &self.tensors
    }

    /// Hooks for steps at the weights plus, for each tensor, its part of `terms`; no stored weight
    /// changes. Without any term, and in single precision, it is a step at the weights.
    ///
    /// # Panics
    /// If `terms` has not one list for each tensor. A step panics if a term is not of its tensor's
    /// shape.
    pub fn perturbed<'a>(&'a self, terms: &'a [Vec<Term<'a>>], compute: Compute) -> Perturbed<'a> {
        assert_eq!(terms.len(), self.tensors.len(), "terms of each tensor");
        let blueprint = self.model.blueprint();
        let mut all = Perturbed {
            matrices: vec![&[]; blueprint.linears.len()],
            biases: vec![&[]; blueprint.linears.len()],
            vectors: vec![&[]; blueprint.vectors.len()],
            embedding: &[],
            compute,
        };
        for (place, terms) in self.places.iter().zip(terms) {
            match *place {
                Place::Matrix(id) => {
                    all.matrices[id.index()] = terms;
                    if self.is_embedding(id) {
                        all.embedding = terms;
                    }
                }
                Place::Bias(id) => all.biases[id.index()] = terms,
                Place::Vector(id) => all.vectors[id.index()] = terms,
                Place::Embedding => all.embedding = terms,
            }
        }
        all
    }

    /// Whether the embedding is looked up in matrix `id`.
    fn is_embedding(&self, id: LinearId) -> bool {
        self.model.embeds_from_head() && id.index() + 1 == self.model.blueprint().linears.len()
    }

    /// Changes all weights of a tensor; those stored in bfloat16 are rounded by `rounding`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is no such tensor.
    ///
    /// # Panics
    /// If a term is not of the tensor's shape.
    pub fn update(
        &mut self,
        cpu: &Cpu,
        tensor: usize,
        change: &Change<'_>,
        rounding: &Rounding,
    ) -> Result<(), Error> {
        let (name, shape, place) = self.find(tensor)?;
        let folder = self.file.as_ref().map(|file| file.folder());
        let model = &mut self.model;
        let matrix = match place {
            Place::Matrix(id) => Some(&mut model.linear_mut(id).matrix),
            Place::Embedding => model.own_embedding_mut(),
            Place::Bias(id) => {
                if let Some(bias) = &mut model.linear_mut(id).bias {
                    update_rows(cpu, shape, bias, change);
                }
                return Ok(());
            }
            Place::Vector(id) => {
                update_rows(cpu, shape, model.vector_mut(id), change);
                return Ok(());
            }
        };
        let changed = matrix.map_or(Ok(()), |matrix| update_matrix(cpu, matrix, change, rounding));
        changed.map_err(|e| tile_error(&name, folder, e))
    }

    /// Writes row `row` of a tensor to `out`, which has the tensor's columns.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is no such row, or `out` is of another length.
    pub fn read_row(&self, tensor: usize, row: usize, out: &mut [f32]) -> Result<(), Error> {
        let (name, (rows, cols), place) = self.find(tensor)?;
        if row >= rows || out.len() != cols {
            let what = format!("row {row} of {} weights asked for of {rows} x {cols}", out.len());
            return Err(Error::Tensor { name, what });
        }
        let linear = |id| self.model.linear(id);
        match place {
            Place::Matrix(id) => linear(id).matrix.dequantize_row(row, out),
            Place::Embedding => {
                if let Some(matrix) = self.model.own_embedding() {
                    matrix.dequantize_row(row, out);
                }
            }
            Place::Bias(id) => {
                if let Some(bias) = &linear(id).bias {
                    out.copy_from_slice(bias);
                }
            }
            Place::Vector(id) => out.copy_from_slice(self.model.vector(id)),
        }
        Ok(())
    }

    /// Writes the rows from `first` on of a tensor plus `terms` to `out`, as many as fill it: the
    /// weights that a step at that point multiplies in single precision, to the bit.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there are no such rows, or `out` ends within one.
    ///
    /// # Panics
    /// If a term is not of the tensor's shape.
    pub fn read_at(
        &self,
        cpu: &Cpu,
        tensor: usize,
        terms: &[Term<'_>],
        first: usize,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let (name, (rows, cols), _) = self.find(tensor)?;
        let count = out.len() / cols.max(1);
        if first + count > rows || count * cols != out.len() {
            let what = format!("{} weights from row {first} on of {rows} x {cols}", out.len());
            return Err(Error::Tensor { name, what });
        }
        let height = READ_ROWS * cols.max(1);
        out.par_chunks_mut(height).enumerate().try_for_each(|(part, out)| {
            let mut rows = (first + part * READ_ROWS..).zip(out.chunks_exact_mut(cols));
            rows.try_for_each(|(row, out)| self.read_row(tensor, row, out))
        })?;
        add_terms_to_rows(cpu, terms, (rows, cols), first, out);
        Ok(())
    }

    /// All weights of a tensor, in row-major order.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is no such tensor.
    pub fn read(&self, tensor: usize) -> Result<Vec<f32>, Error> {
        let (_, (rows, cols), _) = self.find(tensor)?;
        let mut all = vec![0.0; rows * cols];
        for (row, out) in all.chunks_exact_mut(cols).enumerate() {
            self.read_row(tensor, row, out)?;
        }
        Ok(all)
    }

    /// Replaces all weights of a tensor by `values`, in row-major order, rounded to nearest if it is stored
    /// in bfloat16.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is no such tensor, or it has another number of weights.
    pub fn write(&mut self, cpu: &Cpu, tensor: usize, values: &[f32]) -> Result<(), Error> {
        let (name, (rows, cols), place) = self.find(tensor)?;
        if values.len() != rows * cols {
            let what = format!("{} weights given, {rows} x {cols} needed", values.len());
            return Err(Error::Tensor { name, what });
        }
        let folder = self.file.as_ref().map(|file| file.folder());
        let model = &mut self.model;
        let matrix = match place {
            Place::Matrix(id) => Some(&mut model.linear_mut(id).matrix),
            Place::Embedding => model.own_embedding_mut(),
            Place::Bias(id) => {
                if let Some(bias) = &mut model.linear_mut(id).bias {
                    bias.copy_from_slice(values);
                }
                return Ok(());
            }
            Place::Vector(id) => {
                model.vector_mut(id).copy_from_slice(values);
                return Ok(());
            }
        };
        let produce =
            |row: usize, out: &mut [f32]| out.copy_from_slice(&values[row * cols..][..cols]);
        let filled = matrix.map_or(Ok(()), |matrix| matrix.fill_rows(cpu, produce));
        filled.map_err(|e| tile_error(&name, folder, e))
    }

    /// Name, shape and place of a tensor.
    fn find(&self, tensor: usize) -> Result<(String, (usize, usize), Place), Error> {
        match (self.tensors.get(tensor), self.places.get(tensor)) {
            (Some(t), Some(place)) => Ok((t.name.clone(), (t.rows, t.cols), *place)),
            _ => Err(Error::Tensor {
                name: format!("number {tensor}"),
                what: format!("the model has {} tensors", self.tensors.len()),
            }),
        }
    }
}

/// Every tensor of a model and where it is.
fn places(model: &PackedModel) -> Vec<(TrainableTensor, Place)> {
    let tensor = |name: &str, rows, cols| {
        let layer = layer_of(name);
        TrainableTensor { name: name.to_owned(), rows, cols, layer, vector: false }
    };
    let vector = |name: &str, len| TrainableTensor { vector: true, ..tensor(name, 1, len) };
    let (blueprint, config) = (model.blueprint(), model.config());
    let mut all = Vec::new();
    for (i, spec) in blueprint.linears.iter().enumerate() {
        let matrix = tensor(&format!("{}.weight", spec.name), spec.rows, spec.cols);
        all.push((matrix, Place::Matrix(LinearId(i))));
        if spec.bias {
            let bias = vector(&format!("{}.bias", spec.name), spec.rows);
            all.push((bias, Place::Bias(LinearId(i))));
        }
    }
    for (i, spec) in blueprint.vectors.iter().enumerate() {
        all.push((vector(&spec.name, spec.len), Place::Vector(VectorId(i))));
    }
    if model.own_embedding().is_some() {
        let embedding = tensor(&blueprint.embedding, config.vocab_size, config.hidden_size);
        all.push((embedding, Place::Embedding));
    }
    all
}

/// The layer in a canonical name, `model.layers.<layer>.`
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// Hooks that move a [`TrainableModel`]'s weights along directions for a step.
#[derive(Debug, Clone)]
pub struct Perturbed<'a> {
    matrices: Vec<&'a [Term<'a>]>,
    biases: Vec<&'a [Term<'a>]>,
    vectors: Vec<&'a [Term<'a>]>,
    embedding: &'a [Term<'a>],
    compute: Compute,
}

impl Hooks for Perturbed<'_> {
    fn forming(&self, linear: LinearId) -> Option<Forming<'_>> {
        Some(Forming {
            terms: self.matrices[linear.index()],
            compute: self.compute,
            ..Forming::default()
        })
    }

    fn bias_terms(&self, linear: LinearId) -> &[Term<'_>] {
        self.biases[linear.index()]
    }

    fn vector_terms(&self, vector: VectorId) -> &[Term<'_>] {
        self.vectors[vector.index()]
    }

    fn embedding_terms(&self) -> &[Term<'_>] {
        self.embedding
    }

    fn forms(&self) -> Forms {
        self.compute.forms()
    }
}
