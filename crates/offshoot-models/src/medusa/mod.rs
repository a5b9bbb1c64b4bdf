//! Medusa heads: their files, and their evaluation beside a packed model.

mod heads;
mod import;
mod pickle;
mod run;

pub(crate) use heads::HEADS_PREFIX;
pub use heads::{
    HEADS_FILE, HEADS_MAX, Head, HeadLayout, HeadMatrix, HeadsCard, HeadsFile, ResBlock,
};
pub use import::{import_heads, parse_torch};
pub use run::{HeadToken, MedusaHeads, TokenInput};
