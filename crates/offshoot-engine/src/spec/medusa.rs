//! Medusa heads as a drafter.

use offshoot_kernels::Cpu;
use offshoot_methods::draft::medusa::Calibration;
use offshoot_methods::draft::{Guess, Prior, TokenTree};
use offshoot_models::medusa::{HeadToken, MedusaHeads};

use super::drafter::{Drafter, View};
use super::prior;
use crate::Error;

/// Guesses of each head behind a node.
const GUESSES: usize = 6;
/// Chances below this are not worth a row.
const LEAST: f32 = 0.02;

/// Guesses what the model's own state says of the tokens after the next.
#[derive(Debug)]
pub struct MedusaDrafter {
    heads: MedusaHeads,
    calibration: Option<Calibration>,
    cpu: Cpu,
    /// What the heads found in this step, nothing where there was no state.
    found: Vec<HeadToken>,
}

impl MedusaDrafter {
    /// A drafter by `heads`, run on `cpu`.
    pub fn new(heads: MedusaHeads, calibration: Option<Calibration>, cpu: Cpu) -> Self {
        Self { heads, calibration, cpu, found: Vec::new() }
    }
}

impl Drafter for MedusaDrafter {
    fn name(&self) -> &'static str {
        "medusa"
    }

    fn prior(&self) -> Prior {
        prior::shipped("medusa")
    }

    fn wants_hidden(&self) -> bool {
        true
    }

    fn begin(&mut self, _: &[u32]) {}

    fn extend(&mut self, _: &[u32]) {}

    fn prepare(&mut self, view: View<'_>) -> Result<(), Error> {
        self.found.clear();
        if let (Some(hidden), Some(&token)) = (view.hidden, view.text.last()) {
            self.found.extend_from_slice(self.heads.evaluate(&self.cpu, hidden, token)?);
        }
        Ok(())
    }

    /// Head `k` sees the tokens before `k` no more than the others do: its guesses stand behind
    /// every node of its depth.
    fn guess(&mut self, tree: &TokenTree, node: usize, out: &mut Vec<Guess>) {
        let head = tree.depths()[node] as usize;
        let found = self.found.chunks_exact(self.heads.ranks()).nth(head).unwrap_or_default();
        for HeadToken { token, probability } in found.iter().take(GUESSES) {
            let score = match &self.calibration {
                Some(calibration) => calibration.corrected(head, *probability),
                None => *probability,
            };
            if score >= LEAST {
                out.push(Guess { token: *token, score, class: head as u8 });
            }
        }
    }
}
