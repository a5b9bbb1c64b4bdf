//! `perplexity`, `score` and `tokenize`: what a model makes of a text.

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::Path;

use offshoot_models::{Checkpoint, Special, Tokenizer};
use serde_json::json;

use crate::answer::read_stdin;
use crate::args::{PerplexityArgs, ScoreArgs, TextArgs, TokenizeArgs};
use crate::failure::{Failure, note, say, say_json};
use crate::models;

pub(crate) fn perplexity(args: &PerplexityArgs) -> Result<(), Failure> {
    let text = text_of(&args.text)?;
    let (model, mut session) = models::load(&args.adapter, &args.model, &args.engine)?;
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

pub(crate) fn score(args: &ScoreArgs) -> Result<(), Failure> {
    let text = text_of(&args.text)?;
    let (model, mut session) = models::load(&args.adapter, &args.model, &args.engine)?;
    let tokenizer = model.tokenizer();
    let mut tokens = model.encode_text(args.given.as_deref().unwrap_or_default())?;
    // Nothing tells of a first token, so it is given where nothing else is.
    let begin = tokens.len();
    tokens.extend(tokenizer.encode(&text, Special::Parse)?);
    let from = begin.max(1);
    if from >= tokens.len() {
        return Err(Failure::Data("the text has no token behind another: give more".to_owned()));
    }
    let scores =
        offshoot_engine::score(&model, &mut session, &tokens, from, usize::from(args.top), |_| {})?;
    let piece = |id| piece(tokenizer, id);
    let sum: f64 = scores.iter().map(|score| score.logprob).sum();
    let mean = sum / scores.len() as f64;
    if args.model.output.json {
        let first = tokens[begin..from].iter().map(
            |&id| json!({ "id": id, "text": piece(id), "logprob": null, "rank": null, "top": [] }),
        );
        let others = scores.iter().map(|score| {
            let top = score.top.iter().map(
                |t| json!({ "id": t.token, "text": piece(t.token), "logprob": finite(t.logprob) }),
            );
            json!({
                "id": score.token, "text": piece(score.token), "logprob": finite(score.logprob),
                "rank": score.rank, "top": top.collect::<Vec<_>>(),
            })
        });
        return say_json(&json!({
            "tokens": first.chain(others).collect::<Vec<_>>(), "sum": finite(sum),
            "mean": finite(mean), "perplexity": finite((-mean).exp()),
        }));
    }
    say("logprob   rank  token")?;
    for &id in &tokens[begin..from] {
        say(format_args!("{:>7} {:>6}  {:?}", "-", "-", piece(id)))?;
    }
    for score in &scores {
        let top = score.top.iter().map(|t| format!("  {:?} {:.2}", piece(t.token), t.logprob));
        let top: String = top.collect();
        let (logprob, rank) = (score.logprob, score.rank);
        say(format_args!("{logprob:7.3} {rank:>6}  {:?}{top}", piece(score.token)))?;
    }
    say(format_args!(
        "sum {sum:.4}, mean {mean:.4} nats over {} tokens, perplexity {:.3}",
        scores.len(),
        (-mean).exp()
    ))
}

/// The text of a token, what is no UTF-8 of it replaced.
fn piece(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or(&[])).into_owned()
}

/// JSON has no infinities.
fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

pub(crate) fn tokenize(args: &TokenizeArgs) -> Result<(), Failure> {
    let text = text_of(&args.text)?;
    let resolved = models::resolve(&args.model)?;
    let checkpoint = Checkpoint::open(&resolved.path)?;
    let tokenizer = Tokenizer::new(checkpoint.tokenizer()?)?;
    let ids = tokenizer.encode(&text, Special::Parse)?;
    let piece = |id| piece(&tokenizer, id);
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
