//! Parses bytes as the GGUF files that a model is split into, joins them and uses all weights that are
//! let through.
#![no_main]

use libfuzzer_sys::fuzz_target;
use offshoot_models::Error;
use offshoot_models::gguf::{join, parse};

#[path = "../../crates/offshoot-models/tests/support/mod.rs"]
mod support;

fuzz_target!(|bytes: &[u8]| {
    let files = support::parts::split(bytes);
    if let Err(error) = walk(&files) {
        support::assert_one_line(&error, "fuzzed");
    }
});

fn walk(files: &[&[u8]]) -> Result<(), Error> {
    let parts = files.iter().map(|bytes| parse(bytes)).collect::<Result<Vec<_>, _>>()?;
    let whole = join(parts).map_err(|(part, error)| {
        assert!(part < files.len(), "part {part} of {}", files.len());
        error
    })?;
    let contents = whole.contents()?;
    for (name, info) in &contents.tensors {
        let mut out = vec![0.0; info.shape.iter().product()];
        let dequantized = info.block.dequantize(&files[info.file][info.range.clone()], &mut out);
        dequantized.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    if let Ok(spec) = &contents.tokenizer {
        support::use_tokenizer(spec);
    }
    Ok(())
}
