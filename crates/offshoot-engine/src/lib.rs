//! Loops that run methods on models, and what those loops need from the machine.

pub mod store;
