//! What a step of so many rows takes, learned from the steps that were made.
//!
//! ```text
//! T(k) = scale * ratio(k)        ratio(1) = 1, rising with k
//! after a step:  e = ln(observed / T(k)), clipped;   g(j) = max(SLOW, 1 / (FIRST + seen(j)))
//!                ln scale    += FAST * (1 - g(k)) * e
//!                ln ratio(j) += min(g(j), g(k)) * e * 2^-|j - k|   for j near k
//! after one of a single row, whose ratio stays 1, with g = SLOW and its neighbours the other way
//! ```
//! The scale follows what moves all widths at once: a longer context, a busier machine. The ratios
//! begin with a shipped curve, learn most from their first steps and slowly afterwards; a width that
//! was measured by itself stands as it was measured. Times come in as numbers; nothing here reads a
//! clock.
//!
//! Options: none. `FAST` 0.15 follows a change of load within some ten steps, `SLOW` 0.04 needs
//! some tens, as one step's time is noise by a tenth; what is shipped counts as `FIRST` steps, 4;
//! `NEAR` widths learn with one, each half as much as the one before.
//!
//! Cost: about ten multiplications and logarithms a step.
//!
//! Published: Sequoia, <https://arxiv.org/abs/2402.12374>, measures the same curve for its hardware
//! once and sizes its tree by it. Ours, on two cores (`bench/speed`, LOG.md 2026-11-24): steps of
//! 4, 8 and 16 rows take 1.46, 2.34 and 4.29 of one for SmolLM2 135M, 1.16, 1.69 and 3.24 for
//! Qwen2.5-Coder 0.5B; on an A100 64 rows take 1.2 (the overhead in the Medusa paper,
//! <https://arxiv.org/abs/2401.10774>).
//!
//! When not to use it: for batches of several texts, where the rows of one are not the step's.

/// The most rows of a step that times are kept for.
pub const MOST_ROWS: usize = 64;
const FAST: f64 = 0.15;
const SLOW: f64 = 0.04;
/// Steps that the shipped ratio of a width counts as.
const FIRST: f64 = 4.0;
/// Steps of a width that count where its time is in doubt.
const DOUBTED: u8 = 2;
/// The furthest that one step can pull: a step that waited for another program says nothing.
const CLIP: f64 = 0.4;
/// What a row may take over a step of one: several times more is a stray measurement.
const MOST_PER_ROW: f64 = 4.0;
/// Widths on each side that learn with one.
const NEAR: usize = 3;
/// Steps of a width from which on its time is known: its ratio has come most of the way.
const ENOUGH: u8 = 40;

/// Step times over that of one row, at these widths: a round curve through what models of 135 and 500
/// million weights took on two cores of an AMD Zen 4 (LOG.md, 2026-11-24). It only has to do until a
/// run has made some steps of its own.
const SHIPPED: [(usize, f64); 11] = [
    (1, 1.0),
    (2, 1.09),
    (3, 1.17),
    (4, 1.25),
    (6, 1.62),
    (8, 1.85),
    (12, 2.7),
    (16, 3.4),
    (24, 5.2),
    (32, 6.8),
    (64, 13.0),
];

/// Times of steps by their number of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct StepTimes {
    /// Seconds of a step of one row; 0 until one was seen.
    scale_s: f64,
    /// `ratios[k - 1]` is that of `k` rows.
    ratios: [f64; MOST_ROWS],
    /// Steps of `k` rows that were seen, counted up to [`ENOUGH`].
    seen: [u8; MOST_ROWS],
}

impl Default for StepTimes {
    fn default() -> Self {
        Self::new(&SHIPPED)
    }
}

impl StepTimes {
    /// Times with the shape of `points`: rows, rising, and the time over that of one row.
    ///
    /// # Panics
    /// If [`StepTimes::measured`] refuses them.
    pub fn new(points: &[(usize, f64)]) -> Self {
        Self::measured(points).expect("rising points of plausible times")
    }

    /// As [`StepTimes::new`] of points that were measured or read, in any unit; `None` if there are
    /// none, their rows do not rise from 1 to at most [`MOST_ROWS`], or a time is not positive or
    /// is more than its rows could take. A time below one of fewer rows is raised to that.
    pub fn measured(points: &[(usize, f64)]) -> Option<Self> {
        let &(first, one) = points.first()?;
        let &(last, _) = points.last()?;
        let plausible = |&(rows, time): &(usize, f64)| {
            let over_one = time / one;
            time > 0.0 && over_one > 0.0 && over_one <= MOST_PER_ROW * rows as f64
        };
        let rising = points.windows(2).all(|w| w[0].0 < w[1].0);
        if first != 1 || last > MOST_ROWS || !rising || !points.iter().all(plausible) {
            return None;
        }
        let at = |rows: usize| match points.iter().position(|&(k, _)| k >= rows) {
            Some(0) => one,
            Some(i) => {
                let ((k0, t0), (k1, t1)) = (points[i - 1], points[i]);
                t0 + (t1 - t0) * (rows - k0) as f64 / (k1 - k0) as f64
            }
            None => {
                let (k, t) = points[points.len() - 1];
                t * rows as f64 / k as f64
            }
        };
        let ratios = std::array::from_fn(|i| at(i + 1) / one);
        let mut times = Self { scale_s: 0.0, ratios, seen: [0; MOST_ROWS] };
        times.rise();
        Some(times)
    }

    /// Rows and the time over that of one row, for all widths: what [`StepTimes::measured`] takes.
    pub fn points(&self) -> [(usize, f64); MOST_ROWS] {
        std::array::from_fn(|i| (i + 1, self.ratios[i]))
    }

    /// The shape halfway between this one and `other`, of an unknown machine.
    pub fn between(&self, other: &Self) -> Self {
        let mean = |i: usize| (self.ratios[i] * other.ratios[i]).sqrt();
        let seen = |i: usize| self.seen[i].max(other.seen[i]);
        let ratios = std::array::from_fn(mean);
        Self { scale_s: 0.0, ratios, seen: std::array::from_fn(seen) }
    }

    /// How many steps of 1, 2, ... rows were seen, as far as that is counted.
    pub fn seen(&self) -> &[u8; MOST_ROWS] {
        &self.seen
    }

    /// The same times, of which so many steps of 1, 2, ... rows were seen; none of those left out.
    pub fn with_seen(mut self, seen: impl IntoIterator<Item = u8>) -> Self {
        self.seen = [0; MOST_ROWS];
        let pairs = self.seen.iter_mut().zip(seen);
        pairs.for_each(|(to, seen)| *to = seen.min(ENOUGH));
        self
    }

    /// Whether enough steps of `rows` rows were seen for their time to be known.
    pub fn knows(&self, rows: usize) -> bool {
        rows <= 1 || self.seen.get(rows - 1).is_some_and(|&seen| seen >= ENOUGH)
    }

    /// Takes in that steps of `rows` rows were measured, by themselves, to take `over_one` times a
    /// step of one row. Widths between this one and the next narrower one that is known lie on a
    /// line. What cannot be is ignored.
    pub fn set(&mut self, rows: usize, over_one: f64) {
        if !(2..=MOST_ROWS).contains(&rows) || over_one.is_nan() || over_one <= 0.0 {
            return;
        }
        let time = over_one.clamp(1.0, MOST_PER_ROW * rows as f64);
        let below = (1..rows).rev().find(|&k| self.knows(k)).unwrap_or(1);
        // The newest measurement stands; narrower steps take no longer and wider ones no less.
        self.ratios[..rows].iter_mut().for_each(|ratio| *ratio = ratio.min(time));
        let from = self.ratios[below - 1];
        for k in below..=rows {
            self.ratios[k - 1] = from + (time - from) * (k - below) as f64 / (rows - below) as f64;
        }
        self.seen[rows - 1] = ENOUGH;
        self.rise();
    }

    /// Takes in that a step of `rows` rows took `seconds`.
    pub fn observe(&mut self, rows: usize, seconds: f64) {
        if !(1..=MOST_ROWS).contains(&rows) || seconds.is_nan() || seconds <= 0.0 {
            return;
        }
        if self.scale_s == 0.0 {
            self.scale_s = seconds / self.ratios[rows - 1];
            self.seen[rows - 1] = (self.seen[rows - 1] + 1).min(ENOUGH);
            return;
        }
        let error = (seconds / self.seconds(rows)).ln().clamp(-CLIP, CLIP);
        let gain = |seen: u8| SLOW.max(1.0 / (FIRST + f64::from(seen)));
        // The ratio of one row is 1, whatever it costs.
        let own = if rows == 1 { SLOW } else { gain(self.seen[rows - 1]) };
        self.scale_s *= (FAST * (1.0 - own) * error).exp();
        for near in rows.saturating_sub(NEAR).max(2)..=(rows + NEAR).min(MOST_ROWS) {
            // No further than the width that was seen.
            let gain = if rows == 1 { -SLOW } else { own.min(gain(self.seen[near - 1])) };
            self.ratios[near - 1] *= (gain * error * 0.5f64.powi(near.abs_diff(rows) as i32)).exp();
        }
        self.seen[rows - 1] = (self.seen[rows - 1] + 1).min(ENOUGH);
        self.rise();
    }

    /// Makes the next steps of `rows` rows count as some of its first.
    pub fn doubt(&mut self, rows: usize) {
        if let Some(seen) = rows.checked_sub(1).and_then(|at| self.seen.get_mut(at)) {
            *seen = (*seen).min(DOUBTED);
        }
    }

    /// Seconds of a step of `rows` rows; of an unknown machine a step of one row takes 1.
    pub fn seconds(&self, rows: usize) -> f64 {
        let scale = if self.scale_s == 0.0 { 1.0 } else { self.scale_s };
        scale * self.ratio(rows)
    }

    /// The time of a step of `rows` rows over that of one.
    pub fn ratio(&self, rows: usize) -> f64 {
        match rows {
            0 | 1 => 1.0,
            2..=MOST_ROWS => self.ratios[rows - 1],
            _ => self.ratios[MOST_ROWS - 1] * rows as f64 / MOST_ROWS as f64,
        }
    }

    /// More rows never take less.
    fn rise(&mut self) {
        self.ratios[0] = 1.0;
        for i in 1..MOST_ROWS {
            self.ratios[i] = self.ratios[i].max(self.ratios[i - 1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_learned_from_steps() {
        let mut times = StepTimes::default();
        let truth = |rows: usize| 0.004 * (1.0 + 0.5 * (rows as f64 - 1.0));
        for i in 0..3000 {
            let rows = 1 + (i * 7) % 8;
            times.observe(rows, truth(rows));
        }
        for rows in 1..=8 {
            let error = times.seconds(rows) / truth(rows) - 1.0;
            assert!(error.abs() < 0.1, "{rows} rows: {error}");
        }
    }

    /// Noise of a tenth, and now and then a step that waits.
    fn noisy(seconds: f64, i: usize) -> f64 {
        let u = crate::uniform(5, 1, i as u64) - 0.5;
        let waits = i % 50 == 17;
        seconds * (1.0 + 0.35 * u) * if waits { 2.5 } else { 1.0 }
    }

    /// Two slow cores (LOG.md 2026-11-27), mostly with steps of two rows: 1.27, 1.61, 1.99 times one.
    #[test]
    fn some_hundred_steps_teach_dear_rows() {
        let dear = StepTimes::new(&[(1, 1.0), (2, 1.27), (3, 1.61), (4, 1.99), (8, 4.17)]);
        let mut times = StepTimes::default();
        for i in 0..300 {
            let rows = [1, 2, 2, 2, 3, 2, 2, 4][i % 8];
            times.observe(rows, noisy(0.014 * dear.ratio(rows), i));
        }
        for rows in 2..=4 {
            let error = times.ratio(rows) / dear.ratio(rows) - 1.0;
            assert!(error.abs() < 0.1, "{rows} rows: {error}");
        }
    }

    #[test]
    fn what_was_never_seen_moves_no_further_than_what_was() {
        let mut times = StepTimes::default();
        let shipped = times.clone();
        for i in 0..900 {
            let two = if i < 300 { 1.09 } else { 1.6 };
            times.observe(1 + i % 2, noisy(0.004 * [1.0, two][i % 2], i));
        }
        let moved = |rows: usize| times.ratio(rows) / shipped.ratio(rows);
        assert!(moved(2) > 1.2, "{}", moved(2));
        assert!((3..=16).all(|rows| moved(rows) < moved(2)), "{:?}", times.points());
    }

    #[test]
    fn a_time_in_doubt_is_learned_again() {
        let mut times = StepTimes::default();
        times.set(2, 1.8);
        let again = |times: &StepTimes, doubt: bool| {
            let mut times = times.clone();
            (0..60).for_each(|_| times.observe(1, 0.01));
            for _ in 0..8 {
                if doubt {
                    times.doubt(2);
                }
                times.observe(2, 0.012);
                (0..20).for_each(|_| times.observe(1, 0.01));
            }
            times.ratio(2)
        };
        let (soon, late) = (again(&times, true), again(&times, false));
        assert!(soon < 1.35 && late > 1.45, "{soon} and {late}");
        times.doubt(0);
        times.doubt(MOST_ROWS + 1);
    }

    #[test]
    fn a_busy_machine_changes_the_scale_and_hardly_the_shape() {
        let mut times = StepTimes::default();
        let shape: Vec<f64> = (1..=8).map(|k| times.ratio(k)).collect();
        for slow in [1.0, 2.0, 1.0, 2.0] {
            for i in 0..200 {
                let rows = 1 + (i * 5) % 8;
                times.observe(rows, 0.01 * slow * shape[rows - 1]);
            }
            assert!((times.seconds(1) / (0.01 * slow) - 1.0).abs() < 0.1);
        }
        for rows in 1..=8 {
            assert!((times.ratio(rows) / shape[rows - 1] - 1.0).abs() < 0.15);
        }
    }

    #[test]
    fn a_stray_step_says_little_and_nonsense_nothing() {
        let mut times = StepTimes::default();
        (0..20).for_each(|_| times.observe(1, 0.01));
        times.observe(1, 10.0);
        assert!(times.seconds(1) < 0.011);
        let before = times.clone();
        times.observe(0, 1.0);
        times.observe(1, f64::NAN);
        times.observe(2, -1.0);
        assert_eq!(times, before);
    }

    #[test]
    fn more_rows_never_take_less() {
        let mut times = StepTimes::default();
        for i in 0..500u32 {
            times.observe(1 + i as usize * 13 % 16, f64::from(1 + i * 31 % 17));
        }
        assert!((1..200).all(|k| times.ratio(k) <= times.ratio(k + 1)));
    }

    #[test]
    fn a_shape_survives_a_round_trip() {
        let mut times = StepTimes::default();
        (0..500).for_each(|i| times.observe(1 + i % 9, 0.01 * (1 + i % 9) as f64));
        let again = StepTimes::measured(&times.points()).unwrap();
        assert_eq!(again.points(), times.points());
        assert_eq!(again.seconds(1), 1.0, "the machine may have changed");
        let halfway = times.between(&StepTimes::default());
        assert!((1..MOST_ROWS).all(|k| halfway.ratio(k) <= halfway.ratio(k + 1)));
        assert_eq!(times.between(&times).ratio(1), 1.0);
    }

    #[test]
    fn a_measured_width_is_known_and_stands() {
        let mut times = StepTimes::default();
        assert!(times.knows(1) && !(2..=MOST_ROWS + 1).any(|rows| times.knows(rows)));
        times.set(2, 1.6);
        times.set(6, 1.4);
        assert_eq!((times.ratio(2), times.ratio(4), times.ratio(6)), (1.4, 1.4, 1.4));
        times.set(8, 2.4);
        assert_eq!((times.ratio(7), times.ratio(8), times.ratio(12)), (1.9, 2.4, 2.7));
        assert!(times.knows(6) && times.knows(8) && !times.knows(7));
        assert!((1..200).all(|k| times.ratio(k) <= times.ratio(k + 1)));
        let before = times.clone();
        for bad in [f64::NAN, 0.0, -1.0] {
            times.set(4, bad);
        }
        times.set(1, 2.0);
        times.set(MOST_ROWS + 1, 2.0);
        assert_eq!(times, before);
        times.set(64, f64::INFINITY);
        assert_eq!(times.ratio(64), 256.0, "no more than its rows could take");
    }

    #[test]
    fn steps_are_counted_by_width_until_they_are_enough() {
        let mut times = StepTimes::default();
        (0..300).for_each(|i| times.observe(2 + i % 2, 0.01));
        times.observe(5, 0.01);
        assert!(times.knows(2) && times.knows(3) && !times.knows(5));
        let again = StepTimes::default().with_seen(times.seen().iter().copied());
        assert_eq!(again.seen(), times.seen());
        assert_eq!(again.between(&StepTimes::default()).seen(), times.seen());
    }

    #[test]
    fn hostile_points_are_refused_and_falling_ones_raised() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -1.0, 8.1, f64::MIN_POSITIVE] {
            assert_eq!(StepTimes::measured(&[(1, bad), (2, 1.1)]).is_some(), bad == 8.1, "{bad}");
            let refused = StepTimes::measured(&[(1, 1.0), (2, bad), (3, 1.2)]).is_none();
            assert_eq!(refused, bad != f64::MIN_POSITIVE, "{bad}");
        }
        let rows: [&[usize]; 6] = [&[], &[0], &[2], &[1, 1], &[1, 3, 2], &[1, MOST_ROWS + 1]];
        for rows in rows {
            let points: Vec<(usize, f64)> = rows.iter().map(|&k| (k, 1.0)).collect();
            assert_eq!(StepTimes::measured(&points), None, "{rows:?}");
        }
        let fallen = StepTimes::measured(&[(1, 2.0), (4, 6.0), (8, 5.0)]).unwrap();
        assert_eq!((fallen.ratio(4), fallen.ratio(8)), (3.0, 3.0));
        assert_eq!(fallen.ratio(64), 20.0);
    }
}
