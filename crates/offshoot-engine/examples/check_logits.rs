//! Checks the dense executor on a real model against transformers.
//!
//! ```text
//! cargo run --release -p offshoot-engine --example check_logits -- MODEL.gguf [text]
//! ```
//! Knows the files whose references are in `tests/data`; with `text` also measures the perplexity of
//! the text there, which takes minutes.
#![allow(clippy::print_stdout)] // it is a program

#[path = "../tests/support/logits.rs"]
mod logits;

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use logits::{Reference, dense, sha256, text, weights_sha256};
use offshoot_models::{Checkpoint, Special, Tokenizer};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let path = PathBuf::from(arguments.next().ok_or("expected a model file")?);
    let file = sha256(&std::fs::read(&path)?);
    let references = ["smollm2", "qwen2_5_coder"].map(Reference::read);
    let known = references.iter().find(|reference| reference.sha256 == file);
    let reference = known.ok_or("no reference was made from this file")?;

    let checkpoint = Checkpoint::open(&path)?;
    assert_eq!(weights_sha256(&checkpoint), reference.weights_sha256, "the dequantised weights");
    println!("all weights are equal, bit for bit");
    let mut run = dense(&checkpoint);
    let start = Instant::now();
    println!("{:?} in {:.1?}", reference.distance(&mut run), start.elapsed());
    if arguments.next().is_some() {
        let tokens = Tokenizer::new(checkpoint.tokenizer()?)?.encode(&text(), Special::Text)?;
        let start = Instant::now();
        let surprise = reference.surprise(&tokens, &mut run);
        println!("{surprise:?} on {} tokens in {:.1?}", tokens.len(), start.elapsed());
    }
    Ok(())
}
