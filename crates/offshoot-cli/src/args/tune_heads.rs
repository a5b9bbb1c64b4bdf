//! The settings of draft heads that learn while a model is tuned.

use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;
use serde::Serialize;

/// Those that were given as flags.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize)]
pub(crate) struct DraftHeadSettings {
    /// Draft heads that learn beside an adapter (Medusa-2); none if 0 [default: 0]
    #[arg(long, env = "OFFSHOOT_MEDUSA_HEADS", value_name = "K")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) medusa_heads: Option<u32>,
    /// Residual blocks of a head [default: 1]
    #[arg(long, env = "OFFSHOOT_MEDUSA_LAYERS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) medusa_layers: Option<u32>,
    /// Tokens that heads score: the most frequent ones of what is trained on [default: 4096]
    #[arg(long, env = "OFFSHOOT_MEDUSA_VOCABULARY", value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) medusa_vocabulary: Option<u32>,
    /// Heads of the base to begin with, as `offshoot medusa train` makes them.
    #[arg(long, env = "OFFSHOOT_MEDUSA_FROM", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) medusa_from: Option<PathBuf>,
    /// The share of the steps in which heads learn alone, before the adapter does; 1 leaves the base
    /// as it is [default: 0.3]
    #[arg(long, env = "OFFSHOOT_MEDUSA_ALONE", value_name = "SHARE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) medusa_alone: Option<f64>,
    /// How much the adapter hears of the heads, once it is reached [default: 0.2, or 0.01 with
    /// self-distillation]
    #[arg(long, env = "OFFSHOOT_MEDUSA_WEIGHT", value_name = "LAMBDA")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) medusa_weight: Option<f64>,
    /// The heads' learning rate over the adapter's [default: 4]
    #[arg(long, env = "OFFSHOOT_MEDUSA_RATE", value_name = "TIMES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) medusa_rate: Option<f64>,
    /// Hold the adapter to what the base would say and not to the text.
    #[arg(
        long, env = "OFFSHOOT_MEDUSA_SELF_DISTILLATION", value_parser = FalseyValueParser::new()
    )]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) medusa_self_distillation: bool,
}
