//! How well a model predicts a text.

use offshoot_methods::LogProbabilities;
use offshoot_models::LogitRows;

use crate::{Error, Model, Session};

/// Tokens of a window: each is predicted from those before it in the window.
const WINDOW: usize = 512;
/// Rows of a step whose logits are kept.
const ROWS: usize = 64;

/// The result over a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// Tokens predicted.
    pub tokens: usize,
    /// Mean negative log-probability of a token, in nats.
    pub loss: f64,
}

impl Perplexity {
    /// `exp(loss)`.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// The perplexity of `tokens`, cut into windows of 512 that are read independently; the first token
/// of a window is not predicted. `progress` is told the tokens done.
///
/// # Errors
/// [`Error::EmptyPrompt`] if there are fewer than two tokens.
pub fn perplexity(
    model: &Model,
    session: &mut Session,
    tokens: &[u32],
    mut progress: impl FnMut(usize),
) -> Result<Perplexity, Error> {
    let vocab = model.config().vocab_size;
    let (mut sum, mut count) = (0.0, 0);
    let window = WINDOW.min(session.context());
    for (w, window) in tokens.chunks(window).enumerate() {
        session.truncate(0);
        for (c, chunk) in window.chunks(ROWS).enumerate() {
            let logits = session.feed(model, chunk, LogitRows::All)?;
            for (row, logits) in logits.chunks_exact(vocab).enumerate() {
                let Some(&next) = window.get(c * ROWS + row + 1) else { break };
                sum -= LogProbabilities::of(logits)?.get(next).unwrap_or(f64::NEG_INFINITY);
                count += 1;
            }
        }
        progress(tokens.len().min((w + 1) * WINDOW));
    }
    session.truncate(0);
    if count == 0 {
        return Err(Error::EmptyPrompt);
    }
    Ok(Perplexity { tokens: count, loss: sum / count as f64 })
}
