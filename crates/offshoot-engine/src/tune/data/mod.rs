//! Data for tuning: files in, examples as tokens out.
//!
//! ```text
//! file -> rows (read/) -> record (format, task/) -> tokens and what is trained (render/) -> file
//! ```
//! A row that cannot be used is told with its file, line and field, and never passed over.

mod error;
mod format;
mod formats;
mod prepare;
mod read;
mod record;
mod render;
mod report;
mod row;
mod split;
mod split_file;
mod task;
mod tokens;

pub use error::{Count, DataError, Fault, Place};
pub use format::{Format, Rename};
pub use prepare::{
    DataEvent, DataOptions, OnData, Prepared, RenderedRow, check, examples, prepare,
    prepared_bytes, show, trim_prepared,
};
pub use read::{Container, Rows, rows};
pub use record::{Record, Said};
pub use render::{Length, Overlong, Rendered, Renderer};
pub use report::{FileReport, Report};
pub use row::Row;
pub use split::{Split, SplitSizes, class_of, split};
pub use split_file::{SplitReport, split_file};
pub use task::{Metric, Task};
pub use tokens::TokenFile;
