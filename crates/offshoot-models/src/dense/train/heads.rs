//! Draft heads that learn beside a model.
//!
//! Medusa-2 of Cai et al. 2024, section 2.2.2, <https://arxiv.org/abs/2401.10774>: the state that a head
//! reads is the model's own, so what heads learn the model may learn, too. With `h` the final norm's
//! result, `z_k` head k's state and U the rows of the output head that are scored, as in
//! [`crate::medusa::HeadsFile`],
//! ```text
//! D = - sum over targets of weight log softmax(U z_k(h))[token]          L = L_model + lambda D
//! of the model's variables    dL_model + lambda (dD / dh) dh
//! of the heads'               dD
//! ```
//! Departs from the paper in the last line, which has `lambda` there as well: what the heads learn does
//! not hang on how much of it the model hears, and an optimiser that divides by the size of gradients
//! makes the same steps either way, but where `lambda` rises. U is the base's and is not trained.
//!
//! The heads have a graph of their own over `h`: its gradient there is what goes back into the model.
//! Where the model stays as it is, nothing does.

use candle_core::backprop::GradStore;
use candle_core::{D, Tensor, Var};
use offshoot_kernels::BlockType;

use super::super::DenseModel;
use super::super::ops::{CrossEntropy, Frozen, Target};
use crate::medusa::{Head, HeadMatrix, HeadToken, HeadsFile, ResBlock};
use crate::{Error, LinearId};

/// A token that the output head does not score for heads.
const NONE: u32 = u32::MAX;

/// A token that a draft head is to guess.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DraftTarget {
    /// Which of the texts.
    pub text: usize,
    /// The place in it whose state the head reads.
    pub place: usize,
    /// The token that is chosen there, which stands at the next place.
    pub chosen: u32,
    /// The head, from 0 on.
    pub head: usize,
    /// The token that it is to guess, which [`crate::DenseTuning::drafts`] says yes to.
    pub token: u32,
    /// Its weight in `D`.
    pub weight: f64,
}

/// What draft heads learn in a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drafts<'a> {
    /// What they are to guess.
    pub targets: &'a [DraftTarget],
    /// `lambda`: how much the model hears of it.
    pub weight: f64,
    /// Whether they learn alone. The model's variables then have no gradients.
    pub alone: bool,
}

#[derive(Debug)]
struct Block {
    /// `[d, d]`, or `[d, 2d]`.
    weight: Var,
    /// `[d]`.
    bias: Var,
}

/// Heads over a model, as variables.
#[derive(Debug)]
pub(super) struct DenseHeads {
    /// By head.
    blocks: Vec<Vec<Block>>,
    sees_token: bool,
    /// U, `[V', d]`.
    output: Tensor,
    /// The token of each of its rows, and the row of each token.
    vocabulary: Vec<u32>,
    rows: Vec<u32>,
}

/// `D` of a step, and its slopes.
pub(super) struct HeadGradients {
    /// By head.
    pub(super) losses: Vec<f64>,
    /// `dD / dh`, `[n, d]`.
    pub(super) states: Option<Tensor>,
    /// Those of the heads' variables.
    pub(super) store: GradStore,
}

impl DenseHeads {
    /// Variables that begin as the heads of `file`.
    pub(super) fn new(model: &DenseModel, file: &HeadsFile) -> Result<Self, Error> {
        file.check(model.config())?;
        if file.heads.iter().any(|head| head.output.is_some()) {
            let what =
                "they have output matrices of their own, and those that are trained have none";
            return Err(Error::Heads(what.to_owned()));
        }
        let variable = |matrix: &HeadMatrix, dims: &[usize]| {
            let tensor = Tensor::from_vec(matrix.values(), dims, model.device())?;
            Var::from_tensor(&tensor.to_dtype(model.dtype())?)
        };
        let block = |block: &ResBlock| {
            let (weight, bias) = (&block.weight, &block.bias);
            let (weight, bias) =
                (variable(weight, &[weight.rows, weight.cols])?, variable(bias, &[bias.cols])?);
            Ok::<_, Error>(Block { weight, bias })
        };
        let of_head = |head: &Head| head.blocks.iter().map(block).collect::<Result<Vec<_>, _>>();
        let blocks = file.heads.iter().map(of_head).collect::<Result<_, _>>()?;
        let all = || (0..model.config().vocab_size as u32).collect();
        let vocabulary: Vec<u32> = file.vocabulary.clone().unwrap_or_else(all);
        let mut rows = vec![NONE; model.config().vocab_size];
        vocabulary.iter().zip(0..).for_each(|(&token, row)| rows[token as usize] = row);
        let output = output_rows(model, &vocabulary)?;
        Ok(Self { blocks, sees_token: file.sees_token(), output, vocabulary, rows })
    }

    /// What is trained, by name.
    pub(super) fn variables(&self) -> Vec<(String, Var)> {
        let mut variables = Vec::new();
        for (k, blocks) in self.blocks.iter().enumerate() {
            for (l, Block { weight, bias }) in blocks.iter().enumerate() {
                let name = |what| format!("medusa_head.{k}.{l}.linear.{what}");
                variables.extend([(name("bias"), bias.clone()), (name("weight"), weight.clone())]);
            }
        }
        variables
    }

    /// Number of heads.
    pub(super) fn count(&self) -> usize {
        self.blocks.len()
    }

    /// Whether `token` is scored.
    pub(super) fn scores(&self, token: u32) -> bool {
        self.rows.get(token as usize).is_some_and(|&row| row != NONE)
    }

    /// The heads as they are, in half precision.
    pub(super) fn file(&self, hidden_size: usize) -> Result<HeadsFile, Error> {
        let matrix = |variable: &Var, shape| {
            let numbers = variable.flatten_all()?.to_dtype(candle_core::DType::F32)?;
            Ok::<_, Error>(HeadMatrix::new(BlockType::F16, shape, &numbers.to_vec1::<f32>()?))
        };
        let block = |Block { weight, bias }: &Block| {
            let (weight, bias) =
                (matrix(weight, weight.dims2()?)?, matrix(bias, (1, bias.dim(0)?))?);
            Ok::<_, Error>(ResBlock { weight, bias })
        };
        let head = |blocks: &Vec<Block>| {
            let blocks = blocks.iter().map(block).collect::<Result<_, _>>()?;
            Ok::<_, Error>(Head { blocks, output: None })
        };
        let heads = self.blocks.iter().map(head).collect::<Result<_, _>>()?;
        Ok(HeadsFile { hidden_size, heads, vocabulary: Some(self.vocabulary.clone()), card: None })
    }

    /// What the first blocks multiply: states `h`, `[n, d]`, or `[n, 2d]` with the chosen tokens.
    fn input(&self, model: &DenseModel, h: &Tensor, chosen: &[u32]) -> Result<Tensor, Error> {
        if !self.sees_token {
            return Ok(h.clone());
        }
        let embedded = model.embedded(&Tensor::new(chosen, model.device())?)?.detach();
        let mean = embedded.sqr()?.mean_keepdim(D::Minus1)?;
        // A row of zeros stays one.
        let root = mean.eq(0.0)?.where_cond(&mean.ones_like()?, &mean.sqrt()?)?;
        Ok(Tensor::cat(&[h, &embedded.broadcast_div(&root)?], 1)?)
    }

    /// `z_k`, `[n, d]`.
    fn state(&self, k: usize, h: &Tensor, input: &Tensor) -> Result<Tensor, Error> {
        let mut z = h.clone();
        for (l, Block { weight, bias }) in self.blocks[k].iter().enumerate() {
            let x = if l == 0 { input } else { &z };
            let product = x.matmul(&weight.t()?)?;
            z = (z + product.broadcast_add(bias)?.silu()?)?;
        }
        Ok(z)
    }

    /// `D` over the places, whose states are `h`, `[n, d]`, and its slopes; by operations of our
    /// own where they suit, if `own`.
    pub(super) fn gradients(
        &self,
        model: &DenseModel,
        h: &Tensor,
        places: &DraftPlaces,
        own: bool,
    ) -> Result<HeadGradients, Error> {
        let leaf = Var::from_tensor(&h.detach())?;
        let input = self.input(model, &leaf, &places.chosen)?;
        let (mut losses, mut sum) = (Vec::with_capacity(self.count()), None);
        for (k, targets) in places.targets.iter().enumerate() {
            if targets.is_empty() {
                losses.push(0.0);
                continue;
            }
            let z = self.state(k, &leaf, &input)?;
            let head = Frozen::Tensor(self.output.clone());
            let (loss, exact) = CrossEntropy { head, cap: None, targets }.by(own, &z, false)?;
            losses.push(exact);
            sum = Some(match sum {
                Some(sum) => (sum + loss)?,
                None => loss,
            });
        }
        let none = || Error::Step("no token is to be guessed".to_owned());
        let mut store = sum.ok_or_else(none)?.backward()?;
        let states = store.remove(&leaf);
        Ok(HeadGradients { losses, states, store })
    }

    /// The `ranks` likeliest tokens of each head for each state of `h`, `[n, d]`, from which `chosen`
    /// were chosen: state after state, head after head.
    pub(super) fn guesses(
        &self,
        model: &DenseModel,
        h: &Tensor,
        chosen: &[u32],
        ranks: usize,
    ) -> Result<Vec<HeadToken>, Error> {
        let ranks = ranks.min(self.vocabulary.len());
        let input = self.input(model, h, chosen)?;
        let width = self.count() * ranks;
        let mut all = vec![HeadToken::default(); chosen.len() * width];
        for k in 0..self.count() {
            let logits = self.state(k, h, &input)?.detach().matmul(&self.output.t()?)?;
            let logits = logits.to_dtype(candle_core::DType::F32)?.to_vec2::<f32>()?;
            for (row, logits) in logits.iter().enumerate() {
                let place = row * width + k * ranks;
                self.rank(logits, &mut all[place..place + ranks]);
            }
        }
        Ok(all)
    }

    /// The likeliest tokens by `logits`; of equals the lower is first.
    fn rank(&self, logits: &[f32], out: &mut [HeadToken]) {
        let greatest = logits.iter().fold(f32::NEG_INFINITY, |m, &l| m.max(l));
        let total: f32 = logits.iter().map(|l| (l - greatest).exp()).sum();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        let by = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
        if out.len() < order.len() {
            order.select_nth_unstable_by(out.len(), by);
            order.truncate(out.len());
        }
        order.sort_unstable_by(by);
        for (out, row) in out.iter_mut().zip(order) {
            let probability = (logits[row] - greatest).exp() / total;
            *out = HeadToken { token: self.vocabulary[row], probability };
        }
    }
}

/// The rows of the output head for these tokens, `[n, d]`.
fn output_rows(model: &DenseModel, tokens: &[u32]) -> Result<Tensor, Error> {
    let last = model.blueprint().linears.len().checked_sub(1);
    let last = last.ok_or_else(|| Error::Heads("the model has no output head".to_owned()))?;
    Ok(match model.matrix(LinearId(last))? {
        Frozen::Tensor(matrix) => {
            matrix.detach().index_select(&Tensor::new(tokens, matrix.device())?, 0)?
        }
        stored => {
            let rows = tokens.iter().map(|&token| stored.rows(token as usize, 1, model.dtype()));
            Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?
        }
    })
}

/// The rows of a step whose states heads read.
pub(super) struct DraftPlaces {
    /// Of all texts' rows, ascending, each once.
    pub(super) rows: Vec<u32>,
    /// The token that is chosen at each of them.
    pub(super) chosen: Vec<u32>,
    /// By head, in ascending order of rows, by their places among them.
    targets: Vec<Vec<Target>>,
}

impl DraftPlaces {
    pub(super) fn of(
        heads: &DenseHeads,
        texts: &[&[u32]],
        drafts: &[DraftTarget],
    ) -> Result<Self, Error> {
        let firsts: Vec<usize> = texts
            .iter()
            .scan(0, |rows, text| Some(std::mem::replace(rows, *rows + text.len())))
            .collect();
        let mut sorted = Vec::with_capacity(drafts.len());
        for (number, draft) in drafts.iter().enumerate() {
            let within = texts.get(draft.text).is_some_and(|text| draft.place < text.len());
            let known = draft.head < heads.count()
                && heads.scores(draft.token)
                && (draft.chosen as usize) < heads.rows.len();
            if !within || !known || !draft.weight.is_finite() {
                let what = format!("draft {number} is of no place, head or token that there is");
                return Err(Error::Step(what));
            }
            sorted.push(((firsts[draft.text] + draft.place) as u32, *draft));
        }
        sorted.sort_by_key(|(row, _)| *row);
        let targets = vec![Vec::new(); heads.count()];
        let mut places = Self { rows: Vec::new(), chosen: Vec::new(), targets };
        for (row, DraftTarget { chosen, head, token, weight, .. }) in sorted {
            match (places.rows.last(), places.chosen.last()) {
                (Some(&last), Some(&other)) if last == row && other != chosen => {
                    return Err(Error::Step(format!("row {row}: two tokens chosen at a place")));
                }
                (Some(&last), _) if last == row => {}
                _ => {
                    places.rows.push(row);
                    places.chosen.push(chosen);
                }
            }
            let (row, token) = (places.rows.len() - 1, heads.rows[token as usize]);
            places.targets[head].push(Target { row, token, weight });
        }
        Ok(places)
    }
}
