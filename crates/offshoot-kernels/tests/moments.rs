//! What directions are as random numbers, over very many draws.

use std::collections::HashSet;

use offshoot_kernels::{Distribution, Isa, Noise, Philox, Purpose};

/// Draws of each distribution: an emulated processor has time for fewer.
const MANY: u64 = if cfg!(target_arch = "x86_64") { 100_000_000 } else { 1 << 22 };
/// Draws that are compared with as many others.
const SOME: u64 = MANY / 8;
/// Draws in memory at once.
const PART: u64 = 1 << 14;

/// The fourth moment, and how far the fourth and the eighth are from squares of the second and fourth:
/// the variances of one draw's square and fourth power, or bounds of them.
const LAWS: [(Distribution, f64, [f64; 2]); 3] = [
    (Distribution::Rademacher, 1.0, [0.0, 0.0]),
    (Distribution::GaussQ8, 2.918, [1.918, 96.0]),
    (Distribution::GaussBoxMuller, 3.0, [2.0, 96.0]),
];

const PURPOSES: [Purpose; 8] = [
    Purpose::Direction,
    Purpose::Rounding,
    Purpose::Mask,
    Purpose::LeftFactor,
    Purpose::RightFactor,
    Purpose::DataOrder,
    Purpose::Sampling,
    Purpose::Initial,
];

fn noise(distribution: Distribution) -> Noise {
    Noise { seed: 0x00c0_ffee, tensor: 0x0bad_cafe, step: 12, distribution, ..Noise::default() }
}

/// Hands the first `n` draws of `all`, side by side, to `see`, a part at a time.
fn parts(all: &[Noise], n: u64, see: &mut dyn FnMut(&[Vec<f32>])) {
    let mut drawn = vec![Vec::new(); all.len()];
    for first in (0..n).step_by(PART as usize) {
        for (noise, out) in all.iter().zip(&mut drawn) {
            out.resize(PART.min(n - first) as usize, 0.0);
            noise.fill(Isa::best(), first, out);
        }
        see(&drawn);
    }
}

/// Bounds are five standard errors: of a sound generator one in two million numbers is beyond.
#[test]
fn draws_have_the_moments_of_their_distribution() {
    for (distribution, kurtosis, spread) in LAWS {
        let mut sums = [0.0_f64; 4];
        parts(&[noise(distribution)], MANY, &mut |drawn| {
            for &z in &drawn[0] {
                let (z, square) = (f64::from(z), f64::from(z) * f64::from(z));
                sums[0] += z;
                sums[1] += square;
                sums[2] += square * z;
                sums[3] += square * square;
            }
        });
        let error = 5.0 / (MANY as f64).sqrt();
        let mean = sums.map(|sum| sum / MANY as f64);
        assert!(mean[0].abs() < error, "{distribution:?}: {mean:?}");
        // The table's own variance is 1 to single precision.
        let square = error * spread[0].sqrt() + 1e-7;
        assert!((mean[1] - 1.0).abs() < square, "{distribution:?}: {mean:?}");
        // The sixth moment of a Gaussian is 15.
        assert!(mean[2].abs() < error * 15.0_f64.sqrt(), "{distribution:?}: {mean:?}");
        let fourth = error * spread[1].sqrt() + 5e-4;
        assert!((mean[3] - kurtosis).abs() < fourth, "{distribution:?}: {mean:?}");
    }
}

/// Other seeds, tensors, steps, directions and purposes, near and far, have nothing to do with a
/// direction: the correlation of `n` draws with as many others is within `5 / sqrt(n)`.
#[test]
fn draws_of_another_name_do_not_correlate() {
    for distribution in Distribution::ALL {
        let base = noise(distribution);
        let mut all = vec![
            base,
            Noise { seed: base.seed + 1, ..base },
            Noise { seed: base.seed ^ 1 << 63, ..base },
            Noise { tensor: base.tensor + 1, ..base },
            Noise { tensor: !base.tensor, ..base },
            Noise { step: base.step + 1, ..base },
            Noise { step: base.step | 1 << 31, ..base },
            Noise { index: 1, ..base },
            Noise { index: (1 << 24) - 1, ..base },
        ];
        all.extend(PURPOSES[1..].iter().map(|&purpose| Noise { purpose, ..base }));
        let mut sums = vec![0.0_f64; all.len()];
        parts(&all, SOME, &mut |drawn| {
            for (sum, other) in sums.iter_mut().zip(drawn) {
                // Of a part, whose sum is far below what single precision holds of it.
                let pairs = drawn[0].iter().zip(other);
                *sum += pairs.map(|(a, b)| f64::from(a * b)).sum::<f64>();
            }
        });
        let bound = 5.0 / (SOME as f64).sqrt();
        assert!((sums[0] / SOME as f64 - 1.0).abs() < 2.0 * bound, "with itself: {}", sums[0]);
        for (sum, other) in sums.iter().zip(&all).skip(1) {
            let correlation = sum / SOME as f64;
            assert!(correlation.abs() < bound, "{correlation} beyond {bound}: {other:?}");
        }
    }
}

/// No block of random bits serves two purposes, whatever else is alike.
#[test]
fn purposes_share_no_block() {
    const BLOCKS: u32 = 4096;
    let mut seen = HashSet::new();
    for purpose in PURPOSES {
        for block in 0..BLOCKS {
            let counter = [block, 0x0bad_cafe, 12, (purpose as u32) << 24];
            seen.insert(Philox::block(Philox::key(0x00c0_ffee), counter));
        }
    }
    assert_eq!(seen.len(), PURPOSES.len() * BLOCKS as usize);
}
