//! What a step does to the weights in the end, on rows of floats: the order of operations of
//! [`apply_update`](offshoot_methods::tune::apply_update), a tensor at a time.

use offshoot_methods::tune::Update;

use super::entries::Entries;

/// Carries `update` out on the values of `tensor`, which were `first` before the first step.
pub(super) fn apply(
    entries: &Entries,
    update: &Update,
    tensor: usize,
    is_vector: bool,
    (first, values): (&[f32], &mut [f32]),
) {
    let mut step = Vec::new();
    let decay = match update {
        Update::Linear { decay, terms } => {
            entries.sum(tensor, terms, first, &mut step);
            *decay
        }
        Update::Moments { decay, .. } => {
            moments(entries, update, tensor, first, &mut step);
            *decay
        }
    };
    let keep = if is_vector { 1.0 } else { 1.0 - decay };
    values.iter_mut().zip(&step).for_each(|(value, step)| *value = *value * keep - step);
}

/// What [`Update::Moments`] takes away.
fn moments(
    entries: &Entries,
    update: &Update,
    tensor: usize,
    initial: &[f32],
    step: &mut Vec<f32>,
) {
    let &Update::Moments {
        rate,
        first,
        second,
        first_correction,
        second_correction,
        epsilon,
        group,
        ref history,
        ..
    } = update
    else {
        return;
    };
    let mut moments = vec![(0.0f32, 0.0f32); initial.len()];
    for terms in history.chunks(group.max(1) as usize) {
        entries.sum(tensor, terms, initial, step);
        for ((m, v), g) in moments.iter_mut().zip(&*step) {
            *m = first * *m + (1.0 - first) * g;
            *v = second * *v + (1.0 - second) * (g * g);
        }
    }
    step.clear();
    step.extend(
        moments.iter().map(|(m, v)| {
            rate * (m * first_correction) / ((v * second_correction).sqrt() + epsilon)
        }),
    );
}
