//! `embed`: texts as vectors.

use std::io::{IsTerminal, Write};

use offshoot_engine::{Pooling, embed, normalize};
use serde_json::json;

use crate::args::{self, EmbedArgs, TextArgs};
use crate::failure::{Failure, say, say_json, write_out};
use crate::models;
use crate::score::text_of;

pub(crate) fn run(args: &EmbedArgs) -> Result<(), Failure> {
    let texts = match args.texts.is_empty() {
        false => args.texts.clone(),
        true => {
            if args.file.is_none() && std::io::stdin().is_terminal() {
                let what = "no text: give some behind the model, --file FILE, or a pipe";
                return Err(Failure::Usage(what.to_owned()));
            }
            let text = text_of(&TextArgs { prompt: None, file: args.file.clone() })?;
            text.lines().map(str::to_owned).collect()
        }
    };
    if texts.is_empty() {
        return Err(Failure::Data("no text: the input has no lines".to_owned()));
    }
    let (model, mut session) = models::load(&args.adapter, &args.model, &args.engine)?;
    let pooling = match args.pooling {
        args::Pooling::Mean => Pooling::Mean,
        args::Pooling::Last => Pooling::Last,
    };
    let mut vectors = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let tokens = model.encode_whole_text(text)?;
        if tokens.is_empty() {
            return Err(Failure::Data(format!("text {} is empty: there is no vector", index + 1)));
        }
        let mut vector = embed(&model, &mut session, &tokens, pooling)?;
        if !args.no_normalize {
            normalize(&mut vector);
        }
        vectors.push(vector);
    }
    let cosines = args.cosines.then(|| cosines(&vectors));
    if args.model.output.json {
        let dimensions = vectors[0].len();
        return say_json(&match cosines {
            Some(cosines) => json!({ "cosines": cosines }),
            None => json!({ "dimensions": dimensions, "embeddings": vectors }),
        });
    }
    if let Some(cosines) = cosines {
        for row in cosines {
            let row: Vec<_> = row.iter().map(|x| format!("{x:7.4}")).collect();
            say(row.join(" "))?;
        }
        return Ok(());
    }
    // A line of JSON for each text, so that any tool reads it.
    let mut out = Vec::new();
    for vector in vectors {
        serde_json::to_writer(&mut out, &vector).map_err(|e| Failure::Data(e.to_string()))?;
        let _ = out.write_all(b"\n");
    }
    write_out(&out)
}

/// The dot product of each vector with each.
fn cosines(vectors: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
    };
    vectors.iter().map(|a| vectors.iter().map(|b| dot(a, b)).collect()).collect()
}
