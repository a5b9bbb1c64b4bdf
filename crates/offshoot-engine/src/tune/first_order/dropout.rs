//! What is dropped of the inputs of LoRA's products, by the seed.

use offshoot_methods::Philox;
use offshoot_models::{DropoutMasks, LinearId};

use super::batch::Text;
use super::options::{FirstOrderOptions, FirstOrderSpace};

/// What these numbers are drawn for, apart from all other draws of a seed.
const PURPOSE: u32 = 8 << 24;
/// Numbers of a draw.
const LANES: usize = 4;

/// Masks that are functions of the seed, the step, the text's place in the batch, the row in the text, the
/// matrix and the column: how a batch is cut into micro-batches changes none.
pub(super) struct KeyedDropout {
    key: [u32; 2],
    chance: f64,
    /// For each row the place of its text in the batch and its own in the text.
    rows: Vec<(u32, u32)>,
}

impl KeyedDropout {
    /// For the texts of examples `first..` of the batch of step `step`; none if nothing is dropped.
    pub(super) fn new(
        options: &FirstOrderOptions,
        step: u64,
        first: usize,
        texts: &[Text<'_>],
    ) -> Option<Self> {
        let FirstOrderSpace::Lora(lora) = &options.space else { return None };
        if lora.dropout == 0.0 {
            return None;
        }
        let step = [step as u32, (step >> 32) as u32];
        let [low, high, ..] =
            Philox::block(Philox::key(options.seed), [step[0], step[1], 0, PURPOSE]);
        // A text of several of an example has a number of its own.
        let rows = texts.iter().flat_map(|text| {
            let place = ((first + text.example) as u32) << 8 | (text.number as u32 & 0xff);
            (0..text.tokens.len() as u32).map(move |row| (place, row))
        });
        Some(Self { key: [low, high], chance: lora.dropout, rows: rows.collect() })
    }
}

impl DropoutMasks for KeyedDropout {
    fn mask(&self, linear: LinearId, rows: &[u32], cols: usize) -> Vec<f32> {
        let keep = (1.0 / (1.0 - self.chance)) as f32;
        // A word below this is dropped.
        let bound = (self.chance * f64::from(u32::MAX)) as u32;
        let purpose = PURPOSE | (linear.index() as u32 & 0xff_ffff);
        let mut mask = Vec::with_capacity(rows.len() * cols);
        for &row in rows {
            let (text, row) = self.rows[row as usize];
            for block in 0..cols.div_ceil(LANES) {
                let words = Philox::block(self.key, [block as u32, row, text, purpose]);
                let left = (cols - block * LANES).min(LANES);
                let kept = words[..left].iter().map(|&word| if word < bound { 0.0 } else { keep });
                mask.extend(kept);
            }
        }
        mask
    }
}
