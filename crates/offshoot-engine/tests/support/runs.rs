//! Runs on texts that are made up: what they are described by, and how they are evaluated.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::collections::BTreeMap;

use offshoot_engine::tune::run::{
    Examples, Happening, LogLine, Part, RunConfig, RunDescription, VariantFile, digest,
};
use offshoot_engine::tune::{Example, Scorer};
use offshoot_engine::{Control, Error};
use offshoot_models::{BaseId, TokenizerId};

pub(crate) fn described(
    config: &RunConfig,
    train: &Part<'_>,
    held_out: &Part<'_>,
) -> RunDescription {
    RunDescription {
        id: String::new(),
        config: config.clone(),
        data: digest(train).unwrap(),
        examples: train.count(),
        held_out_data: digest(held_out).unwrap(),
        held_out: held_out.count(),
        command: "test".into(),
        variant: VariantFile {
            format: 1,
            base: BaseId::from_bytes([7; 32]),
            tokenizer: TokenizerId::from_bytes([8; 32]),
            chat_template: Some("{{ x }}".into()),
            stop_tokens: vec![0],
            method: "test".into(),
            offshoot: "test".into(),
        },
    }
}

/// The mean loss of the tokens of all texts, one after the other.
pub(crate) fn mean_loss(
    scorer: &mut dyn Scorer,
    examples: &dyn Examples,
    progress: &mut dyn FnMut(u64) -> Control,
) -> Result<BTreeMap<String, f64>, Error> {
    let (mut nats, mut tokens) = (0.0, 0);
    for index in 0..examples.count() {
        if progress(index as u64) == Control::Stop {
            return Err(Error::Stopped);
        }
        let Example::Text(sequence) = examples.example(index)? else { panic!("texts alone") };
        let scored = scorer.score(&[&sequence])?[0];
        nats -= scored.logprob;
        tokens += scored.tokens;
    }
    Ok(BTreeMap::from([("loss".to_owned(), nats / tokens as f64)]))
}

/// Says stop once step `step` is made; never, if it is 0.
pub(crate) fn stop_at(step: u64) -> impl FnMut(&Happening<'_>) -> Control {
    move |happening| match happening {
        Happening::Line(LogLine::Step(line)) if line.step == step => Control::Stop,
        _ => Control::Continue,
    }
}
