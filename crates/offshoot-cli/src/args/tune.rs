//! `tune` and `report`: making variants, and looking at how they were made.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;
use offshoot_engine::tune::run::Method;
use serde::Serialize;
use serde_json::Value;

use super::tune_heads::DraftHeadSettings;
use super::{EngineArgs, JsonArgs};

/// What stands behind the help: how it is used, and the methods.
pub(crate) fn tune_help() -> String {
    let mut help = String::from(
        "Examples:\n  \
         offshoot tune smollm2 --data chats.jsonl --output poet\n  \
         offshoot tune smollm2 --data reviews.csv --task sst2 --method mezo --eval-fraction 0.1\n  \
         offshoot tune smollm2 --data answers.jsonl --medusa-heads 3 --medusa-self-distillation\n  \
         offshoot tune smollm2 --data qa.jsonl --method mezo --objective \"command:./score.py\"\n  \
         offshoot tune llama --data qa.jsonl --method mezo --space full --offload disk\n  \
         offshoot tune llama --data qa.jsonl --method mezo --space full --device cuda\n  \
         offshoot tune --config run.toml --dry-run\n  \
         offshoot tune smollm2 --data reviews.csv --task sst2 --advise\n  \
         offshoot tune --resume poet\n  \
         mpirun -n 2 offshoot tune smollm2 --data chats.jsonl --method mezo --output poet\n  \
         offshoot run smollm2 --variant poet=./poet \"Write a line.\"\n\n\
         The run's folder has log.jsonl, report.html, TensorBoard's events, checkpoints, and the\n\
         variant, which is used at once. Ctrl-C ends it after the step that is under way; it goes\n\
         on with --resume, to the same bits as if it had not been stopped.\n\n\
         Methods:\n",
    );
    for method in Method::all() {
        help += &format!("  {:<9} {}\n", method.name(), method.summary());
    }
    help + "\nA page on each: offshoot methods NAME\n"
}

#[derive(Debug, Clone, Args)]
pub(crate) struct MethodsArgs {
    /// A method, an optimizer, a space or a way of drafting, by the name that its flag takes
    /// [default: lists all]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TuneArgs {
    /// The base: a file or folder, `hf:org/repo[/file]`, or a name that `offshoot list` shows.
    #[arg(env = "OFFSHOOT_MODEL")]
    pub(crate) model: Option<String>,
    /// Settings in TOML or YAML, named as the flags below with _ for -; flags stand over them.
    #[arg(long, env = "OFFSHOOT_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Go on with the run in this folder, from its newest checkpoint that is whole.
    #[arg(long, env = "OFFSHOOT_RESUME", value_name = "FOLDER", conflicts_with = "config")]
    pub(crate) resume: Option<PathBuf>,
    /// Read the examples, print all settings and about what the run will take of memory and time,
    /// and do nothing. The examples are kept as tokens for the run, unless --no-cache is given.
    #[arg(long, env = "OFFSHOOT_DRY_RUN", value_parser = FalseyValueParser::new())]
    pub(crate) dry_run: bool,
    /// Read the examples, print which way to take and which rank is enough, and do nothing.
    #[arg(
        long, env = "OFFSHOOT_ADVISE", conflicts_with = "dry_run",
        value_parser = FalseyValueParser::new()
    )]
    pub(crate) advise: bool,
    /// Use only what is on this machine.
    #[arg(long, env = "OFFSHOOT_OFFLINE", value_parser = FalseyValueParser::new())]
    pub(crate) offline: bool,
    #[command(flatten)]
    pub(crate) settings: TuneSettings,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

/// Those settings of a run that were given as flags. Written as JSON they are what a file would
/// say.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize)]
pub(crate) struct TuneSettings {
    /// A file of examples: JSONL, JSON, CSV or Parquet; may be given several times.
    #[arg(long, env = "OFFSHOOT_DATA", value_name = "FILE")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) data: Vec<PathBuf>,
    /// A file of held-out examples; may be given several times.
    #[arg(long, env = "OFFSHOOT_EVAL_DATA", value_name = "FILE")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) eval_data: Vec<PathBuf>,
    /// The share of the examples to hold out, where no file is given [default: 0]
    #[arg(long, env = "OFFSHOOT_EVAL_FRACTION", value_name = "SHARE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) eval_fraction: Option<f64>,
    /// What a row holds [default: told by its fields]
    #[arg(long, env = "OFFSHOOT_FORMAT", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) format: Option<String>,
    /// The task whose template rows are put into: a name, or a file.
    #[arg(long, env = "OFFSHOOT_TASK", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<String>,
    /// Read a column as a field, as in prompt=question; may be given several times.
    #[arg(long, env = "OFFSHOOT_MAP", value_name = "FIELD=COLUMN", value_parser = pair)]
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_table")]
    pub(crate) map: Vec<(String, String)>,
    /// Most tokens of an example, no more than the model's context holds [default: 1024, or that]
    #[arg(long, env = "OFFSHOOT_MAX_LENGTH", value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_length: Option<u32>,
    /// What becomes of a longer one: cut or drop [default: cut]
    #[arg(long, env = "OFFSHOOT_OVERLONG", value_name = "WHAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) overlong: Option<String>,
    /// How to tune; see the list below [default: lora]
    #[arg(long, env = "OFFSHOOT_METHOD", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<String>,
    /// An option of the method's own, as in eps=1e-3; may be given several times.
    #[arg(long = "option", env = "OFFSHOOT_OPTION", value_name = "NAME=VALUE", value_parser = option)]
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_table")]
    pub(crate) options: Vec<(String, Value)>,
    /// What a method without gradients tunes: lora, lora_fa, prefix, prompt, scales or full [default:
    /// lora]
    #[arg(long, env = "OFFSHOOT_SPACE", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) space: Option<String>,
    /// What it makes less: loss, classification, accuracy, f1, exact_match, or command:CMD, where CMD
    /// reads a line of JSON for each answer and prints one number, the greater the better [default:
    /// loss]
    #[arg(long, env = "OFFSHOOT_OBJECTIVE", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) objective: Option<String>,
    /// Tokens of a prefix [default: 5]
    #[arg(long, env = "OFFSHOOT_PREFIX_TOKENS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prefix_tokens: Option<u32>,
    /// Tokens of a prompt [default: 10]
    #[arg(long, env = "OFFSHOOT_PROMPT_TOKENS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_tokens: Option<u32>,
    /// What activations are where a method without gradients runs a quantised base: float, or stored,
    /// as where it serves, which is faster and refused where noise drowns what is measured [default:
    /// float]
    #[arg(long, env = "OFFSHOOT_ACTIVATIONS", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) activations: Option<String>,
    /// Where all weights may be tuned, those whose names this regular expression finds something
    /// in.
    #[arg(long, env = "OFFSHOOT_TRAIN", value_name = "REGEX")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) train: Option<String>,
    /// And not those in whose names this one does.
    #[arg(long, env = "OFFSHOOT_FREEZE", value_name = "REGEX")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) freeze: Option<String>,
    /// Multiply in bfloat16 where a method without gradients tunes all weights.
    #[arg(long, env = "OFFSHOOT_BFLOAT16", value_parser = FalseyValueParser::new())]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) bfloat16: bool,
    /// What weights are stored as that a method without gradients tunes all of: f32, or bf16 for half the
    /// memory, in which every step is rounded up or down by chance, so that in the mean nothing is lost
    /// [default: f32]
    #[arg(long, env = "OFFSHOOT_TUNE_STORE", value_name = "FLOAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) store: Option<String>,
    /// Where weights are kept that a method without gradients tunes all of: none for in memory, or disk
    /// for in a file of the run's folder that each step reads and writes once, for models that memory has
    /// no room for; no bit depends on it [default: none]
    #[arg(long, env = "OFFSHOOT_OFFLOAD", value_name = "WHERE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) offload: Option<String>,
    /// What runs the model: packed, or dense, the tensor library, which gradients are always made
    /// on; a method without brings it each point, and keeps what it tunes in the machine's memory
    /// [default: packed where losses are computed on the processor, else dense]
    #[arg(long, env = "OFFSHOOT_EXECUTOR", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) executor: Option<String>,
    /// Where the dense executor runs it: cpu, or cuda (cuda:1 for the second) in a program built
    /// with that feature; a run may go on elsewhere than it began [default: cpu]
    #[arg(long, env = "OFFSHOOT_DEVICE", value_name = "DEVICE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<String>,
    /// What the dense executor's numbers are where losses alone are asked for: f32, f16 or bf16,
    /// which lose what a small eps adds to a weight [default: f32]
    #[arg(long, env = "OFFSHOOT_DTYPE", value_name = "FLOAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dtype: Option<String>,
    /// Rank of what is added to a matrix [default: 8]
    #[arg(long, env = "OFFSHOOT_RANK", value_name = "R")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rank: Option<u32>,
    /// Its scale, times the rank [default: 16]
    #[arg(long, env = "OFFSHOOT_ALPHA", value_name = "A")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) alpha: Option<f64>,
    /// The share of an adapter's inputs that is left out while training [default: 0]
    #[arg(long, env = "OFFSHOOT_DROPOUT", value_name = "SHARE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dropout: Option<f64>,
    /// Scale by the root of the rank.
    #[arg(long, env = "OFFSHOOT_RSLORA", value_parser = FalseyValueParser::new())]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) rslora: bool,
    /// The matrices that are tuned, by the ends of their names, with commas [default: all-linear]
    #[arg(long, env = "OFFSHOOT_TARGET_MODULES", value_name = "NAMES", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) target_modules: Vec<String>,
    /// What turns gradients into steps: adamw, sgd or muon [default: adamw]
    #[arg(long, env = "OFFSHOOT_OPTIMIZER", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) optimizer: Option<String>,
    /// What is lost of each weight of a matrix in a step, times the learning rate; of muon, too, where
    /// others take 0.1 [default: 0]
    #[arg(long, env = "OFFSHOOT_WEIGHT_DECAY", value_name = "D")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) weight_decay: Option<f64>,
    /// The norm that gradients are cut to [default: 1]
    #[arg(long, env = "OFFSHOOT_MAX_GRAD_NORM", value_name = "NORM")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_grad_norm: Option<f64>,
    /// Run blocks again in the backward pass rather than keep what they made [default: true]
    #[arg(long, env = "OFFSHOOT_GRADIENT_CHECKPOINTING", value_name = "BOOL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gradient_checkpointing: Option<bool>,
    /// Passes over the examples [default: 3]
    #[arg(long, env = "OFFSHOOT_EPOCHS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) epochs: Option<f64>,
    /// Steps to make, instead of epochs.
    #[arg(long, env = "OFFSHOOT_STEPS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) steps: Option<u64>,
    /// How many examples are run at once [default: 8]
    #[arg(long, env = "OFFSHOOT_BATCH", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) batch: Option<u32>,
    /// Batches that make a step [default: 1]
    #[arg(long, env = "OFFSHOOT_ACCUMULATION", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) accumulation: Option<u32>,
    /// How processes that `mpirun` starts share a step without gradients: examples or points; no bit
    /// depends on it [default: examples]
    #[arg(long, env = "OFFSHOOT_SHARE", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) share: Option<String>,
    /// The greatest learning rate [default: the method's own; without gradients, one found from
    /// losses about the weights]
    #[arg(long, visible_alias = "lr", env = "OFFSHOOT_LEARNING_RATE", value_name = "RATE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) learning_rate: Option<f64>,
    /// The shape of the learning rate: constant, linear or cosine [default: the method's own]
    #[arg(long, env = "OFFSHOOT_SCHEDULE", value_name = "SHAPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) schedule: Option<String>,
    /// Steps until the learning rate is reached [default: 0]
    #[arg(long, env = "OFFSHOOT_WARMUP_STEPS", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) warmup_steps: Option<u64>,
    /// The same as a share of all steps [default: 0]
    #[arg(long, env = "OFFSHOOT_WARMUP_RATIO", value_name = "SHARE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) warmup_ratio: Option<f64>,
    /// What chance depends on [default: 42]
    #[arg(long, env = "OFFSHOOT_SEED", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<u64>,
    /// Steps between evaluations on the held-out examples [default: a tenth of the run]
    #[arg(long, env = "OFFSHOOT_EVAL_EVERY", value_name = "STEPS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) eval_every: Option<u64>,
    /// What the best is told by: loss, accuracy, macro_f1, exact_match or token_f1 [default: loss]
    #[arg(long, env = "OFFSHOOT_METRIC", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metric: Option<String>,
    /// End after this many evaluations without a better one.
    #[arg(long, env = "OFFSHOOT_PATIENCE", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) patience: Option<u32>,
    /// Steps between checkpoints [default: a tenth of the run, at most 500]
    #[arg(long, env = "OFFSHOOT_SAVE_EVERY", value_name = "STEPS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) save_every: Option<u64>,
    /// Checkpoints to keep, beside the best [default: 2]
    #[arg(long, env = "OFFSHOOT_KEEP", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keep: Option<u32>,
    /// The run's folder [default: one here, named for model and method]
    #[arg(long, short = 'o', env = "OFFSHOOT_OUTPUT", value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) heads: DraftHeadSettings,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((field, column)) if !field.is_empty() && !column.is_empty() => {
            Ok((field.to_owned(), column.to_owned()))
        }
        _ => Err("expected FIELD=COLUMN, as in prompt=question".to_owned()),
    }
}

/// A number or a truth value is one; all else is text.
fn option(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| "expected NAME=VALUE, as in eps=1e-3".to_owned())?;
    let read: Option<Value> = serde_json::from_str(value).ok();
    Ok((name.to_owned(), read.unwrap_or_else(|| Value::from(value))))
}

fn as_table<T: Serialize + Clone, S: serde::Serializer>(
    pairs: &[(String, T)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    pairs.iter().cloned().collect::<BTreeMap<_, _>>().serialize(serializer)
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ReportArgs {
    /// The run's folder, or its log.jsonl.
    pub(crate) run: PathBuf,
    /// Where the page is written [default: report.html beside the log]
    #[arg(long, short = 'o', env = "OFFSHOOT_OUTPUT", value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use offshoot_engine::tune::run::{Given, RunConfig};

    use super::super::{Cli, Command};
    use super::*;

    fn settings(flags: &[&str]) -> TuneSettings {
        let args = ["offshoot", "tune", "m"].iter().chain(flags);
        match Cli::try_parse_from(args).unwrap().command {
            Command::Tune(args) => args.settings,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn no_flag_says_nothing_and_each_flag_its_setting() {
        let json = |flags: &[&str]| serde_json::to_value(settings(flags)).unwrap();
        assert_eq!(json(&[]), serde_json::json!({}));
        let given = json(&["--lr", "1e-3", "--map", "prompt=question", "--data", "a.jsonl"]);
        let expected = serde_json::json!({
            "learning_rate": 1e-3, "map": {"prompt": "question"}, "data": ["a.jsonl"],
        });
        assert_eq!(given, expected);
    }

    #[test]
    fn every_setting_has_a_flag_and_the_help_names_its_default() {
        use clap::CommandFactory;
        let mut cli = Cli::command();
        cli.build();
        let tune = cli.get_subcommands().find(|c| c.get_name() == "tune").unwrap().clone();
        let help = |setting: &str| {
            let flag = setting.replace('_', "-");
            let arg = tune.get_arguments().find(|arg| arg.get_long() == Some(&flag));
            arg.unwrap_or_else(|| panic!("no --{flag}")).get_help().unwrap().to_string()
        };
        let defaults = serde_json::to_value(RunConfig::default()).unwrap();
        for (name, value) in defaults.as_object().unwrap() {
            let shown = match value {
                serde_json::Value::Number(n) => n.as_f64().unwrap().to_string(),
                serde_json::Value::String(text) => text.clone(),
                serde_json::Value::Bool(true) => "true".to_owned(),
                _ => continue,
            };
            if name != "model" {
                assert!(help(name).ends_with(&format!("[default: {shown}]")), "{}", help(name));
            }
        }
    }

    #[test]
    fn flags_are_settings_that_a_run_understands() {
        let flags = [
            "--data",
            "a",
            "--eval-data",
            "b",
            "--eval-fraction",
            "0.1",
            "--format",
            "text",
            "--task",
            "sst2",
            "--max-length",
            "64",
            "--method",
            "full",
            "--rank",
            "4",
            "--alpha",
            "8",
            "--dropout",
            "0.1",
            "--rslora",
            "--target-modules",
            "q_proj,v_proj",
            "--optimizer",
            "sgd",
            "--weight-decay",
            "0.1",
            "--max-grad-norm",
            "2",
            "--gradient-checkpointing",
            "false",
            "--epochs",
            "2",
            "--steps",
            "9",
            "--batch",
            "2",
            "--accumulation",
            "3",
            "--learning-rate",
            "1e-3",
            "--schedule",
            "cosine",
            "--warmup-steps",
            "2",
            "--warmup-ratio",
            "0.1",
            "--seed",
            "7",
            "--eval-every",
            "3",
            "--metric",
            "accuracy",
            "--patience",
            "2",
            "--save-every",
            "4",
            "--keep",
            "3",
            "--output",
            "o",
            "--map",
            "text=body",
            "--option",
            "eps=1e-2",
            "--space",
            "prefix",
            "--objective",
            "f1",
            "--prefix-tokens",
            "9",
            "--medusa-heads",
            "2",
            "--medusa-layers",
            "2",
            "--medusa-vocabulary",
            "64",
            "--medusa-from",
            "h",
            "--medusa-alone",
            "0.5",
            "--medusa-weight",
            "0.1",
            "--medusa-rate",
            "2",
            "--medusa-self-distillation",
            "--prompt-tokens",
            "9",
            "--activations",
            "stored",
            "--store",
            "bf16",
            "--offload",
            "disk",
            "--executor",
            "dense",
            "--device",
            "cuda:1",
            "--dtype",
            "bf16",
        ];
        let json = serde_json::to_value(settings(&flags)).unwrap();
        let given: Given = json.as_object().unwrap().clone();
        let flags = given.len();
        let config = RunConfig::of(Given::new(), given).unwrap();
        let default = serde_json::to_value(RunConfig::default()).unwrap();
        let all = serde_json::to_value(&config).unwrap();
        let changed = all.as_object().unwrap().iter().filter(|(name, v)| default[name] != **v);
        assert_eq!(changed.count(), flags);
    }
}
