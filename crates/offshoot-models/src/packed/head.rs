//! The output head of a step: logits, the greatest of each row, or what is known of some tokens.

use offshoot_kernels::{
    Greatest, PackedMatrix, Product, Wanted, add_assign, log_softmax_rows, multiply,
    multiply_formed, multiply_greatest, multiply_log_softmax, multiply_part, soft_cap,
};

use super::executor::{Head, PackedExecutor, Run, moved};
use super::hooks::SegmentRows;
use crate::{Error, LinearId};

/// Rows whose logits are in memory at once where only scores are asked for.
const ROWS: usize = 64;

/// The matrix that makes logits, and what is done to them.
#[derive(Clone, Copy)]
struct OutputHead<'a> {
    id: LinearId,
    matrix: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    cap: Option<f32>,
}

impl Run<'_, '_> {
    /// Multiplies the rows whose logits are asked for with `head`.
    pub(super) fn head(&mut self, head: LinearId, cap: Option<f32>) -> Result<(), Error> {
        if self.registers.stream.logit_rows.is_empty() {
            return Ok(());
        }
        let forms = self.forms(self.registers.normed.cols());
        let PackedExecutor { cpu, normed, head_input, stream, .. } = &mut *self.registers;
        let logit_rows = &stream.logit_rows;
        let (width, x) = (normed.cols(), normed.x());
        head_input.fill(cpu, (logit_rows.len(), width), forms, |row, out| {
            let row = logit_rows[row];
            out.copy_from_slice(&x[row * width..(row + 1) * width]);
        });
        let mut room = std::mem::take(&mut self.registers.moved[0]);
        let linear = self.model.linear(head);
        let (isa, terms) = (self.registers.cpu.isa(), self.hooks.bias_terms(head));
        let bias = linear.bias.as_deref().map(|bias| moved(isa, bias, terms, &mut room));
        let head = OutputHead { id: head, matrix: &linear.matrix, bias, cap };
        match self.want {
            // Caps may make logits equal that were not, so the greatest is looked for behind them.
            Head::Greatest if !self.hooked(head.id) && cap.is_none() => self.greatest(head),
            Head::Scores(wanted) if self.adds_to(head.id) => self.scores_of_logits(head, wanted),
            Head::Scores(wanted) => self.scores(head, wanted),
            Head::Greatest | Head::Logits => self.logit_rows(head),
        }
        self.registers.moved[0] = room;
        Ok(())
    }

    /// Whether someone adds to the product of `linear` in this step.
    fn adds_to(&self, linear: LinearId) -> bool {
        self.segments.iter().any(|s| self.hooks.adds(linear, s.variant))
    }

    fn greatest(&mut self, head: OutputHead<'_>) {
        let PackedExecutor { cpu, head_input, greatest, greatest_scratch, .. } =
            &mut *self.registers;
        let weights = (head.matrix, head.bias);
        multiply_greatest(cpu, head_input, weights, greatest_scratch, greatest);
    }

    fn scores(&mut self, head: OutputHead<'_>, wanted: Wanted<'_>) {
        let how = (self.hooks.forming(head.id), head.cap);
        let PackedExecutor { cpu, head_input, scores, scores_scratch, .. } = &mut *self.registers;
        let weights = (head.matrix, head.bias);
        multiply_log_softmax(cpu, head_input, weights, how, wanted, scores_scratch, scores);
    }

    /// The same where someone adds to the logits, which are therefore made, some rows at a time.
    fn scores_of_logits(&mut self, head: OutputHead<'_>, wanted: Wanted<'_>) {
        let PackedExecutor { cpu, head_input, logits, stream, scores, forming: room, .. } =
            &mut *self.registers;
        let (width, vocab) = (head_input.cols(), logits.width());
        logits.reserve(ROWS);
        let (mut first, mut ends) = (0, Vec::new());
        for (segment, (s, &count)) in self.segments.iter().zip(&stream.logit_counts).enumerate() {
            let end = first + count;
            while first < end {
                let rows = ROWS.min(end - first);
                let (y, tokens) = (logits.get_mut(rows), first..first + rows);
                let forming = self.hooks.forming(head.id).map(|forming| (forming, &mut *room));
                multiply_part(cpu, head_input, tokens.clone(), head.matrix, forming, y);
                for (y, bias) in y.chunks_exact_mut(vocab).zip(std::iter::repeat_n(head.bias, rows))
                {
                    if let Some(bias) = bias {
                        add_assign(cpu.isa(), y, bias);
                    }
                }
                if self.hooks.adds(head.id, s.variant) {
                    let which = SegmentRows { segment, variant: s.variant, rows };
                    let x = &head_input.x()[first * width..(first + rows) * width];
                    self.hooks.addend(head.id, which, x, y);
                }
                if let Some(cap) = head.cap {
                    soft_cap(cpu.isa(), y, cap);
                }
                let skip = first.checked_sub(1).map_or(0, |row| wanted.ends[row]);
                ends.clear();
                ends.extend(wanted.ends[tokens].iter().map(|end| end - skip));
                let outputs = &wanted.outputs[skip..skip + ends[rows - 1]];
                let wanted = Wanted { outputs, ends: &ends };
                log_softmax_rows(cpu.isa(), y, vocab, wanted, scores);
                first += rows;
            }
        }
    }

    /// All logits, or the greatest of each row of them.
    fn logit_rows(&mut self, head: OutputHead<'_>) {
        let PackedExecutor {
            cpu,
            head_input,
            logits,
            stream,
            logits_given,
            greatest,
            forming: room,
            ..
        } = &mut *self.registers;
        let (n, width) = (head_input.tokens(), head_input.cols());
        logits.reserve(n);
        let out = logits.get_mut(n);
        let mut product = Product { weights: head.matrix, bias: head.bias, accumulate: false, out };
        match self.hooks.forming(head.id) {
            Some(forming) => multiply_formed(cpu, head_input, &mut product, forming, room),
            None => multiply(cpu, head_input, &mut [product]),
        }
        let (mut first, vocab) = (0, logits.width());
        for (segment, (s, &rows)) in self.segments.iter().zip(&stream.logit_counts).enumerate() {
            if rows > 0 && self.hooks.adds(head.id, s.variant) {
                let which = SegmentRows { segment, variant: s.variant, rows };
                let x = &head_input.x()[first * width..(first + rows) * width];
                let y = &mut logits.get_mut(n)[first * vocab..(first + rows) * vocab];
                self.hooks.addend(head.id, which, x, y);
            }
            first += rows;
        }
        if let Some(cap) = head.cap {
            soft_cap(cpu.isa(), logits.get_mut(n), cap);
        }
        match self.want {
            Head::Greatest => {
                greatest.extend(logits.get(n).chunks_exact(vocab).map(Greatest::of));
            }
            Head::Logits | Head::Scores(_) => *logits_given = n,
        }
    }
}
