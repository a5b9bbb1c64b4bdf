//! Measures what steps of so many rows take, before any answer needs to know.
//!
//! Widths take turns, so that a machine that is busy for a while is busy for all of them, and both
//! shapes of tree are timed: a chain, and one that branches at every node. Nothing is kept of the
//! steps themselves.

use std::time::Duration;

use offshoot_methods::draft::{MOST_ROWS, StepTimes, TokenTree};
use serde::Serialize;

use super::Speculator;
use crate::bench::median;
use crate::{Error, Model, Session};

/// Rows of the steps that are timed.
const WIDTHS: [usize; 11] = [1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32];
/// Cached tokens behind which they are timed.
const DEPTHS: [usize; 3] = [0, 512, 2048];
/// From this width on, wider steps are left out once a row costs nearly what it costs alone.
const WIDE: usize = 16;
/// That share of a step of one row.
const NEARLY: f64 = 0.9;
/// Steps of a width, each beside one of one row, when only what is missing is measured.
const MISSING_ROUNDS: usize = 5;

/// How thoroughly to measure.
#[derive(Debug, Clone, Copy)]
pub struct CalibrateOptions {
    /// Steps of each width, depth and shape; medians are given.
    pub rounds: usize,
}

impl Default for CalibrateOptions {
    fn default() -> Self {
        Self { rounds: 7 }
    }
}

/// The median times of steps of one width.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeasuredWidth {
    /// Rows of the step.
    pub rows: usize,
    /// Milliseconds of a chain, at each depth.
    pub chain_ms: Vec<f64>,
    /// Milliseconds of a tree in which every node has two children, at each depth.
    pub bushy_ms: Vec<f64>,
    /// The time over that of one row: the median of depths and shapes.
    pub over_one: f64,
}

/// Step times by width.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepCurve {
    /// Cached tokens behind which steps were timed.
    pub depths: Vec<usize>,
    /// By width, one row first.
    pub widths: Vec<MeasuredWidth>,
}

/// The tokens that a step of `rows` rows, a chain of guesses, makes if each comes true with
/// `chance` once those before it did: `(1 - chance^rows) / (1 - chance)`.
pub fn chain_tokens(chance: f64, rows: usize) -> f64 {
    (0..rows).map(|depth| chance.powi(depth as i32)).sum()
}

impl StepCurve {
    /// The shape of step times, for drafting; `None` if a time is out of all proportion.
    pub fn times(&self) -> Option<StepTimes> {
        let points: Vec<(usize, f64)> = self.widths.iter().map(|w| (w.rows, w.over_one)).collect();
        let measured = |rows| if self.widths.iter().any(|w| w.rows == rows) { u8::MAX } else { 0 };
        Some(StepTimes::measured(&points)?.with_seen((1..).map(measured).take(MOST_ROWS)))
    }

    /// Seconds of a step of one row, at the depth in the middle.
    fn one_s(&self) -> f64 {
        let one = self.widths.first().map(|width| &width.chain_ms);
        one.and_then(|ms| ms.get(ms.len() / 2)).map_or(f64::NAN, |ms| ms / 1e3)
    }

    /// Tokens a second that steps of `width` would make, see [`chain_tokens`], at the depth in the
    /// middle.
    pub fn predicted_tokens_per_s(&self, width: &MeasuredWidth, chance: f64) -> f64 {
        chain_tokens(chance, width.rows) / (self.one_s() * width.over_one)
    }

    /// The rows of the fastest steps by [`StepCurve::predicted_tokens_per_s`], the fewest if equal;
    /// 0 if nothing was measured.
    pub fn best_rows(&self, chance: f64) -> usize {
        let mut best = (0, 0.0);
        for width in &self.widths {
            let tokens_per_s = self.predicted_tokens_per_s(width, chance);
            if tokens_per_s > best.1 {
                best = (width.rows, tokens_per_s);
            }
        }
        best.0
    }
}

/// Times steps of `model` in `session`, which loses its conversation. Depths and widths that the
/// context does not hold are left out.
///
/// # Errors
/// As [`Session::time_step`].
pub fn calibrate(
    model: &Model,
    session: &mut Session,
    options: &CalibrateOptions,
    mut progress: impl FnMut(&str),
) -> Result<StepCurve, Error> {
    let token = any_token(model);
    let mut widths: Vec<usize> =
        WIDTHS.into_iter().filter(|&rows| rows <= session.context()).collect();
    session.truncate(0);
    progress("which widths are worth it");
    let one = warm_up(model, session, &token)?;
    let mut last = 0;
    for &rows in &widths {
        let tree = chain(rows, &token);
        let took = session.time_step(model, &tree)?.min(session.time_step(model, &tree)?);
        last = rows;
        if rows >= WIDE && took.as_secs_f64() / rows as f64 > NEARLY * one.as_secs_f64() {
            break;
        }
    }
    widths.retain(|&rows| rows <= last);
    let widest = last;
    let fits = |depth: &usize| *depth == 0 || depth + widest <= session.context();
    let depths: Vec<usize> = DEPTHS.into_iter().filter(fits).collect();
    let mut chains = vec![Vec::new(); widths.len()];
    let mut bushes = vec![Vec::new(); widths.len()];
    for &depth in &depths {
        progress(&format!("steps behind {depth} tokens"));
        let unread: Vec<u32> = (session.cached().len()..depth).map(&token).collect();
        session.read(model, &unread)?;
        let medians = turns(model, session, &widths, options.rounds, &token)?;
        for (i, (chain_ms, bushy_ms)) in medians.into_iter().enumerate() {
            chains[i].push(chain_ms);
            bushes[i].push(bushy_ms);
        }
    }
    session.truncate(0);
    Ok(StepCurve { depths, widths: over_one(&widths, chains, bushes) })
}

/// Tokens of no meaning.
fn any_token(model: &Model) -> impl Fn(usize) -> u32 {
    let vocab = model.config().vocab_size as u32;
    move |i| (i as u32).wrapping_mul(7919).wrapping_add(100) % vocab
}

/// Whether [`measure_missing`] has anything to measure for the drafters of `session`.
pub fn lacks_times(session: &Session) -> bool {
    let speculator = session.speculator();
    speculator.is_some_and(|s| next_missing(s.times(), 1, room(session)).is_some())
}

/// Measures the step times that the drafters of `session` do not know, the narrow steps first, and
/// tells them; gives how many widths that were. `stop` is asked before each step, of which there
/// are about a hundred at most. The conversation stays as it is.
///
/// # Errors
/// As [`Session::time_step`].
pub fn measure_missing(
    model: &Model,
    session: &mut Session,
    mut stop: impl FnMut() -> bool,
) -> Result<usize, Error> {
    let Some(mut speculator) = session.set_speculator(None) else { return Ok(0) };
    let mut widths = 0;
    let measured = measure_into(model, session, &mut speculator, &mut stop, &mut widths);
    session.set_speculator(Some(speculator));
    measured.map(|()| widths)
}

fn measure_into(
    model: &Model,
    session: &mut Session,
    speculator: &mut Speculator,
    stop: &mut impl FnMut() -> bool,
    widths: &mut usize,
) -> Result<(), Error> {
    let token = any_token(model);
    let (room, one) = (room(session), chain(1, &token));
    let (mut last, mut warm) = (1, false);
    while let Some(rows) = next_missing(speculator.times(), last, room) {
        let trees = [chain(rows, &token), bushy(rows, &token)];
        let mut ratios = [f64::NAN; MISSING_ROUNDS];
        let mut took = |tree: &TokenTree| match stop() {
            true => Ok(None),
            false => session.time_step(model, tree).map(|time| Some(time.as_secs_f64())),
        };
        if !std::mem::replace(&mut warm, true) && took(&one)?.is_none() {
            return Ok(());
        }
        for (round, ratio) in ratios.iter_mut().enumerate() {
            let Some(alone) = took(&one)? else { return Ok(()) };
            let Some(together) = took(&trees[round % 2])? else { return Ok(()) };
            *ratio = together / alone;
        }
        speculator.set_time(rows, median(&ratios));
        (last, *widths) = (rows, *widths + 1);
    }
    Ok(())
}

/// Rows that a step has room for.
fn room(session: &Session) -> usize {
    session.context() - session.cached().len()
}

/// The narrowest of the widths above `last` that is worth knowing and not known.
fn next_missing(times: &StepTimes, last: usize, room: usize) -> Option<usize> {
    for rows in WIDTHS.into_iter().filter(|&rows| 1 < rows && rows <= room) {
        match times.knows(rows) {
            false if rows > last => return Some(rows),
            true if rows >= WIDE && times.ratio(rows) > NEARLY * rows as f64 => return None,
            _ => {}
        }
    }
    None
}

/// Wakes the threads and brings in the weights; gives what a step of one row takes then.
fn warm_up(
    model: &Model,
    session: &mut Session,
    token: &impl Fn(usize) -> u32,
) -> Result<Duration, Error> {
    let tree = chain(1, token);
    let mut least = Duration::MAX;
    for _ in 0..5 {
        least = least.min(session.time_step(model, &tree)?);
    }
    Ok(least)
}

/// Median milliseconds of a chain and of a bushy tree of each width.
fn turns(
    model: &Model,
    session: &mut Session,
    widths: &[usize],
    rounds: usize,
    token: &impl Fn(usize) -> u32,
) -> Result<Vec<(f64, f64)>, Error> {
    let mut times = vec![(Vec::new(), Vec::new()); widths.len()];
    for _ in 0..rounds.max(1) {
        for (&rows, (chains, bushes)) in widths.iter().zip(&mut times) {
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            chains.push(ms(session.time_step(model, &chain(rows, token))?));
            bushes.push(ms(session.time_step(model, &bushy(rows, token))?));
        }
    }
    Ok(times.iter().map(|(chains, bushes)| (median(chains), median(bushes))).collect())
}

/// A root and guesses that follow one another.
fn chain(rows: usize, token: &impl Fn(usize) -> u32) -> TokenTree {
    tree(rows, token, |row| row - 1)
}

/// A root with two guesses, each with two, and so on.
fn bushy(rows: usize, token: &impl Fn(usize) -> u32) -> TokenTree {
    tree(rows, token, |row| (row - 1) / 2)
}

fn tree(rows: usize, token: &impl Fn(usize) -> u32, parent: impl Fn(usize) -> usize) -> TokenTree {
    let mut tree = TokenTree::new(token(0));
    (1..rows).for_each(|row| _ = tree.push(parent(row), token(row)));
    tree
}

fn over_one(widths: &[usize], chains: Vec<Vec<f64>>, bushes: Vec<Vec<f64>>) -> Vec<MeasuredWidth> {
    // Both shapes of one row are the same step.
    let pairs = chains.first().into_iter().flatten().zip(bushes.first().into_iter().flatten());
    let one: Vec<f64> = pairs.map(|(a, b)| (a + b) / 2.0).collect();
    let rows = widths.iter().zip(chains.into_iter().zip(bushes));
    rows.map(|(&rows, (chain_ms, bushy_ms))| {
        let ratios = |ms: &[f64]| ms.iter().zip(&one).map(|(ms, one)| ms / one).collect();
        let mut all: Vec<f64> = ratios(&chain_ms);
        all.extend::<Vec<f64>>(ratios(&bushy_ms));
        let over_one = if rows == 1 { 1.0 } else { median(&all) };
        MeasuredWidth { rows, chain_ms, bushy_ms, over_one }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine on which `rows` rows take `1 + each * (rows - 1)` times 10 ms.
    fn curve(each: f64) -> StepCurve {
        let ms = |rows: usize| vec![10.0 * (1.0 + each * (rows as f64 - 1.0)); 3];
        let chains: Vec<Vec<f64>> = WIDTHS.iter().map(|&rows| ms(rows)).collect();
        StepCurve { depths: DEPTHS.to_vec(), widths: over_one(&WIDTHS, chains.clone(), chains) }
    }

    #[test]
    fn tokens_of_a_chain_are_the_geometric_sum() {
        for (chance, rows) in [(0.3, 1), (0.5, 4), (0.9, 32)] {
            let sum = (1.0 - f64::powi(chance, rows as i32)) / (1.0 - chance);
            assert!((chain_tokens(chance, rows) - sum).abs() < 1e-12);
        }
        assert_eq!(chain_tokens(1.0, 7), 7.0);
    }

    #[test]
    fn the_best_tree_grows_with_the_chance_and_shrinks_with_the_cost() {
        let (cheap, dear) = (curve(0.05), curve(0.9));
        assert_eq!(dear.best_rows(0.3), 1, "plain decoding");
        let best = [0.3, 0.5, 0.7, 0.9].map(|chance| cheap.best_rows(chance));
        assert!(best.is_sorted() && best[0] > 1 && best[3] > best[0], "{best:?}");
        let one = &cheap.widths[0];
        assert!((cheap.predicted_tokens_per_s(one, 0.9) - 100.0).abs() < 1e-9);
    }

    #[test]
    fn a_curve_becomes_step_times() {
        let times = curve(0.25).times().unwrap();
        assert!((times.ratio(1) - 1.0).abs() < 1e-12 && (times.ratio(9) - 3.0).abs() < 1e-12);
        let mut broken = curve(0.25);
        broken.widths[3].over_one = f64::NAN;
        assert_eq!(broken.times(), None);
        broken.widths.clear();
        assert_eq!((broken.times(), broken.best_rows(0.5)), (None, 0));
    }

    #[test]
    fn only_what_is_not_known_and_worth_it_is_missing() {
        let missing = |times: &StepTimes, room: usize| {
            let mut last = 1;
            let next = || next_missing(times, last, room).inspect(|&rows| last = rows);
            std::iter::from_fn(next).collect::<Vec<_>>()
        };
        assert_eq!(missing(&StepTimes::default(), 12), [2, 3, 4, 5, 6, 8, 12]);
        assert!(missing(&curve(0.25).times().unwrap(), 100).is_empty());
        let mut dear = StepTimes::default();
        dear.set(2, 1.9);
        dear.set(16, 15.0);
        assert_eq!(missing(&dear, 100), [3, 4, 5, 6, 8, 12], "32 rows pay no more than 16");
    }

    #[test]
    fn trees_have_the_shape_that_is_said() {
        let token = |i: usize| i as u32;
        let (chain, bushy) = (chain(7, &token), bushy(7, &token));
        assert_eq!(chain.depths(), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(bushy.depths(), [0, 1, 1, 2, 2, 2, 2]);
        assert_eq!((chain.len(), bushy.len()), (7, 7));
    }
}
