//! `doctor`: what this machine offers, and what fits on it.

use offshoot_kernels::{Isa, available_threads};
use serde_json::json;

use crate::args::{DoctorArgs, ModelArgs};
use crate::failure::{Failure, say, say_json};
use crate::models;

pub(crate) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    let chosen = models::isa()?;
    let (total, available) = memory();
    let fit = args.model.as_ref().map(|model| fit(model, args.json, available)).transpose()?;
    if args.json {
        return say_json(&json!({
            "processor": processor(),
            "threads": available_threads(),
            "instruction_sets": names,
            "chosen": chosen.name(),
            "memory_bytes": total,
            "available_bytes": available,
            "cache_dir": models::cache_dir(),
            "model": fit.as_ref().map(|f| json!({
                "weights_bytes": f.weights, "bytes_per_token": f.per_token, "fits": f.fits,
            })),
        }));
    }
    say(format_args!("processor   {}", processor().unwrap_or_else(|| "unknown".to_owned())))?;
    say(format_args!("threads     {}", available_threads()))?;
    say(format_args!("kernels     {} (of {})", chosen.name(), names.join(", ")))?;
    if chosen == Isa::PORTABLE {
        say(
            "            the portable kernels are slow: AVX-512 with VNNI is what is built for now",
        )?;
    }
    let gb = |bytes: Option<u64>| {
        bytes.map_or_else(|| "unknown".to_owned(), |b| format!("{:.1} GB", b as f64 / 1e9))
    };
    say(format_args!("memory      {}, {} free", gb(total), gb(available)))?;
    if let Some(dir) = models::cache_dir() {
        say(format_args!("cache       {}", dir.display()))?;
    }
    if let Some(f) = fit {
        say(format_args!(
            "model       {:.2} GB of weights and {:.1} KB a token of context: {}",
            f.weights as f64 / 1e9,
            f.per_token as f64 / 1e3,
            match f.fits {
                Some(true) => "fits".to_owned(),
                Some(false) => "does not fit in the free memory".to_owned(),
                None => "the free memory is unknown".to_owned(),
            }
        ))?;
    }
    Ok(())
}

struct Fit {
    weights: u64,
    per_token: u64,
    fits: Option<bool>,
}

/// Whether a model with 4096 tokens of context fits.
fn fit(model: &str, json: bool, available: Option<u64>) -> Result<Fit, Failure> {
    let resolved = models::resolve(&ModelArgs { model: model.to_owned(), offline: true, json })?;
    let checkpoint = offshoot_models::Checkpoint::open(&resolved.path)?;
    let c = checkpoint.config();
    let weights: u64 = checkpoint.tensors().map(|t| t.bytes().len() as u64).sum();
    let per_token = (4 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim) as u64;
    let need = weights + weights / 10 + 4096 * per_token + (100 << 20);
    Ok(Fit { weights, per_token, fits: available.map(|a| need < a) })
}

/// Memory of the machine and what of it is free, in bytes.
fn memory() -> (Option<u64>, Option<u64>) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    (field("MemTotal:"), field("MemAvailable:"))
}

fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
