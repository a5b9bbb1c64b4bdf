//! Draft heads that learn beside LoRA's matrices: one fine-tune that is followed by fast drafts of it.
//!
//! Medusa-2 of Cai et al. 2024, section 2.2.2, <https://arxiv.org/abs/2401.10774>. With `y` the tokens that
//! count, `h_i` the state that predicts `y_i`, and head k as in [`offshoot_models::medusa::HeadsFile`],
//! ```text
//! L   = L_LM + lambda_0 sum over k = 1..K of lambda_k L_k            lambda_k = 0.8^k
//! L_k = mean over i of -log softmax(U z_k(h_i, y_i))[y_(i + k)]
//! L_LM = mean over i of -log p(y_i), or with self-distillation (section 2.3.2)
//!        mean over i of KL(p of the base || p), the base being the model without LoRA's matrices
//!
//! steps   0 .. S_1          heads alone, LoRA's matrices as they were drawn      lambda_0(t) = 0
//!         S_1 .. S_1 + S_2  both       lambda_0(t) = lambda_0 sin(pi/2 (t - S_1 + 1) / S_2)
//! rates   eta for LoRA's matrices, 4 eta for the heads
//! ```
//! The paper gives two ways not to let young heads spoil the model, heads first (that its text has the
//! model first is a slip, <https://github.com/FasterDecoding/Medusa/issues/74>) and a weight that rises;
//! here both are taken, and each can be turned off. Departs from the paper: `lambda_0` weighs what the
//! model hears, not what the heads learn (`offshoot_models`' `dense/train/heads.rs` says why); gradients
//! are clipped to a norm for the heads and for LoRA apart; U is the base's, of the tokens that are scored.
//! A token of the text that is not scored, or that stands behind the answer's end, is left out of L_k.
//!
//! Defaults: `lambda_k` 0.8^k, `lambda_0` 0.2, or 0.01 with self-distillation, four times the rate, one block
//! a head (the paper's); 4096 tokens that are scored, a share of 0.3 of the steps for the heads alone (ours).
//! Published: 2.3 to 3.6 times as fast as plain decoding (abstract), of models of 7 to 33 billion weights on
//! a graphics card.
//! Ours: SmolLM2-135M, 30 steps on 170 of its own answers: heads 1, 2 and 3 guess 19.3, 9.7 and 5.3 % of
//! held-out tokens, from 1.7, 0.8 and 1.6 %. Trained heads that went on without a warm-up fell from 45.5,
//! 24.1 and 15.5 % to 39.4, 17.9 and 9.2 % (LOG.md, 2026-11-27). Beside heads trained alone: not measured yet.
//!
//! When not to use it: where the adapter is to be as good as it can be, with few examples, or where steps of
//! several rows cost much more than steps of one, as a small model's on a processor may.

use std::f64::consts::FRAC_PI_2;

use offshoot_kernels::BlockType;
use offshoot_methods::draft::medusa::{Calibration, Calibrator};
use offshoot_models::DraftTarget;
use offshoot_models::medusa::{
    HEADS_FILE, Head, HeadLayout, HeadMatrix, HeadsCard, HeadsFile, ResBlock,
};
use offshoot_models::{Adapter, TokenizerId};
use serde::{Deserialize, Serialize};
use std::path::Path;

use super::FirstOrder;
use super::state::write_bytes;
use crate::Error;
use crate::medusa::{HeadsReport, RANKS};
use crate::tune::{Example, Sequence};

/// How variables of heads begin by name; all others are the model's.
const PREFIX: &str = "medusa_head.";
/// The heads' losses in the log.
const LOSSES: [&str; 8] = [
    "draft_loss_1",
    "draft_loss_2",
    "draft_loss_3",
    "draft_loss_4",
    "draft_loss_5",
    "draft_loss_6",
    "draft_loss_7",
    "draft_loss_8",
];

/// How draft heads learn beside LoRA's matrices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DraftHeads {
    /// `K`. The paper has five; three serve trees of the sizes that pay on processors.
    pub heads: usize,
    /// Residual blocks of a head: the paper's 1.
    pub layers: usize,
    /// Whether heads see the token that was chosen from the state they read.
    pub sees_token: bool,
    /// The tokens that are scored, ascending; all if there are none here.
    pub vocabulary: Vec<u32>,
    /// `lambda_k` is this to the power of k. The paper's 0.8.
    pub head_weight: f64,
    /// `lambda_0`: 0.2, and 0.01 with self-distillation, in the paper's experiments.
    pub weight: f64,
    /// The heads' learning rate over LoRA's: the paper's 4.
    pub rate: f64,
    /// `S_1`: steps in which heads learn alone.
    pub alone: u64,
    /// `S_2`: steps behind these until `lambda_0` is reached; 0 to begin with it.
    pub rise: u64,
    /// Whether the model is held to the base's distribution and not to the text.
    pub self_distillation: bool,
}

impl Default for DraftHeads {
    fn default() -> Self {
        Self {
            heads: 3,
            layers: 1,
            sees_token: true,
            vocabulary: Vec::new(),
            head_weight: 0.8,
            weight: 0.2,
            rate: 4.0,
            alone: 0,
            rise: 0,
            self_distillation: false,
        }
    }
}

impl DraftHeads {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`Error::Training`] that names the field.
    pub(super) fn validate(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Training(what));
        for (field, n, most) in [("heads", self.heads, LOSSES.len()), ("layers", self.layers, 4)] {
            if !(1..=most).contains(&n) {
                return wrong(format!("{field} is {n}, expected 1 to {most}"));
            }
        }
        let numbers = [
            ("head_weight", self.head_weight, 1.0),
            ("weight", self.weight, 1e3),
            ("rate", self.rate, 1e6),
        ];
        for (field, x, most) in numbers {
            if !(0.0..=most).contains(&x) {
                return wrong(format!("{field} is {x}, expected 0 to {most}"));
            }
        }
        match self.vocabulary.is_sorted_by(|a, b| a < b) {
            true => Ok(()),
            false => wrong("vocabulary: expected ascending tokens".to_owned()),
        }
    }

    /// `lambda_0` at step `step`, counted from 0.
    pub(super) fn weight_at(&self, step: u64) -> f64 {
        match step.checked_sub(self.alone) {
            None => 0.0,
            Some(made) if made >= self.rise => self.weight,
            Some(made) => self.weight * (FRAC_PI_2 * (made + 1) as f64 / self.rise as f64).sin(),
        }
    }

    /// `lambda_k` of head `head`, from 0 on.
    fn head_weight(&self, head: usize) -> f64 {
        self.head_weight.powi(head as i32 + 1)
    }

    /// Heads that say what the output head says, of states of width `d`.
    pub(super) fn beginning(&self, d: usize) -> HeadsFile {
        let zeros = |rows: usize, cols: usize| {
            HeadMatrix::new(BlockType::F32, (rows, cols), &vec![0.0; rows * cols])
        };
        let block = |l: usize| ResBlock {
            weight: zeros(d, if l == 0 && self.sees_token { 2 * d } else { d }),
            bias: zeros(1, d),
        };
        let head = Head { blocks: (0..self.layers).map(block).collect(), output: None };
        let vocabulary = (!self.vocabulary.is_empty()).then(|| self.vocabulary.clone());
        HeadsFile { hidden_size: d, heads: vec![head; self.heads], vocabulary, card: None }
    }

    /// These options with the form of the heads of `file`.
    pub fn of_form(self, file: &HeadsFile) -> Self {
        Self {
            heads: file.heads.len(),
            layers: file.layers(),
            sees_token: file.sees_token(),
            vocabulary: file.vocabulary.clone().unwrap_or_default(),
            ..self
        }
    }
}

/// Whether a variable of this name is one of heads.
pub(super) fn is_of_heads(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// For each place of `sequence` that predicts a token which counts: the place, that token, and those
/// behind it in the same answer, at most `most`.
fn places(sequence: &Sequence, most: usize) -> impl Iterator<Item = (usize, u32, &[u32])> {
    let Sequence { tokens, trained } = sequence;
    let counting = (1..tokens.len()).filter(move |&at| trained[at]);
    counting.map(move |at| {
        let behind = trained[at + 1..].iter().take(most).take_while(|&&trained| trained).count();
        (at - 1, tokens[at], &tokens[at + 1..at + 1 + behind])
    })
}

/// What heads are to guess in a batch.
pub(super) struct Drafting<'a> {
    heads: &'a DraftHeads,
    /// Whether a token is scored.
    scores: &'a dyn Fn(u32) -> bool,
    /// What a target of each head weighs.
    weights: Vec<f64>,
}

impl<'a> Drafting<'a> {
    /// Of heads that score as `scores` says, in the texts `all` of a batch.
    pub(super) fn new<'s>(
        heads: &'a DraftHeads,
        scores: &'a dyn Fn(u32) -> bool,
        all: impl Iterator<Item = &'s Sequence>,
    ) -> Self {
        let mut counts = vec![0usize; heads.heads];
        for sequence in all {
            for (_, _, behind) in places(sequence, heads.heads) {
                let scored = behind.iter().zip(&mut counts).filter(|(token, _)| scores(**token));
                scored.for_each(|(_, count)| *count += 1);
            }
        }
        let weight = |(head, &n): (usize, &usize)| heads.head_weight(head) / n.max(1) as f64;
        let weights = counts.iter().enumerate().map(weight).collect();
        Self { heads, scores, weights }
    }

    /// The targets in `sequence`, which is text `text`.
    pub(super) fn add(&self, sequence: &Sequence, text: usize, targets: &mut Vec<DraftTarget>) {
        for (place, chosen, behind) in places(sequence, self.heads.heads) {
            for (head, &token) in behind.iter().enumerate() {
                if (self.scores)(token) {
                    let weight = self.weights[head];
                    targets.push(DraftTarget { text, place, chosen, head, token, weight });
                }
            }
        }
    }
}

/// The mean loss of each head, in nats, by name.
pub(super) fn told(heads: &DraftHeads, drafts: &[f64]) -> Vec<(&'static str, f64)> {
    let mean = |(head, sum): (usize, &f64)| sum / heads.head_weight(head);
    LOSSES.into_iter().zip(drafts.iter().enumerate().map(mean)).collect()
}

impl FirstOrder {
    /// How the draft heads fare on `examples`, ranks counted for drafting, if there are heads and
    /// something to guess.
    pub(super) fn count_guesses(
        &self,
        examples: &mut dyn Iterator<Item = Result<Example, Error>>,
    ) -> Result<Option<Calibration>, Error> {
        let Some(heads) = &self.options.heads else { return Ok(None) };
        let mut calibrator: Option<Calibrator> = None;
        for example in examples {
            let (Example::Text(sequence) | Example::Answer { gold: sequence, .. }) = example?
            else {
                continue;
            };
            let all: Vec<_> = places(&sequence, heads.heads).collect();
            let asked: Vec<_> = all.iter().map(|&(place, chosen, _)| (place, chosen)).collect();
            if asked.is_empty() {
                continue;
            }
            let found = self.tuning.guesses(&sequence.tokens, &asked, RANKS)?;
            let width = found.len() / asked.len();
            let calibrator =
                calibrator.get_or_insert_with(|| Calibrator::new(heads.heads, width / heads.heads));
            for ((_, _, behind), found) in all.iter().zip(found.chunks_exact(width)) {
                let lists: Vec<_> = found.iter().map(|f| (f.token, f.probability)).collect();
                calibrator.observe(&lists, behind);
            }
        }
        Ok(calibrator.map(Calibrator::finish))
    }

    /// Writes the heads into `folder`, where the adapter that they belong to lies already.
    pub(super) fn write_heads(&self, folder: &Path) -> Result<(), Error> {
        let Some(mut file) = self.tuning.heads()? else { return Ok(()) };
        let adapter = Adapter::open(folder, self.checkpoint.config())?;
        let tokenizer = TokenizerId::of(self.checkpoint.tokenizer()?);
        let mut card = HeadsCard::new(self.base_id()?, tokenizer);
        card.adapter = Some(adapter.digest());
        let json = |value: Option<serde_json::Value>| value.filter(|value| !value.is_null());
        card.calibration = json(serde_json::to_value(&self.calibration).ok());
        let options = DraftHeads { vocabulary: Vec::new(), ..self.draft_heads() };
        card.recipe = json(serde_json::to_value(options).ok());
        file.card = Some(card);
        write_bytes(folder, HEADS_FILE, &file.bytes(HeadLayout::Shared))
    }

    fn draft_heads(&self) -> DraftHeads {
        self.options.heads.clone().unwrap_or_default()
    }
}

/// What is told of a calibration: the share of right first guesses, and of right ones among three.
pub(super) fn shares(calibration: &Calibration) -> Vec<(String, f64)> {
    let accuracy = HeadsReport::of(calibration).accuracy;
    let of_head = |(head, tops): (usize, &Vec<f64>)| {
        let top = |n: usize| tops.get(n.min(tops.len()) - 1).copied().unwrap_or(0.0);
        [(1, top(1)), (3, top(3))].map(|(n, share)| (format!("draft_{}_top_{n}", head + 1), share))
    };
    accuracy.iter().enumerate().flat_map(of_head).collect()
}

#[cfg(test)]
mod tests;
