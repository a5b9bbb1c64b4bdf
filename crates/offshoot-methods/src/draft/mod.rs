//! Drafting: what the next tokens may be, and how many guesses one step should check.

mod agreement;
mod calibration;
mod gate;
mod looks;
mod margin;
pub mod medusa;
mod pace;
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
pub use looks::Looks;
pub use margin::{Margin, greatest_magnitude};
pub use pace::Pace;
pub use planner::{Beliefs, Contribution, Guess, Limits, Planner};
pub use rejection::{Distribution, Drawn, Verdict, draw, mass, reject, without};
pub use rest::{
    DraftNode, Match, Retriever, RetrieverOptions, SAMPLED_TOKENS, Shard, ShardParts, TokenWidth,
};
pub use step_times::{MOST_ROWS, StepTimes};
pub use suffix::{Continuation, Place, SuffixAutomaton};
pub use tree::{TokenTree, follow};
pub use typical::Typical;

/// What there is to know of the ways of drafting: a name, a line on it, and the file whose head is its
/// page ([`crate::page_of`]).
pub const PAGES: [(&str, &str, &str); 8] = [
    ("auto", "One tree from all drafters, as large as pays.", include_str!("planner.rs")),
    ("suffix", "What followed the same words in the text so far.", include_str!("suffix.rs")),
    ("rest", "What followed the same words in stored text.", include_str!("rest.rs")),
    ("medusa", "What heads on the model's last state guess.", include_str!("medusa.rs")),
    ("exact", "Guesses kept that plain decoding would make: the default.", include_str!("tree.rs")),
    ("margin", "What keeps a text where rows are not exact.", include_str!("margin.rs")),
    (
        "rejection",
        "Drawn guesses kept so that the law of the text stays.",
        include_str!("rejection.rs"),
    ),
    (
        "typical",
        "Guesses kept that are likely enough: faster, another text.",
        include_str!("typical.rs"),
    ),
];
