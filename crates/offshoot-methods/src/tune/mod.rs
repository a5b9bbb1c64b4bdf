//! Zeroth-order tuning: what a step asks of a model, and what it does with the answers.
//!
//! A method never sees a weight. It names points near the weights, as sums of random directions that
//! anyone can make again from the seed; it is told the loss there; in the end it says what is added to
//! the weights. Whoever holds the weights carries that out, so one method serves all spaces,
//! executors and devices, and a run is its seed and the numbers that the methods chose.

mod apply;
mod card;
mod direction;
mod factors;
mod hash;
mod mask;
mod mezo;
mod orthonormal;
mod plan;
mod probing;
mod stepper;

pub use apply::{Weights, apply_update};
pub use card::{MethodCard, MethodOptions, RateUnit};
pub use direction::{Direction, Distribution, Form, Layout, TensorSpec};
pub use factors::{Draw, Factors};
pub use hash::Hash;
pub use mask::{Mask, Side, random_keeps};
pub use mezo::MezoOptions;
pub use plan::{Guarded, Plan, Probe, Record, Setting, Term, Update, ZerothOrder};
pub use probing::ProbeOptions;

/// Every method, one a row.
pub static METHODS: &[MethodCard] = &[mezo::CARD];
