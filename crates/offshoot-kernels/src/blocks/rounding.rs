//! How a block's scale is found when weights are rounded into it.

/// The first weight of the largest magnitude, with its sign; 0 for none.
pub(super) fn furthest(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0, |far: f32, &w| if w.abs() > far.abs() { w } else { far })
}

/// The least and the greatest weight.
pub(super) fn range(weights: &[f32]) -> (f32, f32) {
    weights.iter().fold((f32::MAX, f32::MIN), |(min, max), &w| {
        (if w < min { w } else { min }, if w > max { w } else { max })
    })
}

/// `1 / d`, or 0 where all weights are the same and there is no step to divide by.
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}
