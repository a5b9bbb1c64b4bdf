//! Keys and values of one sequence, as tensors.

use candle_core::Tensor;

use crate::{Error, ModelConfig};

/// The cache of one sequence: every layer's keys and values for the positions decided so far, and
/// behind them the tentative rows of the last step.
///
/// What it holds remembers how it was made: a loss on a later step's logits has gradients through
/// an earlier step's keys and values, until [`DenseCache::detach`] is called. A clone shares memory.
#[derive(Debug, Clone)]
pub struct DenseCache {
    /// Keys and values of each layer, `[kv_heads, positions, head_dim]` each, once there are any.
    layers: Vec<Option<(Tensor, Tensor)>>,
    len: usize,
    tentative: usize,
}

impl DenseCache {
    /// An empty cache for models of `config`.
    pub fn new(config: &ModelConfig) -> Self {
        Self { layers: vec![None; config.num_hidden_layers], len: 0, tentative: 0 }
    }

    /// Positions decided.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is decided.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The keys and values of the decided positions of `layer`, `[kv_heads, len, head_dim]` each, or
    /// `None` if there are none.
    ///
    /// # Errors
    /// [`Error::Step`] if there is no such layer.
    pub fn read(&self, layer: usize) -> Result<Option<(Tensor, Tensor)>, Error> {
        let Some(rows) = self.layers.get(layer) else {
            return Err(Error::Step(format!("layer {layer} of a cache of {}", self.layers.len())));
        };
        match rows {
            Some((k, v)) if self.len > 0 => {
                Ok(Some((k.narrow(1, 0, self.len)?, v.narrow(1, 0, self.len)?)))
            }
            _ => Ok(None),
        }
    }

    /// Forgets all positions from `len` on. More than there are: no position is forgotten.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.tentative = 0;
    }

    /// Keeps tentative rows `path` of the last step, in order, as the next positions; `path[i]` counts
    /// from [`DenseCache::len`] and rises strictly, as a path from a tree's root does. The others are
    /// forgotten.
    ///
    /// # Errors
    /// [`Error::Step`] if the path does not rise strictly or names a row that the last step did not
    /// write; nothing is changed then.
    pub fn commit(&mut self, path: &[usize]) -> Result<(), Error> {
        let rises = path.windows(2).all(|w| w[0] < w[1]);
        if !rises || path.last().is_some_and(|&last| last >= self.tentative) {
            return Err(Error::Step(format!(
                "path {path:?} to be kept, expected rising rows below {}",
                self.tentative
            )));
        }
        // A path that begins 0, 1, ... stands where it shall stand.
        if path.iter().enumerate().any(|(i, &row)| i != row) {
            let rows = (0..self.len).chain(path.iter().map(|row| self.len + row));
            self.select(&rows.map(|row| row as u32).collect::<Vec<_>>())?;
        }
        self.len += path.len();
        self.tentative = 0;
        Ok(())
    }

    /// Forgets how the keys and values were made: no gradient flows through them any more, and the
    /// memory that was held for it is free.
    pub fn detach(&mut self) {
        for (k, v) in self.layers.iter_mut().flatten() {
            (*k, *v) = (k.detach(), v.detach());
        }
    }

    fn select(&mut self, rows: &[u32]) -> Result<(), Error> {
        let mut selected = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            selected.push(match layer {
                Some((k, v)) => {
                    let rows = Tensor::new(rows, k.device())?;
                    Some((k.index_select(&rows, 1)?, v.index_select(&rows, 1)?))
                }
                None => None,
            });
        }
        self.layers = selected;
        Ok(())
    }

    /// Forgets the tentative rows of the last step.
    pub(super) fn begin(&mut self) {
        self.tentative = 0;
    }

    /// Makes the `rows` that were appended to every layer the tentative ones.
    pub(super) fn end(&mut self, rows: usize) {
        self.tentative = rows;
    }

    /// Puts rows `[kv_heads, rows, head_dim]` behind the decided positions of `layer`, and gives all
    /// there are then.
    pub(super) fn append(
        &mut self,
        layer: usize,
        k: Tensor,
        v: Tensor,
    ) -> Result<(Tensor, Tensor), Error> {
        let all = match self.read(layer)? {
            Some((old_k, old_v)) => {
                (Tensor::cat(&[&old_k, &k], 1)?, Tensor::cat(&[&old_v, &v], 1)?)
            }
            None => (k, v),
        };
        self.layers[layer] = Some(all.clone());
        Ok(all)
    }
}
