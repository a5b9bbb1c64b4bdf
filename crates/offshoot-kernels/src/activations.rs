//! The inputs of a product: rows of floats, and the forms that the dot instructions read.
//!
//! Quantised form: blocks of 32 inputs share one scale, `q = round(x / d)`, `d = max|x| / 127`. A
//! token's block is one 64-byte line that holds everything a tile needs of it:
//!
//! ```text
//! bytes  0..32  q, 32 x i8
//!       32..36  d, f32
//!       36..40  d * sum(q), f32
//!       40..44  -sum(q), i32
//!       44..52  d * sum of q over each half, 2 x f32
//!       52..60  -sum of q over each half, 2 x i32
//! ```
//!
//! What that leaves over may be kept too, in the same way: `q' = round(254 * (x / d - q))` with the
//! scale `d / 254`, so that both together err by a 508th of `d`. Such a second plane has lines of its
//! own, and a product with both is the sum of the products with each.
//!
//! Up to [`PANEL`] tokens form a panel: their lines for block 0, then those of its second plane, then
//! for block 1, and so on.

use crate::disjoint::Disjoint;
use crate::isa::by_isa;
use crate::lanes::Lanes;
use crate::{Buffer, Cpu, Isa};

/// Tokens of a panel at most.
pub(crate) const PANEL: usize = 8;
/// Bytes of a token's block.
pub(crate) const LINE: usize = 64;

/// Which forms of the inputs a product needs beside floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forms {
    /// 8-bit blocks, for quantised weights.
    pub q8: bool,
    /// What 8-bit blocks leave over, in 8-bit blocks again, for weights of 8 bits; others do without.
    pub rest: bool,
    /// bfloat16, for bfloat16 weights.
    pub bf16: bool,
}

/// Rows of inputs `[tokens, cols]` in every form that was asked for.
///
/// Room grows to the largest batch seen and is kept, so that a step allocates nothing.
#[derive(Debug)]
pub struct Activations {
    tokens: usize,
    cols: usize,
    forms: Forms,
    x: Buffer<f32>,
    lines: Buffer<u8>,
    bf16: Buffer<u16>,
}

impl Forms {
    /// All forms of `self` and of `other`.
    pub fn and(self, other: Self) -> Self {
        Self {
            q8: self.q8 || other.q8,
            rest: self.rest || other.rest,
            bf16: self.bf16 || other.bf16,
        }
    }

    /// How many lines a token's block has.
    const fn planes(self) -> usize {
        if self.q8 && self.rest { 2 } else { self.q8 as usize }
    }
}

/// The lines of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    pub(crate) lines: &'a [u8],
    /// Tokens that it is laid out for, and those that it has.
    pub(crate) width: usize,
    pub(crate) count: usize,
    /// Bytes from a block's lines to the next block's.
    pub(crate) stride: usize,
    /// Bytes from a line to that of the second plane; 0 if there is none.
    pub(crate) rest: usize,
}

impl Default for Activations {
    fn default() -> Self {
        Self::new()
    }
}

/// Tokens that a panel of `tokens` has room for: kernels exist for 1, 2, 3, 4, 6 and 8.
pub(crate) const fn panel_width(tokens: usize) -> usize {
    match tokens {
        0..=4 => tokens,
        5 | 6 => 6,
        _ => PANEL,
    }
}

impl Activations {
    /// No rows, no room.
    pub fn new() -> Self {
        Self {
            tokens: 0,
            cols: 0,
            forms: Forms::default(),
            x: Buffer::zeroed(0),
            lines: Buffer::zeroed(0),
            bf16: Buffer::zeroed(0),
        }
    }

    /// Number of rows.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Width of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The forms that [`Activations::fill`] made last.
    pub fn forms(&self) -> Forms {
        self.forms
    }

    /// All rows as floats, `[tokens, cols]`.
    pub fn x(&self) -> &[f32] {
        &self.x[..self.tokens * self.cols]
    }

    /// Replaces the rows: `produce(row, out)` writes each, and its other forms are made while it is
    /// warm. Rows are produced by several threads; each must depend on its own index alone.
    ///
    /// # Panics
    /// If the 8-bit form is asked for and `cols` is no multiple of 32.
    pub fn fill(
        &mut self,
        cpu: &Cpu,
        (tokens, cols): (usize, usize),
        forms: Forms,
        produce: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let rows = self.begin(cpu, (tokens, cols), forms);
        cpu.team().for_pieces(tokens, 1, |_, piece| {
            for row in piece {
                // SAFETY: pieces do not overlap, so a member alone has this row.
                unsafe {
                    produce(row, rows.part(row, 0, cols));
                    rows.encode(row, 0, cols);
                }
            }
        });
    }

    /// Makes room for new rows, which the caller then writes.
    ///
    /// # Panics
    /// If the 8-bit form is asked for and `cols` is no multiple of 32.
    pub(crate) fn begin(
        &mut self,
        cpu: &Cpu,
        (tokens, cols): (usize, usize),
        forms: Forms,
    ) -> NewRows<'_> {
        assert!(!forms.q8 || cols % 32 == 0, "8-bit blocks of 32 inputs");
        self.reserve((tokens, cols), forms);
        NewRows {
            isa: cpu.isa(),
            tokens,
            cols,
            forms,
            x: Disjoint::new(&mut self.x),
            lines: Disjoint::new(&mut self.lines),
            bf16: Disjoint::new(&mut self.bf16),
        }
    }

    fn reserve(&mut self, (tokens, cols): (usize, usize), forms: Forms) {
        let panels = tokens.div_ceil(PANEL);
        self.x.grow(tokens * cols);
        if forms.q8 {
            self.lines.grow(panels * forms.planes() * PANEL * LINE * (cols / 32));
        }
        if forms.bf16 {
            self.bf16.grow(tokens * cols.next_multiple_of(2));
            if cols % 2 == 1 {
                self.bf16.fill(0);
            }
        }
        (self.tokens, self.cols, self.forms) = (tokens, cols, forms);
    }

    /// Panel `panel`.
    pub(crate) fn panel(&self, panel: usize) -> Panel<'_> {
        let planes = self.forms.planes();
        let bytes = planes * PANEL * LINE * (self.cols / 32);
        let count = PANEL.min(self.tokens - panel * PANEL);
        let width = panel_width(count);
        Panel {
            lines: &self.lines[panel * bytes..(panel + 1) * bytes],
            width,
            count,
            stride: planes * width * LINE,
            rest: if planes == 2 { width * LINE } else { 0 },
        }
    }

    /// bfloat16 rows, `[tokens, cols rounded up to even]`.
    pub(crate) fn bf16(&self) -> &[u16] {
        &self.bf16[..self.tokens * self.cols.next_multiple_of(2)]
    }
}

/// Rows that are being written, by several threads.
pub(crate) struct NewRows<'a> {
    isa: Isa,
    tokens: usize,
    cols: usize,
    forms: Forms,
    x: Disjoint<'a, f32>,
    lines: Disjoint<'a, u8>,
    bf16: Disjoint<'a, u16>,
}

impl NewRows<'_> {
    /// Inputs `col..col + n` of row `row`.
    ///
    /// # Safety
    /// No one else may use them meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, row: usize, col: usize, n: usize) -> &mut [f32] {
        assert!(row < self.tokens && col + n <= self.cols, "inputs of a row");
        // SAFETY: the caller's promise.
        unsafe { self.x.slice(row * self.cols + col, n) }
    }

    /// Makes the other forms of inputs `col..col + n` of row `row`, which are written; `col` and,
    /// unless the row ends there, `n` are multiples of 32.
    ///
    /// # Safety
    /// No one else may use these inputs, in any form, meanwhile.
    pub(crate) unsafe fn encode(&self, row: usize, col: usize, n: usize) {
        // SAFETY: the caller's promise.
        let x = &*unsafe { self.part(row, col, n) };
        if self.forms.q8 {
            let (panel, token) = (row / PANEL, row % PANEL);
            let width = panel_width(PANEL.min(self.tokens - panel * PANEL));
            let planes = self.forms.planes();
            let start = panel * planes * PANEL * LINE * (self.cols / 32);
            let places = Places {
                first: start + (col / 32 * planes * width + token) * LINE,
                stride: planes * width * LINE,
                rest: if planes == 2 { width * LINE } else { 0 },
            };
            // The lines of these inputs, one or two for each block, belong to them alone.
            quantize_blocks(self.isa, x, &self.lines, places);
        }
        if self.forms.bf16 {
            let at = row * self.cols.next_multiple_of(2) + col;
            // SAFETY: as above.
            let out = unsafe { self.bf16.slice(at, n) };
            for (out, x) in out.iter_mut().zip(x) {
                *out = half::bf16::from_f32(*x).to_bits();
            }
        }
    }
}

/// Where the lines of a token's blocks go.
#[derive(Clone, Copy)]
struct Places {
    first: usize,
    /// Bytes from a block's line to the next one's.
    stride: usize,
    /// Bytes from a line to that of the second plane; 0 if there is none.
    rest: usize,
}

by_isa! {
    fn quantize_blocks(x: &[f32], lines: &Disjoint<'_, u8>, places: Places) = quantize_blocks_lanes
}

/// Quantises whole blocks of inputs; no one else uses their lines meanwhile.
#[inline(always)]
unsafe fn quantize_blocks_lanes<L: Lanes>(x: &[f32], lines: &Disjoint<'_, u8>, places: Places) {
    for (b, x) in x.chunks_exact(32).enumerate() {
        let at = places.first + b * places.stride;
        // SAFETY: `x` holds 32 floats; nobody else uses the lines.
        unsafe {
            let (x0, x1) = (L::load(x.as_ptr()), L::load(x.as_ptr().add(16)));
            let greatest = L::greatest(L::max(L::abs(x0), L::abs(x1)));
            let (d, inverse) =
                if greatest <= 1e-30 { (0.0, 0.0) } else { (greatest / 127.0, 127.0 / greatest) };
            let inverse = L::splat(inverse);
            let (y0, y1) = (L::mul(x0, inverse), L::mul(x1, inverse));
            let (q0, q1) = (L::to_i32(y0), L::to_i32(y1));
            write_line::<L>(lines.slice(at, LINE), [x0, x1], [q0, q1], d);
            if places.rest > 0 {
                // The differences are exact: they have no more places than the minuends.
                let steps = L::splat(254.0);
                let r0 = L::to_i32(L::mul(L::sub(y0, L::to_f32(q0)), steps));
                let r1 = L::to_i32(L::mul(L::sub(y1, L::to_f32(q1)), steps));
                write_line::<L>(lines.slice(at + places.rest, LINE), [x0, x1], [r0, r1], d / 254.0);
            }
        }
    }
}

/// Writes a line: quants of the inputs `x` whose scale is `d`, and what products need of them.
///
/// # Safety
/// Where the instructions of `L` exist.
#[inline(always)]
unsafe fn write_line<L: Lanes>(line: &mut [u8], x: [L::F; 2], q: [L::I; 2], d: f32) {
    assert_eq!(line.len(), LINE, "a line");
    // SAFETY: 60 of the line's 64 bytes are written.
    unsafe {
        let p = line.as_mut_ptr();
        L::store_i8(p.cast(), q[0]);
        L::store_i8(p.cast::<i8>().add(16), q[1]);
        // Sums of at most 32 x 127 are exact in f32, so their order is free. What is added to
        // them is zero, or a NaN where an input is none of the finite numbers: it must reach the
        // logits, where it is an error.
        let zero = L::splat(0.0);
        let s0 = L::sum(L::fma(x[0], zero, L::to_f32(q[0])));
        let s1 = L::sum(L::fma(x[1], zero, L::to_f32(q[1])));
        let d = d + 0.0 * (s0 + s1);
        let floats = p.cast::<f32>();
        floats.add(8).write_unaligned(d);
        floats.add(9).write_unaligned(d * (s0 + s1));
        floats.add(10).cast::<i32>().write_unaligned(((s0 + s1) as i32).wrapping_neg());
        floats.add(11).write_unaligned(d * s0);
        floats.add(12).write_unaligned(d * s1);
        floats.add(13).cast::<i32>().write_unaligned((s0 as i32).wrapping_neg());
        floats.add(14).cast::<i32>().write_unaligned((s1 as i32).wrapping_neg());
    }
}
