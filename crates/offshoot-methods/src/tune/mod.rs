//! Zeroth-order tuning: what a step asks of a model, and what it does with the answers.
//!
//! A method never sees a weight. It names points near the weights, as sums of random directions that
//! anyone can make again from the seed; it is told the loss there; in the end it says what is added to
//! the weights. Whoever holds the weights carries that out, so one method serves all spaces,
//! executors and devices, and a run is its seed and the numbers that the methods chose.

mod direction;
mod plan;

pub use direction::{Direction, Distribution, Form, Layout, TensorSpec};
pub use plan::{Plan, Probe, Term, Update, ZerothOrder};
