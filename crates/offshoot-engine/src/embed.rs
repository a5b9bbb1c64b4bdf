//! A text as one vector: the states that the output head would multiply, pooled.

use crate::{Error, Model, Session};

/// Rows of a step.
const ROWS: usize = 256;

/// How the states of all tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The last one, which has seen all tokens.
    Last,
}

/// The pooled state of `tokens`, `[hidden_size]`, as long as it comes; the session forgets what it
/// held. States are those behind the last norm, as in llama.cpp and in `last_hidden_state` of
/// transformers.
///
/// # Errors
/// [`Error::EmptyPrompt`] if there are no tokens, [`Error::PromptTooLong`] if the context does not
/// hold all, [`Error::NotFinite`] if the model computes no numbers, and as [`Session::feed`].
pub fn embed(
    model: &Model,
    session: &mut Session,
    tokens: &[u32],
    pooling: Pooling,
) -> Result<Vec<f32>, Error> {
    if tokens.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let (prompt, context) = (tokens.len(), session.context());
    if prompt > context {
        return Err(Error::PromptTooLong { prompt, context });
    }
    session.truncate(0);
    let mut sums = vec![0f64; model.config().hidden_size];
    let mut rows = 0;
    for (index, chunk) in tokens.chunks(ROWS).enumerate() {
        let mut states = session.feed_states(model, chunk)?;
        if pooling == Pooling::Last {
            let is_last = index + 1 == tokens.len().div_ceil(ROWS);
            states = &states[states.len() - if is_last { sums.len() } else { 0 }..];
        }
        for state in states.chunks_exact(sums.len()) {
            sums.iter_mut().zip(state).for_each(|(sum, &x)| *sum += f64::from(x));
            rows += 1;
        }
    }
    session.truncate(0);
    let vector: Vec<_> = sums.into_iter().map(|sum| (sum / f64::from(rows)) as f32).collect();
    if vector.iter().any(|x| !x.is_finite()) {
        return Err(Error::NotFinite);
    }
    Ok(vector)
}

/// Divides `vector` by its Euclidean length; one of zeros stays.
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}
