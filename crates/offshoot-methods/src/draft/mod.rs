//! Drafting: guessing tokens that a model then checks in one step.

mod medusa;

pub use medusa::{
    Bin, Calibration, Calibrator, Candidate, Candidates, DraftTree, RankNode, search,
};
