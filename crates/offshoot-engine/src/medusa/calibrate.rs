//! What heads do on answers that they were not trained on.

use offshoot_kernels::Cpu;
use offshoot_methods::draft::medusa::{Calibration, Calibrator, RankNode, search};
use offshoot_models::PackedModel;
use offshoot_models::medusa::{HeadsFile, MedusaHeads};
use serde::Serialize;

use super::distill::Distilled;
use super::train::held_out;
use crate::{Control, Error};

/// Ranks of each head that are counted and drafted from: the paper's 10.
pub const RANKS: usize = 10;
/// Tree sizes that reports name.
const SIZES: [usize; 7] = [1, 2, 3, 5, 8, 16, 32];

/// How good heads are, from a calibration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeadsReport {
    /// Places at which each head was looked at.
    pub places: Vec<u32>,
    /// `accuracy[k][i]`: how often the true token was among the first `i + 1` of head `k`.
    pub accuracy: Vec<Vec<f64>>,
    /// Tokens a step by the best trees of some sizes.
    pub trees: Vec<TreeEstimate>,
}

/// What a tree of a size gains.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TreeEstimate {
    /// Its nodes, the pending token not among them.
    pub nodes: usize,
    /// Tokens a step if the heads were independent.
    pub independent: f64,
    /// Tokens a step by the paths that were counted.
    pub counted: f64,
}

impl HeadsReport {
    /// The report of what `calibration` counted.
    pub fn of(calibration: &Calibration) -> Self {
        let shares = calibration.shares();
        let sums = |shares: &Vec<f64>| {
            let sum = shares.iter().scan(0.0, |sum, share| {
                *sum += share;
                Some(*sum)
            });
            sum.collect()
        };
        let gain =
            |tree: Vec<RankNode>| 1.0 + tree.iter().map(|node| node.probability).sum::<f64>();
        let estimate = |nodes: usize| TreeEstimate {
            nodes,
            independent: gain(search(&shares, nodes)),
            counted: gain(calibration.counted_tree(nodes)),
        };
        Self {
            places: calibration.places.clone(),
            accuracy: shares.iter().map(sums).collect(),
            trees: SIZES.into_iter().map(estimate).collect(),
        }
    }
}

/// Evaluates the heads of `file`, packed as they draft, on the answers that are held out.
///
/// # Errors
/// [`Error::Stopped`] if `progress`, told the answers done, says so; [`Error::Training`] if none is
/// held out.
pub fn calibrate(
    model: &PackedModel,
    cpu: &Cpu,
    file: &HeadsFile,
    data: &Distilled,
    mut progress: impl FnMut(usize) -> Control,
) -> Result<Calibration, Error> {
    let mut heads = MedusaHeads::new(cpu, model, file, RANKS)?;
    let (k, ranks) = (heads.heads(), heads.ranks());
    let mut calibrator = Calibrator::new(k, ranks);
    let mut state = vec![0.0; data.hidden_size()];
    let mut lists = Vec::new();
    let held = data.answers().iter().filter(|answer| held_out(answer.index));
    let mut seen = 0;
    for (done, answer) in held.enumerate() {
        if progress(done) == Control::Stop {
            return Err(Error::Stopped);
        }
        for i in 0..answer.tokens.len() {
            let truth = answer.behind(i);
            data.state(answer.first_row + i, &mut state);
            lists.clear();
            let found = heads.evaluate(cpu, &state, answer.tokens[i])?.iter();
            lists.extend(found.map(|found| (found.token, found.probability)));
            calibrator.observe(&lists, &truth[..truth.len().min(k)]);
            seen += 1;
        }
    }
    match seen {
        0 => Err(Error::Training("no answer is held out: make more tokens".to_owned())),
        _ => Ok(calibrator.finish()),
    }
}
