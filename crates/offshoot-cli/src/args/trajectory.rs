//! `trajectory`: a fine-tune as its seed and the numbers of its steps.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand};

use super::{JsonArgs, ModelArgs};

/// What to do with a trajectory.
#[derive(Debug, Subcommand)]
pub(crate) enum TrajectoryCommand {
    /// Show what a run was and how many steps it has.
    #[command(after_help = "Example:\n  offshoot trajectory info run --json")]
    Info(TrajectoryInfoArgs),
    /// Check every byte of a trajectory, and say how much of a damaged one is whole.
    #[command(after_help = "Example:\n  offshoot trajectory verify run")]
    Verify(TrajectoryInfoArgs),
    /// Make the tuned weights again from their base, and compare them with the run's.
    #[command(after_help = "Examples:\n  \
        offshoot trajectory replay smollm2 run\n  \
        offshoot trajectory replay smollm2 run --output tuned.safetensors")]
    Replay(TrajectoryReplayArgs),
    /// Cut a run's steps out: the weights as they were before a step.
    #[command(after_help = "Example:\n  \
        offshoot trajectory slice run --to 500 --output early.traj")]
    Slice(TrajectorySliceArgs),
    /// Say how two trajectories differ; exit code 1 if they do.
    #[command(after_help = "Example:\n  offshoot trajectory diff a.traj b.traj --json")]
    Diff(TrajectoryDiffArgs),
    /// Add runs of one base up, each with its weight.
    #[command(after_help = "Example:\n  \
        offshoot trajectory merge a.traj b.traj --weights 1,0.5 --output both.traj")]
    Merge(TrajectoryMergeArgs),
    /// Write what a trajectory makes of its base in the form in which it is served.
    #[command(after_help = "Example:\n  \
        offshoot trajectory export smollm2 run --output adapter")]
    Export(TrajectoryExportArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TrajectoryInfoArgs {
    /// The file, or the folder of its run.
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

/// A base and what is made of it.
#[derive(Debug, Clone, Args)]
pub(crate) struct RemakeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The trajectory's file, or the folder of its run.
    pub(crate) file: PathBuf,
    /// Take the base although it is not the run's.
    #[arg(long, env = "OFFSHOOT_FORCE", value_parser = FalseyValueParser::new())]
    pub(crate) force: bool,
    /// Threads [default: all that the process may use]
    #[arg(
        long, short = 't', env = "OFFSHOOT_THREADS",
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub(crate) threads: Option<u16>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TrajectoryReplayArgs {
    #[command(flatten)]
    pub(crate) remake: RemakeArgs,
    /// A safetensors file for the tensors that were tuned.
    #[arg(long, short = 'o', env = "OFFSHOOT_OUTPUT")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TrajectoryExportArgs {
    #[command(flatten)]
    pub(crate) remake: RemakeArgs,
    /// The folder: of an adapter as PEFT saves it, or of a whole model. It is made if need be.
    #[arg(long, short = 'o', env = "OFFSHOOT_OUTPUT")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TrajectorySliceArgs {
    /// The file, or the folder of its run.
    pub(crate) file: PathBuf,
    /// The first step [default: the file's first]
    #[arg(long, env = "OFFSHOOT_FROM")]
    pub(crate) from: Option<u32>,
    /// The step behind the last.
    #[arg(long, env = "OFFSHOOT_TO")]
    pub(crate) to: u32,
    /// Where the slice goes.
    #[arg(long, short = 'o', env = "OFFSHOOT_OUTPUT")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TrajectoryDiffArgs {
    /// The first file, or folder of a run.
    pub(crate) left: PathBuf,
    /// The second.
    pub(crate) right: PathBuf,
    #[command(flatten)]
    pub(crate) output: JsonArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct TrajectoryMergeArgs {
    /// The files, or folders of runs.
    #[arg(required = true, num_args = 1..)]
    pub(crate) files: Vec<PathBuf>,
    /// What each run's changes are multiplied by, with commas [default: 1 each]
    #[arg(long, env = "OFFSHOOT_WEIGHTS", value_delimiter = ',', allow_negative_numbers = true)]
    pub(crate) weights: Vec<f64>,
    /// Where the sum goes.
    #[arg(long, short = 'o', env = "OFFSHOOT_OUTPUT")]
    pub(crate) output: PathBuf,
    /// Merge runs although their bases or spaces differ.
    #[arg(long, env = "OFFSHOOT_FORCE", value_parser = FalseyValueParser::new())]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}
