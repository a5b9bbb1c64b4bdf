//! `medusa`: making and looking at draft heads.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand};

use super::{EngineArgs, JsonArgs, ModelArgs};

/// What to do with draft heads.
#[derive(Debug, Subcommand)]
pub(crate) enum MedusaCommand {
    /// Let a model answer prompts and train heads on its answers.
    #[command(after_help = "Examples:\n  \
        offshoot medusa train smollm2 --output smollm2.heads.safetensors\n  \
        offshoot medusa train qwen2.5-coder --flavour code --vocabulary 8192 --seed 1")]
    Train(MedusaTrainArgs),
    /// Turn published heads, a torch checkpoint among them, into safetensors; nothing in it is run.
    #[command(after_help = "Examples:\n  \
        offshoot medusa import medusa_lm_head.pt --model vicuna-7b.gguf --output heads.safetensors\n  \
        offshoot medusa import medusa_lm_head.pt\n  \
        offshoot medusa import vicuna-7b-medusa-2/ --model vicuna-7b-medusa-2/\n\n\
        Published heads do not say whose they are. With --model they do, and every other model\n\
        refuses them; without it any model of their shape takes them.")]
    Import(MedusaImportArgs),
    /// Show what a file of heads holds and how good they are.
    #[command(after_help = "Example:\n  offshoot medusa inspect heads.safetensors --json")]
    Inspect(MedusaInspectArgs),
    /// Print the best tree of a size, or check a file that holds one.
    #[command(after_help = "Examples:\n  offshoot medusa tree heads.safetensors --nodes 8\n  \
        offshoot medusa tree heads.safetensors --check tree.json")]
    Tree(MedusaTreeArgs),
}

/// The built-in prompts.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum PromptFlavour {
    Chat,
    Code,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct MedusaTrainArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Where the heads go.
    #[arg(
        long,
        short = 'o',
        env = "OFFSHOOT_OUTPUT",
        default_value = "medusa_lm_head.safetensors"
    )]
    pub(crate) output: PathBuf,
    /// The prompts to answer: one a line, or JSON with `tasks`, `subjects` and `whole`.
    #[arg(long, env = "OFFSHOOT_PROMPTS", conflicts_with = "flavour")]
    pub(crate) prompts: Option<PathBuf>,
    /// Which of the built-in prompts to answer.
    #[arg(long, env = "OFFSHOOT_FLAVOUR", value_enum, default_value = "chat")]
    pub(crate) flavour: PromptFlavour,
    /// Tokens of answers to make.
    #[arg(
        long, env = "OFFSHOOT_TOKENS", default_value_t = 320_000,
        value_parser = clap::value_parser!(u32).range(1..=100_000_000)
    )]
    pub(crate) tokens: u32,
    /// Tokens of an answer at most.
    #[arg(
        long, env = "OFFSHOOT_ANSWER_TOKENS", default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(2..=65_536)
    )]
    pub(crate) answer_tokens: u32,
    /// Of a hundred prompts so many are written by the model itself [default: 50, or 0 where
    /// prompts are given]
    #[arg(long, env = "OFFSHOOT_OWN_PROMPTS", value_parser = clap::value_parser!(u8).range(..=100))]
    pub(crate) own_prompts: Option<u8>,
    /// Number of heads.
    #[arg(
        long, env = "OFFSHOOT_HEADS", default_value_t = 3,
        value_parser = clap::value_parser!(u8).range(1..=8)
    )]
    pub(crate) heads: u8,
    /// Residual blocks of a head.
    #[arg(
        long, env = "OFFSHOOT_LAYERS", default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=4)
    )]
    pub(crate) layers: u8,
    /// Heads that do not see the token chosen from their state, as published.
    #[arg(long, env = "OFFSHOOT_STATE_ONLY", value_parser = FalseyValueParser::new())]
    pub(crate) state_only: bool,
    /// Tokens that the heads score: the most frequent ones.
    #[arg(
        long, env = "OFFSHOOT_VOCABULARY", default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(1..=16_384)
    )]
    pub(crate) vocabulary: u32,
    /// Times that the answers are gone through.
    #[arg(
        long, env = "OFFSHOOT_EPOCHS", default_value_t = 3,
        value_parser = clap::value_parser!(u16).range(1..=1000)
    )]
    pub(crate) epochs: u16,
    /// Places of a training step.
    #[arg(
        long, env = "OFFSHOOT_BATCH", default_value_t = 256,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub(crate) batch: u16,
    /// The greatest learning rate.
    #[arg(long, env = "OFFSHOOT_LEARNING_RATE", default_value_t = 1e-3)]
    pub(crate) learning_rate: f64,
    /// Names the prompts' order, the answers and the heads [default: 1]
    #[arg(long, env = "OFFSHOOT_SEED")]
    pub(crate) seed: Option<u64>,
    /// Keep the answers and their states in this folder, or use those that are there.
    #[arg(long, env = "OFFSHOOT_WORK")]
    pub(crate) work: Option<PathBuf>,
    /// Keep the answers in this folder as a datastore, for `--datastore`.
    #[arg(long, env = "OFFSHOOT_STORE")]
    pub(crate) store: Option<PathBuf>,
    /// Write the losses of each step to this file, a JSON object a line.
    #[arg(long, env = "OFFSHOOT_LOG")]
    pub(crate) log: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct MedusaImportArgs {
    /// The file to read, or the folder or index of a whole model with heads among its weights.
    pub(crate) file: PathBuf,
    /// The model that they were trained on: a file or folder, `hf:org/repo[/file]`, or a name that
    /// `offshoot list` shows.
    #[arg(long, env = "OFFSHOOT_IMPORT_MODEL")]
    pub(crate) model: Option<String>,
    /// Use only what is on this machine.
    #[arg(long, env = "OFFSHOOT_OFFLINE", value_parser = FalseyValueParser::new())]
    pub(crate) offline: bool,
    /// Where the heads go.
    #[arg(
        long,
        short = 'o',
        env = "OFFSHOOT_OUTPUT",
        default_value = "medusa_lm_head.safetensors"
    )]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct MedusaInspectArgs {
    /// The file of heads.
    pub(crate) heads: PathBuf,
    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct MedusaTreeArgs {
    /// The file of heads.
    pub(crate) heads: PathBuf,
    /// Nodes of the tree.
    #[arg(
        long, env = "OFFSHOOT_NODES", default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub(crate) nodes: u16,
    /// Take the heads as independent instead of the paths that were counted.
    #[arg(long, env = "OFFSHOOT_INDEPENDENT", value_parser = FalseyValueParser::new())]
    pub(crate) independent: bool,
    /// Check this tree, a JSON list of rank paths, instead of printing one.
    #[arg(long, env = "OFFSHOOT_CHECK")]
    pub(crate) check: Option<PathBuf>,
}
