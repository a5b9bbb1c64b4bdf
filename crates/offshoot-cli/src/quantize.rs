//! `quantize`: a model into a GGUF file of another format.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use offshoot_engine::{QuantizeOptions, Quantized};
use offshoot_kernels::{BlockType, Cpu, available_threads};
use offshoot_models::Recipe;
use serde_json::json;

use crate::args::QuantizeArgs;
use crate::failure::{Failure, note, say, say_json};
use crate::{interrupt, models};

/// A bar on standard error, if that is a terminal.
pub(crate) struct Share(Option<ProgressBar>);

impl Share {
    pub(crate) fn new(what: &'static str) -> Self {
        Self(std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0).with_message(what);
            match ProgressStyle::with_template("{msg} {bar:30} {percent} % {eta}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        }))
    }

    pub(crate) fn show(&self, done: u64, total: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

pub(crate) fn run(args: &QuantizeArgs) -> Result<(), Failure> {
    let resolved = models::resolve(&args.model)?;
    let threads = args.threads.map_or_else(available_threads, usize::from);
    let cpu = Cpu::new(models::isa()?, threads);
    let options = QuantizeOptions { recipe: args.to, requantize: args.requantize, variant: None };
    let start = Instant::now();
    let listener = interrupt::listen();
    let bar = Share::new("quantising");
    let mut progress = |done, total| {
        bar.show(done, total);
        !interrupt::asked()
    };
    let done =
        offshoot_engine::quantize(&cpu, &resolved.path, &args.output, options, &mut progress);
    drop(bar);
    drop(listener);
    told(&done?, &args.output, args.to, args.model.output.json, start)
}

/// Names that a note lists at most.
const NAMES_MOST: usize = 12;

/// Says which tensors were left out, if any were.
pub(crate) fn left_out(names: &[String]) {
    if !names.is_empty() {
        let more = names.len().saturating_sub(NAMES_MOST);
        let names = names[..names.len() - more].join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        note(format_args!("left out, as the architecture does not have them: {names}{more}"));
    }
}

/// How many tensors have each format, as data.
pub(crate) fn formats_json(formats: &[(BlockType, usize)]) -> serde_json::Value {
    let map = formats.iter().map(|(block, n)| (block.name().to_owned(), (*n).into()));
    serde_json::Value::Object(map.collect())
}

/// Says what was written to a GGUF file.
pub(crate) fn told(
    done: &Quantized,
    output: &Path,
    recipe: Recipe,
    json: bool,
    start: Instant,
) -> Result<(), Failure> {
    let bits = done.bytes as f64 * 8.0 / done.weights.max(1) as f64;
    left_out(&done.left_out);
    if json {
        return say_json(&json!({
            "output": output,
            "format": "gguf",
            "recipe": recipe.name(),
            "bytes": done.bytes,
            "source_bytes": done.source_bytes,
            "weights": done.weights,
            "bits_per_weight": bits,
            "formats": formats_json(&done.formats),
            "left_out": done.left_out,
            "tokenizer_id": done.tokenizer.map(|id| id.to_string()),
            "template_id": done.template.map(|id| id.to_string()),
            "seconds": start.elapsed().as_secs_f64(),
        }));
    }
    let formats: Vec<String> =
        done.formats.iter().map(|(block, n)| format!("{n} {block}")).collect();
    say(format_args!(
        "{}: {} MB, {bits:.2} bits a weight ({} MB before); tensors: {}",
        output.display(),
        done.bytes / 1_000_000,
        done.source_bytes / 1_000_000,
        formats.join(", ")
    ))
}
