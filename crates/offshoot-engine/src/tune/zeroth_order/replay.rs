//! A fine-tune made again from its trajectory and its base, without data and without a forward pass.

use std::path::Path;
use std::sync::Arc;

use offshoot_kernels::{Cpu, FloatStore};
use offshoot_methods::tune::{Hash, Header, Mismatch, Trajectory, TrajectoryError};
use offshoot_models::{BaseId, Checkpoint, PackedModel, Recipe};
use serde::de::DeserializeOwned;

use super::space::{
    FullOptions, FullSpace, LoraOptions, LoraSpace, PrefixOptions, PromptOptions, ScalesOptions,
    ScalesSpace, Space, VirtualSpace,
};
use crate::Error;
use crate::beside::write_to;
use crate::error::one_line;

/// What float matrices of the base are to be quantised to while it is loaded, so that they are those of
/// the run.
///
/// # Errors
/// If there is no such format, or the runs of a merged trajectory had others.
pub fn quantized(trajectory: &Trajectory) -> Result<Option<Recipe>, Error> {
    let mut names = trajectory.parts.iter().map(|part| part.header.quantized.as_deref());
    let first = names.next().flatten();
    if names.any(|name| name != first) {
        let what = "the runs that were merged had bases quantised to different formats";
        return Err(Error::Training(what.to_owned()));
    }
    let parsed = first.map(str::parse::<Recipe>).transpose();
    parsed.map_err(|_| {
        let name: String = first.unwrap_or_default().chars().take(40).collect();
        Error::Training(format!("the trajectory's base was quantised to {name:?}: no such format"))
    })
}

/// The space that a run with this header began in.
///
/// # Errors
/// If there is no such space, its options are not known, or the model is not the run's.
pub fn space_of(
    cpu: &Cpu,
    checkpoint: Arc<Checkpoint>,
    header: &Header,
) -> Result<Box<dyn Space>, Error> {
    let (name, seed) = (header.space.name.as_str(), initial_seed(header));
    let shown =
        |name: &str| -> String { name.chars().take(40).flat_map(char::escape_debug).collect() };
    let store = FloatStore::named(&header.store).ok_or_else(|| {
        let what = format!("the trajectory's weights are stored as \"{}\"", shown(&header.store));
        Error::Training(format!("{what}: f32 and bf16 are known"))
    })?;
    let packed = || PackedModel::load(Arc::clone(&checkpoint), cpu, None).map(Arc::new);
    Ok(match name {
        "lora" => {
            let mut options: LoraOptions = options(header)?;
            (options.seed, options.distribution) = (seed, header.distribution);
            Box::new(LoraSpace::new(cpu, packed()?, &options)?)
        }
        "prefix" => {
            let mut options: PrefixOptions = options(header)?;
            (options.seed, options.distribution) = (seed, header.distribution);
            Box::new(VirtualSpace::prefix(cpu, packed()?, &options)?)
        }
        "prompt" => {
            let mut options: PromptOptions = options(header)?;
            (options.seed, options.distribution) = (seed, header.distribution);
            Box::new(VirtualSpace::prompt(cpu, packed()?, &options)?)
        }
        "scales" => {
            let mut options: ScalesOptions = options(header)?;
            (options.seed, options.distribution) = (seed, header.distribution);
            Box::new(ScalesSpace::new(cpu, packed()?, &options)?)
        }
        "full" => {
            let mut options: FullOptions = options(header)?;
            options.store = store;
            (options.seed, options.distribution) = (seed, header.distribution);
            Box::new(FullSpace::new(cpu, checkpoint, &options)?)
        }
        _ => {
            let shown = shown(name);
            let what = format!(
                "the trajectory is of space \"{shown}\": lora, prefix, prompt, scales, full are known"
            );
            return Err(Error::Training(what));
        }
    })
}

/// What the space's first numbers were drawn from.
fn initial_seed(header: &Header) -> u64 {
    header.initial_seeds.get(&header.space.name).copied().unwrap_or(header.seed)
}

fn options<O: DeserializeOwned>(header: &Header) -> Result<O, Error> {
    serde_json::from_value(header.space.options.clone())
        .map_err(|error| Error::Training(format!("the trajectory's space: {}", one_line(&error))))
}

/// Carries all steps of `trajectory` out on `space`, which is as it was before the first.
///
/// # Errors
/// If what is tuned is not what the trajectory's runs tuned, or a record does not fit.
pub fn carry_out(trajectory: &Trajectory, space: &mut dyn Space) -> Result<(), Error> {
    let layout = Arc::new(space.layout().clone());
    let mut drawn = None;
    for replayed in trajectory.replay(&layout)? {
        let replayed = replayed?;
        if drawn != Some(replayed.part) {
            let header = &trajectory.parts[replayed.part].header;
            space.draw_from(header.seed, header.distribution)?;
            drawn = Some(replayed.part);
        }
        space.apply(replayed.step, &replayed.update)?;
    }
    space.settle()
}

/// The weights that `trajectory` makes of the model of `checkpoint`, as the space that they are tuned
/// in. The base's weights are read and hashed first, unless another base is allowed.
///
/// # Errors
/// If the base is another than the trajectory's, and as [`space_of`] and [`carry_out`].
pub fn remake(
    cpu: &Cpu,
    checkpoint: Arc<Checkpoint>,
    trajectory: &Trajectory,
    other_base: Mismatch,
) -> Result<Box<dyn Space>, Error> {
    let Some(part) = trajectory.parts.first() else {
        return Err(TrajectoryError::Nothing.into());
    };
    if other_base == Mismatch::Refuse {
        let base = base_hash(&checkpoint)?;
        if base != part.header.base {
            return Err(Error::OtherBase { expected: part.header.base, got: base });
        }
    }
    let mut space = space_of(cpu, checkpoint, &part.header)?;
    carry_out(trajectory, &mut *space)?;
    Ok(space)
}

/// How a trajectory names the weights of `checkpoint`; all of them are read.
///
/// # Errors
/// If a file cannot be read any more.
pub fn base_hash(checkpoint: &Checkpoint) -> Result<Hash, Error> {
    Ok(Hash(*BaseId::of(checkpoint)?.as_bytes()))
}

/// Reads the trajectory of the file at `path`, all of which must be whole.
///
/// # Errors
/// If the file cannot be read, or is damaged.
pub fn read_trajectory(path: &Path) -> Result<Trajectory, Error> {
    let wrong = |source| Error::TrajectoryFile { path: path.to_owned(), source };
    Trajectory::from_bytes(&read_bytes(path)?).map_err(wrong)
}

/// The bytes of the file at `path`.
pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>, Error> {
    let io = |source| offshoot_models::Error::Io { path: path.to_owned(), source };
    Ok(std::fs::read(path).map_err(io)?)
}

/// Writes `trajectory` to `path`: beside the place that it means, then moved there; to what is no
/// file, as a device, as it is.
///
/// # Errors
/// If the file cannot be written.
pub fn write_trajectory(path: &Path, trajectory: &Trajectory) -> Result<(), Error> {
    write_to(path, &trajectory.to_bytes()?)
}

/// The hash that the trajectory gives of the weights in the end: that of its only run.
pub fn promised_end(trajectory: &Trajectory) -> Option<Hash> {
    match &trajectory.parts[..] {
        [part] if part.header.weight == 1.0 => part.end,
        _ => None,
    }
}
