//! Evaluation: a model that can be scored, and examples in, metrics out.

mod classes;
mod evaluate;
mod packed;
mod session;
mod text;

use offshoot_kernels::Cpu;

pub use classes::{ClassMetrics, Classes};
pub use evaluate::{ChoiceScore, EvalOptions, Metrics, evaluate};
pub use packed::PackedScorer;
pub use session::SessionScorer;
pub use text::{exact_match, rouge_l, token_f1};

use super::Scorer;
use crate::{Error, ExecutorKind, Model, Session};

/// What scores sequences of up to `context` tokens with `model`, whatever it is loaded for.
///
/// # Errors
/// If the context is longer than the model was trained for, or the adapter does not fit.
pub fn scorer<'m>(
    model: &'m Model,
    cpu: &Cpu,
    context: usize,
) -> Result<Box<dyn Scorer + 'm>, Error> {
    Ok(match model.executor() {
        ExecutorKind::Packed => Box::new(PackedScorer::new(model, cpu, context)?),
        ExecutorKind::Dense { .. } => {
            Box::new(SessionScorer::new(model, Session::new(model, cpu.clone(), context)?))
        }
    })
}
