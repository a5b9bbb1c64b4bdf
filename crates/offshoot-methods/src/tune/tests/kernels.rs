//! The kernels' updates against the definition.

use offshoot_kernels::{Change, Cpu, Entries, Isa, Mask, Term, tensor_id, update_rows};

use super::quadratic::{Quadratic, SEED, setting, step, weights};
use crate::tune::{Draw, Factors, METHODS, Update, Weights};

/// What a term of the kernels borrows.
struct Owned {
    scale: f32,
    noise: offshoot_kernels::Noise,
    factors: Option<Factors>,
    bits: Option<Vec<u64>>,
}

impl Owned {
    fn term(&self) -> Term<'_> {
        let entries = match &self.factors {
            None => Entries::Noise(self.noise),
            Some(Factors { rank, left, right }) => {
                Entries::LowRank { left, right, rank: *rank, factor: 1.0 }
            }
        };
        Term { scale: self.scale, entries, mask: self.bits.as_deref().map(Mask) }
    }
}

/// The linear `update` of tensor `index`, by the kernels.
fn by_kernels(update: &Update, before: &Weights, index: usize) -> Vec<f32> {
    let Update::Linear { decay, terms } = update else { panic!("{update:?}") };
    let spec = &before.layout.tensors[index];
    let (seed, distribution, tensor) = (SEED, before.distribution, tensor_id(&spec.name));
    let draw = Draw { seed, distribution, tensor, rows: spec.rows, cols: spec.cols };
    let covering = terms.iter().filter(|term| term.direction.covers(index));
    let owned = covering.map(|term| Owned {
        scale: term.scale,
        noise: draw.entries(&term.direction),
        factors: draw.factors(&term.direction),
        bits: before.mask(&term.direction, index),
    });
    let owned: Vec<Owned> = owned.collect();
    let terms: Vec<Term> = owned.iter().map(Owned::term).collect();
    let mut after = before.tensors[index].clone();
    let decay = if spec.vector { 0.0 } else { *decay };
    let change = Change::Linear { decay, terms: &terms };
    update_rows(&Cpu::new(Isa::best(), 2), (spec.rows, spec.cols), &mut after, &change);
    after
}

/// With every form, mask and choice of tensors that methods make: what is drawn by the million and
/// added in the kernels has the bits of the definition.
#[test]
fn updates_in_the_kernels_have_the_bits_of_the_definition() {
    let options = serde_json::json!({"probe": {"directions": 3}});
    let loss = Quadratic::new(10.0);
    let mut compared = 0;
    for card in METHODS.iter().filter(|card| !card.name.starts_with("adam")) {
        let mut method = card.start(&options, &setting(0.1)).unwrap();
        let mut w = weights(card.distribution);
        // Far enough for factors to be carried to a second epoch.
        for t in [0, 1, 49, 50, 51] {
            let before = w.clone();
            let update = step(method.as_mut(), &mut w, &loss, (t, 0.01));
            for index in 0..w.tensors.len() {
                let bits = |w: &[f32]| w.iter().map(|w| w.to_bits()).collect::<Vec<u32>>();
                let got = by_kernels(&update, &before, index);
                assert_eq!(bits(&got), bits(&w.tensors[index]), "{} {t} {index}", card.name);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 5 * 6 * (METHODS.len() - 2));
}
