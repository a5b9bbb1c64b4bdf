//! From settings to what a run drives.

use std::sync::Arc;

use offshoot_kernels::Cpu;
use offshoot_methods::optim::{AdamW, Muon, OptimizerOptions, Sgd};
use offshoot_methods::tune::{Hash, RateOptions, SpaceKind, common_rate};
use offshoot_models::{BaseId, Checkpoint, TemplateId, Tokenizer, TokenizerId};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::config::{Objective as Aim, Space as Tuned};
use super::{Method, Optimizer, RunConfig, RunDescription, RunError};
use crate::tune::zeroth_order::{
    Classification, CrossEntropy, FullOptions, FullSpace, LoraOptions, LoraSpace, Metric,
    MetricCommand, MetricKind, Objective, Origin, PrefixOptions, PrefixSpace, PromptOptions,
    PromptSpace, ScalesOptions, ScalesSpace, Space, ZerothOrderOptions, ZerothOrderTrainer,
};
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

    /// Makes the trainer of the run that `description` is of, on `cpu`.
    ///
    /// # Errors
    /// If a setting is not one that the method takes, or the weights cannot be read.
    pub fn trainer(
        &self,
        description: &RunDescription,
        tokenizer: &Arc<Tokenizer>,
        cpu: &Cpu,
    ) -> Result<Box<dyn Trainer>, Error> {
        let config = &description.config;
        let Method::ZerothOrder(name) = config.method else {
            return with_gradients(config, self.stored()?);
        };
        let space = self.space(config, cpu)?;
        let options = ZerothOrderOptions {
            method: name.to_owned(),
            options: method_options(config, &*space),
            decay: config.weight_decay,
            auto_rate: config.auto_rate.then(RateOptions::default),
            origin: origin(description, self.checkpoint()),
            ..ZerothOrderOptions::default()
        };
        let trainer = ZerothOrderTrainer::new(cpu, space, objective(config, tokenizer), &options)?;
        Ok(Box::new(trainer))
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
            Tuned::Prompt => {
                let options = PromptOptions { tokens: config.prompt_tokens, seed, distribution };
                Box::new(PromptSpace::new(cpu, packed()?, &options)?)
            }
            Tuned::Scales => {
                let targets = targets(config, self.checkpoint());
                let options = ScalesOptions { targets, seed, distribution };
                Box::new(ScalesSpace::new(cpu, packed()?, &options)?)
            }
            Tuned::Lora | Tuned::LoraFa => {
                let options = LoraOptions {
                    rank: config.rank,
                    alpha: config.alpha as f32,
                    targets: targets(config, self.checkpoint()),
                    fixed_a: config.space == Tuned::LoraFa,
                    activations: config.activations,
                    seed,
                    distribution,
                };
                Box::new(LoraSpace::new(cpu, packed()?, &options)?)
            }
        })
    }
}

/// The method's own options. What stands before texts is rounded to half precision or is of the size of
/// embeddings, and factors are about 1, so there eps is the field's common one, unless one is given.
fn method_options(config: &RunConfig, space: &dyn Space) -> Value {
    let mut options = Value::Object(config.options.clone());
    let card = config.method.card().map(|card| card.options(&Value::Null)).unwrap_or_default();
    let given = &options["probe"]["eps"];
    let of_card = card["probe"]["eps"].is_number() && given.is_null();
    if matches!(space.kind(), SpaceKind::Prefix | SpaceKind::Prompt | SpaceKind::Scales) && of_card
    {
        let (_, eps) = common_rate(space.kind(), space.model().weights() as u64);
        if options["probe"].is_null() {
            options["probe"] = Value::Object(Map::new());
        }
        if let Some(probe) = options["probe"].as_object_mut() {
            probe.insert("eps".to_owned(), Value::from(eps));
        }
    }
    options
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
) -> Result<Box<dyn Trainer>, Error> {
    if config.objective != Aim::Loss {
        let what = format!("objective: method {} knows none but loss", config.method);
        return Err(RunError::Config { place: String::new(), what }.into());
    }
    let all = config.target_modules.iter().any(|name| name == ALL_LINEAR);
    let named = || config.target_modules.clone();
    let along = config.method == Method::ForwardGradient;
    let hybrid = config.method == Method::Hybrid;
    let space = match config.tunes_all_by_gradients() {
        true if all => FirstOrderSpace::Full(TensorNames::All),
        true => FirstOrderSpace::Full(TensorNames::Named(named())),
        false => FirstOrderSpace::Lora(GradientLora {
            matrices: if all { LoraMatrices::AllLinear } else { LoraMatrices::Named(named()) },
            rank: config.rank,
            alpha: config.alpha,
            dropout: config.dropout,
            rslora: config.rslora,
            freeze_a: (along || hybrid) && config.space == Tuned::LoraFa,
            ..GradientLora::default()
        }),
    };
    let options = FirstOrderOptions {
        space,
        // Along directions a step is plain descent, as MeZO's, whose length says nothing of the gradient's.
        optimizer: if along { descent(config) } else { optimizer(config) },
        clip_norm: (!along).then_some(config.max_grad_norm),
        forward: along.then(|| own_options(config)).transpose()?,
        hybrid: hybrid.then(|| own_options(config)).transpose()?,
        micro_batch: config.batch as usize,
        checkpointing: config.gradient_checkpointing || hybrid,
        seed: config.seed,
        ..FirstOrderOptions::default()
    };
    Ok(Box::new(FirstOrder::new(Arc::clone(checkpoint), options)?))
}

/// The options of a method that has gradients.
fn own_options<O: DeserializeOwned>(config: &RunConfig) -> Result<O, Error> {
    let options = serde_json::from_value(Value::Object(config.options.clone()));
    options.map_err(|error| {
        let what = format!("options: {}", error.to_string().escape_debug());
        RunError::Config { place: String::new(), what }.into()
    })
}

fn descent(config: &RunConfig) -> OptimizerOptions {
    let weight_decay = config.weight_decay;
    OptimizerOptions::Sgd(Sgd { momentum: 0.0, nesterov: false, weight_decay })
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
    match &config.objective {
        Aim::Loss => Box::new(CrossEntropy),
        Aim::Command(command) => {
            let command = command.clone();
            Box::new(MetricCommand::new(command, Arc::clone(tokenizer), ANSWER_TOKENS))
        }
        Aim::Classification => Box::new(Classification),
        Aim::Accuracy => metric(MetricKind::Accuracy),
        Aim::F1 => metric(MetricKind::TokenF1),
        Aim::ExactMatch => metric(MetricKind::ExactMatch),
    }
}
