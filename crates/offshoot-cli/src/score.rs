//! `perplexity` and `tokenize`: what a model makes of a text.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::Path;

use offshoot_models::{Checkpoint, Special, Tokenizer};
use serde_json::json;

use crate::answer::read_stdin;
use crate::args::{PerplexityArgs, TextArgs, TokenizeArgs};
use crate::failure::{Failure, note, say, say_json};
use crate::models;

pub(crate) fn perplexity(args: &PerplexityArgs) -> Result<(), Failure> {
    let text = text_of(&args.text)?;
    let (model, mut session) = models::load(&args.model, &args.engine)?;
    let tokens = model.tokenizer().encode(&text, Special::Text)?;
    let mut stderr = std::io::stderr();
    let shown = stderr.is_terminal();
    let result = offshoot_engine::perplexity(&model, &mut session, &tokens, |done| {
        if shown {
            let _ = write!(stderr, "\r{done} of {} tokens", tokens.len());
        }
    });
    if shown {
        note("");
    }
    let result = result?;
    if args.model.output.json {
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

pub(crate) fn tokenize(args: &TokenizeArgs) -> Result<(), Failure> {
    let text = text_of(&args.text)?;
    let resolved = models::resolve(&args.model)?;
    let checkpoint = Checkpoint::open(&resolved.path)?;
    let tokenizer = Tokenizer::new(checkpoint.tokenizer()?)?;
    let ids = tokenizer.encode(&text, Special::Parse)?;
    let piece =
        |id: u32| String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or(&[])).into_owned();
    if args.model.output.json {
        let pieces: Vec<_> = ids.iter().map(|&id| json!({ "id": id, "text": piece(id) })).collect();
        return say_json(&pieces.into());
    }
    for id in ids {
        say(format_args!("{id:>7} {:?}", piece(id)))?;
    }
    Ok(())
}

pub(crate) fn text_of(args: &TextArgs) -> Result<String, Failure> {
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
        (None, None) if std::io::stdin().is_terminal() => {
            Err(Failure::Usage("no text: give --prompt TEXT, --file FILE, or a pipe".to_owned()))
        }
        (None, _) => read_stdin(),
    }
}
