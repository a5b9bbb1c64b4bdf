//! Zeroth-order tuning: what a step asks of a model, and what it does with the answers.
//!
//! A method never sees a weight. It names points near the weights, as sums of random directions that
//! anyone can make again from the seed; it is told the loss there; in the end it says what is added to
//! the weights. Whoever holds the weights carries that out, so one method serves all spaces,
//! executors and devices, and a run is its seed and the numbers that the methods chose.

mod adam;
mod adamezo;
mod adazeta;
mod apply;
mod block;
mod card;
mod cons;
mod direction;
mod factors;
mod fzoo;
mod hash;
mod history;
mod lezo;
mod lozo;
mod lozo_m;
mod mask;
mod meazo;
mod mezo;
mod mmt;
mod orthonormal;
mod plan;
mod probing;
mod qzo;
mod rank;
mod rate;
mod schedule;
mod sign;
mod sparse;
mod stepper;
mod subzero;
mod trajectory;

pub use adam::AdamOptions;
pub use adamezo::AdamezoOptions;
pub use adazeta::AdazetaOptions;
pub use apply::{Weights, apply_update};
pub use block::{BlockLevel, BlockOptions};
pub use card::{MethodCard, MethodOptions, RateUnit};
pub use cons::ConsOptions;
pub use direction::{Direction, Distribution, Form, Layout, TensorSpec};
pub use factors::{Draw, Factors};
pub use fzoo::FzooOptions;
pub use hash::Hash;
pub use lezo::LezoOptions;
pub use lozo::LozoOptions;
pub use lozo_m::LozoMOptions;
pub use mask::{Mask, Side, random_keeps};
pub use meazo::MeazoOptions;
pub use mezo::MezoOptions;
pub use mmt::MmtOptions;
pub use plan::{Guarded, Plan, Probe, Record, Setting, Term, Update, ZerothOrder};
pub use probing::ProbeOptions;
pub use qzo::QzoOptions;
pub use rank::sufficient_rank;
pub use rate::{RateEstimate, RateOptions, SpaceKind, common_rate};
pub use schedule::{Curve, Schedule};
pub use sign::SignOptions;
pub use sparse::{SparseChoice, SparseOptions};
pub use subzero::SubzeroOptions;
pub use trajectory::{
    Chunk, Damage, Difference, Divergence, Header, Info, MethodChoice, Mismatch, Parent, Part,
    Reading, Replay, Replayed, SpaceChoice, Step, Trajectory, TrajectoryError, TrajectoryWriter,
    cat, diff, differences, merge, slice,
};

/// Every method, one a row.
pub static METHODS: &[MethodCard] = &[
    mezo::CARD,
    sign::CARD,
    cons::CARD,
    mmt::CARD,
    adam::CARD,
    adamezo::CARD,
    fzoo::CARD,
    meazo::CARD,
    lozo::CARD,
    lozo_m::CARD,
    lezo::CARD,
    block::CARD,
    sparse::CARD,
    subzero::CARD,
    adazeta::CARD,
    qzo::CARD,
];

#[cfg(test)]
mod tests;
