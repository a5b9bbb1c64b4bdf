//! The `offshoot` command: arguments, progress and error reports over the engine.

#![allow(clippy::print_stdout, clippy::print_stderr)] // the room that prints

mod advice;
mod answer;
mod args;
mod bench;
mod bench_spec;
mod calibrate;
mod chat;
mod data;
mod datastore;
mod doctor;
mod embed;
mod eval;
mod export;
mod failure;
mod interrupt;
mod man;
mod medusa;
mod methods;
mod models;
#[cfg(feature = "mpi")]
mod mpi;
mod plot;
mod processes;
mod quantize;
mod report;
mod score;
mod trajectory;
mod tune;
mod wrap;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { failure::USAGE } else { 0 });
        }
    };
    interrupt::install();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that goes away (`offshoot ... | head`) is no error.
        Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
        Err(failure) => {
            failure::note(format_args!("error: {failure}"));
            ExitCode::from(failure.code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Run(args) => answer::run(&args),
        Command::Generate(args) => answer::generate(&args),
        Command::Pull(args) => models::pull(&args),
        Command::List(args) => models::list(&args),
        Command::Show(args) => models::show(&args),
        Command::Rm(args) => models::remove(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Perplexity(args) => score::perplexity(&args),
        Command::Score(args) => score::score(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Data(command) => data::run(&command),
        Command::Embed(args) => embed::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Tokenize(args) => score::tokenize(&args),
        Command::Medusa(command) => medusa::run(&command),
        Command::Tune(args) => tune::run(&args),
        Command::Methods(args) => methods::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Trajectory(command) => trajectory::run(&command),
        Command::Doctor(args) => doctor::run(&args),
        Command::Datastore { command } => datastore::run(&command),
        Command::Man(args) => man::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "offshoot", &mut script);
            failure::write_out(&script)
        }
    }
}
