//! A model's weights as tensors.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use offshoot_kernels::RopeTable;

use super::ops::{self, Frozen};
use super::primitives::wide;
use crate::{Architecture, Blueprint, Checkpoint, Error, Family, LinearId, ModelConfig, VectorId};

/// A model of the dense executor: its weights as tensors of one type on one device, under canonical
/// names. Any of them may be a [`Var`], and a loss on the logits then has a gradient for it.
#[derive(Debug, Clone)]
pub struct DenseModel {
    config: ModelConfig,
    pub(super) architecture: Architecture,
    pub(super) blueprint: Blueprint,
    device: Device,
    dtype: DType,
    tensors: BTreeMap<String, Tensor>,
    /// Where the matrices are, if they stay in their file.
    stored: Option<Arc<Checkpoint>>,
    /// The rotary frequencies by [`crate::RopeId`]; the tables have no rows.
    pub(super) ropes: Vec<RopeTable>,
    /// Those of layers within a window, where they are others.
    pub(super) local_rope: Option<RopeTable>,
}

impl DenseModel {
    /// Reads the weights of `checkpoint`, dequantised, to `device` as `dtype`, or for Gemma's norms in
    /// single precision at least: these weights stand near 1, which takes the bits of what is beside it.
    ///
    /// # Errors
    /// [`Error::Tensor`] if one is missing or damaged, [`Error::Tensors`] if the device has no room,
    /// and as [`DenseModel::from_tensors`].
    pub fn load(checkpoint: &Checkpoint, device: &Device, dtype: DType) -> Result<Self, Error> {
        let config = checkpoint.config().clone();
        let mut tensors = BTreeMap::new();
        for (name, _) in wanted(&Architecture::new(&config).1, &config) {
            let tensor =
                read(checkpoint, &name, device)?.to_dtype(type_of(&config, &name, dtype))?;
            tensors.insert(name, tensor);
        }
        Self::from_tensors(config, tensors)
    }

    /// A model of tensors that exist: weights `{matrix}.weight [out, in]`, biases `{matrix}.bias
    /// [out]`, vectors and the embedding `[vocab_size, hidden_size]`, all named as in Hugging Face's
    /// checkpoints. Names that the architecture does not have are left out.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration is out of bounds; [`Error::Tensor`] if one is missing,
    /// has another shape than the architecture asks for, or is not of the embedding's type and device;
    /// the type is one of f16, bf16, f32 and f64, and that of Gemma's norms f32 at least.
    pub fn from_tensors(
        config: ModelConfig,
        mut tensors: BTreeMap<String, Tensor>,
    ) -> Result<Self, Error> {
        config.validate()?;
        let (architecture, blueprint) = Architecture::new(&config);
        let shapes = wanted(&blueprint, &config);
        tensors.retain(|name, _| shapes.contains_key(name));
        let embedding = get(&tensors, &blueprint.embedding)?;
        let (device, dtype) = (embedding.device().clone(), embedding.dtype());
        if !matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
            let what = format!("is of type {}, expected a float type", dtype.as_str());
            return Err(Error::Tensor { name: blueprint.embedding.clone(), what });
        }
        for (name, shape) in &shapes {
            check(name, get(&tensors, name)?, shape, &device, type_of(&config, name, dtype))?;
        }
        let (ropes, local_rope) = (config.rope_tables(), config.local_rope_table());
        let stored = None;
        Ok(Self {
            config,
            architecture,
            blueprint,
            device,
            dtype,
            tensors,
            stored,
            ropes,
            local_rope,
        })
    }

    /// A model on the processor, in single precision, whose matrices and embedding stay in their file as
    /// they are, quantised or not: each product dequantises them anew, some rows at a time. Memory holds
    /// the vectors alone, and time is paid for it. [`DenseModel::tensor`] and what depends on it know
    /// the vectors and biases.
    ///
    /// # Errors
    /// [`Error::Tensor`] if one is missing, damaged or of another shape than the architecture asks for.
    pub fn stored(checkpoint: &Arc<Checkpoint>) -> Result<Self, Error> {
        let config = checkpoint.config().clone();
        config.validate()?;
        let (architecture, blueprint) = Architecture::new(&config);
        let mut tensors = BTreeMap::new();
        for (name, shape) in wanted(&blueprint, &config) {
            let info = checkpoint.require(&name)?.info;
            if info.shape != shape {
                let what = format!("shape {:?}, expected {shape:?}", info.shape);
                return Err(Error::Tensor { name, what });
            }
            if shape.len() == 1 {
                tensors.insert(name.clone(), read(checkpoint, &name, &Device::Cpu)?);
            }
        }
        let (ropes, local_rope) = (config.rope_tables(), config.local_rope_table());
        let (device, dtype, stored) = (Device::Cpu, DType::F32, Some(Arc::clone(checkpoint)));
        Ok(Self {
            config,
            architecture,
            blueprint,
            device,
            dtype,
            tensors,
            stored,
            ropes,
            local_rope,
        })
    }

    /// Sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What the architecture asks for: the names behind [`LinearId`] and [`VectorId`].
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// Where the weights are and steps run.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The type of weights and activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Canonical names of all weights, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The weights of canonical name `name`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the model has none of that name.
    pub fn tensor(&self, name: &str) -> Result<&Tensor, Error> {
        get(&self.tensors, name)
    }

    /// Replaces the weights of canonical name `name`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the model has none of that name, or of another shape, type or device.
    pub fn set(&mut self, name: &str, tensor: Tensor) -> Result<(), Error> {
        let old = self.tensor(name)?;
        check(name, &tensor, old.dims(), &self.device, old.dtype())?;
        self.tensors.insert(name.to_owned(), tensor);
        Ok(())
    }

    /// Makes the weights of canonical name `name` a variable, if they are not yet, and gives it: a
    /// handle to the model's own numbers, by which they can be told apart among gradients and changed.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the model has none of that name.
    pub fn variable(&mut self, name: &str) -> Result<Var, Error> {
        let variable = Var::from_tensor(self.tensor(name)?)?;
        self.tensors.insert(name.to_owned(), variable.as_tensor().clone());
        Ok(variable)
    }

    /// `matrix * x + bias`: `x` is `[rows, cols]`, the result `[rows, width]`.
    pub(super) fn multiply(&self, linear: LinearId, x: &Tensor) -> Result<Tensor, Error> {
        let bias = self.bias(linear)?;
        let weight = match self.matrix(linear)? {
            weight @ Frozen::Stored { .. } => weight,
            Frozen::Tensor(weight) => {
                let trained = ops::tracked(&[&weight]) || bias.is_some_and(Tensor::track_op);
                if trained || !ops::tracked(&[x]) {
                    let product = x.matmul(&weight.t()?)?;
                    return Ok(match bias {
                        Some(bias) => product.broadcast_add(bias)?,
                        None => product,
                    });
                }
                Frozen::Tensor(weight)
            }
        };
        Ok(ops::linear(x, weight, bias, None)?)
    }

    /// A matrix, wherever it is.
    pub(super) fn matrix(&self, linear: LinearId) -> Result<Frozen, Error> {
        let spec = &self.blueprint.linears[linear.index()];
        self.matrix_named(weight_name(&spec.name), (spec.rows, spec.cols))
    }

    fn matrix_named(&self, name: String, shape: (usize, usize)) -> Result<Frozen, Error> {
        Ok(match &self.stored {
            Some(checkpoint) => Frozen::Stored { checkpoint: Arc::clone(checkpoint), name, shape },
            None => Frozen::Tensor(self.tensor(&name)?.clone()),
        })
    }

    /// The bias of a matrix, if it has one.
    pub(super) fn bias(&self, linear: LinearId) -> Result<Option<&Tensor>, Error> {
        let spec = &self.blueprint.linears[linear.index()];
        spec.bias.then(|| self.tensor(&bias_name(&spec.name))).transpose()
    }

    /// The rows of the embedding for `tokens`, `[tokens, hidden_size]`.
    pub(super) fn embedded(&self, tokens: &Tensor) -> Result<Tensor, Error> {
        let name = self.blueprint.embedding.clone();
        let shape = (self.config.vocab_size, self.config.hidden_size);
        match self.matrix_named(name, shape)? {
            Frozen::Tensor(embedding) => Ok(embedding.index_select(tokens, 0)?),
            stored => {
                let rows = tokens.to_vec1::<u32>()?.into_iter();
                let rows = rows.map(|token| stored.rows(token as usize, 1, self.dtype));
                Ok(Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
            }
        }
    }

    pub(super) fn vector(&self, vector: VectorId) -> Result<&Tensor, Error> {
        self.tensor(&self.blueprint.vectors[vector.index()].name)
    }
}

/// The type of the weights called `name` in a model of `dtype`.
fn type_of(config: &ModelConfig, name: &str, dtype: DType) -> DType {
    let is_gemmas_norm = config.family == Family::Gemma3 && name.ends_with("norm.weight");
    if is_gemmas_norm { wide(dtype) } else { dtype }
}

fn weight_name(linear: &str) -> String {
    format!("{linear}.weight")
}

fn bias_name(linear: &str) -> String {
    format!("{linear}.bias")
}

/// Names and shapes of all weights. A tied head has the embedding's name, and is there once.
fn wanted(blueprint: &Blueprint, config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let embedding = vec![config.vocab_size, config.hidden_size];
    let mut shapes = BTreeMap::from([(blueprint.embedding.clone(), embedding)]);
    for linear in &blueprint.linears {
        shapes.insert(weight_name(&linear.name), vec![linear.rows, linear.cols]);
        if linear.bias {
            shapes.insert(bias_name(&linear.name), vec![linear.rows]);
        }
    }
    shapes.extend(blueprint.vectors.iter().map(|v| (v.name.clone(), vec![v.len])));
    shapes
}

fn get<'a>(tensors: &'a BTreeMap<String, Tensor>, name: &str) -> Result<&'a Tensor, Error> {
    tensors.get(name).ok_or_else(|| Error::Tensor {
        name: name.to_owned(),
        what: "the model has none of that name".to_owned(),
    })
}

fn check(
    name: &str,
    tensor: &Tensor,
    shape: &[usize],
    device: &Device,
    dtype: DType,
) -> Result<(), Error> {
    let wrong = |what: String| Err(Error::Tensor { name: name.to_owned(), what });
    if tensor.dims() != shape {
        return wrong(format!("shape {:?}, expected {shape:?}", tensor.dims()));
    }
    if tensor.dtype() != dtype {
        return wrong(format!("type {}, expected {}", tensor.dtype().as_str(), dtype.as_str()));
    }
    if !tensor.device().same_device(device) {
        return wrong(format!(
            "on {:?}, expected {:?}",
            tensor.device().location(),
            device.location()
        ));
    }
    Ok(())
}

/// Dequantised rows in canonical order, f32.
fn read(checkpoint: &Checkpoint, name: &str, device: &Device) -> Result<Tensor, Error> {
    let stored = checkpoint.require(name)?;
    let shape = stored.info.shape.as_slice();
    let mut weights = vec![0.0; stored.len()];
    let cols = stored.cols().max(1);
    let stored = stored.passing();
    for (row, out) in weights.chunks_exact_mut(cols).enumerate() {
        stored.read_row(row, out)?;
    }
    Ok(Tensor::from_vec(weights, shape, device)?)
}
