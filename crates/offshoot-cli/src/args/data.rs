//! `data`: looking at files of training data.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand, ValueEnum};
use offshoot_engine::tune::data::{DataOptions, Format, Length, Overlong, Rename, Task};

use super::{JsonArgs, ModelArgs};
use crate::failure::Failure;

/// What to do with data files.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Read files as training would, and tell every fault as file:line:field.
    #[command(after_help = "Examples:\n  \
        offshoot data check train.jsonl --model smollm2\n  \
        offshoot data check reviews.csv --model smollm2 --task sst2 --map sentence=review --json\n\n\
        Files are JSON lines, JSON, CSV, TSV or Parquet. What their rows mean is told from their\n\
        fields: text; prompt and completion; messages; prompt, choices and answer; prompt and\n\
        answers; instruction, input and output (alpaca); conversations (sharegpt); chosen and\n\
        rejected. Rows with a label need --task. Rows over --max-length are named, too; the code is 3\n\
        only if a row is wrong.")]
    Check(DataCheckArgs),
    /// Print a row as the model gets it, with the tokens that are trained on marked.
    #[command(after_help = "Examples:\n  \
        offshoot data show train.jsonl --model smollm2 --row 3\n  \
        offshoot data show train.jsonl --model smollm2 --tokens\n\n\
        What is trained on is green on a terminal and stands between \u{27e6} and \u{27e7} elsewhere.")]
    Show(DataShowArgs),
    /// Write a file's rows to two files: to train on and to measure on, each class equally often.
    #[command(after_help = "Example:\n  \
        offshoot data split spam.csv --by label --held-out 200 --train a.jsonl --test b.jsonl")]
    Split(DataSplitArgs),
}

/// Whose tokenizer and chat template the rows go through.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataModelArgs {
    /// The model: a file or folder, `hf:org/repo[/file]`, or a name that `offshoot list` shows.
    #[arg(long, env = "OFFSHOOT_MODEL")]
    pub(crate) model: String,
    /// Use only what is on this machine.
    #[arg(long, env = "OFFSHOOT_OFFLINE", value_parser = FalseyValueParser::new())]
    pub(crate) offline: bool,
    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

impl DataModelArgs {
    pub(crate) fn model_args(&self) -> ModelArgs {
        ModelArgs { model: self.model.clone(), offline: self.offline, output: self.output }
    }
}

/// How rows are read.
#[derive(Debug, Clone, Args)]
pub(crate) struct RowArgs {
    /// What rows mean: text, completion, messages, choices, answers, alpaca, sharegpt or preference
    /// [default: told from their fields]
    #[arg(long, env = "OFFSHOOT_FORMAT", conflicts_with = "task")]
    pub(crate) format: Option<Format>,
    /// The task that makes prompts of labelled rows: sst2, sst5, rte, cb, boolq, wsc, wic, multirc,
    /// copa, record, squad, drop, winogrande, trec, snli, mnli, or a TOML file of your own.
    #[arg(long, env = "OFFSHOOT_TASK", value_name = "NAME")]
    pub(crate) task: Option<String>,
    /// Read a field under another name, as prompt=question; may be given several times, or with commas.
    #[arg(long, env = "OFFSHOOT_MAP", value_name = "NAME=FIELD", value_delimiter = ',')]
    pub(crate) map: Vec<Rename>,
    /// What becomes of rows that are too long.
    #[arg(long, env = "OFFSHOOT_OVERLONG", value_enum, default_value_t = OverlongArg::Cut)]
    pub(crate) overlong: OverlongArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum OverlongArg {
    /// The left of the prompt is cut, then the right of what is learned
    Cut,
    /// The row is left out
    Drop,
}

impl RowArgs {
    pub(crate) fn options(&self, max: usize) -> Result<DataOptions, Failure> {
        let overlong = match self.overlong {
            OverlongArg::Cut => Overlong::Cut,
            OverlongArg::Drop => Overlong::Drop,
        };
        let task = self.task.as_deref().map(Task::find).transpose();
        Ok(DataOptions {
            format: self.format,
            task: task.map_err(offshoot_engine::Error::from)?,
            renames: self.map.clone(),
            length: Length { max, overlong },
        })
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DataCheckArgs {
    /// The files.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) model: DataModelArgs,
    #[command(flatten)]
    pub(crate) rows: RowArgs,
    #[command(flatten)]
    pub(crate) length: LengthArgs,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct LengthArgs {
    /// Tokens of a row at most.
    #[arg(
        long, env = "OFFSHOOT_MAX_LENGTH", value_name = "TOKENS", default_value_t = 1024,
        value_parser = clap::value_parser!(u32).range(2..)
    )]
    pub(crate) max_length: u32,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DataShowArgs {
    /// The file.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) model: DataModelArgs,
    /// Which row, counted from 1.
    #[arg(long, env = "OFFSHOOT_ROW", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) row: u64,
    /// Print a token a line, with its id.
    // OFFSHOOT_TOKENS is a number, of other commands.
    #[arg(long, env = "OFFSHOOT_SHOW_TOKENS", value_parser = FalseyValueParser::new())]
    pub(crate) tokens: bool,
    #[command(flatten)]
    pub(crate) rows: RowArgs,
    #[command(flatten)]
    pub(crate) length: LengthArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DataSplitArgs {
    /// The file.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The field with the class of a row [default: all rows are of one class]
    #[arg(long, env = "OFFSHOOT_BY", value_name = "FIELD")]
    pub(crate) by: Option<String>,
    /// Rows of each class that are held out.
    #[arg(long, env = "OFFSHOOT_HELD_OUT", value_name = "ROWS")]
    pub(crate) held_out: u32,
    /// Rows of each class to train on [default: all others]
    #[arg(long, env = "OFFSHOOT_SHOTS", value_name = "ROWS",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) shots: Option<u32>,
    /// The same seed gives the same rows.
    #[arg(long, env = "OFFSHOOT_SEED", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Where the rows to train on go, as JSON lines.
    #[arg(long, env = "OFFSHOOT_TRAIN", value_name = "FILE")]
    pub(crate) train: PathBuf,
    /// Where the rows to measure on go.
    #[arg(long, env = "OFFSHOOT_TEST", value_name = "FILE")]
    pub(crate) test: PathBuf,
    #[command(flatten)]
    pub(crate) output: JsonArgs,
}
