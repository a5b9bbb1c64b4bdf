//! What the processor can do at most, measured by the plainest possible loops.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::disjoint::Disjoint;
use crate::isa::by_isa;
use crate::lanes::Lanes;
use crate::{Buffer, Cpu};

/// How far ahead of the reading memory is asked for: its latency times one core's bandwidth.
const AHEAD: usize = 4096;
/// Bytes that a team member takes at a time.
const PIECE_BYTES: usize = 1 << 18;

/// Writes all of `buffer`, each team member the share that it reads in [`stream_read`]: pages that
/// nobody wrote before come to lie where they are read from.
pub fn stream_fill(cpu: &Cpu, buffer: &mut Buffer<u8>) {
    let pieces = buffer.len() / PIECE_BYTES;
    let (last, all) = (pieces * PIECE_BYTES, Disjoint::new(buffer));
    cpu.team().for_pieces(pieces, 1, |_, pieces| {
        for piece in pieces {
            // SAFETY: each piece is given out once, and pieces do not overlap.
            unsafe { all.slice(piece * PIECE_BYTES, PIECE_BYTES) }.fill(1);
        }
    });
    buffer[last..].fill(1);
}

/// Reads all of `buffer`, a multiple of 256 KiB, once, each team member its share, and gives a sum
/// that depends on every byte. The time this takes bounds the time of a decode step.
pub fn stream_read(cpu: &Cpu, buffer: &Buffer<u8>) -> u64 {
    let sum = AtomicU64::new(0);
    cpu.team().for_pieces(buffer.len() / PIECE_BYTES, 1, |_, pieces| {
        for piece in pieces {
            let bytes = &buffer[piece * PIECE_BYTES..(piece + 1) * PIECE_BYTES];
            sum.fetch_add(add_up(cpu.isa(), bytes), Ordering::Relaxed);
        }
    });
    sum.into_inner()
}

/// Runs `rounds` times 64 dot instructions on every team member, from registers; gives the
/// multiply-adds done.
pub fn dot_rate(cpu: &Cpu, rounds: usize) -> u64 {
    let sum = AtomicU64::new(0);
    cpu.team().run(|_| {
        sum.fetch_add(dots(cpu.isa(), rounds), Ordering::Relaxed);
    });
    let members = cpu.team().threads() as u64;
    // The sum is used so that the loop stays.
    if sum.into_inner() == 1 { 0 } else { members * rounds as u64 * 64 * 64 }
}

by_isa! { fn add_up(bytes: &[u8]) -> u64 = add_up_lanes }
by_isa! { fn dots(rounds: usize) -> u64 = dots_lanes }

#[inline(always)]
unsafe fn add_up_lanes<L: Lanes>(bytes: &[u8]) -> u64 {
    // SAFETY: each step reads 512 bytes of a chunk of 512; the macro checks the instructions.
    unsafe {
        let mut acc = [L::splat_i(0); 8];
        let ones = [1i8; 4];
        for chunk in bytes.chunks_exact(512) {
            for (i, acc) in acc.iter_mut().enumerate() {
                L::prefetch(chunk.as_ptr().wrapping_add(AHEAD + 64 * i));
                let bytes = L::bytes_load(chunk.as_ptr().add(64 * i));
                let dot = L::dot(L::dot_from(*acc), 8, bytes, ones.as_ptr());
                *acc = L::dot_sum(8, dot, L::dot_from(L::splat_i(0)));
            }
        }
        acc.into_iter().map(|acc| L::sum(L::to_f32(acc)) as u64).sum()
    }
}

#[inline(always)]
unsafe fn dots_lanes<L: Lanes>(rounds: usize) -> u64 {
    // SAFETY: `x` and `bytes` are read within their bounds; the macro checks the instructions.
    unsafe {
        let mut acc = [L::splat_i(0); 16];
        let bytes = std::hint::black_box([1u8; 64]);
        let x = std::hint::black_box([1i8; 4]);
        let w = L::bytes_load(bytes.as_ptr());
        for _ in 0..rounds {
            for acc in &mut acc {
                let mut dot = L::dot_from(*acc);
                for _ in 0..4 {
                    dot = L::dot(dot, 4, w, x.as_ptr());
                }
                *acc = L::dot_sum(4, dot, L::dot_from(L::splat_i(0)));
            }
        }
        acc.into_iter().map(|acc| L::sum(L::to_f32(acc)) as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn every_byte_is_read_and_every_dot_counted() {
        let mut buffer = Buffer::zeroed(1 << 20);
        buffer.iter_mut().enumerate().for_each(|(i, b)| *b = (i % 7) as u8);
        let expected: u64 = buffer.iter().map(|&b| u64::from(b)).sum();
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2);
            assert_eq!(stream_read(&cpu, &buffer), expected);
            assert_eq!(dot_rate(&cpu, 10), 2 * 10 * 64 * 64);
            let mut odd = Buffer::zeroed((1 << 20) + 77);
            stream_fill(&cpu, &mut odd);
            assert!(odd.iter().all(|&b| b == 1));
        }
    }
}
