//! Clipping of gradients by their norm over all tensors.
//!
//! Pascanu, Mikolov & Bengio 2013, section 3.2, <https://arxiv.org/abs/1211.5063>.
//! ```text
//! g = g min(1, C / (||g|| + 1e-6))
//! ```
//! with the small number that PyTorch adds.

/// The sum of squares, in double precision and ascending order.
pub fn square_norm(gradient: &[f32]) -> f64 {
    gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum()
}

/// What gradients of norm `norm` are multiplied with to have norm `most` at most.
pub fn clip_factor(norm: f64, most: f64) -> f32 {
    (most / (norm + 1e-6)).min(1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_is_shortened_to_the_bound_and_never_lengthened() {
        let gradient = [3.0f32, -4.0];
        let norm = square_norm(&gradient).sqrt();
        assert_eq!(norm, 5.0);
        assert!((f64::from(clip_factor(norm, 1.0)) * norm - 1.0).abs() < 1e-6);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
    }
}
