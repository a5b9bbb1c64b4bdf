//! The command line as types. Every flag is also an `OFFSHOOT_*` variable.

mod data;
mod eval;
mod executor;
mod export;
mod medusa;
mod score;
mod trajectory;
mod tune;
mod tune_heads;

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand};
use offshoot_engine::datastore::{Share, TokenBits};
use offshoot_engine::spec::{RestDrafter, SpecMode};
use offshoot_methods::draft::Typical;
use offshoot_models::Recipe;

pub(crate) use data::{
    DataCheckArgs, DataCommand, DataModelArgs, DataShowArgs, DataSplitArgs, RowArgs,
};
pub(crate) use eval::{ChoiceScoreArg, EvalArgs};
pub(crate) use executor::{AdapterArgs, ExecutorArgs};
pub(crate) use export::{ExportArgs, ManArgs};
pub(crate) use medusa::{
    MedusaCommand, MedusaImportArgs, MedusaInspectArgs, MedusaTrainArgs, MedusaTreeArgs,
    PromptFlavour,
};
pub(crate) use score::{EmbedArgs, Pooling, ScoreArgs};
pub(crate) use trajectory::{
    RemakeArgs, TrajectoryCommand, TrajectoryDiffArgs, TrajectoryExportArgs, TrajectoryInfoArgs,
    TrajectoryMergeArgs, TrajectoryReplayArgs, TrajectorySliceArgs,
};
pub(crate) use tune::{MethodsArgs, ReportArgs, TuneArgs};

/// Grow many language models from one base, on the machine you have.
#[derive(Debug, Parser)]
#[command(
    name = "offshoot",
    version,
    after_help = "Examples:\n  \
        offshoot run smollm2 \"Why is the sky blue?\"\n  \
        offshoot run ./model.gguf          a chat in the terminal\n  \
        offshoot bench smollm2 --json\n\n\
        Exit codes:\n    \
        0  done\n    \
        1  failure: a file, the network, the package client\n    \
        2  usage: a wrong command line, setting or model name\n    \
        3  data invalid: a prompt or a text that cannot be used\n    \
        4  model or datastore invalid: a broken file, or not the promised one\n    \
        5  out of memory: told before loading, with what would fit\n  \
        130  interrupted\n\n\
        Environment: each flag is also read from OFFSHOOT_ and its name in capitals, as in\n\
        OFFSHOOT_CTX_SIZE=8192. Models are kept in OFFSHOOT_HOME. HF_HOME, HF_HUB_CACHE,\n\
        HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to the hub's own tools."
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
        offshoot run qwen2.5-coder --temperature 0 --stats \"Write a haiku in Rust.\"\n  \
        offshoot run smollm2 --draft-model ./small.gguf --acceptance rejection \"Tell a story.\"\n  \
        offshoot run smollm2 --executor dense --spec suffix --stats \"Count to ten.\"\n  \
        git diff | offshoot run qwen2.5-coder --system \"Summarise this change.\"\n  \
        offshoot run smollm2               a chat; /help lists what it understands")]
    Run(RunArgs),
    /// Continue raw text, without a template.
    #[command(after_help = "Example:\n  \
        offshoot generate smollm2 --prompt \"Once upon a time\" --max-tokens 40")]
    Generate(AnswerArgs),
    /// Fetch a model into the store.
    #[command(after_help = "Examples:\n  offshoot pull smollm2\n  \
        offshoot pull hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q8_0.gguf")]
    Pull(ModelArgs),
    /// List the models of the store and of the catalogue.
    #[command(visible_alias = "ls", after_help = "Example:\n  offshoot list --json")]
    List(ListArgs),
    /// Show what a model is.
    #[command(after_help = "Examples:\n  offshoot show smollm2\n  \
        offshoot show ./model.gguf --json\n  offshoot show ./model-folder")]
    Show(ModelArgs),
    /// Remove a model, or what an unfinished pull of it left, from the store.
    #[command(after_help = "Example:\n  offshoot rm smollm2")]
    Rm(RmArgs),
    /// Measure a model's speed beside what this machine could do.
    #[command(after_help = "Examples:\n  offshoot bench smollm2 --threads 2 --json\n  \
        offshoot bench smollm2 --spec --arms suffix,auto --rounds 3")]
    Bench(BenchArgs),
    /// Measure what steps of several tokens take here, so that drafting need not learn it first.
    #[command(after_help = "Examples:\n  offshoot calibrate smollm2\n  \
        offshoot calibrate smollm2 --threads 2 --plot steps.svg --json")]
    Calibrate(CalibrateArgs),
    /// Measure how well a model predicts a text.
    #[command(after_help = "Example:\n  offshoot perplexity smollm2 --file book.txt")]
    Perplexity(PerplexityArgs),
    /// Say how likely each token of a text is.
    #[command(
        after_help = "Examples:\n  offshoot score smollm2 --prompt \"Paris is in France\"\n  \
        offshoot score smollm2 --given \"2 + 2 =\" --prompt \" 4\" --top 3 --json"
    )]
    Score(ScoreArgs),
    /// Measure a model on examples: loss, accuracy, F1, answers.
    #[command(after_help = "Examples:\n  \
        offshoot eval smollm2 --data held_out.jsonl\n  \
        offshoot eval smollm2 --data dev.tsv --task sst2 --batch 32 --json\n  \
        offshoot eval smollm2 --data dev.parquet --task squad --limit 100 --adapter ./tuned")]
    Eval(EvalArgs),
    /// Check training data and show what a model gets of it.
    #[command(
        subcommand,
        after_help = "Example:\n  \
        offshoot data check train.jsonl --model smollm2"
    )]
    Data(DataCommand),
    /// Make vectors of texts.
    #[command(after_help = "Examples:\n  offshoot embed smollm2 \"a cat\" \"a dog\" --cosines\n  \
        offshoot embed smollm2 --file lines.txt --pooling last > vectors.jsonl")]
    Embed(EmbedArgs),
    /// Write a model to a GGUF file of another format: a folder, or a file of floats.
    #[command(after_help = "Examples:\n  \
        offshoot quantize ./model-folder --to q4_k_m --output model-q4.gguf\n  \
        offshoot quantize ./model-f16.gguf --to q8_0 --output model-q8.gguf --json\n  \
        offshoot quantize smollm2 --requantize --to f16 --output smollm2-f16.gguf\n\n\
        Formats, from most bits to fewest: f32, f16, bf16, q8_0, q6_k, q5_1, q5_0, q5_k_m, q4_1,\n\
        q4_0, q4_k_m; q8 is q8_0 and q4 is q4_1. Scales are searched for the least error.\n\
        The output head takes Q6_K where most matrices take fewer bits, and rows of no whole\n\
        number of 256 take a format of 32, as in llama.cpp. The file is moved to its place\n\
        when it is complete, over one that is there.")]
    Quantize(QuantizeArgs),
    /// Write a model, or a variant of it, as a Hugging Face folder or as a GGUF file.
    #[command(after_help = "Examples:\n  \
        offshoot export ./model.gguf --output model-folder\n  \
        offshoot export smollm2 --to bf16 --output smollm2 --shard-size 500M\n  \
        offshoot export ./model-folder --output model.gguf\n  \
        offshoot export smollm2 --variant poet=./poet --output poet-model\n  \
        offshoot export smollm2 --variant poet=./poet --to q8_0 --output poet.gguf\n\n\
        A folder has config.json, safetensors with an index where they are several, the\n\
        tokenizer with the chat template, and generation_config.json. What is quantised is\n\
        brought to floats, which gives back none of what it lost. A variant is written with\n\
        what it learned added to the weights, so that it needs no base. What is there is not\n\
        replaced without --overwrite.")]
    Export(ExportArgs),
    /// Show how a text is cut into tokens.
    #[command(after_help = "Example:\n  offshoot tokenize smollm2 --prompt \"Hello, world\"")]
    Tokenize(TokenizeArgs),
    /// Train and look at draft heads, which guess the tokens behind the next one.
    #[command(subcommand, after_help = "Example:\n  offshoot medusa train smollm2")]
    Medusa(MedusaCommand),
    /// Tune a model: make a variant of it from examples.
    #[command(after_help = tune::tune_help())]
    Tune(Box<TuneArgs>),
    /// Say what ways of tuning and drafting there are, and of each what it is, did, and is not for.
    #[command(after_help = "Examples:\n  offshoot methods\n  offshoot methods mezo\n  \
        offshoot methods lora --json")]
    Methods(MethodsArgs),
    /// Make the page with a run's curves again, from its log.
    #[command(after_help = "Example:\n  offshoot report poet --output poet.html")]
    Report(ReportArgs),
    /// Look at fine-tunes that are kept as seeds and numbers, and make them again.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
        offshoot trajectory info run/trajectory.traj\n  \
        offshoot trajectory replay smollm2 run/trajectory.traj"
    )]
    Trajectory(TrajectoryCommand),
    /// Say what this machine offers and what fits on it.
    #[command(after_help = "Examples:\n  offshoot doctor\n  offshoot doctor ./model.gguf\n\n\
        OFFSHOOT_ISA=portable, or another of the kernels that are listed, overrides the choice.\n\
        OFFSHOOT_CACHE_LIMIT=8G bounds the packed weights that are kept: those that were used longest \
        ago make room. It is 16G, or a tenth of the disk if that is less.")]
    Doctor(DoctorArgs),
    /// Build and search stores of text, from which the next tokens are drafted.
    #[command(after_help = "Examples:\n  \
        offshoot datastore build qwen2.5-coder src/ --output code\n  \
        offshoot datastore query qwen2.5-coder code --prompt \"for i in range(\"")]
    Datastore {
        #[command(subcommand)]
        command: DatastoreCommand,
    },
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  offshoot completions bash > offshoot.bash")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of all commands.
    #[command(after_help = "Example:\n  \
        offshoot man ~/.local/share/man/man1     then: man offshoot-run")]
    Man(ManArgs),
}

/// Which model, and where it may come from.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// A file or folder, `hf:org/repo[/file]`, or a name that `offshoot list` shows.
    #[arg(env = "OFFSHOOT_MODEL")]
    pub(crate) model: String,
    /// Use only what is on this machine.
    #[arg(long, env = "OFFSHOOT_OFFLINE", value_parser = FalseyValueParser::new())]
    pub(crate) offline: bool,
    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct JsonArgs {
    /// Print data as JSON.
    #[arg(long, env = "OFFSHOOT_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
}

/// How it is run.
#[derive(Debug, Clone, Args)]
pub(crate) struct EngineArgs {
    /// Threads of a step [default: all that the process may use]
    #[arg(
        long, short = 't', env = "OFFSHOOT_THREADS",
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub(crate) threads: Option<u16>,
    /// Tokens of context [default: 4096, or the model's own limit if that is lower]
    #[arg(long, env = "OFFSHOOT_CTX_SIZE", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) ctx_size: Option<u32>,
    /// Pack the weights anew and keep no packed copy.
    #[arg(long, env = "OFFSHOOT_NO_CACHE", value_parser = FalseyValueParser::new())]
    pub(crate) no_cache: bool,
    /// Quantise float matrices while loading: q8, q4 (8.5 and 5 bits a weight), or a format of
    /// `offshoot quantize`; matrices that are quantised already stay as they are
    #[arg(long, env = "OFFSHOOT_QUANTIZE", value_name = "FORMAT", value_parser = quantised)]
    pub(crate) quantize: Option<Recipe>,
}

fn quantised(text: &str) -> Result<Recipe, String> {
    let recipe: Recipe = text.parse().map_err(|e: offshoot_models::Error| e.to_string())?;
    match recipe.is_quantised() {
        true => Ok(recipe),
        false => Err(format!("{recipe} is a float; expected q8, q4 or another of fewer bits")),
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) answer: AnswerArgs,
    /// What the system message says.
    #[arg(long, env = "OFFSHOOT_SYSTEM")]
    pub(crate) system: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct AnswerArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The prompt; `-`, or no prompt where input is piped, reads standard input.
    #[arg(value_name = "PROMPT", conflicts_with = "prompt")]
    pub(crate) text: Option<String>,
    /// The prompt, as an option.
    #[arg(long, short = 'p', env = "OFFSHOOT_PROMPT")]
    pub(crate) prompt: Option<String>,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) executor: ExecutorArgs,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// The most tokens to make [default: the model's, or as many as the context holds]
    #[arg(long, short = 'n', env = "OFFSHOOT_MAX_TOKENS")]
    pub(crate) max_tokens: Option<usize>,
    /// End the answer before this text; may be given several times.
    #[arg(long, env = "OFFSHOOT_STOP")]
    pub(crate) stop: Vec<String>,
    /// Go on behind the model's own end tokens, for measuring.
    #[arg(long, env = "OFFSHOOT_IGNORE_EOS", value_parser = FalseyValueParser::new())]
    pub(crate) ignore_eos: bool,
    /// Give the log-probabilities of this many alternatives a token; they are part of the JSON.
    #[arg(
        long, env = "OFFSHOOT_LOGPROBS", requires = "json",
        value_parser = clap::value_parser!(u8).range(0..=20)
    )]
    pub(crate) logprobs: Option<u8>,
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    /// Print speeds on standard error when done.
    #[arg(long, env = "OFFSHOOT_STATS", value_parser = FalseyValueParser::new())]
    pub(crate) stats: bool,
    /// Write the answer to this file.
    #[arg(long, short = 'o', env = "OFFSHOOT_OUTPUT")]
    pub(crate) output: Option<PathBuf>,
}

/// Several tokens a step. The text is the same whoever drafts, where acceptance is exact.
#[derive(Debug, Clone, Args)]
pub(crate) struct SpecArgs {
    /// Who drafts tokens for a step to check: auto, off, or names with commas.
    #[arg(long, env = "OFFSHOOT_SPEC", default_value = "auto")]
    pub(crate) spec: SpecMode,
    #[command(flatten)]
    pub(crate) materials: MaterialArgs,
    /// Which drafted tokens stand, above temperature 0.
    #[arg(long, env = "OFFSHOOT_ACCEPTANCE", value_enum, default_value = "exact")]
    pub(crate) acceptance: AcceptanceRule,
    /// Under typical acceptance, the most probability that is asked of a token.
    #[arg(long, env = "OFFSHOOT_TYPICAL_EPSILON", default_value_t = Typical::default().epsilon)]
    pub(crate) typical_epsilon: f64,
    /// Under typical acceptance, what is asked where the model is certain; less where it is not.
    #[arg(long, env = "OFFSHOOT_TYPICAL_DELTA", default_value_t = Typical::default().delta)]
    pub(crate) typical_delta: f64,
    /// Colour the text that was drafted, on a terminal.
    #[arg(long, env = "OFFSHOOT_SHOW_DRAFTS", value_parser = FalseyValueParser::new())]
    pub(crate) show_drafts: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum AcceptanceRule {
    /// Those of plain decoding: the same text
    Exact,
    /// More of a draft model's: another text of a seed, of the same distribution; else exact
    Rejection,
    /// Those that are likely enough: texts are no longer of the model's own distribution
    Typical,
}

/// What drafters are made of.
#[derive(Debug, Clone, Args)]
pub(crate) struct MaterialArgs {
    /// Let a smaller model of the same family draft: a file or a name, as MODEL.
    #[arg(long, env = "OFFSHOOT_DRAFT_MODEL", value_name = "MODEL")]
    pub(crate) draft_model: Option<String>,
    /// Draft from stored text: a .store file, or a folder of them that `datastore build` made
    /// [default: the model's own answers, if they come with offshoot]
    #[arg(long, env = "OFFSHOOT_DATASTORE", value_name = "PATH")]
    pub(crate) datastore: Option<PathBuf>,
    /// Draft with these Medusa heads [default: those that come with offshoot, if the model has some]
    #[arg(long, env = "OFFSHOOT_MEDUSA", value_name = "FILE")]
    pub(crate) medusa: Option<PathBuf>,
}

impl MaterialArgs {
    pub(crate) fn are_given(&self) -> bool {
        self.draft_model.is_some() || self.datastore.is_some() || self.medusa.is_some()
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct SamplingArgs {
    /// Divides the logits; 0 takes the likeliest token [default: the model's, or 0.8]
    #[arg(long, env = "OFFSHOOT_TEMPERATURE", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all [default: the model's, or 40]
    #[arg(long, env = "OFFSHOOT_TOP_K")]
    pub(crate) top_k: Option<u32>,
    /// Keep the likeliest tokens that sum to this probability [default: the model's, or 0.95]
    #[arg(long, env = "OFFSHOOT_TOP_P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Keep tokens at least this probable relative to the likeliest [default: the model's, or 0.05]
    #[arg(long, env = "OFFSHOOT_MIN_P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,
    /// Make tokens seen before less likely; 1 is off [default: the model's, or 1]
    #[arg(long, env = "OFFSHOOT_REPETITION_PENALTY", allow_negative_numbers = true)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Taken once from the logit of every token seen before [default: 0]
    #[arg(long, env = "OFFSHOOT_PRESENCE_PENALTY", allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f32>,
    /// Taken from a token's logit for each time it was seen [default: 0]
    #[arg(long, env = "OFFSHOOT_FREQUENCY_PENALTY", allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f32>,
    /// Add to a token's logit, as TOKEN=VALUE; may be given several times, or with commas.
    #[arg(
        long, env = "OFFSHOOT_LOGIT_BIAS", value_name = "TOKEN=VALUE", value_delimiter = ',',
        value_parser = logit_bias
    )]
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
    #[command(flatten)]
    pub(crate) output: JsonArgs,
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
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// Repetitions; medians are given.
    #[arg(
        long, env = "OFFSHOOT_ROUNDS", default_value_t = 5,
        value_parser = clap::value_parser!(u16).range(1..=1000)
    )]
    pub(crate) rounds: u16,
    /// Measure what drafting is worth instead, on prompts.
    // OFFSHOOT_SPEC says who drafts, of other commands.
    #[arg(long, env = "OFFSHOOT_BENCH_SPEC", value_parser = FalseyValueParser::new())]
    pub(crate) spec: bool,
    /// JSON lines with messages or prompt, and kind; may be given several times
    /// [default: some built-in prompts]
    #[arg(long, env = "OFFSHOOT_WORKLOAD", value_name = "FILE", requires = "spec")]
    pub(crate) workload: Vec<PathBuf>,
    /// What to compare with plain decoding: --spec modes, with commas; + joins drafters of one. What
    /// needs something that is not at hand is left out.
    #[arg(
        long,
        env = "OFFSHOOT_ARMS",
        value_delimiter = ',',
        default_value = "suffix,rest,medusa,draft,auto"
    )]
    pub(crate) arms: Vec<String>,
    #[command(flatten)]
    pub(crate) materials: MaterialArgs,
    /// Prompts of each kind.
    #[arg(long, env = "OFFSHOOT_PROMPTS", default_value_t = 1000)]
    pub(crate) prompts: usize,
    /// Tokens of each answer.
    #[arg(long, short = 'n', env = "OFFSHOOT_MAX_TOKENS", default_value_t = 128)]
    pub(crate) max_tokens: usize,
    /// Divides the logits; 0 takes the likeliest token.
    #[arg(long, env = "OFFSHOOT_TEMPERATURE", default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Divides the logits of tokens seen, so that no text runs into a loop; 1 changes none.
    #[arg(long, env = "OFFSHOOT_REPETITION_PENALTY", default_value_t = 1.0)]
    pub(crate) repetition_penalty: f32,
    /// Names the draws of tokens, with --temperature.
    #[arg(long, env = "OFFSHOOT_SEED", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Draw the speed-up of each arm on each kind of prompts, as SVG.
    #[arg(long, env = "OFFSHOOT_PLOT", value_name = "FILE", requires = "spec")]
    pub(crate) plot: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CalibrateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// Repetitions; medians are given.
    #[arg(
        long, env = "OFFSHOOT_ROUNDS", default_value_t = 7,
        value_parser = clap::value_parser!(u16).range(1..=1000)
    )]
    pub(crate) rounds: u16,
    /// Draw step time and predicted speed against the size of the tree, as SVG.
    #[arg(long, env = "OFFSHOOT_PLOT", value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct PerplexityArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct QuantizeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The format: see below.
    #[arg(long, env = "OFFSHOOT_TO", value_name = "FORMAT")]
    pub(crate) to: Recipe,
    /// Where the file goes.
    #[arg(long, short = 'o', env = "OFFSHOOT_OUTPUT", value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Quantise what is quantised already, from what is left of it.
    #[arg(long, env = "OFFSHOOT_REQUANTIZE", value_parser = FalseyValueParser::new())]
    pub(crate) requantize: bool,
    /// Threads [default: all that the process may use]
    #[arg(
        long, short = 't', env = "OFFSHOOT_THREADS",
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub(crate) threads: Option<u16>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TokenizeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) text: TextArgs,
}

/// A text to look at.
#[derive(Debug, Clone, Args)]
pub(crate) struct TextArgs {
    /// The text.
    #[arg(long, short = 'p', env = "OFFSHOOT_PROMPT", conflicts_with = "file")]
    pub(crate) prompt: Option<String>,
    /// A file of text; `-`, or no text where input is piped, is standard input.
    #[arg(long, short = 'f', env = "OFFSHOOT_FILE")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DoctorArgs {
    /// Say whether this model fits, instead of those of the catalogue.
    pub(crate) model: Option<String>,
    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DatastoreCommand {
    /// Make a store of texts, folders of code, JSON lines or files of tokens.
    #[command(after_help = "Examples:\n  \
        offshoot datastore build qwen2.5-coder src/ --extension rs,toml --output code\n  \
        offshoot datastore build smollm2 chats.jsonl book.txt --output words --append\n\n\
        A line of a .jsonl file has a `text`, `messages`, or a `prompt` and its `completion`. Files\n\
        that end in .u16 or .u32 hold tokens. Building is the same each time; what an interrupted\n\
        run left is used by the next with --append.")]
    Build(DatastoreBuildArgs),
    /// Show what a store holds.
    #[command(after_help = "Example:\n  offshoot datastore inspect code --json")]
    Inspect(StoreArgs),
    /// Show what a store drafts behind a text, or measure how long that takes and how good it is.
    #[command(after_help = "Examples:\n  \
        offshoot datastore query qwen2.5-coder code --prompt \"for i in range(\"\n  \
        offshoot datastore query qwen2.5-coder code --file held_out.py --sample 1000 --json")]
    Query(DatastoreQueryArgs),
    /// Read all of a store and check everything that can be checked.
    #[command(after_help = "Example:\n  offshoot datastore verify code")]
    Verify(StoreArgs),
    /// Make a store of a datastore that the reference implementation of REST has written.
    #[command(after_help = "Example:\n  \
        offshoot datastore import smollm2 datastore_chat_small.idx --token-bits 16 --output chat")]
    Import(DatastoreImportArgs),
}

/// Where a store goes.
#[derive(Debug, Clone, Args)]
pub(crate) struct StoreOutputArgs {
    /// The folder of the store's files, one for each shard.
    #[arg(long, short = 'o', env = "OFFSHOOT_OUTPUT")]
    pub(crate) output: PathBuf,
    /// Add to the store that is there.
    #[arg(long, env = "OFFSHOOT_APPEND", value_parser = FalseyValueParser::new())]
    pub(crate) append: bool,
    /// Memory to use; what does not fit becomes a further shard.
    #[arg(long, env = "OFFSHOOT_MEMORY", default_value = "2G", value_parser = bytes)]
    pub(crate) memory: u64,
    /// The token that stands between documents, where tokens are read.
    #[arg(long, env = "OFFSHOOT_SEPARATOR")]
    pub(crate) separator: Option<u32>,
    /// The licence of the texts, for the record.
    #[arg(long, visible_alias = "license", env = "OFFSHOOT_LICENCE")]
    pub(crate) licence: Option<String>,
    /// End after this many tokens.
    #[arg(long, env = "OFFSHOOT_TOKEN_LIMIT", value_parser = clap::value_parser!(u64).range(2..))]
    pub(crate) token_limit: Option<u64>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DatastoreBuildArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Files and folders.
    #[arg(required = true, value_name = "SOURCE")]
    pub(crate) sources: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) store: StoreOutputArgs,
    /// Which files of folders are taken, by the end of their names; with commas.
    #[arg(
        long,
        env = "OFFSHOOT_EXTENSION",
        value_delimiter = ',',
        default_value = "py,rs,c,h,cc,cpp,hpp,go,java,js,ts,md,rst,txt,jsonl"
    )]
    pub(crate) extension: Vec<String>,
    /// Leave out what shares 13 tokens in a row with this text or .jsonl file.
    #[arg(long, env = "OFFSHOOT_EXCLUDE", value_name = "FILE")]
    pub(crate) exclude: Vec<PathBuf>,
    /// Take only this share of the documents, as 1/4 to 4/4.
    #[arg(long, env = "OFFSHOOT_SHARD", value_name = "I/N", value_parser = share)]
    pub(crate) shard: Option<Share>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DatastoreImportArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The file.
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) store: StoreOutputArgs,
    /// Bits of a token: the file does not say. Those of Llama 3 and other large vocabularies are 32.
    #[arg(long, env = "OFFSHOOT_TOKEN_BITS", value_parser = token_bits)]
    pub(crate) token_bits: TokenBits,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct StoreArgs {
    /// A .store file or a folder of them.
    pub(crate) store: PathBuf,
    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DatastoreQueryArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A .store file or a folder of them.
    pub(crate) store: PathBuf,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    /// Tokens to draft at most; a session asks for as many as this is without the flag.
    #[arg(
        long, env = "OFFSHOOT_MAX_NODES", default_value_t = RestDrafter::NODES,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub(crate) max_nodes: u16,
    /// Draft at this many places of the text, and tell times and how the text really goes on.
    #[arg(long, env = "OFFSHOOT_SAMPLE", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) sample: Option<u32>,
}

pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) if text.ends_with('K') => (digits, 1 << 10),
        Some(digits) if text.ends_with('M') => (digits, 1 << 20),
        Some(digits) => (digits, 1 << 30),
        None => (text, 1),
    };
    let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    number.ok_or_else(|| "expected bytes, as in 4000000, 512M or 2G".to_owned())
}

fn share(text: &str) -> Result<Share, String> {
    let parts = text.split_once('/');
    let numbers = parts.and_then(|(i, n)| Some((i.parse::<u64>().ok()?, n.parse().ok()?)));
    match numbers {
        Some((i, of)) if (1..=of).contains(&i) => Ok(Share { which: i - 1, of }),
        _ => Err("expected I/N with I from 1 to N, such as 2/4".to_owned()),
    }
}

fn token_bits(text: &str) -> Result<TokenBits, String> {
    match text {
        "16" => Ok(TokenBits::Sixteen),
        "32" => Ok(TokenBits::ThirtyTwo),
        _ => Err("expected 16 or 32".to_owned()),
    }
}

#[cfg(test)]
mod tests;
