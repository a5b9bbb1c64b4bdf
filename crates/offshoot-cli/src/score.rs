//! `perplexity` and `tokenize`: what a model makes of a text.

use std::fs;
use std::io::Read;
use std::path::Path;

use offshoot_models::{Checkpoint, Special, Tokenizer};
use serde_json::json;

use crate::args::TextArgs;
use crate::failure::{Failure, say, say_json};
use crate::models;

pub(crate) fn perplexity(args: &TextArgs) -> Result<(), Failure> {
    let text = text_of(args)?;
    let (model, mut session) = models::load(&args.model, &args.engine)?;
    let tokens = model.tokenizer().encode(&text, Special::Text)?;
    let result = offshoot_engine::perplexity(&model, &mut session, &tokens, |done| {
        eprint!("\r{done} of {} tokens", tokens.len());
    });
    eprintln!();
    let result = result?;
    if args.model.json {
        return say_json(&json!({
            "tokens": result.tokens, "loss": result.loss, "perplexity": result.perplexity(),
        }));
    }
    say(format_args!(
        "perplexity {:.4} (loss {:.5} nats) over {} tokens, windows of 512",
        result.perplexity(),
        result.loss,
        result.tokens
    ))
}

pub(crate) fn tokenize(args: &TextArgs) -> Result<(), Failure> {
    let text = text_of(args)?;
    let resolved = models::resolve(&args.model)?;
    let checkpoint = Checkpoint::open(&resolved.path)?;
    let tokenizer = Tokenizer::new(checkpoint.tokenizer()?)?;
    let ids = tokenizer.encode(&text, Special::Parse)?;
    let piece =
        |id: u32| String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or(&[])).into_owned();
    if args.model.json {
        let pieces: Vec<_> = ids.iter().map(|&id| json!({ "id": id, "text": piece(id) })).collect();
        return say_json(&pieces.into());
    }
    for id in ids {
        say(format_args!("{id:>7} {:?}", piece(id)))?;
    }
    Ok(())
}

fn text_of(args: &TextArgs) -> Result<String, Failure> {
    match (&args.prompt, &args.file) {
        (Some(text), _) => Ok(text.clone()),
        (None, Some(path)) if path.as_path() != Path::new("-") => {
            let wrong = |source| Failure::File { path: path.clone(), source };
            let bytes = fs::read(path).map_err(wrong)?;
            String::from_utf8(bytes).map_err(|e| {
                let at = e.utf8_error().valid_up_to();
                Failure::Data(format!("{}: byte {at} is not UTF-8", path.display()))
            })
        }
        (None, Some(_)) => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|e| Failure::Data(format!("standard input: {e}")))?;
            Ok(text)
        }
        (None, None) => {
            Err(Failure::Usage("no text: give --prompt TEXT or --file FILE".to_owned()))
        }
    }
}
