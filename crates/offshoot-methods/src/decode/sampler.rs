//! Choosing a token from logits: greedily, or by one keyed draw from a truncated softmax.
//!
//! ```text
//! w_t = exp((l_t - m) / T)         l after bias and penalties, m = max l, T = temperature
//! K   = top_k(w), then top_p(w), then min_p(w)
//! t*  = min { t in K : sum_{s in K, s <= t} w_s > u * sum_{s in K} w_s }
//! ```
//! u is [`uniform`](super::uniform()) of (seed, choice, position). The inverse distribution
//! function runs in the order of the tokens, not of their probabilities: two logits that change
//! places then move no boundary far, so a tiny change of the logits changes the token with a tiny
//! probability.
//!
//! Logits are single, weights and sums double precision; the exponential is this build's own and
//! every order is fixed, so equal logits give equal tokens on every machine. Whatever depends on u
//! sees one number for each output position, which lets a speculative decoder draw the very tokens
//! that plain decoding would.
//!
//! Cost for a vocabulary of V: one pass when greedy; with `top_k` another pass and O(k log k);
//! without it V exponentials. `top_p` sorts only as deep as the mass reaches. Buffers are reused:
//! after the first call nothing is allocated unless a later row needs more room.

use super::options::SamplingOptions;
use super::top_k::{Candidate, select_top_k};
use super::uniform::{Purpose, uniform, uniform_for};
use crate::Error;

/// How deep `top_p` sorts at first; eight times deeper each time the mass is not reached.
const NUCLEUS_GUESS: usize = 64;

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// The natural logarithm of its probability under the distribution it was drawn from, after
    /// every step of [`SamplingOptions`]; 0 when greedy. The model's own opinion is
    /// [`LogProbabilities`](super::LogProbabilities).
    pub logprob: f64,
}

/// Chooses tokens by one set of options.
///
/// It remembers nothing from call to call but its buffers, so one sampler may serve the positions
/// of several answers in any order.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplingOptions,
    seed: u64,
    /// How often each token stands in the window; all zero between calls.
    counts: Vec<u32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// Makes a sampler of `options`.
    ///
    /// # Errors
    /// [`Error::Option`] if a field is out of bounds, [`Error::SeedMissing`] if the temperature is
    /// above 0 and no seed was chosen.
    pub fn new(options: SamplingOptions) -> Result<Self, Error> {
        options.validate()?;
        let seed = match options.seed {
            Some(seed) => seed,
            None if options.temperature == 0.0 => 0,
            None => return Err(Error::SeedMissing),
        };
        Ok(Self { options, seed, counts: Vec::new(), candidates: Vec::new() })
    }

    /// The options this sampler follows.
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// Chooses the token at `position` of answer `choice`, both counted from 0.
    ///
    /// `logits[t]` belongs to token `t`; biases and penalties are written into it. `context` holds
    /// all tokens before this one, the prompt's included.
    ///
    /// # Errors
    /// [`Error::Logit`] if a logit is NaN or positive infinity, [`Error::NoTokenAllowed`] if none
    /// is finite, [`Error::TokenOutOfRange`] if `context` or the bias names a token without a logit.
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        context: &[u32],
        choice: u32,
        position: u64,
    ) -> Result<Sampled, Error> {
        self.add_bias(logits)?;
        self.penalize(logits, context)?;
        let best = argmax(logits)?;
        if self.options.temperature == 0.0 {
            return Ok(Sampled { token: best.token, logprob: 0.0 });
        }
        self.truncate(logits, best.logit);
        Ok(invert(&self.candidates, uniform(self.seed, choice, position)))
    }

    /// The distribution that [`Sampler::sample`] draws from there, into `law`: tokens by rising number
    /// with their probabilities, those left out having none. At temperature 0 the largest logit has it
    /// all.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn distribution(
        &mut self,
        logits: &mut [f32],
        context: &[u32],
        law: &mut Vec<(u32, f64)>,
    ) -> Result<(), Error> {
        self.add_bias(logits)?;
        self.penalize(logits, context)?;
        let best = argmax(logits)?;
        law.clear();
        if self.options.temperature == 0.0 {
            law.push((best.token, 1.0));
            return Ok(());
        }
        self.truncate(logits, best.logit);
        let total: f64 = self.candidates.iter().map(|c| c.weight).sum();
        law.extend(self.candidates.iter().map(|c| (c.token, c.weight / total)));
        Ok(())
    }

    /// The number that decides something other than the token at `position` of answer `choice`.
    pub fn uniform_for(&self, purpose: Purpose, choice: u32, position: u64) -> f64 {
        uniform_for(purpose, self.seed, choice, position)
    }

    fn add_bias(&self, logits: &mut [f32]) -> Result<(), Error> {
        for (&token, bias) in &self.options.logit_bias {
            *slot(logits, token, "logit_bias")? += bias;
        }
        Ok(())
    }

    /// Lowers the logits of the tokens in the window, each once and by its own count.
    fn penalize(&mut self, logits: &mut [f32], context: &[u32]) -> Result<(), Error> {
        if !self.options.penalizes() {
            return Ok(());
        }
        let n_window = self.options.penalty_window.map_or(usize::MAX, |n| n as usize);
        let window = &context[context.len().saturating_sub(n_window)..];
        for &token in window {
            slot(logits, token, "the context")?;
        }
        self.counts.resize(logits.len().max(self.counts.len()), 0);
        for &token in window {
            self.counts[token as usize] += 1;
        }
        for &token in window {
            let count = std::mem::take(&mut self.counts[token as usize]);
            if count > 0 {
                let logit = &mut logits[token as usize];
                *logit = penalized(*logit, count, &self.options);
            }
        }
        Ok(())
    }

    /// Leaves in `candidates` the tokens that may be drawn, by rising token, with their weights.
    fn truncate(&mut self, logits: &[f32], max: f32) {
        let Self { options, candidates, .. } = self;
        let k = options.top_k as usize;
        if (1..logits.len()).contains(&k) {
            select_top_k(logits, k, candidates);
            candidates.sort_unstable_by_key(|c| c.token);
        } else {
            candidates.clear();
            candidates.extend(logits.iter().enumerate().map(|(t, &l)| Candidate::new(t, l)));
        }
        let total = weigh(candidates, max, options.temperature);
        // The likeliest weighs 1. Both rules keep the front of one ranking, so the order in which
        // they cut does not matter, as long as the mass is measured before either does.
        let min_weight = f64::from(options.min_p);
        candidates.retain(|c| c.weight >= min_weight && c.weight > 0.0);
        if options.top_p < 1.0 {
            keep_nucleus(candidates, f64::from(options.top_p) * total);
        }
    }
}

/// The best ranked token.
///
/// One comparison a logit: NaN and a new maximum both fail it.
pub(crate) fn argmax(logits: &[f32]) -> Result<Candidate, Error> {
    let mut best: Option<Candidate> = None;
    let mut max = f32::NEG_INFINITY;
    for (token, &logit) in logits.iter().enumerate() {
        if logit <= max {
            continue;
        }
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(Error::Logit { token: token as u32, got: logit });
        }
        max = logit;
        best = Some(Candidate::new(token, logit));
    }
    best.ok_or(Error::NoTokenAllowed { n_vocab: logits.len() })
}

fn slot<'a>(logits: &'a mut [f32], token: u32, place: &'static str) -> Result<&'a mut f32, Error> {
    let n_vocab = logits.len();
    logits.get_mut(token as usize).ok_or(Error::TokenOutOfRange { place, token, n_vocab })
}

/// The logit of a token seen `count` times.
fn penalized(logit: f32, count: u32, options: &SamplingOptions) -> f32 {
    let repetition = options.repetition_penalty;
    let scaled = if logit > 0.0 { logit / repetition } else { logit * repetition };
    scaled - count as f32 * options.frequency_penalty - options.presence_penalty
}

/// Sets each weight to exp((logit - max) / temperature) and returns their sum.
fn weigh(candidates: &mut [Candidate], max: f32, temperature: f32) -> f64 {
    let (max, temperature) = (f64::from(max), f64::from(temperature));
    let mut total = 0.0;
    for candidate in candidates {
        candidate.weight = libm::exp((f64::from(candidate.logit) - max) / temperature);
        total += candidate.weight;
    }
    total
}

/// Keeps the fewest best ranked candidates whose weights sum to at least `mass`, or all.
fn keep_nucleus(candidates: &mut Vec<Candidate>, mass: f64) {
    let mut depth = NUCLEUS_GUESS;
    loop {
        let whole = depth >= candidates.len();
        if !whole {
            candidates.select_nth_unstable_by(depth, Candidate::rank);
        }
        let sorted = candidates.len().min(depth);
        candidates[..sorted].sort_unstable_by(Candidate::rank);
        let mut sum = 0.0;
        let reached = candidates[..sorted].iter().position(|c| {
            sum += c.weight;
            sum >= mass
        });
        if let Some(last) = reached {
            candidates.truncate(last + 1);
        }
        if whole || reached.is_some() {
            break;
        }
        depth *= 8;
    }
    candidates.sort_unstable_by_key(|c| c.token);
}

/// The candidate at which the running sum of the weights passes `u` of the whole.
///
/// `candidates` is not empty: the best ranked token survives every truncation.
fn invert(candidates: &[Candidate], u: f64) -> Sampled {
    let total: f64 = candidates.iter().map(|c| c.weight).sum();
    let threshold = u * total;
    let mut sum = 0.0;
    let found = candidates.iter().position(|c| {
        sum += c.weight;
        sum > threshold
    });
    // The product may round up to the total itself; then the last candidate is meant.
    let Candidate { token, weight, .. } = candidates[found.unwrap_or(candidates.len() - 1)];
    Sampled { token, logprob: libm::log(weight / total) }
}

#[cfg(test)]
mod tests;
