//! From settings to what a run drives.

use std::rc::Rc;
use std::sync::Arc;

use offshoot_kernels::Cpu;
use offshoot_methods::optim::{AdamW, Muon, OptimizerOptions, Sgd};
use offshoot_methods::tune::{Hash, RateOptions};
use offshoot_models::{BaseId, Checkpoint, TemplateId, Tokenizer, TokenizerId};
use serde_json::Value;

use super::config::{LOCAL_STEPS, Objective as Aim, Space as Tuned};
use super::{Method, Optimizer, RunConfig, RunDescription, RunError};
use crate::tune::zeroth_order::{
    Classification, CrossEntropy, FullOptions, FullSpace, LoraOptions, LoraSpace, Metric,
    MetricKind, Objective, Origin, PrefixOptions, PrefixSpace, Space, ZerothOrderOptions,
    ZerothOrderTrainer,
};
use crate::tune::{Exchange, ExchangeError};
use crate::tune::{FirstOrder, FirstOrderOptions, FirstOrderSpace, LoraMatrices, TensorNames};
use crate::tune::{LoraOptions as GradientLora, Trainer};
use crate::{Error, Model};

/// Most tokens of an answer that is compared while tuning.
const ANSWER_TOKENS: usize = 64;
/// What stands for all matrices of the blocks.
const ALL_LINEAR: &str = "all-linear";

/// What is tuned, in the form in which its method takes it.
#[derive(Debug)]
pub enum Base {
    /// Packed weights, which the method leaves as they are.
    Packed(Box<Model>),
    /// The weights as they are in their files.
    Stored(Arc<Checkpoint>),
}

impl RunConfig {
    /// Whether the method takes [`Base::Packed`].
    pub fn takes_packed(&self) -> bool {
        matches!(self.method, Method::ZerothOrder(_)) && self.space != Tuned::Full
    }
}

impl Base {
    /// What it was loaded from.
    pub fn checkpoint(&self) -> &Checkpoint {
        match self {
            Self::Packed(model) => model.checkpoint(),
            Self::Stored(checkpoint) => checkpoint,
        }
    }

    /// Which weights it has.
    ///
    /// # Errors
    /// If a file cannot be read any more.
    pub fn id(&self) -> Result<BaseId, Error> {
        match self {
            Self::Packed(model) => model.base_id(),
            Self::Stored(checkpoint) => Ok(BaseId::of(checkpoint)?),
        }
    }

    /// Makes the trainer of the run that `description` is of, on `cpu`, as one of the processes of
    /// `exchange`, which has `examples` examples.
    ///
    /// # Errors
    /// If a setting is not one that the method takes, or the weights cannot be read.
    pub fn trainer(
        &self,
        description: &RunDescription,
        tokenizer: &Arc<Tokenizer>,
        cpu: &Cpu,
        (exchange, examples): (&Rc<dyn Exchange>, usize),
    ) -> Result<Box<dyn Trainer>, Error> {
        let config = &description.config;
        let Method::ZerothOrder(name) = config.method else {
            return with_gradients(config, self.stored()?, exchange);
        };
        let mut options = config.options.clone();
        if config.has_local_steps() {
            if options.contains_key(LOCAL_STEPS) {
                let what = format!("options: {LOCAL_STEPS}: give accumulation instead");
                return Err(RunError::Config { place: String::new(), what }.into());
            }
            options.insert(LOCAL_STEPS.to_owned(), config.accumulation.into());
        }
        let options = ZerothOrderOptions {
            method: name.to_owned(),
            options: Value::Object(options),
            decay: config.weight_decay,
            auto_rate: config.auto_rate.then(RateOptions::default),
            origin: origin(description, self.checkpoint()),
            ..ZerothOrderOptions::default()
        };
        let space = self.space(config, cpu)?;
        let trainer = ZerothOrderTrainer::new(cpu, space, objective(config, tokenizer), &options)?;
        Ok(Box::new(trainer.among(Rc::clone(exchange), config.share, examples as u64)?))
    }

    fn stored(&self) -> Result<&Arc<Checkpoint>, Error> {
        match self {
            Self::Stored(checkpoint) => Ok(checkpoint),
            Self::Packed(_) => Err(Error::OnlyDense),
        }
    }

    fn space(&self, config: &RunConfig, cpu: &Cpu) -> Result<Box<dyn Space>, Error> {
        let distribution = config.method.card().map_or_else(Default::default, |c| c.distribution);
        let seed = config.seed;
        let packed = || match self {
            Self::Packed(model) => model.shared_packed(),
            Self::Stored(_) => Err(Error::OnlyPacked),
        };
        Ok(match config.space {
            Tuned::Full => {
                let options = FullOptions {
                    train: config.train.clone(),
                    freeze: config.freeze.clone(),
                    bfloat16: config.bfloat16,
                    seed,
                    distribution,
                };
                Box::new(FullSpace::new(cpu, Arc::clone(self.stored()?), &options)?)
            }
            Tuned::Prefix => {
                let options = PrefixOptions { tokens: config.prefix_tokens, seed, distribution };
                Box::new(PrefixSpace::new(cpu, packed()?, &options)?)
            }
            Tuned::Lora | Tuned::LoraFa => {
                let options = LoraOptions {
                    rank: config.rank,
                    alpha: config.alpha as f32,
                    targets: targets(config, self.checkpoint()),
                    fixed_a: config.space == Tuned::LoraFa,
                    seed,
                    distribution,
                    ..LoraOptions::default()
                };
                Box::new(LoraSpace::new(cpu, packed()?, &options)?)
            }
        })
    }
}

/// What a trajectory tells of where it comes from.
fn origin(description: &RunDescription, checkpoint: &Checkpoint) -> Origin {
    let data = blake3::Hash::from_hex(&description.data).ok();
    let tokenizer: TokenizerId = description.variant.tokenizer;
    let template = checkpoint.chat_template().map(TemplateId::of);
    Origin {
        base: Hash(*description.base().as_bytes()),
        tokenizer: Some(Hash(*tokenizer.as_bytes())),
        data: data.map(|hash| Hash(*hash.as_bytes())),
        template: template.map(|id| Hash(*id.as_bytes())),
    }
}

fn with_gradients(
    config: &RunConfig,
    checkpoint: &Arc<Checkpoint>,
    exchange: &Rc<dyn Exchange>,
) -> Result<Box<dyn Trainer>, Error> {
    if exchange.size() > config.accumulation as usize {
        let what = "with gradients they share the batches that make a step: give --accumulation as \
                    many, or more";
        return Err(ExchangeError::Unshared { size: exchange.size(), what }.into());
    }
    if config.objective != Aim::Loss {
        let what = format!("objective: method {} knows none but loss", config.method);
        return Err(RunError::Config { place: String::new(), what }.into());
    }
    let all = config.target_modules.iter().any(|name| name == ALL_LINEAR);
    let named = || config.target_modules.clone();
    let space = match config.method {
        Method::Full if all => FirstOrderSpace::Full(TensorNames::All),
        Method::Full => FirstOrderSpace::Full(TensorNames::Named(named())),
        _ => FirstOrderSpace::Lora(GradientLora {
            matrices: if all { LoraMatrices::AllLinear } else { LoraMatrices::Named(named()) },
            rank: config.rank,
            alpha: config.alpha,
            dropout: config.dropout,
            rslora: config.rslora,
            ..GradientLora::default()
        }),
    };
    let options = FirstOrderOptions {
        space,
        optimizer: optimizer(config),
        clip_norm: Some(config.max_grad_norm),
        micro_batch: config.batch as usize,
        checkpointing: config.gradient_checkpointing,
        seed: config.seed,
        ..FirstOrderOptions::default()
    };
    let trainer = FirstOrder::new(Arc::clone(checkpoint), options)?;
    Ok(Box::new(trainer.among(Rc::clone(exchange))))
}

fn optimizer(config: &RunConfig) -> OptimizerOptions {
    let weight_decay = config.weight_decay;
    match config.optimizer {
        Optimizer::Adamw => OptimizerOptions::AdamW(AdamW { weight_decay, ..AdamW::default() }),
        Optimizer::Sgd => OptimizerOptions::Sgd(Sgd { weight_decay, ..Sgd::default() }),
        Optimizer::Muon => OptimizerOptions::Muon(Muon { weight_decay, ..Muon::default() }),
    }
}

/// The last parts of the names of the matrices that are tuned.
fn targets(config: &RunConfig, checkpoint: &Checkpoint) -> Vec<String> {
    if config.target_modules.iter().all(|name| name != ALL_LINEAR) {
        return config.target_modules.clone();
    }
    let (_, blueprint) = offshoot_models::Architecture::new(checkpoint.config());
    let inner = blueprint.linears.iter().rev().skip(1).filter(|linear| !linear.routed);
    let mut names: Vec<String> =
        inner.filter_map(|linear| linear.name.rsplit('.').next()).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

fn objective(config: &RunConfig, tokenizer: &Arc<Tokenizer>) -> Box<dyn Objective> {
    let metric = |kind| Box::new(Metric::new(kind, Arc::clone(tokenizer), ANSWER_TOKENS));
    match config.objective {
        Aim::Loss => Box::new(CrossEntropy),
        Aim::Classification => Box::new(Classification),
        Aim::Accuracy => metric(MetricKind::Accuracy),
        Aim::F1 => metric(MetricKind::TokenF1),
        Aim::ExactMatch => metric(MetricKind::ExactMatch),
    }
}
