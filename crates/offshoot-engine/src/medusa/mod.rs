//! Medusa heads of a model: training them on its own answers, measuring them, keeping the answers to
//! draft from, finding heads and answers that ship with offshoot.

mod answers;
mod calibrate;
mod distill;
mod prompts;
mod shipped;
mod train;

pub use calibrate::{HeadsReport, RANKS, TreeEstimate, calibrate};
pub use distill::{DistillOptions, Distilled, DistilledAnswer};
pub use prompts::{Flavour, SeedPrompts};
pub(crate) use shipped::may_ship;
pub use shipped::{ReadyHeads, shipped, shipped_answers};
pub(crate) use train::most_counted;
pub use train::{TrainOptions, TrainStep, train};
