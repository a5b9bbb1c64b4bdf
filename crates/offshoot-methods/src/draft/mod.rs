//! Drafting: what the next tokens may be, and how many guesses one step should check.

mod agreement;
mod calibration;
mod gate;
mod margin;
pub mod medusa;
mod planner;
mod rejection;
mod rest;
mod step_times;
mod suffix;
mod tree;
mod typical;

pub use agreement::{Agreed, Agreement};
pub use calibration::{BINS, CLASSES, Calibration, CellId, Prior};
pub use gate::Gate;
pub use margin::{Margin, greatest_magnitude};
pub use planner::{Beliefs, Contribution, Guess, Limits, Planner};
pub use rejection::{Distribution, Drawn, Verdict, draw, mass, reject, without};
pub use rest::{
    DraftNode, Match, Retriever, RetrieverOptions, SAMPLED_TOKENS, Shard, ShardParts, TokenWidth,
};
pub use step_times::{MOST_ROWS, StepTimes};
pub use suffix::{Continuation, Place, SuffixAutomaton};
pub use tree::{TokenTree, follow};
pub use typical::Typical;
