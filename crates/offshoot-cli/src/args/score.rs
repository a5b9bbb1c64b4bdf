//! `score` and `embed`: what a model makes of a text.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};

use super::{AdapterArgs, EngineArgs, ModelArgs, TextArgs};

#[derive(Debug, Clone, Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    /// What stands before the text: it is read, and not scored.
    #[arg(long, env = "OFFSHOOT_GIVEN", value_name = "TEXT")]
    pub(crate) given: Option<String>,
    /// How many of the likeliest tokens to show in each one's place.
    #[arg(
        long, env = "OFFSHOOT_TOP", value_name = "N", default_value_t = 0,
        value_parser = clap::value_parser!(u16).range(0..=100)
    )]
    pub(crate) top: u16,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct EmbedArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The texts, each a vector.
    #[arg(value_name = "TEXT", conflicts_with = "file")]
    pub(crate) texts: Vec<String>,
    /// A file with a text on each line; `-`, or no text where input is piped, is standard input.
    #[arg(long, short = 'f', env = "OFFSHOOT_FILE")]
    pub(crate) file: Option<PathBuf>,
    /// How the states of a text's tokens become one vector.
    #[arg(long, env = "OFFSHOOT_POOLING", value_enum, default_value_t = Pooling::Mean)]
    pub(crate) pooling: Pooling,
    /// Leave the vector as long as it is, instead of dividing it by its length.
    #[arg(long, env = "OFFSHOOT_NO_NORMALIZE", value_parser = FalseyValueParser::new())]
    pub(crate) no_normalize: bool,
    /// Show how near the texts are to each other, as cosines, instead of the vectors.
    #[arg(
        long, env = "OFFSHOOT_COSINES", conflicts_with = "no_normalize",
        value_parser = FalseyValueParser::new()
    )]
    pub(crate) cosines: bool,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// The state of the last token, which has seen all others.
    Last,
}
