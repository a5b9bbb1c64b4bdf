//! The rules of the house, as checks on the source tree.
//!
//! A claim in `ARCHITECTURE.md` or `CONTRIBUTING.md` that a program can check is checked here. A
//! rule is a function from what was read to a list of breaches, one line each: empty is good. Its
//! unit test shows it a tree that breaks it; `tests/structure.rs` shows it ours.

mod arrows;
mod documents;
mod sources;
mod tree;

pub use arrows::forbidden_arrows;
pub use documents::{code_map_gaps, missing_readmes, test_command};
pub use sources::{
    catch_all_names, impure_methods, long_files, outside_world, skipped_checks, unsafe_rooms,
};
pub use tree::{Package, TextFile, Tree};
