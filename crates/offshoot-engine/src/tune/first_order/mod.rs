//! First-order tuning: gradients of a loss by backpropagation, for LoRA matrices or for the weights
//! themselves.
//!
//! ```text
//! for each micro-batch:  g = g + gradient of its share of the batch's loss        batch.rs
//! g = mean over j of <g, z_j> z_j, if only that is to be followed                 forward gradients
//! g = g min(1, C / ||g||)                                                         clip
//! each tensor:  weights, state = optimiser(weights, g, state)                     step
//! ```
//! The loss is a mean over all the batch's tokens, whatever the micro-batches, so they decide
//! memory and nothing else. Gradients are made on the dense executor, whose products share out
//! results among threads and never sums: the same seed gives the same bits on any number of
//! threads. On another device than the processor (`--device`) they are made of the tensor library's
//! operations, and steps where numbers are read to, by the processor.
//!
//! LoRA is that of Hu et al. 2021, section 4.1, <https://arxiv.org/abs/2106.09685>, begun as in PEFT: `A`
//! uniform as by He et al. with a = sqrt(5), which is within 1 / sqrt(cols), and `B` zero.
//! ```text
//! W' = W + (alpha / r) B A          W [rows, cols] as it is, A [r, cols], B [rows, r]
//! ```
//! Cost: of LoRA, activations of all blocks, or of one at a time with --gradient-checkpointing, which makes
//! them again; of full tuning a gradient and what the optimiser keeps for each weight beside that.
//! Defaults: `rank` 8 (PEFT's), `alpha` 16 (twice the rank, as in PEFT's examples), all matrices of the blocks
//! (Dettmers et al. 2023, section 4, <https://arxiv.org/abs/2305.14314>), rate 1e-4 for LoRA and 2e-5 for all
//! weights (TRL's), falling by a line, 3 epochs of batches of 8, gradients cut to a norm of 1 (transformers').
//! Published: LoRA on GPT-3 with 175 billion weights trains 10,000 times fewer numbers in a third of the
//! memory (Hu et al., abstract); all weights of OPT-13B by Adam, SST-2 92.0 and BoolQ 77.1 (Malladi et al.
//! 2023, table 1, <https://arxiv.org/abs/2305.17333>).
//! Ours: a step of LoRA on 16 x 64 tokens of SmolLM2-135M, checkpointed, 5.88 s in 764 MB, beside peft's 8.14 s
//! in 3154 MB; not checkpointed 4.95 s beside 6.52 s. On labelled sentences an epoch of 2000 takes macro-F1
//! from 0.391 to 0.890 in 6.4 minutes, where 300 steps of `mezo` on all weights take it to 0.740 in as long
//! (LOG.md, 2026-11-27).
//!
//! When not to use it: where its memory is not there, which --dry-run tells, or where what is to be made less
//! has no gradient. Then losses alone have to do, as with `mezo`.

mod along;
mod batch;
mod dropout;
mod gathered;
mod heads;
mod options;
mod score;
mod space;
mod state;
mod variant;

pub use heads::DraftHeads;
pub use options::{
    ChoiceLoss, FirstOrderOptions, FirstOrderSpace, LoraMatrices, LoraOptions, TensorNames,
};

use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Tensor, Var};
use offshoot_methods::draft::medusa::Calibration;
use offshoot_methods::optim::{
    Optimizer, Products, StepSize, TensorShape, clip_factor, square_norm,
};
use offshoot_models::medusa::HeadsFile;
use offshoot_models::{
    BaseId, Checkpoint, DenseModel, DenseTuning, Drafts, DropoutMasks, GradientOptions, Gradients,
};

use super::exchange::{Fingerprint, agree, digest};
use super::{Alone, Example, Exchange, Scored, Scorer, Sequence, StepReport, Trainer};
use crate::{DenseDevice, Error};
use batch::{MicroBatch, Shares};
use dropout::KeyedDropout;
use heads::{Drafting, is_of_heads};

/// A model that is tuned by gradients.
#[derive(Debug)]
pub struct FirstOrder {
    checkpoint: Arc<Checkpoint>,
    options: FirstOrderOptions,
    tuning: DenseTuning,
    optimizer: Box<dyn Optimizer>,
    shapes: Vec<TensorShape>,
    /// By variable, whether it goes along random directions while others follow their gradients.
    shallow: Vec<bool>,
    /// By variable, what the optimiser keeps.
    state: Vec<Vec<Vec<f32>>>,
    /// Identity of the base's weights, once a state was written or read.
    base: OnceLock<BaseId>,
    /// How the draft heads fared, as they are now.
    calibration: Option<Calibration>,
    /// The processes that make the gradients.
    exchange: Rc<dyn Exchange>,
}

/// The gradients of a micro-batch and its tokens; nothing if none of them counts.
type Micro = Option<(Gradients, usize)>;

impl FirstOrder {
    /// The model of `checkpoint` on the processor, in single precision, with nothing learned yet.
    ///
    /// # Errors
    /// [`Error::Training`] if an option is out of bounds or names what the model does not have;
    /// [`Error::Model`] if the weights cannot be read.
    pub fn new(checkpoint: Arc<Checkpoint>, options: FirstOrderOptions) -> Result<Self, Error> {
        Self::with_heads(checkpoint, options, None)
    }

    /// As [`FirstOrder::new`], with draft heads that begin as those of `heads`, whose form is the
    /// options' ([`DraftHeads::of_form`]).
    ///
    /// # Errors
    /// As there; [`Error::Training`] if they are of another form; [`Error::Model`] if they belong to
    /// another model.
    pub fn with_heads(
        checkpoint: Arc<Checkpoint>,
        options: FirstOrderOptions,
        heads: Option<&HeadsFile>,
    ) -> Result<Self, Error> {
        Self::on(DenseDevice::Cpu, checkpoint, options, heads)
    }

    /// As [`FirstOrder::with_heads`], with the model on `device`, where gradients are made. What
    /// the optimiser keeps stays with the processor, which makes the steps: a run may go on
    /// elsewhere than it began.
    ///
    /// # Errors
    /// As there; [`Error::Device`] if there is no such device; [`Error::Training`] if matrices are
    /// to stay in their file, which is read for the processor alone.
    pub fn on(
        device: DenseDevice,
        checkpoint: Arc<Checkpoint>,
        options: FirstOrderOptions,
        heads: Option<&HeadsFile>,
    ) -> Result<Self, Error> {
        options.validate()?;
        if options.weights_in_file && device != DenseDevice::Cpu {
            return Err(Error::Training(format!(
                "weights_in_file: matrices are read from their file for the processor alone: leave \
                 it out, or --device {device}"
            )));
        }
        let model = match options.weights_in_file {
            true => DenseModel::stored(&checkpoint)?,
            false => DenseModel::load(&checkpoint, &device.open()?, candle_core::DType::F32)?,
        };
        let optimizer = options.optimizer.optimizer()?;
        let base = OnceLock::new();
        let tuning = space::tuning(model, &options)?;
        let mut tuning = match (&options.heads, heads) {
            (None, None) => tuning,
            (Some(own), None) => {
                let width = checkpoint.config().hidden_size;
                tuning.with_heads(&own.beginning(width))?
            }
            (Some(own), Some(file)) if own.clone().of_form(file) == *own => {
                if file.card.is_some() {
                    let id = BaseId::of(&checkpoint)?;
                    file.check_base(*base.get_or_init(|| id))?;
                }
                tuning.with_heads(file)?
            }
            (_, Some(_)) => {
                let what = "the draft heads to begin with are of another form than those asked for";
                return Err(Error::Training(what.to_owned()));
            }
        };
        let mut shallow = vec![false; tuning.variables().len()];
        if let Some(hybrid) = options.hybrid {
            let blocks = checkpoint.config().num_hidden_layers;
            let split = blocks.saturating_sub(hybrid.blocks as usize);
            shallow = tuning.is_below(split);
            tuning.stop_below(split);
        }
        let shapes: Vec<TensorShape> =
            tuning.variables().iter().map(|(name, v)| space::shape(name, v)).collect();
        let state = |shape: &TensorShape| vec![vec![0.0; shape.len()]; optimizer.states(*shape)];
        let state = shapes.iter().map(state).collect();
        Ok(Self {
            checkpoint,
            options,
            tuning,
            optimizer,
            shapes,
            shallow,
            state,
            base,
            calibration: None,
            exchange: Rc::new(Alone),
        })
    }

    /// Shares the micro-batches of every step with the other processes of `exchange`. Their gradients
    /// are added up in the order of micro-batches, so how many processes there are changes no bit.
    #[must_use]
    pub fn among(self, exchange: Rc<dyn Exchange>) -> Self {
        Self { exchange, ..self }
    }

    /// Identity of the base's weights.
    fn base_id(&self) -> Result<BaseId, Error> {
        Ok(match self.base.get() {
            Some(base) => *base,
            None => {
                let base = BaseId::of(&self.checkpoint)?;
                *self.base.get_or_init(|| base)
            }
        })
    }

    /// How it is tuned.
    pub fn options(&self) -> &FirstOrderOptions {
        &self.options
    }

    /// What is tuned, and the model.
    pub fn tuning(&self) -> &DenseTuning {
        &self.tuning
    }

    /// How many numbers are tuned.
    pub fn tuned_numbers(&self) -> usize {
        self.shapes.iter().map(|shape| shape.len()).sum()
    }

    /// The gradients of the batch's loss in step `step`, unclipped, and the tokens that were run.
    ///
    /// # Errors
    /// [`Error::Training`] if no token of the batch is trained on; [`Error::Model`] if the model cannot
    /// run it.
    pub fn gradients(&self, step: u64, batch: &[&Example]) -> Result<(Gradients, usize), Error> {
        let size = match self.options.micro_batch {
            0 => batch.len().max(1),
            size => size,
        };
        let share = Shares::of(batch, self.options.choice)?;
        let sequences = batch::sequences(batch, self.options.choice)?;
        let scores = |token| self.tuning.drafts(token);
        let heads = self.options.heads.as_ref();
        let drafting = heads.map(|heads| {
            let texts = sequences.iter().flatten().map(|text| &**text);
            Drafting::new(heads, &scores, texts)
        });
        let mut sum: Option<Gradients> = None;
        let mut tokens = 0;
        let micros: Vec<(usize, &[&Example])> = batch.chunks(size).enumerate().collect();
        for each_its_own in micros.chunks(self.exchange.size()) {
            let own = each_its_own.get(self.exchange.rank()).map(|(number, examples)| {
                let first = number * size;
                let mut micro =
                    MicroBatch::new(&self.tuning, examples, &share, self.options.choice)?;
                if let Some(drafting) = &drafting {
                    micro.draft(drafting, &sequences[first..]);
                }
                self.micro(step, first, micro)
            });
            for (found, run) in self.gathered(own.transpose()?.flatten())?.into_iter().flatten() {
                tokens += run;
                match &mut sum {
                    Some(sum) => sum.add(found)?,
                    None => sum = Some(found),
                }
            }
        }
        let none = || Error::Training("no token of the batch is trained on".to_owned());
        Ok((sum.ok_or_else(none)?, tokens))
    }

    /// Those of a micro-batch whose first example is the `first` of its batch.
    fn micro(&self, step: u64, first: usize, micro: MicroBatch<'_>) -> Result<Micro, Error> {
        if micro.targets.is_empty() {
            return Ok(None);
        }
        let heads = self.options.heads.as_ref();
        let dropout = KeyedDropout::new(&self.options, step, first, &micro.texts);
        let options = GradientOptions {
            checkpointing: self.options.checkpointing,
            dropout: dropout.as_ref().map(|dropout| dropout as &dyn DropoutMasks),
            drafts: heads.map(|heads| Drafts {
                targets: &micro.drafts,
                weight: heads.weight_at(step),
                alone: step < heads.alone,
            }),
            teacher: heads.is_some_and(|heads| heads.self_distillation),
        };
        let texts: Vec<&[u32]> = micro.texts.iter().map(|text| text.tokens.as_ref()).collect();
        let mut found = self.tuning.gradients(&texts, &micro.targets, options)?;
        found.loss = micro.loss.unwrap_or(found.loss);
        Ok(Some((found, micro.tokens())))
    }

    /// The gradients as numbers, zeros where there are none, and their norms: of the model's and of
    /// the heads'.
    fn numbers(&self, gradients: Gradients) -> Result<(Vec<Vec<f32>>, [f64; 2]), Error> {
        let mut all = Vec::with_capacity(self.shapes.len());
        let mut squares = [0.0; 2];
        let variables = self.tuning.variables().iter().zip(&self.shapes);
        for (gradient, ((name, _), shape)) in gradients.tensors.into_iter().zip(variables) {
            let numbers = match gradient {
                Some(gradient) => read(&gradient)?,
                None => vec![0.0; shape.len()],
            };
            squares[usize::from(is_of_heads(name))] += square_norm(&numbers);
            all.push(numbers);
        }
        Ok((all, squares.map(f64::sqrt)))
    }

    /// The sizes of the steps of the model and of the heads: nothing for the model while those learn
    /// alone.
    fn sizes(&self, step: u64, rate: f64) -> [Option<StepSize>; 2] {
        let heads = self.options.heads.as_ref();
        let alone = heads.map_or(0, |heads| heads.alone);
        // An optimiser's first step is its first, whenever it is made.
        let of_model = (step + 1).checked_sub(alone).filter(|&made| made > 0);
        let of_heads = heads.map(|heads| StepSize { step: step + 1, rate: rate * heads.rate });
        [of_model.map(|step| StepSize { step, rate }), of_heads]
    }
}

impl Trainer for FirstOrder {
    fn step(&mut self, step: u64, rate: f64, batch: &[&Example]) -> Result<StepReport, Error> {
        let (gradients, tokens) = self.gradients(step, batch)?;
        let loss = gradients.loss;
        let heads = self.options.heads.as_ref();
        let drafts = heads.map_or(Vec::new(), |heads| heads::told(heads, &gradients.drafts));
        let (mut gradients, mut norms) = self.numbers(gradients)?;
        if self.shallow.contains(&true) {
            // A head that is the embedding's matrix has half a gradient, and goes along directions.
            let deep = gradients.iter().zip(&self.shallow).filter(|(_, shallow)| !**shallow);
            norms[0] = deep.map(|(g, _)| square_norm(g)).sum::<f64>().sqrt();
        }
        if !loss.is_finite() || norms.iter().any(|norm| !norm.is_finite()) {
            let what = "the loss or its gradient is no number: lower the learning rate";
            return Err(Error::Training(what.to_owned()));
        }
        self.calibration = None;
        let mut slopes = self.projected(step, &mut gradients)?;
        if !slopes.is_empty() {
            norms[0] = gradients.iter().map(|g| square_norm(g)).sum::<f64>().sqrt();
        }
        let clip = |norm: f64| self.options.clip_norm.map_or(1.0, |most| clip_factor(norm, most));
        let (factors, sizes) = (norms.map(clip), self.sizes(step, rate));
        let mut numbers = vec![("grad_norm", norms[0])];
        if let Some(heads) = &self.options.heads {
            numbers.push(("draft_grad_norm", norms[1]));
            numbers.push(("draft_weight", heads.weight_at(step)));
            numbers.extend(drafts);
        }
        // Both halves are measured at the weights as they are.
        if let Some(hybrid) = self.options.hybrid.filter(|_| self.shallow.contains(&true)) {
            slopes = self.shallow_step((step, rate), hybrid, batch)?;
        }
        numbers.extend(slopes.first().map(|slope| ("projected_gradient", *slope)));
        let variables = self.tuning.variables().iter().zip(&self.shapes).zip(&self.shallow);
        for ((((name, variable), &shape), shallow), (gradient, state)) in
            variables.zip(gradients.iter_mut().zip(&mut self.state))
        {
            let part = usize::from(is_of_heads(name));
            let Some(size) = sizes[part].filter(|_| !shallow) else { continue };
            if factors[part] != 1.0 {
                gradient.iter_mut().for_each(|g| *g *= factors[part]);
            }
            let optimizer = &self.optimizer;
            change(variable, |weights| {
                optimizer.update(shape, size, weights, gradient, state, &LibraryProducts);
            })?;
        }
        Ok(StepReport { loss, tokens, numbers })
    }

    fn measure(
        &mut self,
        examples: &mut dyn Iterator<Item = Result<Example, Error>>,
    ) -> Result<Vec<(String, f64)>, Error> {
        self.calibration = self.count_guesses(examples)?;
        Ok(self.calibration.as_ref().map_or(Vec::new(), heads::shares))
    }

    fn agree(&self) -> Result<(), Error> {
        if self.exchange.size() == 1 {
            return Ok(());
        }
        let own = self.tuning.variables().iter().map(|(name, variable)| {
            let digest = digest(&read(variable.as_tensor())?);
            Ok(Fingerprint { tensor: name.clone(), digest })
        });
        agree(&*self.exchange, &own.collect::<Result<Vec<_>, Error>>()?)
    }

    fn save(&self, folder: &Path) -> Result<(), Error> {
        self.write_state(folder)
    }

    fn restore(&mut self, folder: &Path) -> Result<(), Error> {
        self.read_state(folder)?;
        self.calibration = None;
        Ok(())
    }

    fn write_variant(&self, folder: &Path) -> Result<(), Error> {
        self.write_learned(folder)
    }
}

impl Scorer for FirstOrder {
    fn score(&mut self, sequences: &[&Sequence]) -> Result<Vec<Scored>, Error> {
        sequences.iter().map(|sequence| score::one(&self.tuning, sequence)).collect()
    }

    fn generate(&mut self, prompts: &[&[u32]], max_tokens: usize) -> Result<Vec<Vec<u32>>, Error> {
        let stops = self.checkpoint.stop_tokens();
        prompts
            .iter()
            .map(|prompt| score::answer(&self.tuning, prompt, max_tokens, stops))
            .collect()
    }
}

/// The numbers of a tensor.
fn read(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    let numbers = || tensor.flatten_all()?.to_vec1::<f32>();
    numbers().map_err(tensors)
}

fn tensors(error: candle_core::Error) -> Error {
    Error::Model(offshoot_models::Error::from(error))
}

/// Lets `f` change the numbers of a variable: where they are, on the processor.
fn change(variable: &Var, f: impl FnMut(&mut [f32]) + Send) -> Result<(), Error> {
    match variable.device().is_cpu() {
        true => variable.as_tensor().inplace_op1(&Change(Mutex::new(f))).map_err(tensors),
        false => change_copy(variable, f),
    }
}

/// The same by way of the processor: reads the numbers, lets `f` change them, and writes them back.
fn change_copy(variable: &Var, mut f: impl FnMut(&mut [f32])) -> Result<(), Error> {
    let mut numbers = read(variable.as_tensor())?;
    f(&mut numbers);
    let written = Tensor::from_vec(numbers, variable.dims(), variable.device());
    written.and_then(|tensor| variable.set(&tensor)).map_err(tensors)
}

struct Change<F>(Mutex<F>);

impl<F: FnMut(&mut [f32]) + Send> InplaceOp1 for Change<F> {
    fn name(&self) -> &'static str {
        "change"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(numbers), Some((first, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("a variable of other numbers than f32, one behind the other")
        };
        let mut f = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut numbers[first..end]);
        Ok(())
    }
}

/// Products of the tensor library.
struct LibraryProducts;

impl Products for LibraryProducts {
    fn multiply(&self, x: &[f32], y: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
        let tensor = |x: &[f32], shape| Tensor::from_slice(x, shape, &Device::Cpu);
        let product =
            || tensor(x, (m, k))?.matmul(&tensor(y, (k, n))?)?.flatten_all()?.to_vec1::<f32>();
        // The shapes fit, and memory that is missing ends the process.
        product()
            .unwrap_or_else(|_| offshoot_methods::optim::PlainProducts.multiply(x, y, (m, n, k)))
    }
}

#[cfg(test)]
mod tests;
