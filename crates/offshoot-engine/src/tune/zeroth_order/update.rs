//! What a step does to the weights in the end, on rows of floats: the order of operations that
//! [`Update`] documents, each rounded to single precision on its own.

use offshoot_methods::tune::Update;

use super::entries::Entries;
use crate::Error;

/// `sum += scale * z`, a multiplication and an addition for each.
pub(super) fn add(sum: &mut [f32], scale: f32, z: &[f32]) {
    for (sum, z) in sum.iter_mut().zip(z) {
        *sum += scale * z;
    }
}

/// Checks that `update` is of the layout of `entries`.
pub(super) fn check(entries: &Entries, update: &Update) -> Result<(), Error> {
    match update {
        Update::Linear { terms, .. } => entries.check(terms.iter()),
        Update::Moments { history, .. } => entries.check(history.iter()),
    }
}

/// Carries `update` out on the values of `tensor`, which lose weight by decay if `decays`.
pub(super) fn apply(
    entries: &Entries,
    update: &Update,
    tensor: usize,
    decays: bool,
    values: &mut [f32],
) {
    let mut z = Vec::new();
    match update {
        Update::Linear { decay, terms } => {
            let mut sum = vec![0.0; values.len()];
            for term in terms {
                if entries.fill(tensor, &term.direction, &mut z) {
                    add(&mut sum, term.scale, &z);
                }
            }
            shrink(values, *decay, decays);
            values.iter_mut().zip(&sum).for_each(|(value, sum)| *value -= sum);
        }
        Update::Moments {
            decay,
            rate,
            first,
            second,
            first_correction,
            second_correction,
            epsilon,
            history,
        } => {
            let mut moments = vec![(0.0f32, 0.0f32); values.len()];
            for term in history {
                // Where a direction is zero moments still fade.
                if !entries.fill(tensor, &term.direction, &mut z) {
                    z.clear();
                    z.resize(values.len(), 0.0);
                }
                for ((m, v), z) in moments.iter_mut().zip(&z) {
                    let g = term.scale * z;
                    *m = first * *m + (1.0 - first) * g;
                    *v = second * *v + (1.0 - second) * (g * g);
                }
            }
            shrink(values, *decay, decays);
            for (value, (m, v)) in values.iter_mut().zip(&moments) {
                let step = rate * (m * first_correction);
                *value -= step / ((v * second_correction).sqrt() + epsilon);
            }
        }
    }
}

fn shrink(values: &mut [f32], decay: f32, decays: bool) {
    if decays && decay != 0.0 {
        values.iter_mut().for_each(|value| *value *= 1.0 - decay);
    }
}
