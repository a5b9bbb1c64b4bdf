//! The rejection rule: keeping candidates that were themselves drawn, without changing the law of
//! the text.
//!
//! Leviathan et al. 2022, section 2.3, <https://arxiv.org/abs/2211.17192>, and Chen et al. 2023,
//! <https://arxiv.org/abs/2302.01318>; several candidates for one position as in SpecInfer, Miao et
//! al. 2023, section 4.3, <https://arxiv.org/abs/2305.09781>.
//! ```text
//! rho_1 = p                                       the model's distribution at this position
//! accept c_j with probability min(1, rho_j(c_j) / q_j(c_j))
//! else    rho_{j+1} = normalised max(0, rho_j - q_j)
//!         q_{j+1}   = normalised q_j without c_j  where candidates are drawn without replacement
//! all refused: draw from rho
//! ```
//! `q_j` is the distribution that candidate `c_j` was drawn from. A candidate that was not drawn but
//! set is drawn from a point mass. The token that comes out has the law `p` exactly, whatever the
//! `q_j`; the chance that a single candidate is kept is 1 - TV(p, q), which is more than the one draw
//! of [`super::follow`] would keep when `q` is spread out.
//!
//! Options: none. Each candidate brings its own `q`, and the caller draws with or without
//! replacement.
//!
//! Cost: O(tokens of `p` and `q`) for each candidate, and a number for each.
//!
//! Published: T5-XXL answers 2 to 3 times as fast (Leviathan et al., abstract; a TPU-v4), Chinchilla
//! 70B 2 to 2.5 times (Chen et al., abstract). Ours: the law is exact by the tests of this file, a
//! chi-square over 10^6 draws each. SmolLM2 135M drafting for itself, right as often as can be, makes
//! 5.33 tokens a step at temperature 0.7, the exact rule 1.42 of the same guesses (LOG.md,
//! 2026-11-27); what that is worth in time needs a smaller model of its vocabulary.
//!
//! When not to use it: where a seed is to name a text, as the text is not that of plain decoding
//! with the same seed, only as likely; and for guesses that are set and not drawn, of which
//! [`super::follow`] keeps as many.

/// Tokens and their probabilities, by rising token; those not named have none.
pub type Distribution = Vec<(u32, f64)>;

/// A candidate and what it was drawn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// The token.
    pub token: u32,
    /// The distribution, before it was drawn.
    pub q: Distribution,
}

impl Drawn {
    /// A candidate that was set, not drawn.
    pub fn set(token: u32) -> Self {
        Self { token, q: vec![(token, 1.0)] }
    }
}

/// What the rule decides at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// This candidate stands.
    Candidate(usize),
    /// None does; this token comes instead.
    Other(u32),
}

impl Verdict {
    /// The token that comes.
    pub fn token(self, candidates: &[Drawn]) -> u32 {
        match self {
            Self::Candidate(index) => candidates[index].token,
            Self::Other(token) => token,
        }
    }
}

/// Decides on `candidates`, in the order in which they were drawn, at a position where the model's
/// distribution is `p`. `uniform` gives numbers in [0, 1), a fresh one at each call.
///
/// Candidates must not have been chosen or reordered after their values were known: that would be
/// another distribution than `q`.
pub fn reject(
    p: &mut Distribution,
    candidates: &[Drawn],
    mut uniform: impl FnMut() -> f64,
) -> Verdict {
    for (index, Drawn { token, q }) in candidates.iter().enumerate() {
        let (wanted, offered) = (mass(p, *token), mass(q, *token));
        if wanted > 0.0 && uniform() * offered < wanted {
            return Verdict::Candidate(index);
        }
        subtract(p, q);
    }
    Verdict::Other(draw(p, uniform()))
}

/// The probability of `token`.
pub fn mass(distribution: &Distribution, token: u32) -> f64 {
    let found = distribution.binary_search_by_key(&token, |&(t, _)| t);
    found.map_or(0.0, |at| distribution[at].1)
}

/// `q` for the next candidate, where `token` was drawn from it and is not to be drawn again.
pub fn without(q: &Distribution, token: u32) -> Distribution {
    let mut rest: Distribution = q.iter().copied().filter(|&(t, _)| t != token).collect();
    normalise(&mut rest);
    rest
}

/// `p = normalised max(0, p - q)`. Where nothing is left the two were equal, and `p` stays.
fn subtract(p: &mut Distribution, q: &Distribution) {
    // Both rise, so that one walk beside the other finds each token.
    let mut offered = q.iter().peekable();
    let left = |&(token, wanted): &(u32, f64)| {
        while offered.next_if(|&&(other, _)| other < token).is_some() {}
        let offered = offered.next_if(|&&(other, _)| other == token).map_or(0.0, |&(_, x)| x);
        (wanted > offered).then_some((token, wanted - offered))
    };
    let mut rest: Distribution = p.iter().filter_map(left).collect();
    if normalise(&mut rest) {
        *p = rest;
    }
}

/// Divides by the sum; gives whether there was one.
fn normalise(distribution: &mut Distribution) -> bool {
    let sum: f64 = distribution.iter().map(|&(_, x)| x).sum();
    distribution.iter_mut().for_each(|(_, x)| *x /= sum);
    sum > 0.0
}

/// The token at which the running sum passes `u` of the whole.
pub fn draw(distribution: &Distribution, u: f64) -> u32 {
    let total: f64 = distribution.iter().map(|&(_, x)| x).sum();
    let mut sum = 0.0;
    let found = distribution.iter().find(|&&(_, x)| {
        sum += x;
        sum > u * total
    });
    found.or(distribution.last()).map_or(0, |&(token, _)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 1_000_000;

    /// Numbers in [0, 1) of a seed.
    fn numbers(seed: u64) -> impl FnMut() -> f64 {
        let mut at = 0;
        move || {
            at += 1;
            crate::uniform(seed, 0, at)
        }
    }

    fn distribution(weights: &[f64]) -> Distribution {
        let mut d: Distribution = weights.iter().enumerate().map(|(t, &w)| (t as u32, w)).collect();
        normalise(&mut d);
        d
    }

    /// Pearson's statistic of tokens against their law. With 7 degrees of freedom it passes 29.88 once
    /// in 10,000 times.
    fn chi_square(counts: &[usize; 8], law: &Distribution) -> f64 {
        let n: usize = counts.iter().sum();
        law.iter()
            .map(|&(t, p)| (counts[t as usize] as f64 - p * n as f64).powi(2) / (p * n as f64))
            .sum()
    }
    const BOUND: f64 = 29.88;

    fn p() -> Distribution {
        distribution(&[5.0, 3.0, 1.0, 0.5, 2.0, 0.2, 1.0, 0.3])
    }

    fn q() -> Distribution {
        distribution(&[1.0, 4.0, 2.0, 0.1, 2.0, 1.0, 0.5, 1.0])
    }

    #[test]
    fn the_law_is_the_models_with_and_without_replacement() {
        for replace in [true, false] {
            let mut next = numbers(11);
            let mut counts = [0; 8];
            for _ in 0..DRAWS {
                let mut q = q();
                let candidates: Vec<Drawn> = (0..3)
                    .map(|_| {
                        let token = draw(&q, next());
                        let drawn = Drawn { token, q: q.clone() };
                        if !replace {
                            q = without(&q, token);
                        }
                        drawn
                    })
                    .collect();
                let verdict = reject(&mut p(), &candidates, &mut next);
                counts[verdict.token(&candidates) as usize] += 1;
            }
            let found = chi_square(&counts, &p());
            assert!(found < BOUND, "replacement {replace}: {found}");
        }
    }

    #[test]
    fn the_law_is_the_models_when_candidates_are_set() {
        let (mut next, mut counts) = (numbers(12), [0; 8]);
        for _ in 0..DRAWS {
            let candidates = [Drawn::set(4), Drawn::set(0)];
            let verdict = reject(&mut p(), &candidates, &mut next);
            counts[verdict.token(&candidates) as usize] += 1;
        }
        assert!(chi_square(&counts, &p()) < BOUND);
    }

    /// Three positions, each depending on the one before: the law of whole texts.
    #[test]
    fn a_chain_of_candidates_has_the_law_of_the_text() {
        let p_behind = |t: u32| distribution(&[1.0 + f64::from(t), 2.0]);
        let q_behind = |t: u32| distribution(&[2.0, 1.0 + f64::from(t)]);
        let (mut next, mut counts) = (numbers(13), [0; 8]);
        for _ in 0..DRAWS {
            let (mut at, mut text) = (0, 0);
            let mut drafted = true;
            let mut draft_at = 0;
            for _ in 0..3 {
                let q = q_behind(draft_at);
                draft_at = draw(&q, next());
                let candidates = [Drawn { token: draft_at, q }];
                let candidates = if drafted { &candidates[..] } else { &[] };
                let verdict = reject(&mut p_behind(at), candidates, &mut next);
                drafted &= matches!(verdict, Verdict::Candidate(_));
                at = verdict.token(candidates);
                text = 2 * text + at as usize;
            }
            counts[text] += 1;
        }
        let law = (0..8u32).map(|text| {
            let (mut at, mut chance) = (0, 1.0);
            for bit in [text >> 2 & 1, text >> 1 & 1, text & 1] {
                chance *= mass(&p_behind(at), bit);
                at = bit;
            }
            (text, chance)
        });
        assert!(chi_square(&counts, &law.collect()) < BOUND);
    }

    /// Three positions of eight tokens each, two candidates at each: the law of all 512 texts.
    #[test]
    fn trees_of_candidates_have_the_law_of_the_text() {
        let weights = |t: u32, by: u32| -> Vec<f64> {
            (0..8).map(|i| f64::from(1 + (i * by + 3 * t) % 7)).collect()
        };
        let p_behind: Vec<Distribution> = (0..8).map(|t| distribution(&weights(t, 3))).collect();
        let q_behind: Vec<Distribution> =
            (0..8).map(|t| distribution(&weights(t + 1, 5))).collect();
        for (seed, replace) in [(21, true), (22, false)] {
            let (mut next, mut counts) = (numbers(seed), vec![0usize; 512]);
            for _ in 0..DRAWS {
                let (mut at, mut text) = (0u32, 0);
                for _ in 0..3 {
                    let mut q = q_behind[at as usize].clone();
                    let candidates: [Drawn; 2] = std::array::from_fn(|_| {
                        let token = draw(&q, next());
                        let drawn = Drawn { token, q: q.clone() };
                        if !replace {
                            q = without(&q, token);
                        }
                        drawn
                    });
                    let mut p = p_behind[at as usize].clone();
                    at = reject(&mut p, &candidates, &mut next).token(&candidates);
                    text = 8 * text + at as usize;
                }
                counts[text] += 1;
            }
            let chance = |text: usize| {
                let tokens = [text >> 6, text >> 3 & 7, text & 7];
                let mut at = 0;
                tokens.into_iter().fold(1.0, |chance, token| {
                    let p = mass(&p_behind[at], token as u32);
                    at = token;
                    chance * p
                })
            };
            let statistic: f64 = counts
                .iter()
                .enumerate()
                .map(|(text, &n)| {
                    let expected = chance(text) * DRAWS as f64;
                    (n as f64 - expected).powi(2) / expected
                })
                .sum();
            // Of 511 degrees of freedom: passed once in 10,000 times.
            assert!(statistic < 638.5, "replacement {replace}: {statistic}");
        }
    }

    #[test]
    fn a_single_candidate_is_kept_as_often_as_can_be() {
        let overlap: f64 = p().iter().map(|&(t, x)| x.min(mass(&q(), t))).sum();
        let (mut next, mut kept) = (numbers(14), 0);
        for _ in 0..DRAWS {
            let token = draw(&q(), next());
            let verdict = reject(&mut p(), &[Drawn { token, q: q() }], &mut next);
            kept += usize::from(verdict == Verdict::Candidate(0));
        }
        let error = kept as f64 / DRAWS as f64 - overlap;
        // Five standard errors.
        assert!(error.abs() < 5.0 * 0.5 / (DRAWS as f64).sqrt(), "{error}");
    }

    /// What a decoder must not do, and does where every row of a tree draws for itself: a token that
    /// stands in several rows has several chances, and a draw that matches nothing is thrown away.
    /// The test of the law has to notice.
    #[test]
    fn rows_that_draw_for_themselves_break_the_law() {
        let law = distribution(&[0.5, 0.3, 0.15, 0.05, 0.01, 0.01, 0.01, 0.01]);
        let rows = [0, 0, 0, 1, 1];
        let (mut next, mut counts) = (numbers(15), [0; 8]);
        for _ in 0..100_000 {
            let hit = rows.iter().find(|&&row| draw(&law, next()) == row).copied();
            let token = hit.unwrap_or_else(|| draw(&law, next()));
            counts[token as usize] += 1;
        }
        assert!(chi_square(&counts, &law) > 100.0 * BOUND);
    }

    #[test]
    fn equal_distributions_refuse_nothing() {
        let (mut next, same) = (numbers(16), distribution(&[0.5, 0.5]));
        for _ in 0..1000 {
            let token = draw(&same, next());
            let verdict = reject(&mut same.clone(), &[Drawn { token, q: same.clone() }], &mut next);
            assert_eq!(verdict, Verdict::Candidate(0));
        }
    }
}
