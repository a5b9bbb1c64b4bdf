//! Zeroth-order tuning: what a step asks of a model, and what it does with the answers.
//!
//! A method never sees a weight. It names points near the weights, as sums of random directions
//! that anyone can make again from the seed; it is told the loss there; in the end it says what is
//! added to the weights. Whoever holds the weights carries that out, so one method serves all
//! spaces, executors and devices, and a run is its seed and the numbers that the methods chose.
//!
//! A method is a row of [`METHODS`], started from options in JSON; its file says what it does, from
//! which paper, and when not to use it. [`apply_update`] defines what an [`Update`] means, element
//! by element; [`Draw`] and [`Mask`] what a [`Direction`] is. [`RateOptions`] finds a learning rate
//! from losses, and a [`Trajectory`] keeps a run so that it can be made again.
//!
//! ```
//! use offshoot_methods::tune::{MethodCard, Plan, Setting, Update};
//!
//! let card = MethodCard::named("mezo")?;
//! let options = serde_json::json!({"probe": {"eps": 0.5}});
//! let mut method = card.start(&options, &Setting::default())?;
//! let Plan::Evaluate(points) = method.begin(0, 0.1) else { panic!("a step begins with losses") };
//! assert_eq!(points.len(), 2); // w + eps z and w - eps z
//! let Plan::Update(Update::Linear { terms, .. }) = method.answer(&[3.0, 1.0]) else {
//!     panic!("and ends with an update")
//! };
//! assert_eq!(terms[0].scale, 0.2); // the rate times a slope of (3 - 1) / (2 eps)
//! # Ok::<(), offshoot_methods::Error>(())
//! ```

mod adam;
mod adamezo;
mod adazeta;
mod apply;
mod block;
mod card;
mod cons;
mod direction;
mod factors;
mod fedkseed;
mod fwdgrad;
mod fzoo;
mod hash;
mod history;
mod hybrid;
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
pub use card::{MethodCard, MethodOptions, RateUnit, mistaken};
pub use cons::ConsOptions;
pub use direction::{Direction, Distribution, Form, Layout, TensorSpec};
pub use factors::{Basis, Draw, Factors};
pub use fedkseed::FedkseedOptions;
pub use fwdgrad::{FillDirection, FwdgradOptions};
pub use fzoo::FzooOptions;
pub use hash::Hash;
pub use hybrid::HybridOptions;
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
    Verification, cat, diff, differences, merge, slice, verify,
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
    fedkseed::CARD,
];

#[cfg(test)]
mod tests;
