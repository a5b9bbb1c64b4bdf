//! Heads packed for the kernels, evaluated on one state at a time.
//!
//! What a drafter needs of a head is its likeliest tokens, not its logits over everything. So the
//! output matrix keeps only the rows of the tokens that are scored, gathered from the base's own
//! blocks, and where it is shared all heads go through it in one product, as if they were the rows
//! of a batch. Residual blocks are rounded to 8 bits: their bytes are half the cost.
//!
//! Cost: `K (L d^2 + 32) + V' d w` bytes read, w the bytes of a base weight; for d = 576, K = 4,
//! V' = 4096 at 8 bits 3.8 MB, where a step of that model reads 98 MB.

use std::sync::Arc;

use offshoot_kernels::{
    Activations, BlockType, Buffer, Conversion, Cpu, PackedMatrix, Product, Ranked, SharedBytes,
    form_for, multiply, rank_rows, silu_gate,
};

use super::heads::{HeadMatrix, HeadsFile};
use crate::{Checkpoint, Error, PackedModel};

/// A token and the probability that a head gives it among the tokens it scores.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct HeadToken {
    /// The token.
    pub token: u32,
    /// Its probability; NaN if the model's state was no number.
    pub probability: f32,
}

/// Heads that are ready to draft.
#[derive(Debug)]
pub struct MedusaHeads {
    /// The first blocks of all heads, which read the same input, one below the other.
    first: (PackedMatrix, Vec<f32>),
    /// `later[l][k]`: block l + 1 of head k.
    later: Vec<Vec<(PackedMatrix, Vec<f32>)>>,
    /// One that all heads share, or one for each.
    outputs: Vec<PackedMatrix>,
    /// The token of each output row; `None` if they are the same.
    vocabulary: Option<Vec<u32>>,
    hidden_size: usize,
    ranks: usize,
    /// What embeds the chosen token, where the heads see it.
    embedding: Option<TokenInput>,
    /// What the first block multiplies, `[d]` or `[2d]`.
    input: Vec<f32>,
    state: Activations,
    /// States of the heads, `[K, d]`, and their products.
    states: Vec<f32>,
    products: Vec<f32>,
    ones: Vec<f32>,
    gated: Vec<f32>,
    head_states: Activations,
    logits: Vec<f32>,
    ranked: Vec<Ranked>,
    found: Vec<HeadToken>,
}

/// The form in which heads see a token: its embedding, divided by the root of its mean square.
#[derive(Debug, Clone)]
pub struct TokenInput {
    checkpoint: Arc<Checkpoint>,
    name: String,
}

impl TokenInput {
    /// By the embedding of `model`.
    pub fn new(model: &PackedModel) -> Self {
        let name = model.blueprint().embedding.clone();
        Self { checkpoint: Arc::clone(model.checkpoint()), name }
    }

    /// Writes the form of `token`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is no such token.
    pub fn write(&self, token: u32, out: &mut [f32]) -> Result<(), Error> {
        self.checkpoint.require(&self.name)?.read_row(token as usize, out)?;
        let mean = out.iter().map(|x| x * x).sum::<f32>() / out.len() as f32;
        let scale = if mean > 0.0 { mean.sqrt().recip() } else { 0.0 };
        out.iter_mut().for_each(|x| *x *= scale);
        Ok(())
    }
}

impl MedusaHeads {
    /// Packs the heads of `file` for `model`. An evaluation gives the `ranks` likeliest tokens of
    /// each head, fewer if fewer are scored.
    ///
    /// # Errors
    /// [`Error::Heads`] if the heads do not fit the model.
    pub fn new(
        cpu: &Cpu,
        model: &PackedModel,
        file: &HeadsFile,
        ranks: usize,
    ) -> Result<Self, Error> {
        file.check(model.config())?;
        let d = file.hidden_size;
        let block_of = |l: usize| file.heads.iter().map(move |head| &head.blocks[l]);
        let later = (1..file.layers())
            .map(|l| {
                block_of(l).map(|b| Ok((pack_rows(cpu, &b.weight)?, b.bias.values()))).collect()
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let (rows, cols) = (file.heads.len() * d, file.heads[0].blocks[0].weight.cols);
        let weights: Vec<f32> = block_of(0).flat_map(|b| b.weight.values()).collect();
        let weights = pack_rows(cpu, &HeadMatrix::new(BlockType::F32, (rows, cols), &weights))?;
        let first = (weights, block_of(0).flat_map(|b| b.bias.values()).collect());
        let outputs = match &file.vocabulary {
            None => (0..model.config().vocab_size as u32).collect(),
            Some(ids) => ids.clone(),
        };
        let outputs = own_or_shared(cpu, model, file, &outputs)?;
        let (k, scored) = (file.heads.len(), outputs[0].rows());
        let ranks = ranks.min(scored);
        Ok(Self {
            first,
            later,
            outputs,
            vocabulary: file.vocabulary.clone(),
            hidden_size: d,
            ranks,
            embedding: file.sees_token().then(|| TokenInput::new(model)),
            input: vec![0.0; cols],
            state: Activations::new(),
            states: vec![0.0; k * d],
            products: vec![0.0; k * d],
            ones: vec![1.0; d],
            gated: vec![0.0; d],
            head_states: Activations::new(),
            logits: vec![0.0; k * scored],
            ranked: vec![Ranked::default(); k * ranks],
            found: vec![HeadToken::default(); k * ranks],
        })
    }

    /// Number of heads.
    pub fn heads(&self) -> usize {
        self.states.len() / self.hidden_size
    }

    /// Tokens that an evaluation gives of each head.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Bytes of weights that an evaluation reads.
    pub fn bytes(&self) -> usize {
        let blocks = self.later.iter().flatten().chain([&self.first]);
        blocks.map(|(weight, bias)| weight.byte_len() + 4 * bias.len()).sum::<usize>()
            + self.outputs.iter().map(PackedMatrix::byte_len).sum::<usize>()
    }

    /// The likeliest tokens of each head for the state `hidden`, the final norm's result of one row,
    /// from which `token` was chosen: head after head, [`MedusaHeads::ranks`] tokens of each, likeliest
    /// first. After the first call nothing is allocated.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the heads see `token` and the model has no such token.
    ///
    /// # Panics
    /// If `hidden` has another width than the heads.
    pub fn evaluate(
        &mut self,
        cpu: &Cpu,
        hidden: &[f32],
        token: u32,
    ) -> Result<&[HeadToken], Error> {
        let d = self.hidden_size;
        assert_eq!(hidden.len(), d, "a state of the heads' width");
        for states in self.states.chunks_exact_mut(d) {
            states.copy_from_slice(hidden);
        }
        self.input[..d].copy_from_slice(hidden);
        if let Some(embedding) = &self.embedding {
            embedding.write(token, &mut self.input[d..])?;
        }
        let input = &self.input;
        let forms = form_for(self.first.0.block());
        self.state.fill(cpu, (1, input.len()), forms, |_, out| out.copy_from_slice(input));
        product(cpu, &self.state, &self.first, &mut self.products);
        self.gate(cpu);
        for l in 0..self.later.len() {
            for (k, block) in self.later[l].iter().enumerate() {
                let at = k * d..(k + 1) * d;
                let input = &self.states[at.clone()];
                let forms = form_for(block.0.block());
                self.state.fill(cpu, (1, d), forms, |_, out| out.copy_from_slice(input));
                product(cpu, &self.state, block, &mut self.products[at]);
            }
            self.gate(cpu);
        }
        self.score(cpu);
        Ok(&self.found)
    }

    /// Adds the gated products to the states.
    fn gate(&mut self, cpu: &Cpu) {
        let d = self.hidden_size;
        let rows = self.states.chunks_exact_mut(d).zip(self.products.chunks_exact(d));
        for (state, product) in rows {
            silu_gate(cpu.isa(), product, &self.ones, &mut self.gated);
            state.iter_mut().zip(&self.gated).for_each(|(z, s)| *z += s);
        }
    }

    /// From the heads' states to their likeliest tokens.
    fn score(&mut self, cpu: &Cpu) {
        let (k, d) = (self.heads(), self.hidden_size);
        let rows = self.outputs[0].rows();
        let forms = form_for(self.outputs[0].block());
        let shared = self.outputs.len() == 1;
        for (i, output) in self.outputs.iter().enumerate() {
            let (first, count) = if shared { (0, k) } else { (i, 1) };
            let states = &self.states[first * d..];
            self.head_states.fill(cpu, (count, d), forms, |row, out| {
                out.copy_from_slice(&states[row * d..(row + 1) * d]);
            });
            let out = &mut self.logits[first * rows..(first + count) * rows];
            let product = Product { weights: output, bias: None, accumulate: false, out };
            multiply(cpu, &self.head_states, &mut [product]);
        }
        rank_rows(cpu, &mut self.logits, rows, &mut self.ranked);
        for (found, ranked) in self.found.iter_mut().zip(&self.ranked) {
            let token = self.vocabulary.as_ref().map_or(ranked.index, |v| v[ranked.index as usize]);
            *found = HeadToken { token, probability: ranked.probability };
        }
    }
}

/// One block's product, its bias added.
fn product(cpu: &Cpu, input: &Activations, block: &(PackedMatrix, Vec<f32>), out: &mut [f32]) {
    let (weights, bias) = (&block.0, Some(block.1.as_slice()));
    multiply(cpu, input, &mut [Product { weights, bias, accumulate: false, out }]);
}

/// The matrices from states to logits, each with the rows of `ids`.
fn own_or_shared(
    cpu: &Cpu,
    model: &PackedModel,
    file: &HeadsFile,
    ids: &[u32],
) -> Result<Vec<PackedMatrix>, Error> {
    let d = file.hidden_size;
    let own: Vec<&HeadMatrix> = file.heads.iter().filter_map(|h| h.output.as_ref()).collect();
    if !own.is_empty() {
        let rows = |u: &HeadMatrix| -> Vec<f32> {
            ids.iter().flat_map(|&id| row(u, id as usize)).collect()
        };
        return own
            .iter()
            .map(|u| pack_rows(cpu, &HeadMatrix::new(BlockType::F32, (ids.len(), d), &rows(u))))
            .collect();
    }
    let head = model.blueprint().linears.last();
    let head = head.ok_or_else(|| Error::Heads("the model has no output head".to_owned()))?;
    let tensor = model.checkpoint().require(&format!("{}.weight", head.name))?;
    let row = |r: usize| tensor.row_bytes(ids[r] as usize);
    let wrong = |e: &dyn std::fmt::Display| Error::Heads(format!("output head: {e}"));
    let to = Conversion::new(tensor.info.block, tensor.block, d).map_err(|e| wrong(&e))?;
    let len = PackedMatrix::packed_bytes(to.to(), ids.len(), d).map_err(|e| wrong(&e))?;
    let mut tiles = Buffer::zeroed(len);
    PackedMatrix::pack_converted(cpu, &to, ids.len(), row, &mut tiles).map_err(|e| wrong(&e))?;
    let tiles = SharedBytes::from(tiles);
    let packed = PackedMatrix::from_packed(to.to(), ids.len(), d, tiles).map_err(|e| wrong(&e))?;
    Ok(vec![packed])
}

fn row(matrix: &HeadMatrix, row: usize) -> Vec<f32> {
    let mut out = vec![0.0; matrix.cols];
    let bytes = matrix.row_bytes(row);
    matrix.block.dequantize(bytes, &mut out).expect("the length was checked");
    out
}

/// At 8 bits where rows are whole blocks of 32, else as they are.
fn pack_rows(cpu: &Cpu, matrix: &HeadMatrix) -> Result<PackedMatrix, Error> {
    let shape = (matrix.rows, matrix.cols);
    let pack = |matrix: &HeadMatrix| {
        let packed = PackedMatrix::pack(cpu, matrix.block, shape, |r| matrix.row_bytes(r));
        packed.map_err(|e| Error::Heads(e.to_string()))
    };
    if !matrix.cols.is_multiple_of(BlockType::Q8_0.block_len()) {
        return pack(matrix);
    }
    pack(&HeadMatrix::new(BlockType::Q8_0, shape, &matrix.values()))
}
