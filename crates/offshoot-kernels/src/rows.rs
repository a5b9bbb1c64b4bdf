//! Work on single rows of floats: norms, gates, rotary positions, sums, the greatest element.

use crate::disjoint::Disjoint;
use crate::isa::by_isa;
use crate::lanes::Lanes;
use crate::{Cpu, Isa, math};

by_isa! {
    /// `out = x / sqrt(mean(x^2) + eps) * weight`, all of one length (Zhang & Sennrich 2019,
    /// <https://arxiv.org/abs/1910.07467>).
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_lanes
}

by_isa! {
    /// `gate = silu(gate) * up` in place, the two of one length (Shazeer 2020,
    /// <https://arxiv.org/abs/2002.05202>).
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn silu_gate(gate: &[f32], up: &[f32], out: &mut [f32]) = silu_gate_lanes
}

by_isa! {
    /// `out = gelu(gate) * up`, the three of one length, with the approximation by `tanh`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gelu_gate(gate: &[f32], up: &[f32], out: &mut [f32]) = gelu_gate_lanes
}

by_isa! {
    /// `x = cap * tanh(x / cap)` in place (Gemma 2, <https://arxiv.org/abs/2408.00118>).
    pub fn soft_cap(x: &mut [f32], cap: f32) = soft_cap_lanes
}

by_isa! {
    /// `acc += x / sqrt(mean(x^2) + eps) * weight`, all of one length.
    fn add_normed_row(acc: &mut [f32], x: &[f32], weight: &[f32], eps: f32) = add_normed_lanes
}

by_isa! {
    /// Rotates each head of `x`: with `h = head_dim / 2`, elements `i` and `i + h` turn by the angle
    /// whose cosine and sine are `cos[i]` and `sin[i]` (Su et al. 2021,
    /// <https://arxiv.org/abs/2104.09864>, in the half-split order of Hugging Face).
    ///
    /// # Panics
    /// If `cos` and `sin` differ in length or `x` is no whole number of heads.
    pub fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32]) = rotate_lanes
}

by_isa! {
    /// `x = exp(x - log sum exp(x))` in place: the softmax. Gives the logarithm that was subtracted.
    ///
    /// The sum runs over 16 lanes and then over these. A NaN or an infinity makes all of it NaN.
    ///
    /// # Panics
    /// If `x` is empty.
    pub fn softmax(x: &mut [f32]) -> f32 = softmax_lanes
}

by_isa! {
    /// `acc += x`, the two of one length.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_assign(acc: &mut [f32], x: &[f32]) = add_assign_lanes
}

/// `acc += rms_norm(x) * weight`, row by row; rows are as long as `weight`.
///
/// # Panics
/// If `acc` and `x` are no whole rows, as many as each other.
pub fn add_normed(cpu: &Cpu, acc: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let width = weight.len();
    assert!(acc.len() == x.len() && x.len().is_multiple_of(width), "whole rows");
    let (isa, rows) = (cpu.isa(), x.len() / width);
    let acc = Disjoint::new(acc);
    let add = |row: usize| {
        // SAFETY: each row is taken by one member alone.
        let acc = unsafe { acc.slice(row * width, width) };
        add_normed_row(isa, acc, &x[row * width..(row + 1) * width], weight, eps);
    };
    if rows < 4 {
        (0..rows).for_each(add);
    } else {
        cpu.team().for_pieces(rows, 1, |_, piece| piece.for_each(add));
    }
}

/// The non-linear function of a gated feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)`, the normal distribution's function approximated by `tanh`.
    GeluTanh,
}

impl Activation {
    /// `out = activation(gate) * up`, the three of one length.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gate(self, isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
        match self {
            Activation::Silu => silu_gate(isa, gate, up, out),
            Activation::GeluTanh => gelu_gate(isa, gate, up, out),
        }
    }
}

/// The index of the greatest element, the lowest where several are equal; `None` if there is none
/// or an element is NaN.
pub fn argmax(x: &[f32]) -> Option<usize> {
    let mut best = (f32::NEG_INFINITY, None);
    // Blocks first: most of them hold nothing greater and are passed by vector comparison.
    for (b, block) in x.chunks(64).enumerate() {
        let mut greatest = f32::NEG_INFINITY;
        let mut nan = false;
        for &x in block {
            greatest = if x > greatest { x } else { greatest };
            nan |= x.is_nan();
        }
        if nan {
            return None;
        }
        if greatest > best.0 || best.1.is_none() {
            let at = block.iter().position(|&x| x == greatest)?;
            best = (greatest, Some(64 * b + at));
        }
    }
    best.1
}

/// `1 / sqrt(mean(x^2) + eps)`
#[inline(always)]
unsafe fn inverse_root<L: Lanes>(x: &[f32], eps: f32) -> f32 {
    let (n, whole) = (x.len(), x.len() / 16 * 16);
    // SAFETY: every access is to 16 floats below `whole`, or to the padded tail.
    unsafe {
        let mut squares = L::splat(0.0);
        for i in (0..whole).step_by(16) {
            let v = L::load(x.as_ptr().add(i));
            squares = L::fma(v, v, squares);
        }
        if whole < n {
            let tail = L::load(padded(&x[whole..]).as_ptr());
            squares = L::fma(tail, tail, squares);
        }
        1.0 / (L::sum(squares) / n as f32 + eps).sqrt()
    }
}

#[inline(always)]
unsafe fn rms_norm_lanes<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let n = x.len();
    assert!(weight.len() == n && out.len() == n, "rows of one length");
    // SAFETY: the caller runs where the instructions of `L` exist; 16 floats below `whole` each.
    unsafe {
        let (whole, inverse) = (n / 16 * 16, inverse_root::<L>(x, eps));
        let scale = L::splat(inverse);
        for i in (0..whole).step_by(16) {
            let v = L::mul(L::load(x.as_ptr().add(i)), scale);
            L::store(out.as_mut_ptr().add(i), L::mul(v, L::load(weight.as_ptr().add(i))));
        }
        for i in whole..n {
            out[i] = x[i] * inverse * weight[i];
        }
    }
}

#[inline(always)]
unsafe fn silu_gate_lanes<L: Lanes>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let n = out.len();
    assert!(gate.len() == n && up.len() == n, "rows of one length");
    let whole = n / 16 * 16;
    // SAFETY: every access is to 16 floats below `whole`, or to the padded tails.
    unsafe {
        for i in (0..whole).step_by(16) {
            let g = math::silu::<L>(L::load(gate.as_ptr().add(i)));
            L::store(out.as_mut_ptr().add(i), L::mul(g, L::load(up.as_ptr().add(i))));
        }
        if whole < n {
            let mut tail = padded(&gate[whole..]);
            let g = math::silu::<L>(L::load(tail.as_ptr()));
            L::store(tail.as_mut_ptr(), L::mul(g, L::load(padded(&up[whole..]).as_ptr())));
            out[whole..].copy_from_slice(&tail[..n - whole]);
        }
    }
}

#[inline(always)]
unsafe fn gelu_gate_lanes<L: Lanes>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let n = out.len();
    assert!(gate.len() == n && up.len() == n, "rows of one length");
    let whole = n / 16 * 16;
    // SAFETY: every access is to 16 floats below `whole`, or to the padded tails.
    unsafe {
        for i in (0..whole).step_by(16) {
            let g = math::gelu_tanh::<L>(L::load(gate.as_ptr().add(i)));
            L::store(out.as_mut_ptr().add(i), L::mul(g, L::load(up.as_ptr().add(i))));
        }
        if whole < n {
            let mut tail = padded(&gate[whole..]);
            let g = math::gelu_tanh::<L>(L::load(tail.as_ptr()));
            L::store(tail.as_mut_ptr(), L::mul(g, L::load(padded(&up[whole..]).as_ptr())));
            out[whole..].copy_from_slice(&tail[..n - whole]);
        }
    }
}

#[inline(always)]
unsafe fn soft_cap_lanes<L: Lanes>(x: &mut [f32], cap: f32) {
    for x in x.chunks_mut(16) {
        let mut lanes = padded(x);
        // SAFETY: 16 floats.
        unsafe {
            let y = math::tanh::<L>(L::div(L::load(lanes.as_ptr()), L::splat(cap)));
            L::store(lanes.as_mut_ptr(), L::mul(y, L::splat(cap)));
        }
        x.copy_from_slice(&lanes[..x.len()]);
    }
}

#[inline(always)]
unsafe fn add_normed_lanes<L: Lanes>(acc: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let n = x.len();
    assert!(weight.len() == n && acc.len() == n, "rows of one length");
    // SAFETY: the caller runs where the instructions of `L` exist; 16 floats below `whole` each.
    unsafe {
        let (whole, inverse) = (n / 16 * 16, inverse_root::<L>(x, eps));
        let scale = L::splat(inverse);
        for i in (0..whole).step_by(16) {
            let v = L::mul(L::load(x.as_ptr().add(i)), scale);
            let v = L::mul(v, L::load(weight.as_ptr().add(i)));
            L::store(acc.as_mut_ptr().add(i), L::add(L::load(acc.as_ptr().add(i)), v));
        }
        for i in whole..n {
            acc[i] += x[i] * inverse * weight[i];
        }
    }
}

#[inline(always)]
unsafe fn softmax_lanes<L: Lanes>(x: &mut [f32]) -> f32 {
    assert!(!x.is_empty(), "a row with elements");
    let whole = x.len() / 16 * 16;
    let (body, tail) = x.split_at_mut(whole);
    // SAFETY: every access is to 16 floats of `body`, or to the padded tail.
    unsafe {
        let mut last = [f32::NEG_INFINITY; 16];
        last[..tail.len()].copy_from_slice(tail);
        let mut most = L::load(last.as_ptr());
        for x in body.chunks_exact(16) {
            most = L::max(most, L::load(x.as_ptr()));
        }
        let most = L::greatest(most);
        let shift = L::splat(most);
        let mut sums = L::splat(0.0);
        for x in body.chunks_exact_mut(16) {
            let e = math::exp::<L>(L::sub(L::load(x.as_ptr()), shift));
            L::store(x.as_mut_ptr(), e);
            sums = L::add(sums, e);
        }
        let e = math::exp::<L>(L::sub(L::load(last.as_ptr()), shift));
        let e = L::first(tail.len(), e, L::splat(0.0));
        L::store(last.as_mut_ptr(), e);
        tail.copy_from_slice(&last[..tail.len()]);
        let total = L::sum(L::add(sums, e));
        let inverse = 1.0 / total;
        for x in body.chunks_exact_mut(16) {
            L::store(x.as_mut_ptr(), L::mul(L::load(x.as_ptr()), L::splat(inverse)));
        }
        for x in tail {
            *x *= inverse;
        }
        most + total.ln()
    }
}

#[inline(always)]
unsafe fn rotate_lanes<L: Lanes>(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    assert!(half > 0 && sin.len() == half && x.len().is_multiple_of(2 * half), "whole heads");
    let whole = half / 16 * 16;
    for head in x.chunks_exact_mut(2 * half) {
        let (a, b) = head.split_at_mut(half);
        // SAFETY: every access is to 16 floats below `whole`.
        unsafe {
            for i in (0..whole).step_by(16) {
                let (x, y) = (L::load(a.as_ptr().add(i)), L::load(b.as_ptr().add(i)));
                let (c, s) = (L::load(cos.as_ptr().add(i)), L::load(sin.as_ptr().add(i)));
                L::store(a.as_mut_ptr().add(i), L::fnma(y, s, L::mul(x, c)));
                L::store(b.as_mut_ptr().add(i), L::fma(x, s, L::mul(y, c)));
            }
        }
        for i in whole..half {
            let (x, y) = (a[i], b[i]);
            a[i] = (-y).mul_add(sin[i], x * cos[i]);
            b[i] = x.mul_add(sin[i], y * cos[i]);
        }
    }
}

#[inline(always)]
unsafe fn add_assign_lanes<L: Lanes>(acc: &mut [f32], x: &[f32]) {
    assert_eq!(acc.len(), x.len(), "rows of one length");
    for (acc, x) in acc.iter_mut().zip(x) {
        *acc += x;
    }
    // The loop is the same on every instruction set; `L` only lets the compiler use its registers.
    let _ = std::marker::PhantomData::<L>;
}

/// Up to 16 floats, the rest zero.
#[inline(always)]
fn padded(x: &[f32]) -> [f32; 16] {
    let mut out = [0.0; 16];
    out[..x.len()].copy_from_slice(x);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normed_sum_has_the_bits_of_its_steps() {
        for (rows, width) in [(1, 48), (3, 40), (9, 33)] {
            let row = |seed: usize, n: usize| -> Vec<f32> {
                (0..n).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0).collect()
            };
            let (x, weight) = (row(1, rows * width), row(2, width));
            for isa in Isa::available() {
                let mut expected = row(3, rows * width);
                let mut sum = expected.clone();
                for (acc, x) in expected.chunks_mut(width).zip(x.chunks(width)) {
                    let mut normed = vec![0.0; width];
                    rms_norm(isa, x, &weight, 1e-5, &mut normed);
                    add_assign(isa, acc, &normed);
                }
                add_normed(&Cpu::new(isa, 2), &mut sum, &x, &weight, 1e-5);
                assert!(
                    sum.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{isa}"
                );
            }
        }
    }

    #[test]
    fn a_cap_holds_and_small_numbers_pass() {
        let mut x: Vec<f32> = (0..37).map(|i| (i - 18) as f32 * 5.0).collect();
        let plain = x.clone();
        soft_cap(Isa::PORTABLE, &mut x, 30.0);
        for (y, x) in x.iter().zip(plain) {
            let exact = 30.0 * (f64::from(x) / 30.0).tanh();
            assert!((f64::from(*y) - exact).abs() < 1e-5 && y.abs() <= 30.0, "{x}: {y}");
        }
    }
}
