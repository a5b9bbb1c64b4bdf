//! From settings to what a run drives.

use offshoot_kernels::Cpu;
use serde_json::Value;

use super::config::{Objective as Aim, Space as Tuned};
use super::{Method, RunConfig};
use crate::tune::Trainer;
use crate::tune::zeroth_order::{
    Classification, CrossEntropy, LoraOptions, LoraSpace, Metric, MetricKind, Objective,
    PrefixOptions, PrefixSpace, Space, ZerothOrderOptions, ZerothOrderTrainer,
};
use crate::{DenseDevice, DenseType, Error, ExecutorKind, Model};

/// Most tokens of an answer that is compared while tuning.
const ANSWER_TOKENS: usize = 64;

impl Method {
    /// What runs the model while it is tuned.
    pub fn executor(self) -> ExecutorKind {
        match self {
            Self::ZerothOrder(_) => ExecutorKind::Packed,
            Self::Lora | Self::Full => {
                ExecutorKind::Dense { device: DenseDevice::Cpu, dtype: DenseType::F32 }
            }
        }
    }
}

/// Makes the trainer of `config` for `model`, which was loaded for the method's executor.
///
/// # Errors
/// If a setting is not one that the method takes.
pub fn trainer(config: &RunConfig, model: &Model, cpu: &Cpu) -> Result<Box<dyn Trainer>, Error> {
    match config.method {
        Method::ZerothOrder(name) => without_gradients(name, config, model, cpu),
        Method::Lora | Method::Full => Err(Error::OnlyPacked),
    }
}

fn without_gradients(
    name: &str,
    config: &RunConfig,
    model: &Model,
    cpu: &Cpu,
) -> Result<Box<dyn Trainer>, Error> {
    let options = ZerothOrderOptions {
        method: name.to_owned(),
        options: Value::Object(config.options.clone()),
        decay: config.weight_decay,
        ..ZerothOrderOptions::default()
    };
    let space = space(config, model, cpu)?;
    let trainer = ZerothOrderTrainer::new(cpu, space, objective(config, model), &options)?;
    Ok(Box::new(trainer))
}

fn space(config: &RunConfig, model: &Model, cpu: &Cpu) -> Result<Box<dyn Space>, Error> {
    let distribution = config.method.card().map_or_else(Default::default, |c| c.distribution);
    let packed = model.shared_packed()?;
    let seed = config.seed;
    Ok(match config.space {
        Tuned::Prefix => {
            let options = PrefixOptions { tokens: config.prefix_tokens, seed, distribution };
            Box::new(PrefixSpace::new(cpu, packed, &options)?)
        }
        Tuned::Lora | Tuned::LoraFa => {
            let options = LoraOptions {
                rank: config.rank,
                alpha: config.alpha as f32,
                targets: targets(config, model),
                fixed_a: config.space == Tuned::LoraFa,
                seed,
                distribution,
            };
            Box::new(LoraSpace::new(cpu, packed, &options)?)
        }
    })
}

/// The last parts of the names of the matrices that are tuned.
fn targets(config: &RunConfig, model: &Model) -> Vec<String> {
    if config.target_modules.iter().all(|name| name != "all-linear") {
        return config.target_modules.clone();
    }
    let (_, blueprint) = offshoot_models::Architecture::new(model.config());
    let inner = blueprint.linears.iter().rev().skip(1);
    let mut names: Vec<String> =
        inner.filter_map(|linear| linear.name.rsplit('.').next()).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

fn objective(config: &RunConfig, model: &Model) -> Box<dyn Objective> {
    let tokenizer = || std::sync::Arc::clone(model.tokenizer());
    let metric = |kind| Box::new(Metric::new(kind, tokenizer(), ANSWER_TOKENS));
    match config.objective {
        Aim::Loss => Box::new(CrossEntropy),
        Aim::Classification => Box::new(Classification),
        Aim::Accuracy => metric(MetricKind::Accuracy),
        Aim::F1 => metric(MetricKind::TokenF1),
        Aim::ExactMatch => metric(MetricKind::ExactMatch),
    }
}
