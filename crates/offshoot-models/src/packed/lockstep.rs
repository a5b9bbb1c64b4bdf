//! Steps that go through a model side by side: a block for all of them, then the next.
//!
//! Between blocks a step is its residual stream; they share the registers that blocks work in. So weights
//! that have to be brought from afar are brought once for all of the steps, and each has the bits that it
//! has alone.

use offshoot_kernels::{Greatest, KvCache, RowScores, Wanted};

use super::executor::{Head, PackedExecutor, Run, Stream};
use super::hooks::Hooks;
use super::weights::PackedModel;
use crate::{Error, Segment, VariantId};

/// What a step is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Asked<'a> {
    /// As by [`PackedExecutor::step_greatest`].
    Greatest,
    /// As by [`PackedExecutor::step_scores`].
    Scores(Wanted<'a>),
}

/// A part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// What comes before the blocks: the embedding.
    Begin,
    /// A block.
    Block(usize),
    /// What comes behind them: the last norm and the output head.
    End,
}

impl Stage {
    /// Those of a step through `blocks` blocks, in order.
    pub fn all(blocks: usize) -> impl Iterator<Item = Self> {
        let blocks = (0..blocks).map(Self::Block);
        std::iter::once(Self::Begin).chain(blocks).chain(std::iter::once(Self::End))
    }
}

/// A step that may be run in parts, and what it gave.
#[derive(Debug)]
pub struct StagedStep<'a, 's> {
    /// Its segments; whoever asked for the step commits rows to their caches.
    pub segments: Vec<Segment<'s, KvCache>>,
    asked: Asked<'a>,
    /// What it has between two stages.
    stream: Option<Stream>,
    scores: RowScores,
    greatest: Vec<Result<Greatest, u32>>,
}

impl<'a, 's> StagedStep<'a, 's> {
    /// The step of `segments`.
    pub fn new(segments: Vec<Segment<'s, KvCache>>, asked: Asked<'a>) -> Self {
        let (scores, greatest) = (RowScores::default(), Vec::new());
        Self { segments, asked, stream: None, scores, greatest }
    }

    /// The variant that its first segment runs as.
    pub fn variant(&self) -> VariantId {
        self.segments.first().map_or(VariantId(0), |segment| segment.variant)
    }

    /// What it gave, if it was asked for scores and has run.
    pub fn scores(&self) -> &RowScores {
        &self.scores
    }

    /// What it gave, if it was asked for the greatest logits and has run.
    pub fn greatest(&self) -> &[Result<Greatest, u32>] {
        &self.greatest
    }

    fn head(&self) -> Head<'a> {
        match self.asked {
            Asked::Greatest => Head::Greatest,
            Asked::Scores(wanted) => Head::Scores(wanted),
        }
    }
}

impl PackedExecutor {
    /// Runs a whole step.
    ///
    /// # Errors
    /// As [`PackedExecutor::step_scores`].
    pub fn run_step(
        &mut self,
        model: &PackedModel,
        step: &mut StagedStep<'_, '_>,
        hooks: &mut dyn Hooks,
    ) -> Result<(), Error> {
        let head = step.head();
        self.run(model, &mut step.segments, hooks, head)?;
        self.give(step);
        Ok(())
    }

    /// Runs one stage of a step, whose stages before it are those that ran before.
    ///
    /// # Errors
    /// As [`PackedExecutor::step_scores`].
    pub fn run_stage(
        &mut self,
        model: &PackedModel,
        stage: Stage,
        step: &mut StagedStep<'_, '_>,
        hooks: &mut dyn Hooks,
    ) -> Result<(), Error> {
        let mut stream = step.stream.take().unwrap_or_else(|| Stream::new(model.config()));
        std::mem::swap(&mut self.stream, &mut stream);
        let done = self.stage(model, stage, step, hooks);
        std::mem::swap(&mut self.stream, &mut stream);
        done?;
        if stage == Stage::End {
            self.give(step);
        } else {
            step.stream = Some(stream);
        }
        Ok(())
    }

    fn stage(
        &mut self,
        model: &PackedModel,
        stage: Stage,
        step: &mut StagedStep<'_, '_>,
        hooks: &mut dyn Hooks,
    ) -> Result<(), Error> {
        let want = step.head();
        if stage == Stage::Begin {
            self.begin(model, &step.segments, want)?;
        }
        let rows = self.stream.rows();
        if rows == 0 {
            return Ok(());
        }
        self.reserve();
        let segments = &mut step.segments[..];
        let mut run = Run { model, registers: self, segments, hooks, rows, want };
        match stage {
            Stage::Begin => model.architecture.begin(&mut run),
            Stage::Block(layer) => model.architecture.block(layer, &mut run),
            Stage::End => model.architecture.end(&mut run),
        }
    }

    /// Hands what the step gave over to it.
    fn give(&mut self, step: &mut StagedStep<'_, '_>) {
        match step.asked {
            Asked::Greatest => std::mem::swap(&mut self.greatest, &mut step.greatest),
            Asked::Scores(_) => std::mem::swap(&mut self.scores, &mut step.scores),
        }
    }
}
