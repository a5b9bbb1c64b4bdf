//! What holds for all methods, each against its formula, and the laws of the estimator.

mod contract;
mod defects;
mod formulas;
mod golden;
mod kernels;
mod laws;
mod quadratic;
mod rates;
