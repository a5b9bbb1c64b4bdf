//! The command line as types. Every option is also an `OFFSHOOT_*` variable.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Grow many language models from one base, on the machine you have.
#[derive(Debug, Parser)]
#[command(
    name = "offshoot",
    version,
    about,
    after_help = "Examples:\n  \
        offshoot run smollm2 \"Why is the sky blue?\"\n  \
        offshoot run ./model.gguf          a chat in the terminal\n  \
        offshoot bench smollm2 --json\n\n\
        Exit codes: 0 done, 1 failure, 2 usage, 3 data invalid, 4 model invalid, \
        5 out of memory, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer a prompt through the model's chat template, or chat if there is none.
    #[command(after_help = "Examples:\n  \
        offshoot run smollm2 \"Name three rivers.\" --max-tokens 60\n  \
        offshoot run qwen2.5-coder --temperature 0 --stats \"Write a haiku in Rust.\"")]
    Run(AnswerArgs),
    /// Continue raw text, without a template.
    #[command(after_help = "Example:\n  \
        offshoot generate smollm2 --prompt \"Once upon a time\" --max-tokens 40")]
    Generate(AnswerArgs),
    /// Fetch a model into the store.
    #[command(after_help = "Examples:\n  offshoot pull smollm2\n  \
        offshoot pull hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q8_0.gguf")]
    Pull(ModelArgs),
    /// List the models of the store and of the catalogue.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show what a model is.
    Show(ModelArgs),
    /// Remove a model from the store.
    Rm(RmArgs),
    /// Measure a model's speed beside what this machine could do.
    #[command(after_help = "Example:\n  offshoot bench smollm2 --threads 2 --json")]
    Bench(BenchArgs),
    /// Measure how well a model predicts a text.
    #[command(after_help = "Example:\n  offshoot perplexity smollm2 --file book.txt")]
    Perplexity(TextArgs),
    /// Show how a text is cut into tokens.
    #[command(after_help = "Example:\n  offshoot tokenize smollm2 --prompt \"Hello, world\"")]
    Tokenize(TextArgs),
    /// Say what this machine offers and what fits on it.
    Doctor(DoctorArgs),
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  offshoot completions bash > offshoot.bash")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Which model, and where it may come from.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// A file, `hf:org/repo[/file]`, or a name that `offshoot list` shows.
    #[arg(env = "OFFSHOOT_MODEL")]
    pub(crate) model: String,
    /// Use only what is on this machine.
    #[arg(long, env = "OFFSHOOT_OFFLINE", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) offline: bool,
    /// Print data as JSON.
    #[arg(long, env = "OFFSHOOT_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) json: bool,
}

/// How it is run.
#[derive(Debug, Clone, Args)]
pub(crate) struct EngineArgs {
    /// Threads of a step [default: all that the process may use]
    #[arg(long, short = 't', env = "OFFSHOOT_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Tokens of context [default: 4096, or the model's own limit if that is lower]
    #[arg(long, env = "OFFSHOOT_CTX_SIZE", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) ctx_size: Option<u32>,
    /// Pack the weights anew and keep no packed copy.
    #[arg(long, env = "OFFSHOOT_NO_CACHE", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) no_cache: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct AnswerArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The prompt; `-` reads standard input.
    #[arg(value_name = "PROMPT", conflicts_with = "prompt")]
    pub(crate) text: Option<String>,
    /// The prompt, as an option.
    #[arg(long, short = 'p', env = "OFFSHOOT_PROMPT")]
    pub(crate) prompt: Option<String>,
    /// What the system message says (run only).
    #[arg(long, env = "OFFSHOOT_SYSTEM")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// The most tokens to make.
    #[arg(long, short = 'n', env = "OFFSHOOT_MAX_TOKENS")]
    pub(crate) max_tokens: Option<usize>,
    /// End the answer before this text; may be given several times.
    #[arg(long, env = "OFFSHOOT_STOP")]
    pub(crate) stop: Vec<String>,
    /// Give the log-probabilities of this many alternatives a token (with --json).
    #[arg(long, env = "OFFSHOOT_LOGPROBS", value_parser = clap::value_parser!(u8).range(0..=20))]
    pub(crate) logprobs: Option<u8>,
    /// Print speeds on standard error when done.
    #[arg(long, env = "OFFSHOOT_STATS", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) stats: bool,
    /// Write the answer to this file.
    #[arg(long, short = 'o', env = "OFFSHOOT_OUTPUT")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct SamplingArgs {
    /// Divides the logits; 0 takes the likeliest token.
    #[arg(long, env = "OFFSHOOT_TEMPERATURE")]
    pub(crate) temperature: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    #[arg(long, env = "OFFSHOOT_TOP_K")]
    pub(crate) top_k: Option<u32>,
    /// Keep the likeliest tokens that sum to this probability.
    #[arg(long, env = "OFFSHOOT_TOP_P")]
    pub(crate) top_p: Option<f32>,
    /// Keep tokens at least this probable relative to the likeliest.
    #[arg(long, env = "OFFSHOOT_MIN_P")]
    pub(crate) min_p: Option<f32>,
    /// Make tokens seen before less likely; 1 is off.
    #[arg(long, env = "OFFSHOOT_REPETITION_PENALTY")]
    pub(crate) repetition_penalty: Option<f32>,
    /// Taken once from the logit of every token seen before.
    #[arg(long, env = "OFFSHOOT_PRESENCE_PENALTY", allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f32>,
    /// Taken from a token's logit for each time it was seen.
    #[arg(long, env = "OFFSHOOT_FREQUENCY_PENALTY", allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f32>,
    /// Add to a token's logit, as TOKEN=VALUE; may be given several times.
    #[arg(long, value_parser = logit_bias)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same text [default: a new one each time]
    #[arg(long, env = "OFFSHOOT_SEED")]
    pub(crate) seed: Option<u64>,
}

fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let (token, bias) = text.split_once('=').ok_or("expected TOKEN=VALUE, such as 42=-1.5")?;
    let token = token.trim().parse().map_err(|_| format!("{token} is no token id"))?;
    let bias = bias.trim().parse().map_err(|_| format!("{bias} is no number"))?;
    Ok((token, bias))
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ListArgs {
    /// Print data as JSON.
    #[arg(long, env = "OFFSHOOT_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RmArgs {
    /// The model's name as `offshoot list` shows it.
    pub(crate) model: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Repetitions; medians are given.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) rounds: u16,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TextArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The text.
    #[arg(long, short = 'p', env = "OFFSHOOT_PROMPT", conflicts_with = "file")]
    pub(crate) prompt: Option<String>,
    /// A file of text; `-` is standard input.
    #[arg(long, short = 'f')]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DoctorArgs {
    /// Also say whether this model would fit.
    pub(crate) model: Option<String>,
    /// Print data as JSON.
    #[arg(long, env = "OFFSHOOT_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) json: bool,
}
