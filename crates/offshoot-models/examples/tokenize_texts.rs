//! Ids of many texts by the tokenizer of a model, for `scripts/oracles/pieces.py --real`.
//!
//! Standard input holds texts, each after its number of bytes as a little-endian `u32`; standard
//! output gets for each its number of ids and the ids, then the number of bytes of the decoded ids
//! and these bytes. Control tokens are parsed.

#![expect(clippy::print_stderr, reason = "who runs it by hand looks at it")]

use std::error::Error;
use std::io::{Read, Write, stdin, stdout};
use std::path::PathBuf;
use std::time::Instant;

use offshoot_models::{Checkpoint, Controls, Special, Tokenizer, TokenizerId};

fn main() -> Result<(), Box<dyn Error>> {
    let path: PathBuf = std::env::args_os().nth(1).ok_or("give a model")?.into();
    let checkpoint = Checkpoint::open(&path)?;
    let start = Instant::now();
    let tokenizer = Tokenizer::new(checkpoint.tokenizer()?)?;
    eprintln!("{} built in {:?}", TokenizerId::of(checkpoint.tokenizer()?), start.elapsed());
    let (mut input, mut output) = (Vec::new(), Vec::new());
    stdin().lock().read_to_end(&mut input)?;
    let (mut rest, start) = (&input[..], Instant::now());
    while let Some((size, behind)) = rest.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size) as usize;
        let (text, behind) = behind.split_at_checked(size).ok_or("the last text is cut")?;
        rest = behind;
        let ids = tokenizer.encode(std::str::from_utf8(text)?, Special::Parse)?;
        output.extend((ids.len() as u32).to_le_bytes());
        ids.iter().for_each(|id| output.extend(id.to_le_bytes()));
        let text = tokenizer.decode(&ids, Controls::Keep);
        output.extend((text.len() as u32).to_le_bytes());
        output.extend(text.as_bytes());
    }
    eprintln!("{} bytes there and back in {:?}", input.len(), start.elapsed());
    stdout().write_all(&output)?;
    Ok(())
}
