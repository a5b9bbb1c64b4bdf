//! `export`: a model, or a variant of it by itself, as a Hugging Face folder or a GGUF file.

use std::path::Path;
use std::time::Instant;

use offshoot_engine::tune::run::Variant;
use offshoot_engine::{ExportOptions, QuantizeOptions, floats_of};
use offshoot_kernels::{Cpu, available_threads};
use offshoot_models::medusa::HEADS_FILE;
use offshoot_models::{Checkpoint, Recipe};
use serde_json::json;

use crate::args::ExportArgs;
use crate::failure::{Failure, note, say, say_json};
use crate::quantize::{Share, formats_json, left_out, told};
use crate::{interrupt, models};

/// Whether the output is to be a GGUF file.
fn is_file(args: &ExportArgs) -> bool {
    args.output.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// The float of most matrices of what is written.
fn floats(model: &Path, variant: Option<&Path>) -> Result<Recipe, Failure> {
    let variant = variant.map(Variant::open).transpose()?.filter(Variant::is_whole);
    let model = variant.as_ref().map_or(model, Variant::folder);
    Ok(floats_of(&Checkpoint::open(model)?))
}

pub(crate) fn run(args: &ExportArgs) -> Result<(), Failure> {
    if let (Some(recipe), false) = (args.to.filter(|to| to.is_quantised()), is_file(args)) {
        return Err(Failure::Usage(format!(
            "--to {recipe} is no float, as a folder has them: name an --output that ends in .gguf"
        )));
    }
    let variant = match &args.variant.adapter {
        Some(folder) => Some(folder.clone()),
        None => args.variant.chosen()?,
    };
    let variant = variant.as_deref();
    let resolved = models::resolve(&args.model)?;
    let threads = args.threads.map_or_else(available_threads, usize::from);
    let cpu = Cpu::new(models::isa()?, threads);
    let start = Instant::now();
    let listener = interrupt::listen();
    let bar = Share::new("writing");
    let mut progress = |done, total| {
        bar.show(done, total);
        !interrupt::asked()
    };
    let (output, json) = (&args.output, args.model.output.json);
    if is_file(args) {
        if !args.overwrite && output.symlink_metadata().is_ok() {
            let what = format!("{} is there already", output.display());
            return Err(Failure::Usage(format!("{what}; name another, or give --overwrite")));
        }
        let recipe = match args.to {
            Some(recipe) => recipe,
            None => floats(&resolved.path, variant)?,
        };
        let options = QuantizeOptions { recipe, requantize: true, variant };
        let done = offshoot_engine::quantize(&cpu, &resolved.path, output, options, &mut progress);
        drop((bar, listener));
        let done = done?;
        if variant.map(Variant::open).transpose()?.is_some_and(|variant| variant.has_heads()) {
            note("without the variant's draft heads: only a folder has a place for them");
        }
        return told(&done, output, recipe, json, start);
    }
    let options = ExportOptions {
        floats: args.to,
        shard_bytes: args.shard_size,
        overwrite: args.overwrite,
        variant,
    };
    let done = offshoot_engine::export_folder(&cpu, &resolved.path, output, options, &mut progress);
    drop((bar, listener));
    let done = done?;
    left_out(&done.left_out);
    if let Some(why) = &done.without_tokenizer {
        note(format_args!("without a tokenizer: {why}"));
    }
    if done.tokenizer_differs {
        note(
            "the tokenizer has another identity than the model's: tokenizer.json has no place for \
             all that the file says of its tokens",
        );
    }
    if done.heads {
        let path = output.join(HEADS_FILE);
        note(format_args!("with draft heads: run it with --medusa {}", path.display()));
    }
    if json {
        return say_json(&json!({
            "output": output,
            "format": "folder",
            "floats": done.floats.name(),
            "bytes": done.bytes,
            "weights": done.weights,
            "weight_files": done.weight_files,
            "formats": formats_json(&done.formats),
            "left_out": done.left_out,
            "without_tokenizer": done.without_tokenizer,
            "tokenizer_differs": done.tokenizer_differs,
            "tokenizer_id": done.tokenizer.map(|id| id.to_string()),
            "template_id": done.template.map(|id| id.to_string()),
            "draft_heads": done.heads,
            "seconds": start.elapsed().as_secs_f64(),
        }));
    }
    say(format_args!(
        "{}: {} MB in {}, {} file{} of weights",
        output.display(),
        done.bytes / 1_000_000,
        done.floats,
        done.weight_files,
        if done.weight_files == 1 { "" } else { "s" }
    ))
}
