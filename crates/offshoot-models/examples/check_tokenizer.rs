//! Checks the tokenizer of a model file against Hugging Face's account of it.
//!
//! ```text
//! cargo run --release -p offshoot-models --example check_tokenizer -- MODEL.gguf
//! ```
//! Knows the files whose references are in `tests/data`; says how long building took.

#[path = "../tests/support/mixed_text.rs"]
mod mixed_text;
#[path = "../tests/support/tokenizer_reference.rs"]
mod tokenizer_reference;

use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use offshoot_models::{Checkpoint, Tokenizer};
use tokenizer_reference::Reference;

const REFERENCES: [&str; 2] = [
    include_str!("../tests/data/tokenizer_smollm2.json"),
    include_str!("../tests/data/tokenizer_qwen2_5_coder.json"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let path = PathBuf::from(std::env::args_os().nth(1).ok_or("expected a model file")?);
    let bytes = std::fs::read(&path)?;
    let references = REFERENCES.map(Reference::load);
    let known = references.iter().find(|reference| reference.is_of(&bytes));
    let reference = known.ok_or("no reference was made from this file")?;

    let start = Instant::now();
    let checkpoint = Checkpoint::open(&path)?;
    let opened = start.elapsed();
    let tokenizer = Tokenizer::new(checkpoint.tokenizer()?)?;
    let built = start.elapsed() - opened;
    reference.check(&tokenizer);
    writeln!(std::io::stdout(), "equal; opened in {opened:.1?}, tokenizer built in {built:.1?}")?;
    Ok(())
}
