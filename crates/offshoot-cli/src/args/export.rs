//! `export` and `man`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;
use offshoot_models::Recipe;

use super::{AdapterArgs, ModelArgs, bytes};

#[derive(Debug, Clone, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Where it goes: a GGUF file if the name ends in .gguf, else a folder.
    #[arg(long, short = 'o', env = "OFFSHOOT_OUTPUT", value_name = "PATH")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) variant: AdapterArgs,
    /// The format of the weights: f32, f16 or bf16, of a GGUF file q8_0 and others too [default: the
    /// model's own float, or f16 of what is quantised]
    #[arg(long, env = "OFFSHOOT_TO", value_name = "FORMAT")]
    pub(crate) to: Option<Recipe>,
    /// Bytes of weights in one file of a folder, as in 500M or 5G.
    #[arg(long, env = "OFFSHOOT_SHARD_SIZE", value_name = "BYTES", default_value = "5G", value_parser = bytes)]
    pub(crate) shard_size: u64,
    /// Replace the file or the model's folder that is there.
    #[arg(long, env = "OFFSHOOT_OVERWRITE", value_parser = FalseyValueParser::new())]
    pub(crate) overwrite: bool,
    /// Threads [default: all that the process may use]
    #[arg(
        long, short = 't', env = "OFFSHOOT_THREADS",
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub(crate) threads: Option<u16>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ManArgs {
    /// The folder that takes a page for each command; it is made if need be.
    pub(crate) folder: PathBuf,
}
