//! How well a model predicts a text.

use crate::{Error, Model, Session, score};

/// Tokens of a window: each is predicted from those before it in the window.
const WINDOW: usize = 512;
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
    let (mut sum, mut count) = (0.0, 0);
    let window = WINDOW.min(session.context());
    for (w, text) in tokens.chunks(window).enumerate() {
        // Nothing is behind the token of a window of one.
        if text.len() > 1 {
            let scores = score(model, session, text, 1, 0, |_| {})?;
            count += scores.len();
            // One by one, so that a text has one sum however it is cut.
            sum = scores.iter().fold(sum, |sum, score| sum - score.logprob);
        }
        progress(tokens.len().min((w + 1) * window));
    }
    session.truncate(0);
    if count == 0 {
        return Err(Error::EmptyPrompt);
    }
    Ok(Perplexity { tokens: count, loss: sum / count as f64 })
}
