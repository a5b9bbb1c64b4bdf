//! `trajectory`: looks at fine-tunes that are kept as seeds and numbers, and makes them again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_engine::Error;
use offshoot_engine::tune::zeroth_order::{
    Space, TRAJECTORY_FILE, promised_end, quantized, read_trajectory, remake, weights_hash,
    write_tensors, write_trajectory,
};
use offshoot_kernels::{Cpu, available_threads};
use offshoot_methods::one_line;
use offshoot_methods::tune::{Mismatch, Trajectory, diff, merge, slice, verify as check};
use offshoot_models::Checkpoint;
use serde_json::json;

use crate::args::{
    RemakeArgs, TrajectoryCommand, TrajectoryDiffArgs, TrajectoryExportArgs, TrajectoryInfoArgs,
    TrajectoryMergeArgs, TrajectoryReplayArgs, TrajectorySliceArgs,
};
use crate::failure::{Failure, say, say_json};
use crate::models;

pub(crate) fn run(command: &TrajectoryCommand) -> Result<(), Failure> {
    match command {
        TrajectoryCommand::Info(args) => info(args),
        TrajectoryCommand::Verify(args) => verify(args),
        TrajectoryCommand::Replay(args) => replay(args),
        TrajectoryCommand::Slice(args) => cut(args),
        TrajectoryCommand::Diff(args) => differ(args),
        TrajectoryCommand::Merge(args) => add_up(args),
        TrajectoryCommand::Export(args) => export(args),
    }
}

fn of_methods(error: offshoot_methods::tune::TrajectoryError) -> Failure {
    Failure::Engine(error.into())
}

fn mismatch(force: bool) -> Mismatch {
    if force { Mismatch::Allow } else { Mismatch::Refuse }
}

fn info(args: &TrajectoryInfoArgs) -> Result<(), Failure> {
    let info = read(&args.file)?.info().map_err(of_methods)?;
    if args.output.json {
        return say_json(&json!(info));
    }
    let header = &info.header;
    say(format_args!("method        {}", one_line(&header.method.name)))?;
    say(format_args!("space         {}", one_line(&header.space.name)))?;
    say(format_args!("steps         {} from {}", info.steps, header.first_step))?;
    say(format_args!("skipped       {}", info.skipped))?;
    say(format_args!("runs          {}", info.parts))?;
    say(format_args!("seed          {}", header.seed))?;
    say(format_args!("directions    {}", header.distribution.name()))?;
    say(format_args!("base          {}", header.base))?;
    say(format_args!("made by       {}", one_line(&header.program)))?;
    if let Some(end) = info.end {
        say(format_args!("weights       {end}"))?;
    }
    say(format_args!("bytes         {}", info.bytes))
}

fn verify(args: &TrajectoryInfoArgs) -> Result<(), Failure> {
    let path = &file_of(&args.file);
    let bytes =
        std::fs::read(path).map_err(|source| Failure::File { path: path.clone(), source })?;
    let wrong = |source| Failure::Engine(Error::TrajectoryFile { path: path.clone(), source });
    let found = check(&bytes, None).map_err(wrong)?;
    if args.output.json {
        let damage = found.damage.as_ref();
        let damage = damage.map(|d| json!({ "offset": d.offset, "reason": d.reason }));
        say_json(&json!({ "whole": damage.is_none(), "steps": found.steps, "damage": damage }))?;
    }
    match found.damage {
        // The same words as everywhere.
        Some(_) => Trajectory::from_bytes(&bytes).map(drop).map_err(wrong),
        None if args.output.json => Ok(()),
        None => say(format_args!("{}: whole, {} steps", path.display(), found.steps)),
    }
}

/// The trajectory in `path`: the file itself, or the one of a run or a variant whose folder it is.
fn file_of(path: &Path) -> PathBuf {
    let inside = [path.join("variant").join(TRAJECTORY_FILE), path.join(TRAJECTORY_FILE)];
    inside.into_iter().find(|file| file.is_file()).unwrap_or_else(|| path.to_owned())
}

fn read(path: &Path) -> Result<Trajectory, Failure> {
    Ok(read_trajectory(&file_of(path))?)
}

/// The tuned weights, and what the trajectory promises of them.
fn remade(args: &RemakeArgs) -> Result<(Box<dyn Space>, Trajectory), Failure> {
    let trajectory = read(&args.file)?;
    let resolved = models::resolve(&args.model)?;
    let cpu = Cpu::new(models::isa()?, args.threads.map_or_else(available_threads, usize::from));
    let mut checkpoint = Checkpoint::open(&resolved.path)?;
    if let Some(recipe) = quantized(&trajectory)? {
        checkpoint = checkpoint.quantized(recipe);
    }
    let checkpoint = Arc::new(checkpoint);
    let space = remake(&cpu, checkpoint, &trajectory, mismatch(args.force))?;
    Ok((space, trajectory))
}

fn replay(args: &TrajectoryReplayArgs) -> Result<(), Failure> {
    let (space, trajectory) = remade(&args.remake)?;
    let (made, promised) = (weights_hash(&*space)?, promised_end(&trajectory));
    if let Some(output) = &args.output {
        write_tensors(output, &*space)?;
    }
    let steps: usize = trajectory.parts.iter().map(|part| part.steps.len()).sum();
    if args.remake.model.output.json {
        say_json(&json!({
            "steps": steps, "weights": made, "expected": promised, "output": args.output,
        }))?;
    } else {
        say(format_args!("{steps} steps made again: the weights hash to {made}"))?;
    }
    match promised {
        Some(promised) if promised != made => {
            Err(Failure::Data(format!("these are not the run's weights, which hash to {promised}")))
        }
        _ => Ok(()),
    }
}

fn export(args: &TrajectoryExportArgs) -> Result<(), Failure> {
    let (space, _) = remade(&args.remake)?;
    let output = &args.output;
    std::fs::create_dir_all(output)
        .map_err(|source| Failure::File { path: output.clone(), source })?;
    space.write_variant(output)?;
    let choice = space.choice();
    match args.remake.model.output.json {
        true => say_json(&json!({ "output": output, "space": choice.name })),
        false => say(format_args!("{}: the variant, tuned as {}", output.display(), choice.name)),
    }
}

fn cut(args: &TrajectorySliceArgs) -> Result<(), Failure> {
    let trajectory = read(&args.file)?;
    let first = trajectory.parts.first().map_or(0, |part| part.header.first_step);
    let slice = slice(&trajectory, args.from.unwrap_or(first), args.to).map_err(of_methods)?;
    written(&args.output, &slice, args.json.json)
}

fn add_up(args: &TrajectoryMergeArgs) -> Result<(), Failure> {
    let (files, weights) = (args.files.len(), args.weights.len());
    if weights != 0 && weights != files {
        let what = format!("--weights: {weights} numbers for {files} files: give one for each");
        return Err(Failure::Usage(what));
    }
    let all = args.files.iter().map(|path| read(path));
    let all = all.collect::<Result<Vec<_>, _>>()?;
    let weight = |i: usize| args.weights.get(i).copied().unwrap_or(1.0);
    let runs: Vec<_> = all.iter().enumerate().map(|(i, run)| (run, weight(i))).collect();
    let merged = merge(&runs, mismatch(args.force)).map_err(of_methods)?;
    written(&args.output, &merged, args.json.json)
}

fn written(output: &Path, trajectory: &Trajectory, json: bool) -> Result<(), Failure> {
    write_trajectory(output, trajectory)?;
    let steps: usize = trajectory.parts.iter().map(|part| part.steps.len()).sum();
    let parts = trajectory.parts.len();
    match json {
        true => say_json(&json!({ "output": output, "runs": parts, "steps": steps })),
        false => say(format_args!("{}: {steps} steps", output.display())),
    }
}

fn differ(args: &TrajectoryDiffArgs) -> Result<(), Failure> {
    let (left, right) = (read(&args.left)?, read(&args.right)?);
    let found = diff(&left, &right).map_err(of_methods)?;
    if args.output.json {
        say_json(&json!({ "same": found.is_none(), "difference": found }))?;
    }
    let Some(found) = found else {
        return if args.output.json { Ok(()) } else { say("the same") };
    };
    if !args.output.json {
        for difference in &found.header {
            let (left, right) = (one_line(&difference.left), one_line(&difference.right));
            say(format_args!("{}: {left} and {right}", one_line(&difference.field)))?;
        }
        let [left, right] = found.steps;
        say(format_args!("steps: {left} and {right}"))?;
        if let Some(first) = found.first {
            say(format_args!("the first step that differs is {first}"))?;
        }
        if found.parts {
            say("what they are merged of differs")?;
        }
        if found.end {
            say("the weights at their ends differ")?;
        }
    }
    Err(Failure::Different)
}
