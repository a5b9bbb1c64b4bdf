//! Predicted against true classes.

use serde::Serialize;

/// How often each class was predicted of each true class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Classes {
    /// `[true class][predicted class]`
    counts: Vec<Vec<u64>>,
}

/// One class.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ClassMetrics {
    /// Rows of it.
    pub rows: u64,
    /// Of the rows that were taken for it, the share that is of it; 0 if there are none.
    pub precision: f64,
    /// Of the rows of it, the share that was taken for it; 0 if there are none.
    pub recall: f64,
    /// The harmonic mean of both; 0 if both are.
    pub f1: f64,
}

impl Classes {
    /// Counts a row of class `truth` that was taken for `predicted`.
    pub fn add(&mut self, truth: usize, predicted: usize) {
        let classes = self.counts.len().max(truth + 1).max(predicted + 1);
        self.counts.resize(classes, Vec::new());
        self.counts.iter_mut().for_each(|row| row.resize(classes, 0));
        self.counts[truth][predicted] += 1;
    }

    /// What became of each class.
    pub fn each(&self) -> Vec<ClassMetrics> {
        let share = |part: u64, all: u64| if all == 0 { 0.0 } else { part as f64 / all as f64 };
        let class = |c: usize| {
            let rows: u64 = self.counts[c].iter().sum();
            let taken: u64 = self.counts.iter().map(|row| row[c]).sum();
            let hits = self.counts[c][c];
            // 2 P R / (P + R), without the division by nothing.
            let f1 = share(2 * hits, rows + taken);
            ClassMetrics { rows, precision: share(hits, taken), recall: share(hits, rows), f1 }
        };
        (0..self.counts.len()).map(class).collect()
    }

    /// The mean of the classes' F1, of those that are true or predicted anywhere, as scikit-learn's
    /// `f1_score(average="macro")` with `zero_division=0`.
    pub fn macro_f1(&self) -> f64 {
        let each = self.each();
        let there = |c: &usize| each[*c].rows > 0 || self.counts.iter().any(|row| row[*c] > 0);
        let there: Vec<f64> = (0..each.len()).filter(there).map(|c| each[c].f1).collect();
        there.iter().sum::<f64>() / there.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Class 0: 3 rows, 2 right, taken 3 times: F1 2/3. Class 1: 2 rows, 1 right, taken twice: 1/2.
    /// Class 2: 1 row, none right, taken once: 0. The mean is 7/18.
    #[test]
    fn a_case_by_hand() {
        let mut classes = Classes::default();
        for (truth, predicted) in [(0, 0), (0, 0), (0, 1), (1, 1), (1, 2), (2, 0)] {
            classes.add(truth, predicted);
        }
        assert!((classes.macro_f1() - 7.0 / 18.0).abs() < 1e-12);
        let first = classes.each()[0];
        assert_eq!((first.rows, first.precision, first.recall), (3, 2.0 / 3.0, 2.0 / 3.0));
    }

    #[test]
    fn always_the_same_class_has_a_low_mean_however_frequent_it_is() {
        let mut classes = Classes::default();
        (0..90).for_each(|_| classes.add(0, 0));
        (0..10).for_each(|_| classes.add(1, 0));
        assert!((classes.macro_f1() - 0.5 * (180.0 / 190.0)).abs() < 1e-12);
        assert_eq!(Classes::default().macro_f1(), 0.0);
    }
}
