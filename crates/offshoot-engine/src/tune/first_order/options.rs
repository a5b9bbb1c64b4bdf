//! How a model is tuned by gradients.

use std::collections::BTreeMap;

use offshoot_methods::optim::OptimizerOptions;
use offshoot_methods::tune::{FwdgradOptions, HybridOptions};
use serde::{Deserialize, Serialize};

use super::heads::DraftHeads;
use crate::Error;

/// Highest rank: no matrix needs more.
const RANK_MAX: usize = 1 << 14;

/// How a model is tuned by gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FirstOrderOptions {
    /// What is tuned.
    pub space: FirstOrderSpace,
    /// What makes a step of a gradient.
    pub optimizer: OptimizerOptions,
    /// The greatest norm of a gradient, over all tensors; longer ones are shortened. 1, as transformers
    /// trains; nothing leaves all as they are.
    pub clip_norm: Option<f64>,
    /// Examples whose gradient is made at a time; 0 for all of a batch. Fewer take less memory.
    pub micro_batch: usize,
    /// Whether blocks run twice instead of keeping what the way back needs: a third more time for a
    /// fraction of the memory.
    pub checkpointing: bool,
    /// The loss of a choice between candidates.
    pub choice: ChoiceLoss,
    /// Whether matrices stay in their file as they are, quantised or not, and are brought to single
    /// precision in pieces whenever they are multiplied with. For LoRA.
    pub weights_in_file: bool,
    /// Draft heads that learn beside LoRA's matrices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<DraftHeads>,
    /// Whether only what is known of a gradient along random directions is followed, and of how many.
    pub forward: Option<FwdgradOptions>,
    /// Whether only the last blocks have gradients, and the others go along random directions; for losses
    /// of language, with checkpointing.
    pub hybrid: Option<HybridOptions>,
    /// Names LoRA's first matrices, what dropout drops, and those directions.
    pub seed: u64,
}

impl Default for FirstOrderOptions {
    fn default() -> Self {
        Self {
            space: FirstOrderSpace::default(),
            optimizer: OptimizerOptions::default(),
            clip_norm: Some(1.0),
            micro_batch: 0,
            checkpointing: true,
            choice: ChoiceLoss::default(),
            weights_in_file: false,
            heads: None,
            forward: None,
            hybrid: None,
            seed: 0,
        }
    }
}

/// What is tuned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum FirstOrderSpace {
    /// Matrices of low rank that are added to the model's.
    Lora(LoraOptions),
    /// The model's own weights.
    Full(TensorNames),
}

impl Default for FirstOrderSpace {
    fn default() -> Self {
        Self::Lora(LoraOptions::default())
    }
}

/// Which weights are tuned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum TensorNames {
    /// All.
    #[default]
    All,
    /// Those with these canonical names, or names that end so behind a dot.
    Named(Vec<String>),
}

/// Which matrices LoRA's are added to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum LoraMatrices {
    /// All of the blocks, as PEFT's `all-linear`: not the output head, and neither routers nor experts,
    /// which transformers keeps in tensors that PEFT does not add to. It is what QLoRA found to be needed
    /// to match full fine-tuning (Dettmers et al. 2023, section 4, <https://arxiv.org/abs/2305.14314>);
    /// PEFT's own default of `q_proj` and `v_proj` can be named.
    #[default]
    AllLinear,
    /// Those with these names, or names that end so behind a dot: `q_proj`, `layers.3.mlp.up_proj`.
    Named(Vec<String>),
}

/// How LoRA's matrices are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraOptions {
    /// Which matrices they are added to.
    pub matrices: LoraMatrices,
    /// `r`: PEFT's default of 8.
    pub rank: usize,
    /// `alpha`: 16, twice the rank, as is usual with PEFT (whose default is 8).
    pub alpha: f64,
    /// The chance that an input of `A` is dropped: PEFT's default of 0.
    pub dropout: f64,
    /// Whether the scale is `alpha / sqrt(r)` (Kalajdzievski 2023, <https://arxiv.org/abs/2312.03732>)
    /// instead of `alpha / r`.
    pub rslora: bool,
    /// Ranks of matrices with these names, or names that end so behind a dot. The longest name counts.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of such matrices.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Whether `A` stays as it was drawn (LoRA-FA, Zhang et al. 2023,
    /// <https://arxiv.org/abs/2308.03303>).
    pub freeze_a: bool,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            matrices: LoraMatrices::default(),
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            rslora: false,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            freeze_a: false,
        }
    }
}

/// The loss of a choice between candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum ChoiceLoss {
    /// The mean surprise at the tokens of the right one, as of any text.
    #[default]
    Language,
    /// The surprise at the right one among the candidates, each scored by the mean logarithm of its
    /// tokens' probabilities (Malladi et al. 2023, appendix E.3, <https://arxiv.org/abs/2305.17333>).
    Candidates,
}

impl FirstOrderOptions {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`Error::Training`] that names the field.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Training(what));
        if let Some(most) = self.clip_norm.filter(|most| !(*most > 0.0 && most.is_finite())) {
            return wrong(format!("clip_norm is {most}, expected a number above 0"));
        }
        if let Some(heads) = &self.heads {
            heads.validate()?;
            if self.choice == ChoiceLoss::Candidates {
                return wrong("heads: a loss over candidates is had without them".to_owned());
            }
            if self.forward.is_some() || self.hybrid.is_some() {
                return wrong("heads: learn by whole gradients alone".to_owned());
            }
        }
        if let Some(forward) = &self.forward {
            forward.validate()?;
        }
        if let Some(hybrid) = &self.hybrid {
            hybrid.validate()?;
            let language = self.choice == ChoiceLoss::Language;
            if !language || !self.checkpointing || self.forward.is_some() {
                let what =
                    "hybrid: takes a loss of language, checkpointing, and no other directions";
                return wrong(what.to_owned());
            }
        }
        match &self.space {
            // Its slopes are those at scores that nothing was dropped of.
            FirstOrderSpace::Lora(lora)
                if lora.dropout > 0.0 && self.choice == ChoiceLoss::Candidates =>
            {
                wrong("dropout: a loss over candidates is had without it, so take 0".to_owned())
            }
            FirstOrderSpace::Lora(lora) => lora.validate(),
            FirstOrderSpace::Full(_) if self.heads.is_some() => {
                wrong("heads: they learn beside LoRA's matrices alone".to_owned())
            }
            FirstOrderSpace::Full(_) if self.weights_in_file => {
                wrong("weights_in_file: weights that are tuned are held in memory".to_owned())
            }
            FirstOrderSpace::Full(_) => Ok(()),
        }
    }
}

impl LoraOptions {
    fn validate(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Training(what));
        let ranks = [("rank", &self.rank)].into_iter();
        for (field, rank) in ranks.chain(self.rank_pattern.iter().map(|(k, r)| (k.as_str(), r))) {
            if !(1..=RANK_MAX).contains(rank) {
                return wrong(format!("{field:?}: rank {rank}, expected 1 to {RANK_MAX}"));
            }
        }
        let alphas = [("alpha", &self.alpha)].into_iter();
        for (field, alpha) in alphas.chain(self.alpha_pattern.iter().map(|(k, a)| (k.as_str(), a)))
        {
            if !(alpha.is_finite() && *alpha > 0.0 && *alpha <= 1e6) {
                return wrong(format!("{field:?}: alpha {alpha}, expected above 0 and up to 1e6"));
            }
        }
        match (0.0..1.0).contains(&self.dropout) {
            true => Ok(()),
            false => wrong(format!("dropout is {}, expected from 0 on and below 1", self.dropout)),
        }
    }
}
