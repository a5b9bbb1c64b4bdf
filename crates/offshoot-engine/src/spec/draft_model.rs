//! A small model of the same vocabulary as a drafter.
//!
//! Leviathan et al. 2022, <https://arxiv.org/abs/2211.17192>. It writes on from the text greedily, up
//! to [`DEPTH`] tokens, and proposes at each of them its likeliest few. How far it goes is decided
//! before each token by the chance that it gets that far, so that no time goes into guesses that
//! hardly count. Under the rejection rule it draws its tokens as the model would, as many as it is
//! asked for.
//! ```text
//! speed-up of a chain of n guesses = (1 - a^(n + 1)) / ((1 - a) (T(n + 1) + n c))
//! ```
//! `a` is the chance of a guess, `c` what the small model takes for a token and `T` what the model
//! takes for a step, both over a plain step.
//!
//! Departs from the paper: guesses are the small model's likeliest and not drawn, unless the rejection
//! rule is asked for, so that the text stays that of plain decoding with the same seed.
//!
//! Options: `--draft-model`. Six tokens ahead, two guesses at each, and on only while the chance of
//! being right so far is 0.35 or more.
//!
//! | published | | times plain |
//! |---|---|---|
//! | Leviathan et al., abstract, TPU-v4 | T5-XXL, translation and summaries | 2 to 3 |
//! | baseline of the Medusa paper, A100 | Vicuna-7B, MT-Bench | 1.47 |
//! | baseline of the REST paper, A6000 | CodeLlama-7B, HumanEval | 1.75 |
//!
//! Medusa: <https://arxiv.org/abs/2401.10774>; REST: <https://arxiv.org/abs/2311.08252>. Ours: of the
//! models in the catalogue no two share a vocabulary, so SmolLM2 135M drafted for itself, which cannot
//! pay: 1.42 tokens a step at temperature 0.7 and 0.74 of plain decoding's speed, with all other
//! drafters 0.75; 5.33 tokens a step and 0.73 under the rejection rule (LOG.md, 2026-11-27). What
//! reads a text before it can guess costs that even where it is soon asked no more.
//!
//! When not to use it: where a token of the small model costs more than an eighth of one of the
//! model's, or memory has no room for both.

use std::sync::Arc;

use offshoot_methods::LogProbabilities;
use offshoot_methods::draft::{CLASSES, Drawn, Guess, Prior, TokenTree};
use offshoot_models::LogitRows;

use super::chain::Draws;
use super::drafter::{Drafter, View};
use super::prior;
use crate::{Error, Model, Session};

/// The most tokens it writes ahead.
const DEPTH: usize = 6;
/// Guesses at each of them.
const GUESSES: usize = 2;
/// The least chance of being right so far with which it goes on.
const LEAST: f64 = 0.35;

/// Guesses what a smaller model would write.
#[derive(Debug)]
pub struct ModelDrafter {
    model: Arc<Model>,
    session: Session,
    /// The tokens it wrote, each with what it thought of it and of the next best.
    ahead: Vec<[Guess; GUESSES]>,
    /// How far down the tree nodes are what it wrote.
    on_path: Vec<bool>,
}

impl ModelDrafter {
    /// A drafter by `model`, in a session of its own, for texts of `target`.
    ///
    /// # Errors
    /// If the two have different tokens.
    pub fn new(target: &Model, model: Arc<Model>, session: Session) -> Result<Self, Error> {
        let (theirs, own) = (target.tokenizer(), model.tokenizer());
        let n_vocab = theirs.vocab_size().min(own.vocab_size()) as u32;
        match (0..n_vocab).find(|&token| theirs.token_bytes(token) != own.token_bytes(token)) {
            Some(token) => Err(Error::OtherVocabulary { token }),
            None => Ok(Self { model, session, ahead: Vec::new(), on_path: Vec::new() }),
        }
    }

    /// Reads `text` but for its last token.
    fn read(&mut self, text: &[u32]) -> Result<(), Error> {
        // What is cached of an earlier text, or of guesses that were wrong, goes.
        let shared = self.session.cached().iter().zip(&text[..text.len() - 1]);
        let shared = shared.take_while(|(a, b)| a == b).count();
        self.session.truncate(shared);
        self.session.read(&self.model, &text[shared..text.len() - 1])
    }

    /// Writes ahead of `text`.
    fn write(&mut self, text: &[u32]) -> Result<(), Error> {
        self.read(text)?;
        let (mut token, mut chance) = (text[text.len() - 1], 1.0);
        while self.ahead.len() < DEPTH
            && chance >= LEAST
            && self.session.cached().len() < self.session.context()
        {
            let logits = self.session.feed(&self.model, &[token], LogitRows::Last)?;
            let best = LogProbabilities::of(logits)?.top(GUESSES);
            let class = self.ahead.len().min(CLASSES - 1) as u8;
            let guess = |at: usize| best.get(at).or(best.first()).map(|t| (t.token, t.logprob));
            let Some((first, second)) = guess(0).zip(guess(1)) else { break };
            let guess = |(token, logprob): (u32, f64)| Guess {
                token,
                score: libm::exp(logprob) as f32,
                class,
            };
            self.ahead.push([guess(first), guess(second)]);
            token = first.0;
            chance *= libm::exp(first.1);
        }
        Ok(())
    }
}

impl Drafter for ModelDrafter {
    fn name(&self) -> &'static str {
        "draft"
    }

    fn prior(&self) -> Prior {
        prior::shipped("draft")
    }

    fn begin(&mut self, _: &[u32]) {}

    fn extend(&mut self, _: &[u32]) {}

    fn prepare(&mut self, view: View<'_>) -> Result<(), Error> {
        self.ahead.clear();
        self.on_path.clear();
        if view.text.len() < self.session.context() { self.write(view.text) } else { Ok(()) }
    }

    fn guess(&mut self, tree: &TokenTree, node: usize, out: &mut Vec<Guess>) {
        let depth = tree.depths()[node] as usize;
        let on_path = match tree.parents()[node] {
            None => true,
            Some(parent) => {
                self.on_path.get(parent as usize) == Some(&true)
                    && self.ahead.get(depth - 1).is_some_and(|a| a[0].token == tree.tokens()[node])
            }
        };
        self.on_path.push(on_path);
        if let (true, Some(guesses)) = (on_path, self.ahead.get(depth)) {
            out.extend(guesses.iter().enumerate().filter_map(|(i, guess)| {
                (i == 0 || guess.token != guesses[0].token).then_some(*guess)
            }));
        }
    }

    fn reads(&self) -> bool {
        true
    }

    fn draws(&self) -> bool {
        true
    }

    fn draw(
        &mut self,
        view: View<'_>,
        draws: &mut Draws<'_, '_>,
        len: usize,
        out: &mut Vec<Drawn>,
    ) -> Result<(), Error> {
        if view.text.len() >= self.session.context() {
            return Ok(());
        }
        self.read(view.text)?;
        let mut token = view.text[view.text.len() - 1];
        for _ in 0..len.min(self.session.context() - self.session.cached().len()) {
            let logits = self.session.feed(&self.model, &[token], LogitRows::Last)?;
            let Some(drawn) = draws.draw(logits)? else { break };
            token = drawn.token;
            out.push(drawn);
        }
        Ok(())
    }
}
