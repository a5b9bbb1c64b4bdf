//! The k largest of many logits, without sorting them.
//!
//! One pass keeps every logit above a floor; whenever twice as many as wanted are held, the worse
//! half goes and the floor rises to the worst of the rest. Cost: n comparisons and, in the worst
//! order, O(n) moves; memory 2k. A tie goes to the lower token, so the answer is unique.

use std::cmp::Ordering;

/// A token that may still be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) token: u32,
    pub(crate) logit: f32,
    /// Its probability up to a common factor.
    pub(crate) weight: f64,
}

impl Candidate {
    /// A candidate whose weight is not known yet.
    pub(crate) fn new(token: usize, logit: f32) -> Self {
        Self { token: token as u32, logit, weight: 0.0 }
    }

    /// Orders by falling logit, then by rising token: the one ranking of this crate.
    pub(crate) fn rank(&self, other: &Self) -> Ordering {
        // Logits are not NaN here, and the two zeros are equal as they are for the greedy choice.
        let by_logit = other.logit.partial_cmp(&self.logit).unwrap_or(Ordering::Equal);
        by_logit.then(self.token.cmp(&other.token))
    }
}

/// Replaces `kept` by the `k` best ranked of `logits`, in no particular order.
///
/// Logits of negative infinity are never kept, so fewer than `k` may be. No logit is NaN.
pub(crate) fn select_top_k(logits: &[f32], k: usize, kept: &mut Vec<Candidate>) {
    kept.clear();
    if k == 0 {
        return;
    }
    let room = k.saturating_mul(2);
    let mut floor = f32::NEG_INFINITY;
    for (token, &logit) in logits.iter().enumerate() {
        // A later token that equals the floor ranks below the k held, so it is out as well.
        if logit > floor {
            kept.push(Candidate::new(token, logit));
            if kept.len() == room {
                keep_best(kept, k);
                floor = kept[k - 1].logit;
            }
        }
    }
    keep_best(kept, k);
}

/// Cuts `kept` down to its `k` best; if it does, the worst of those stands last.
fn keep_best(kept: &mut Vec<Candidate>, k: usize) {
    if kept.len() > k {
        kept.select_nth_unstable_by(k - 1, Candidate::rank);
        kept.truncate(k);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few distinct values, so that ties are common.
    fn logit() -> impl Strategy<Value = f32> {
        prop_oneof![4 => (-5i8..5).prop_map(f32::from), 1 => Just(f32::NEG_INFINITY), 1 => Just(-0.0)]
    }

    proptest! {
        #[test]
        fn selection_equals_sorting(
            logits in prop::collection::vec(logit(), 0..200),
            k in 0usize..60,
        ) {
            let mut sorted: Vec<_> = logits
                .iter()
                .enumerate()
                .filter(|(_, logit)| logit.is_finite())
                .map(|(token, &logit)| Candidate::new(token, logit))
                .collect();
            sorted.sort_by(Candidate::rank);
            sorted.truncate(k);
            let mut kept = vec![Candidate::new(9, 9.0)];
            select_top_k(&logits, k, &mut kept);
            kept.sort_by(Candidate::rank);
            prop_assert_eq!(kept, sorted);
        }
    }
}
