//! `doctor`: what this machine offers, and what fits on it.

use std::path::Path;

use offshoot_engine::store::{CatalogueModel, ModelRef, PullPolicy, Quiet, Store};
use offshoot_engine::tune::data::prepared_bytes;
use offshoot_engine::{
    MemoryNeed, available_memory, cores, packed_cache_bytes, packed_cache_limit, processor,
};
use offshoot_kernels::{Isa, available_threads};
use offshoot_models::Checkpoint;
use serde_json::json;

use crate::args::DoctorArgs;
use crate::failure::{Failure, say, say_json};
use crate::models;

/// Bits that a weight takes in the formats that models are mostly passed on in (Q4_K_M).
const USUAL_BITS: f64 = 4.85;
/// Bytes of keys and values that a token takes in an 8-billion Llama 3, by which sizes are judged.
const USUAL_PER_TOKEN: u64 = 128 << 10;

/// A model beside the memory of this machine.
struct Fit {
    name: String,
    need: MemoryNeed,
    /// Tokens of context that the model was trained for.
    trained: u64,
    /// Tokens of context that fit, at most `trained`; `None` if the free memory is unknown.
    longest: Option<u64>,
}

/// Bytes of what is kept between runs.
struct Kept {
    packed: u64,
    /// Of packed weights at most.
    limit: u64,
    examples: u64,
}

impl Kept {
    fn within(cache: &Path) -> Result<Self, Failure> {
        let limit = models::cache_limit()?;
        Ok(Self {
            packed: packed_cache_bytes(cache),
            limit: limit.unwrap_or_else(|| packed_cache_limit(cache)),
            examples: prepared_bytes(&cache.join("examples")),
        })
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "packed_bytes": self.packed,
            "packed_limit_bytes": self.limit,
            "examples_bytes": self.examples,
        })
    }
}

pub(crate) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    let chosen = models::isa()?;
    let (total, available) = (total_memory(), available_memory());
    let fits = fits(args.model.as_deref(), available)?;
    let largest = available.map(billions_of_weights);
    let cache = models::cache_dir().map(|dir| Kept::within(&dir)).transpose()?;
    if args.output.json {
        let fits: Vec<_> = fits.iter().map(Fit::json).collect();
        return say_json(&json!({
            "processor": processor(),
            "cores": cores(),
            "threads": available_threads(),
            "instruction_sets": names,
            "chosen": chosen.name(),
            "memory_bytes": total,
            "available_bytes": available,
            "cache_dir": models::cache_dir(),
            "cache": cache.as_ref().map(Kept::json),
            "fits": fits,
            "largest_model_weights": largest.map(|n| (n * 1e9) as u64),
        }));
    }
    say(format_args!("processor   {}", processor().unwrap_or_else(|| "unknown".to_owned())))?;
    let of_cores = cores().map_or_else(String::new, |n| format!(", of a machine of {n} cores"));
    say(format_args!("threads     {}{of_cores}", available_threads()))?;
    say(format_args!("kernels     {} (of {})", chosen.name(), names.join(", ")))?;
    if chosen == Isa::PORTABLE {
        say(
            "            the portable kernels are slow: there are others for AVX2, for AVX-512 with \
             VNNI, and for Arm's dot instructions",
        )?;
    }
    say(format_args!("memory      {}, {} free for a model", gb(total), gb(available)))?;
    if let Some(dir) = models::cache_dir() {
        say(format_args!("cache       {}", dir.display()))?;
    }
    if let Some(Kept { packed, limit, examples }) = &cache {
        say(format_args!(
            "            {} of packed weights, of {} at most, and {} of examples to tune on",
            gb(Some(*packed)),
            gb(Some(*limit)),
            gb(Some(*examples))
        ))?;
    }
    for (i, fit) in fits.iter().enumerate() {
        say(format_args!("{:<11} {fit}", if i == 0 { "what fits" } else { "" }))?;
    }
    if let (None, Some(largest)) = (&args.model, largest) {
        say(format_args!(
            "{:<11} others up to about {largest:.1} billion weights in Q4_K_M, at {} tokens",
            "",
            models::DEFAULT_CONTEXT
        ))?;
    }
    Ok(())
}

/// The model asked for, else those of the catalogue.
fn fits(model: Option<&str>, available: Option<u64>) -> Result<Vec<Fit>, Failure> {
    let store = Store::from_env()?;
    let Some(model) = model else {
        let known = store.catalogue().models().iter();
        return Ok(known.filter_map(|m| promised(m, available)).collect());
    };
    let resolved = match store.resolve(&model.parse::<ModelRef>()?, PullPolicy::Offline, &Quiet) {
        Ok(resolved) => resolved,
        // What is not here yet can still be judged by what the catalogue knows of it.
        Err(error) => {
            let known = store.catalogue().get(model).and_then(|m| promised(m, available));
            return known.map(|fit| vec![fit]).ok_or(error.into());
        }
    };
    let checkpoint = Checkpoint::open(&resolved.path)?;
    let trained = checkpoint.config().max_position_embeddings as u64;
    Ok(vec![Fit::of(resolved.name, MemoryNeed::of(&checkpoint), trained, available)])
}

/// What the catalogue lets expect of a model.
fn promised(model: &CatalogueModel, available: Option<u64>) -> Option<Fit> {
    let context = model.context?;
    let need = MemoryNeed { weights: model.size, per_token: context.bytes_per_token };
    Some(Fit::of(model.name.clone(), need, context.tokens, available))
}

impl Fit {
    fn of(name: String, need: MemoryNeed, trained: u64, available: Option<u64>) -> Self {
        let longest = available.map(|bytes| need.longest_context(bytes).min(trained));
        Self { name, need, trained, longest }
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "name": self.name,
            "weights_bytes": self.need.weights,
            "bytes_per_token": self.need.per_token,
            "context": self.trained,
            "longest_context": self.longest,
            "fits": self.longest.map(|tokens| tokens > 0),
        })
    }
}

impl std::fmt::Display for Fit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (weights, per_token) = (self.need.weights as f64, self.need.per_token as f64);
        write!(
            f,
            "{}: {:.2} GB and {:.1} KB a token, ",
            self.name,
            weights / 1e9,
            per_token / 1e3
        )?;
        match self.longest {
            None => f.write_str("in memory of unknown size"),
            Some(0) => f.write_str("which is too much"),
            Some(n) if n == self.trained => write!(f, "with its whole context of {n} tokens"),
            Some(n) => write!(f, "with --ctx-size {n} of its {} tokens", self.trained),
        }
    }
}

/// The size of a model that fits with the usual context, in 10^9 weights.
fn billions_of_weights(available: u64) -> f64 {
    let rest = MemoryNeed { weights: 0, per_token: USUAL_PER_TOKEN };
    let left = available.saturating_sub(rest.total(models::DEFAULT_CONTEXT as u64));
    left as f64 * 8.0 / USUAL_BITS / 1e9
}

fn gb(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), |b| format!("{:.1} GB", b as f64 / 1e9))
}

/// Memory of the machine in bytes.
fn total_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
