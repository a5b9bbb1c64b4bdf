//! How much of what two points differ by is noise.
//!
//! Where inputs of products are rounded to eight bits, losses jump by what the rounding makes of a small
//! change, and a difference over `2 eps` magnifies the jumps. With `d` the difference of the losses at
//! both sides of a direction,
//! ```text
//! noise = median over directions of |d_rounded - d_float| / median of |d_float|
//! ```

use offshoot_methods::tune::{Probe, RateOptions, Term};

use crate::Error;

/// Directions that are looked at.
const DIRECTIONS: u32 = 8;
/// The greatest share of noise with which a run goes on.
const MOST: f64 = 0.05;

/// Both sides of some directions like that of `like`.
pub(super) fn probes(like: &Term) -> Vec<Probe> {
    let looked_at = RateOptions { probes: DIRECTIONS, ..RateOptions::default() };
    looked_at.plan(&like.direction, f64::from(like.scale.abs())).split_off(1)
}

/// The share of noise in the differences of `rounded` losses, at the points of [`probes`], those without
/// rounding being `float`; infinite if these say that there is nothing to measure.
pub(super) fn share(rounded: &[f64], float: &[f64]) -> f64 {
    let differences = |losses: &[f64]| -> Vec<f64> {
        losses.chunks_exact(2).map(|pair| pair[0] - pair[1]).collect()
    };
    let (rounded, float) = (differences(rounded), differences(float));
    let off = rounded.iter().zip(&float).map(|(a, b)| (a - b).abs()).collect();
    let size = median(float.iter().map(|d| d.abs()).collect());
    if size > 0.0 { median(off) / size } else { f64::INFINITY }
}

/// Refuses more noise than a run can go on with.
pub(super) fn check(share: f64) -> Result<(), Error> {
    if share <= MOST {
        return Ok(());
    }
    Err(Error::Training(format!(
        "with activations of 8 bits {:.0} % of what two points differ by is noise, more than {:.0} %: \
         take activations in single precision, or a larger eps",
        100.0 * share,
        100.0 * MOST
    )))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_what_rounding_changes_of_differences() {
        let float = [1.0, 0.0, 2.0, 0.0, 3.0, 0.0];
        assert_eq!(share(&float, &float), 0.0);
        // Both sides of a direction may be off by the same.
        assert_eq!(share(&[1.5, 0.5, 2.5, 0.5, 3.5, 0.5], &float), 0.0);
        assert_eq!(share(&[1.1, 0.0, 2.2, 0.0, 3.2, 0.0], &float), (2.2 - 2.0) / 2.0);
        assert_eq!(share(&[1.0; 6], &[1.0; 6]), f64::INFINITY);
        assert!(check(0.05).is_ok() && check(0.051).is_err() && check(f64::NAN).is_err());
    }
}
