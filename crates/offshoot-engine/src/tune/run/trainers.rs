//! From settings to what a run drives.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use offshoot_kernels::Cpu;
use offshoot_methods::optim::{AdamW, Muon, OptimizerOptions, Sgd};
use offshoot_methods::tune::{Hash, RateOptions, SpaceKind, common_rate};
use offshoot_models::medusa::HeadsFile;
use offshoot_models::{BaseId, Checkpoint, TemplateId, Tokenizer, TokenizerId};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::config::{LOCAL_STEPS, Space as Tuned};
use super::evaluation::answers;
use super::files::output;
use super::objective::Objective as Aim;
use super::{Examples, Method, Offload, Optimizer, RunConfig, RunDescription, RunError};
use crate::error::one_line;
use crate::medusa::most_counted;
use crate::tune::eval::EvalOptions;
use crate::tune::zeroth_order::{
    Classification, CrossEntropy, FullOptions, FullSpace, LoraOptions, LoraSpace, Metric,
    MetricCommand, MetricKind, Objective, Origin, PrefixOptions, PromptOptions, ScalesOptions,
    ScalesSpace, Space, VirtualSpace, ZerothOrderOptions, ZerothOrderTrainer,
};
use crate::tune::{
    ChoiceLoss, DraftHeads, Example, FirstOrder, FirstOrderOptions, FirstOrderSpace, LoraMatrices,
    LoraOptions as GradientLora, TensorNames, Trainer,
};
use crate::tune::{Exchange, ExchangeError};
use crate::{Error, ExecutorKind, Model};

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
    /// `exchange`, which has the examples `train`. Their tokens say which ones draft heads score. Weights
    /// that are kept on disk are there in `folder`, the run's, which is made for them.
    ///
    /// # Errors
    /// If a setting is not one that the method takes, or the weights cannot be read.
    pub fn trainer(
        &self,
        description: &RunDescription,
        train: &dyn Examples,
        (tokenizer, cpu): (&Arc<Tokenizer>, &Cpu),
        exchange: &Rc<dyn Exchange>,
        folder: &Path,
    ) -> Result<Box<dyn Trainer>, Error> {
        let config = &description.config;
        let Method::ZerothOrder(name) = config.method else {
            return with_gradients(description, train, self.stored()?, exchange);
        };
        let made = config.offload == Offload::Disk && !folder.exists();
        if made {
            std::fs::create_dir_all(folder).map_err(output(folder))?;
        }
        let trainer =
            self.without_gradients(name, description, train, (tokenizer, cpu), (exchange, folder));
        if made && trainer.is_err() {
            // Nothing is in it yet, unless another process of the run was faster.
            let _ = std::fs::remove_dir(folder);
        }
        trainer
    }

    fn without_gradients(
        &self,
        name: &str,
        description: &RunDescription,
        train: &dyn Examples,
        (tokenizer, cpu): (&Arc<Tokenizer>, &Cpu),
        (exchange, folder): (&Rc<dyn Exchange>, &Path),
    ) -> Result<Box<dyn Trainer>, Error> {
        let config = &description.config;
        let space = self.space(config, cpu, folder)?;
        let options = ZerothOrderOptions {
            method: name.to_owned(),
            options: Value::Object(self.options(config)?),
            decay: config.weight_decay,
            auto_rate: auto_rate(description)?,
            origin: origin(description, self.checkpoint()),
            ..ZerothOrderOptions::default()
        };
        let trainer = ZerothOrderTrainer::new(cpu, space, objective(config, tokenizer)?, &options)?;
        let trainer = match config.runs_on()? {
            ExecutorKind::Packed => trainer,
            ExecutorKind::Dense { device, dtype } => trainer.on(device, dtype)?,
        };
        let examples = train.count() as u64;
        Ok(Box::new(trainer.among(Rc::clone(exchange), config.share, examples)?))
    }

    /// The method's options: those of `config`, and how far a probe goes in its space.
    fn options(&self, config: &RunConfig) -> Result<Map<String, Value>, RunError> {
        let mut options = config.options.clone();
        if config.has_local_steps() {
            options.insert(LOCAL_STEPS.to_owned(), config.accumulation.into());
        }
        let said = |of: &Map<String, Value>| of.contains_key("eps");
        if said(&options) || options.get("probe").and_then(Value::as_object).is_some_and(said) {
            return Ok(options);
        }
        let own = config.method.card().and_then(|card| card.defaults()["probe"]["eps"].as_f64());
        let weights = self.checkpoint().tensors().map(|t| t.len() as u64).sum();
        let eps = |space| common_rate(space, weights).1;
        let share = eps(config.space.kind()) / eps(SpaceKind::Full);
        if let Some(own) = own.filter(|_| share != 1.0) {
            options.insert("eps".to_owned(), Value::from(own * share));
        }
        Ok(options)
    }

    fn stored(&self) -> Result<&Arc<Checkpoint>, Error> {
        match self {
            Self::Stored(checkpoint) => Ok(checkpoint),
            Self::Packed(_) => Err(Error::OnlyDense),
        }
    }

    fn space(&self, config: &RunConfig, cpu: &Cpu, folder: &Path) -> Result<Box<dyn Space>, Error> {
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
                    store: config.store,
                    folder: (config.offload == Offload::Disk).then(|| folder.to_owned()),
                    seed,
                    distribution,
                };
                Box::new(FullSpace::new(cpu, Arc::clone(self.stored()?), &options)?)
            }
            Tuned::Prefix => {
                let options = PrefixOptions { tokens: config.prefix_tokens, seed, distribution };
                Box::new(VirtualSpace::prefix(cpu, packed()?, &options)?)
            }
            Tuned::Prompt => {
                let options = PromptOptions { tokens: config.prompt_tokens, seed, distribution };
                Box::new(VirtualSpace::prompt(cpu, packed()?, &options)?)
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

/// How the rate is found, where none is given.
fn auto_rate(description: &RunDescription) -> Result<Option<RateOptions>, RunError> {
    if description.config.rate().is_some() {
        return Ok(None);
    }
    let steps = description.config.plan(description.examples, description.held_out)?.steps;
    let steps = u32::try_from(steps).unwrap_or(u32::MAX);
    Ok(Some(RateOptions { steps, ..RateOptions::default() }))
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
    description: &RunDescription,
    train: &dyn Examples,
    checkpoint: &Arc<Checkpoint>,
    exchange: &Rc<dyn Exchange>,
) -> Result<Box<dyn Trainer>, Error> {
    let config = &description.config;
    if exchange.size() > config.accumulation as usize {
        let what = "with gradients they share the batches that make a step: give --accumulation as \
                    many, or more";
        return Err(ExchangeError::Unshared { size: exchange.size(), what }.into());
    }
    if exchange.size() > 1 && config.has_heads() {
        let what = "draft heads learn in one process alone";
        return Err(ExchangeError::Unshared { size: exchange.size(), what }.into());
    }
    let choice = match config.objective {
        Aim::Loss => ChoiceLoss::Language,
        Aim::Classification => ChoiceLoss::Candidates,
        Aim::Accuracy | Aim::F1 | Aim::ExactMatch | Aim::Command(_) => {
            let what = format!(
                "objective: it has no gradient, and method {} goes by gradients: take loss or \
                 classification, or a method without",
                config.method
            );
            return Err(RunError::Config { place: String::new(), what }.into());
        }
    };
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
        choice,
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
    let ExecutorKind::Dense { device, .. } = config.runs_on()? else {
        return Err(Error::OnlyDense);
    };
    if !config.has_heads() {
        let trainer = FirstOrder::on(device, Arc::clone(checkpoint), options, None)?;
        return Ok(Box::new(trainer.among(Rc::clone(exchange))));
    }
    let from = config.medusa_from.as_deref().map(HeadsFile::open).transpose()?;
    let heads = draft_heads(description, from.as_ref(), train, checkpoint.config().vocab_size)?;
    let options = FirstOrderOptions { heads: Some(heads), ..options };
    Ok(Box::new(FirstOrder::on(device, Arc::clone(checkpoint), options, from.as_ref())?))
}

/// How the draft heads of a run learn: of the form of those that they begin with, or scoring the most
/// frequent tokens of what is trained on.
fn draft_heads(
    description: &RunDescription,
    from: Option<&HeadsFile>,
    train: &dyn Examples,
    vocab_size: usize,
) -> Result<DraftHeads, Error> {
    let config = &description.config;
    let steps = config.plan(description.examples, description.held_out)?.steps;
    let alone = (config.medusa_alone * steps as f64) as u64;
    let self_distillation = config.medusa_self_distillation;
    // Both in the experiments of Cai et al. 2024, <https://arxiv.org/abs/2401.10774>.
    let usual = if self_distillation { 0.01 } else { 0.2 };
    let heads = DraftHeads {
        heads: config.medusa_heads,
        layers: config.medusa_layers,
        weight: config.medusa_weight.unwrap_or(usual),
        rate: config.medusa_rate,
        alone,
        rise: steps - alone,
        self_distillation,
        ..DraftHeads::default()
    };
    if let Some(file) = from {
        let count = file.heads.len();
        if ![0, count].contains(&config.medusa_heads) {
            let what = format!(
                "medusa_heads is {}: the heads to begin with are {count}: leave it out",
                config.medusa_heads
            );
            return Err(RunError::Config { place: String::new(), what }.into());
        }
        return Ok(heads.of_form(file));
    }
    let vocabulary = frequent_tokens(train, vocab_size, config.medusa_vocabulary)?;
    Ok(DraftHeads { vocabulary, ..heads })
}

/// The `n` most frequent tokens among those that examples are trained on, ascending.
fn frequent_tokens(train: &dyn Examples, vocab_size: usize, n: usize) -> Result<Vec<u32>, Error> {
    let mut counts = vec![0; vocab_size];
    for index in 0..train.count() {
        let (Example::Text(text) | Example::Answer { gold: text, .. }) = train.example(index)?
        else {
            continue;
        };
        let trained = text.tokens.iter().zip(&text.trained).filter(|(_, trained)| **trained);
        for (&token, _) in trained {
            if let Some(count) = counts.get_mut(token as usize) {
                *count += 1;
            }
        }
    }
    Ok(most_counted(&counts, n))
}

/// The options of a method that has gradients.
pub(super) fn own_options<O: DeserializeOwned>(config: &RunConfig) -> Result<O, Error> {
    let options = serde_json::from_value(Value::Object(config.options.clone()));
    options.map_err(|error| {
        let what = format!("options: {}", one_line(&error));
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

fn objective(config: &RunConfig, tokenizer: &Arc<Tokenizer>) -> Result<Box<dyn Objective>, Error> {
    let EvalOptions { max_new_tokens, end, .. } = answers(config)?;
    let metric = |kind| Box::new(Metric::new(kind, Arc::clone(tokenizer), max_new_tokens, end));
    Ok(match &config.objective {
        Aim::Loss => Box::new(CrossEntropy),
        Aim::Command(command) => {
            let command = command.clone();
            Box::new(MetricCommand::new(command, Arc::clone(tokenizer), max_new_tokens))
        }
        Aim::Classification => Box::new(Classification),
        Aim::Accuracy => metric(MetricKind::Accuracy),
        Aim::F1 => metric(MetricKind::TokenF1),
        Aim::ExactMatch => metric(MetricKind::ExactMatch),
    })
}
