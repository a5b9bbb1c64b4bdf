//! Medusa heads of a model: training them on its own answers, measuring them, finding those that
//! ship with offshoot.

mod calibrate;
mod distill;
mod prompts;
mod shipped;
mod train;

pub use calibrate::{HeadsReport, RANKS, TreeEstimate, calibrate};
pub use distill::{DistillOptions, Distilled, DistilledAnswer};
pub use prompts::{Flavour, SeedPrompts};
pub(crate) use shipped::may_ship;
pub use shipped::{ReadyHeads, shipped};
pub use train::{TrainOptions, TrainStep, train};
