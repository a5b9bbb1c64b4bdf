//! `eval`: a model on examples.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{AdapterArgs, EngineArgs, ExecutorArgs, ModelArgs, RowArgs};

#[derive(Debug, Clone, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The examples, as `offshoot data check` reads them; may be given several times.
    #[arg(long, env = "OFFSHOOT_DATA", value_name = "FILE", required = true)]
    pub(crate) data: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) rows: RowArgs,
    /// Tokens of a row at most [default: the context]
    #[arg(
        long, env = "OFFSHOOT_MAX_LENGTH", value_name = "TOKENS",
        value_parser = clap::value_parser!(u32).range(2..)
    )]
    pub(crate) max_length: Option<u32>,
    /// How many examples run together; it changes no result.
    #[arg(
        long, short = 'b', env = "OFFSHOOT_BATCH", default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub(crate) batch: u16,
    /// Only the first so many examples.
    #[arg(long, env = "OFFSHOOT_LIMIT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// What makes a candidate better than another.
    #[arg(long, env = "OFFSHOOT_CHOICE_SCORE", value_enum, default_value_t = ChoiceScoreArg::Mean)]
    pub(crate) choice_score: ChoiceScoreArg,
    /// Tokens of a written answer at most [default: the task's, or 50]
    #[arg(long, short = 'n', env = "OFFSHOOT_MAX_TOKENS")]
    pub(crate) max_tokens: Option<usize>,
    /// End a written answer before this text [default: the task's]
    #[arg(long, env = "OFFSHOOT_STOP")]
    pub(crate) stop: Option<String>,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) executor: ExecutorArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ChoiceScoreArg {
    /// The mean log-probability of its tokens
    Mean,
    /// Their sum
    Sum,
}
