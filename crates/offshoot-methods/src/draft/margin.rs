//! The margin guard: which choices stand where logits are known up to an error.
//!
//! A step of several rows on a matrix library sums in another order than a step of one row, so its
//! logits differ in the last bits, and a choice between two that are nearly equal may fall the other
//! way. The remedy is that of arithmetic with error bounds, where a predicate is trusted if its value
//! exceeds the bound and computed exactly otherwise (Shewchuk 1997, section 1,
//! <https://doi.org/10.1007/PL00009321>): whoever drafts asks [`Margin::is_sure`] and, where the answer
//! is no, decides that token as plain decoding does.
//! ```text
//! |l'_t - l_t| <= d for every t           d = delta * max(r, 1 / r), r = repetition penalty
//! greedy   l_t - 2 d > l_s  for all s other than the chosen t
//! drawn    (1 - u) A <= u (w_t + B)  and  (1 - u) (A + w_t) > u B
//! ```
//! `w = exp((l - max l) / T)`, and `A` and `B` are the weights of the tokens that may be drawn, below
//! and above `t`; each side of an inequality is taken at its worst, that is with weights of
//! `exp(-d / T)` to `exp(d / T)` times what they are, over the tokens that surely may be drawn or over
//! those that possibly may. A token is surely among the first `k` if the one behind them lies more
//! than `2 d` below it; `top_p` and `min_p` are bounded alike, see the code. A masked token stays
//! masked.
//!
//! Options: none but `delta`, which is measured and not chosen. An answer of no may be wrong, as
//! several bounds are taken at their worst at once; an answer of yes is not, but for the rounding of
//! penalties and biases, which `delta` has to leave room for.
//!
//! Cost: greedy a pass over the logits; drawn two passes and a sort of the tokens that may be drawn.
//!
//! Published: nothing of such a guard. What comes of none: with drafts two tokens wide, on CUDA and
//! greedily, 57 of 75 requests to llama.cpp had another text than without
//! (<https://github.com/ggml-org/llama.cpp/issues/25618>).
//!
//! Ours: of 384 choices by default settings and greedily none was in doubt, of 52 draws from a whole
//! vocabulary 11: there each of thousands of unlikely tokens has two ends to its share of [0, 1).
//!
//! When not to use it: where rows do not depend on the rows beside them. Nothing is in doubt there.

use crate::SamplingOptions;
use crate::decode::{Candidate, select_top_k};

/// What sums and exponentials in double precision may be wrong by, and more.
const ROUNDING: f64 = 1e-9;

/// Says of choices whether they stand. It remembers nothing but its buffers.
#[derive(Debug, Clone, Default)]
pub struct Margin {
    best: Vec<Candidate>,
    /// Tokens that may be drawn, by falling logit.
    ranked: Vec<Candidate>,
    /// The weights of those before each, and of all.
    sums: Vec<f64>,
}

/// How the weights around a token divide, at the worst for the bound that each is used in.
#[derive(Debug, Clone, Copy, Default)]
struct Weights {
    least: f64,
    most: f64,
}

impl Margin {
    /// Whether [`Sampler::sample`](crate::Sampler::sample), which gave `token`, would give it too if
    /// each of the logits that it was given were another by up to `delta`.
    ///
    /// `logits` are what the sampler left: with bias and penalties. `options` are its own and `u` is
    /// the number that decided, of no account at temperature 0.
    pub fn is_sure(
        &mut self,
        logits: &[f32],
        token: u32,
        options: &SamplingOptions,
        u: f64,
        delta: f32,
    ) -> bool {
        if delta == 0.0 {
            return true;
        }
        let Some(&chosen) = logits.get(token as usize) else { return false };
        let delta = f64::from(delta) * stretch(options);
        let temperature = f64::from(options.temperature);
        if temperature == 0.0 {
            let least = f64::from(chosen) - 2.0 * delta;
            let mut others = logits.iter().enumerate().filter(|&(t, _)| t != token as usize);
            return others.all(|(_, &logit)| f64::from(logit) < least);
        }
        let grow = libm::exp(delta / temperature) * (1.0 + ROUNDING);
        if grow.is_nan() || grow > 1e50 {
            return false;
        }
        let certain = self.rank(logits, options, delta);
        self.is_drawn(token, options, (u, delta, grow), certain)
    }

    /// Puts into `ranked` what is possibly among the `top_k`; gives how many of them surely are.
    fn rank(&mut self, logits: &[f32], options: &SamplingOptions, delta: f64) -> usize {
        let Self { best, ranked, sums } = self;
        let k = options.top_k as usize;
        let (mut last, mut next) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
        if (1..logits.len()).contains(&k) {
            select_top_k(logits, k + 1, best);
            best.sort_unstable_by(Candidate::rank);
            if best.len() > k {
                (last, next) = (f64::from(best[k - 1].logit), f64::from(best[k].logit));
            }
        }
        ranked.clear();
        ranked.extend(logits.iter().enumerate().filter_map(|(token, &logit)| {
            let wide = f64::from(logit);
            let possible = logit > f32::NEG_INFINITY && wide + 2.0 * delta >= last;
            possible.then(|| Candidate::new(token, logit))
        }));
        ranked.sort_unstable_by(Candidate::rank);
        let max = ranked.first().map_or(0.0, |first| f64::from(first.logit));
        sums.clear();
        let mut sum = 0.0;
        for candidate in ranked.iter_mut() {
            let above = f64::from(candidate.logit) - max;
            candidate.weight = libm::exp(above / f64::from(options.temperature));
            sums.push(sum);
            sum += candidate.weight;
        }
        sums.push(sum);
        ranked.partition_point(|c| f64::from(c.logit) - 2.0 * delta > next)
    }

    /// Whether `token` is drawn whatever the logits are within the bound.
    fn is_drawn(
        &self,
        token: u32,
        options: &SamplingOptions,
        (u, delta, grow): (f64, f64, f64),
        certain: usize,
    ) -> bool {
        let (mut below, mut above) = (Weights::default(), Weights::default());
        let mut own = None;
        let (mut before, mut behind) = (0, 0);
        let p = f64::from(options.top_p);
        let min_weight = f64::from(options.min_p);
        for (at, candidate) in self.ranked.iter().enumerate() {
            let logit = f64::from(candidate.logit);
            // Those surely ranked before it, and those that are or may be, itself among them.
            while f64::from(self.ranked[before].logit) > logit + 2.0 * delta {
                before += 1;
            }
            while self.ranked.get(behind).is_some_and(|c| f64::from(c.logit) >= logit - 2.0 * delta)
            {
                behind += 1;
            }
            let weight = candidate.weight;
            let is_best = before == 0 && behind == 1;
            let (mut sure, mut possible) = (at < certain, true);
            if options.top_p < 1.0 {
                let total = self.sums[self.ranked.len()];
                let worst = (1.0 - p) * grow * (self.sums[behind] - weight);
                let rest = self.sums[certain] - self.sums[behind.min(certain)];
                sure &= is_best || worst < p / grow * (weight + rest);
                let luckiest = (1.0 - p) / grow * self.sums[before.min(certain)];
                possible &= before == 0 || luckiest < p * grow * (total - self.sums[before]);
            }
            sure &= is_best || weight / (grow * grow) >= min_weight;
            possible &= before == 0 || weight * grow * grow >= min_weight;
            if candidate.token == token {
                own = sure.then_some(weight);
                continue;
            }
            let side = if candidate.token < token { &mut below } else { &mut above };
            side.least += if sure { weight / grow } else { 0.0 };
            side.most += if possible { weight * grow } else { 0.0 };
        }
        own.is_some_and(|weight| {
            let own = weight / grow;
            (1.0 - u) * below.most <= u * (own + above.least)
                && (1.0 - u) * (below.least + own) > u * above.most
        })
    }
}

/// How many times a difference of logits may grow by what the sampler does to them.
fn stretch(options: &SamplingOptions) -> f64 {
    match options.penalizes() {
        true => {
            let repetition = f64::from(options.repetition_penalty);
            repetition.max(1.0 / repetition)
        }
        false => 1.0,
    }
}

/// The greatest magnitude among the finite of `logits`, which the error of logits grows with; 0 if
/// there is none.
pub fn greatest_magnitude(logits: &[f32]) -> f32 {
    logits.iter().map(|logit| logit.abs()).filter(|x| x.is_finite()).fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sampler, uniform};
    use proptest::prelude::*;

    fn sample(logits: &[f32], options: &SamplingOptions, position: u64) -> (u32, Vec<f32>) {
        let mut sampler = Sampler::new(options.clone()).unwrap();
        let mut left = logits.to_vec();
        let token = sampler.sample(&mut left, &[0, 1, 1, 4], 0, position).unwrap().token;
        (token, left)
    }

    /// Whether the choice at `position` is sure, and the token.
    fn judged(logits: &[f32], options: &SamplingOptions, position: u64, delta: f32) -> (bool, u32) {
        let (token, left) = sample(logits, options, position);
        let u = uniform(options.seed.unwrap(), 0, position);
        (Margin::default().is_sure(&left, token, options, u, delta), token)
    }

    /// Steps of a quarter, so that many are equal or nearly so, with a little beside them.
    fn logit() -> impl Strategy<Value = f32> {
        prop_oneof![
            8 => ((-16i8..16), (-3i8..3)).prop_map(|(a, b)| f32::from(a) / 4.0 + f32::from(b) / 500.0),
            1 => Just(f32::NEG_INFINITY),
        ]
    }

    fn options() -> impl Strategy<Value = SamplingOptions> {
        let temperature = prop_oneof![Just(0.0f32), Just(0.3), Just(1.0), Just(2.5)];
        let top_p = prop_oneof![Just(1.0f32), Just(0.9), Just(0.5), Just(0.0)];
        let min_p = prop_oneof![Just(0.0f32), Just(0.05), Just(0.6), Just(1.0)];
        let penalties = (prop_oneof![Just(1.0f32), Just(1.3), Just(0.8)], 0u8..2);
        (temperature, 0u32..12, top_p, min_p, penalties, any::<u64>()).prop_map(
            |(temperature, top_k, top_p, min_p, (repetition_penalty, presence), seed)| {
                SamplingOptions {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    repetition_penalty,
                    presence_penalty: f32::from(presence) / 2.0,
                    seed: Some(seed),
                    ..SamplingOptions::default()
                }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        /// The law: what is sure is not changed by any error within the bound, be it at the bound
        /// for every token. A hundredth is left for the rounding of penalties.
        #[test]
        fn a_sure_choice_is_that_of_all_logits_within_the_bound(
            mut logits in prop::collection::vec(logit(), 6..24),
            errors in prop::collection::vec(prop::collection::vec(-1.0f32..1.0, 24), 8),
            options in options(),
            delta in prop_oneof![Just(0.001f32), Just(0.004), Just(0.05), Just(0.3)],
        ) {
            logits[3] = 0.5;
            let (sure, token) = judged(&logits, &options, 5, delta);
            if sure {
                for errors in &errors {
                    for extreme in [true, false] {
                        let error = |e: &f32| if extreme { e.signum() } else { *e };
                        let other: Vec<f32> = logits
                            .iter()
                            .zip(errors)
                            .map(|(l, e)| l + 0.99 * delta * error(e))
                            .collect();
                        prop_assert_eq!(sample(&other, &options, 5).0, token);
                    }
                }
                // All against the chosen one, and the chosen one against all.
                for way in [1.0, -1.0] {
                    let mut other: Vec<f32> = logits.iter().map(|l| l + 0.99 * way * delta).collect();
                    other[token as usize] -= 2.0 * 0.99 * way * delta;
                    prop_assert_eq!(sample(&other, &options, 5).0, token);
                }
            }
        }
    }

    /// A row like a model's: few likely tokens, many unlikely ones.
    fn row(seed: u64) -> Vec<f32> {
        (0..500).map(|t| 12.0 * uniform(seed, 1, t).powi(6) as f32).collect()
    }

    #[test]
    fn a_small_error_puts_few_choices_in_doubt_and_a_great_one_most() {
        for temperature in [0.0, 0.8] {
            let options =
                SamplingOptions { temperature, seed: Some(9), ..SamplingOptions::default() };
            let sure =
                |delta: f32| (0..400).filter(|&i| judged(&row(i), &options, i, delta).0).count();
            let (small, great) = (sure(1e-5), sure(1.0));
            assert!(small > 380 && great < 200, "{temperature}: {small}, {great} of 400");
            assert_eq!(sure(0.0), 400);
            assert_eq!(sure(f32::INFINITY), 0);
        }
    }

    #[test]
    fn two_greatest_logits_are_told_apart_by_twice_the_error_and_not_by_less() {
        let options = SamplingOptions { seed: Some(0), ..SamplingOptions::greedy() };
        let sure = |second: f32| judged(&[0.0, 2.0, 1.0, second, 0.0], &options, 0, 0.25).0;
        assert!(sure(1.25));
        assert!(!sure(1.5) && !sure(1.75) && !sure(2.0));
    }

    /// Two tokens alike: the draw is in doubt only about the middle of [0, 1).
    #[test]
    fn a_draw_is_in_doubt_only_beside_the_boundary() {
        let options = SamplingOptions {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: Some(1),
            ..SamplingOptions::default()
        };
        let mut margin = Margin::default();
        for (u, token, sure) in
            [(0.0, 0, true), (0.48, 0, true), (0.499, 0, false), (0.501, 1, false), (0.52, 1, true)]
        {
            assert_eq!(margin.is_sure(&[1.0, 1.0], token, &options, u, 0.01), sure, "{u}");
        }
    }

    #[test]
    fn magnitudes_are_of_what_is_finite() {
        assert_eq!(greatest_magnitude(&[1.0, -3.0, f32::NEG_INFINITY, f32::NAN]), 3.0);
        assert_eq!(greatest_magnitude(&[f32::INFINITY]), 0.0);
    }
}
