//! What one step of a model computes: rows of several sequences, decode rows and prompt chunks mixed.

use crate::Error;

/// Which rows of a segment need logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows<'a> {
    /// None: a prompt chunk that is not the last.
    None,
    /// The last row.
    Last,
    /// Every row.
    All,
    /// These rows of the segment, ascending.
    These(&'a [u32]),
}

/// The rotary table that a segment's positions index: 0, but for models that read long texts by other
/// frequencies ([`crate::ModelConfig::rope_for`]), and then one for the whole of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RopeId(pub usize);

/// The variant of the base model that a segment runs as; 0 is the base itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct VariantId(pub u32);

/// The rows that one sequence has in a step: a chunk of its prompt, its next token, or a tree of
/// drafted tokens. `C` is the executor's cache.
#[derive(Debug)]
pub struct Segment<'a, C> {
    /// The sequence's cache. The rows' keys and values are written behind its decided positions;
    /// whoever asked for the step commits those that stand.
    pub cache: &'a mut C,
    /// The tokens, at least one.
    pub tokens: &'a [u32],
    /// For each token the row of the segment that it follows, `None` for those that follow the
    /// cache's last position. Parents stand before their children.
    pub parents: &'a [Option<u32>],
    /// The rotary position of each token: of a tree's node the cache's length plus its depth.
    pub positions: &'a [u32],
    /// The rotary table.
    pub rope: RopeId,
    /// The variant.
    pub variant: VariantId,
    /// Which rows need logits.
    pub logits: LogitRows<'a>,
}

impl<C> Segment<'_, C> {
    /// Checks what every executor relies on; `vocab_size` bounds the tokens.
    pub(crate) fn check(&self, index: usize, vocab_size: usize) -> Result<(), Error> {
        let n = self.tokens.len();
        let wrong = |what: String| Err(Error::Step(format!("segment {index}: {what}")));
        if n == 0 {
            return wrong("no tokens".to_owned());
        }
        if self.parents.len() != n || self.positions.len() != n {
            return wrong(format!(
                "{n} tokens, {} parents and {} positions",
                self.parents.len(),
                self.positions.len()
            ));
        }
        if let Some(token) = self.tokens.iter().find(|&&t| t as usize >= vocab_size) {
            return wrong(format!("token {token} of a vocabulary of {vocab_size}"));
        }
        for (row, parent) in self.parents.iter().enumerate() {
            if parent.is_some_and(|parent| parent as usize >= row) {
                return wrong(format!("row {row} stands before its parent"));
            }
        }
        if let LogitRows::These(rows) = self.logits
            && (rows.iter().any(|&row| row as usize >= n) || !rows.is_sorted())
        {
            return wrong(format!("logits asked for rows {rows:?} of {n}, ascending"));
        }
        Ok(())
    }

    /// Checks that positions count from the start of the text without a gap, which attention within a
    /// window relies on; `cached` positions are decided.
    pub(crate) fn check_places(&self, index: usize, cached: usize) -> Result<(), Error> {
        for (row, (parent, &position)) in self.parents.iter().zip(self.positions).enumerate() {
            let place = match parent {
                Some(parent) => u64::from(self.positions[*parent as usize]) + 1,
                None => cached as u64,
            };
            if u64::from(position) != place {
                return Err(Error::Step(format!(
                    "segment {index}: row {row} has position {position}, expected {place}, since \
                     this model counts positions to see within a window"
                )));
            }
        }
        Ok(())
    }

    /// Calls `f` with each row, counted in the segment, that needs logits.
    pub(crate) fn for_logit_rows(&self, mut f: impl FnMut(usize)) {
        match self.logits {
            LogitRows::None => {}
            LogitRows::Last => f(self.tokens.len() - 1),
            LogitRows::All => (0..self.tokens.len()).for_each(f),
            LogitRows::These(rows) => rows.iter().for_each(|&row| f(row as usize)),
        }
    }
}

/// Parents of `n` rows that follow one another, the first following the cache.
pub fn chain(n: usize) -> Vec<Option<u32>> {
    (0..n).map(|i| i.checked_sub(1).map(|parent| parent as u32)).collect()
}
