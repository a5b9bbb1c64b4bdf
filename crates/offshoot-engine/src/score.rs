//! What a model makes of each token of a text that is given.

use offshoot_methods::{LogProbabilities, TokenLogprob};
use offshoot_models::LogitRows;

use crate::{Error, Model, Session};

/// Rows of a step whose logits are kept.
const ROWS: usize = 64;

/// A token of the text and how likely it was.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// The token.
    pub token: u32,
    /// The natural logarithm of its probability behind all tokens before it.
    pub logprob: f64,
    /// One more than tokens that were likelier; 1 if none was.
    pub rank: usize,
    /// The likeliest tokens in its place.
    pub top: Vec<TokenLogprob>,
}

/// Scores `tokens[from..]`, each behind all tokens before it, with `top` alternatives; the session
/// forgets what it held. `progress` is told the tokens done.
///
/// # Errors
/// [`Error::EmptyPrompt`] if `from` is 0 or no token is behind it, [`Error::PromptTooLong`] if the
/// context does not hold all tokens, and as [`Session::feed`].
pub fn score(
    model: &Model,
    session: &mut Session,
    tokens: &[u32],
    from: usize,
    top: usize,
    mut progress: impl FnMut(usize),
) -> Result<Vec<TokenScore>, Error> {
    if from == 0 || from >= tokens.len() {
        return Err(Error::EmptyPrompt);
    }
    let (prompt, context) = (tokens.len(), session.context());
    if prompt > context {
        return Err(Error::PromptTooLong { prompt, context });
    }
    session.truncate(0);
    session.read(model, &tokens[..from - 1])?;
    let mut scores = Vec::with_capacity(tokens.len() - from);
    // The row of a token tells of the one behind it.
    for chunk in tokens[from - 1..tokens.len() - 1].chunks(ROWS) {
        let logits = session.feed(model, chunk, LogitRows::All)?;
        for logits in logits.chunks_exact(logits.len() / chunk.len()) {
            let token = tokens[from + scores.len()];
            let all = LogProbabilities::of(logits)?;
            let logprob = all.get(token).unwrap_or(f64::NEG_INFINITY);
            let own = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
            let likelier = logits.iter().filter(|&&logit| logit > own).count();
            scores.push(TokenScore { token, logprob, rank: likelier + 1, top: all.top(top) });
        }
        progress(from + scores.len());
    }
    session.truncate(0);
    Ok(scores)
}
