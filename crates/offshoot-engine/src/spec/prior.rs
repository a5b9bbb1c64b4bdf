//! What drafters' scores are worth before anything was learned of a text.
//!
//! The table is data: hits and guesses by drafter, class and score, counted on the prompts of
//! `bench/workloads` that the benchmark does not take by `scripts/drafting_prior.py`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use offshoot_methods::draft::{BINS, CLASSES, Prior};

use super::calibration_file::clipped;

/// Guesses that a cell stands for at most, so that what a text shows soon counts more than the
/// table: a text that copies is unlike the mean of all texts from its first passage on.
const MOST_SEEN: f32 = 8.0;
const TABLE: &str = include_str!("../../data/drafting_prior.json");

/// The table of the drafter called `name`; of an unknown one the scores themselves count.
pub(crate) fn shipped(name: &str) -> Prior {
    static TABLES: OnceLock<BTreeMap<String, Prior>> = OnceLock::new();
    let tables = TABLES.get_or_init(|| serde_json::from_str(TABLE).unwrap_or_default());
    let table = tables.get(name).copied().unwrap_or([[(0.0, 0.0); BINS]; CLASSES]);
    table.map(|class| class.map(|(hits, seen)| clipped((hits, seen), MOST_SEEN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound() {
        let tables: BTreeMap<String, Prior> = serde_json::from_str(TABLE).unwrap();
        assert!(tables.contains_key("suffix"));
        for (hits, seen) in tables.values().flatten().flatten() {
            assert!((0.0..=*seen).contains(hits) && *seen <= 24.0, "{hits} of {seen}");
        }
        assert_ne!(shipped("suffix"), shipped("nobody"));
        assert!(shipped("suffix").iter().flatten().all(|(_, seen)| *seen <= MOST_SEEN));
    }
}
