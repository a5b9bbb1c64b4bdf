//! Fields of a block's bytes: numbers, halves of bytes, and fifth bits kept apart.

/// A block's bytes as an array, so that no later index needs a check.
pub(super) fn sized<const BYTES: usize>(block: &[u8]) -> &[u8; BYTES] {
    block.try_into().expect("callers cut rows into blocks of the format's own bytes")
}

/// The little-endian `u16` at `at`.
pub(super) fn u16_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Unpacks bytes of two quants: all low halves first, then all high halves.
pub(super) fn nibbles(packed: &[u8], q: &mut [u8]) {
    let (low, high) = q.split_at_mut(packed.len());
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(packed) {
        *low = byte & 15;
        *high = byte >> 4;
    }
}

/// Adds 16 to each of 32 quants whose bit is set, bit 0 of `bits[0]` being that of the first.
///
/// Eight quants a step: a byte is copied to all eight bytes of a word, each keeps its own bit, and
/// adding 0x7f carries whichever bit that was into the top one.
pub(super) fn add_fifth_bits(bits: &[u8], q: &mut [u8]) {
    for (&bits, q) in bits.iter().zip(q.chunks_exact_mut(8)) {
        let own = (u64::from(bits) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        let sixteens = ((own + 0x7f7f_7f7f_7f7f_7f7f) & 0x8080_8080_8080_8080) >> 3;
        for (q, sixteen) in q.iter_mut().zip(sixteens.to_le_bytes()) {
            *q |= sixteen;
        }
    }
}

/// Packs 32 quants' low 4 bits two to a byte: the inverse of [`nibbles`].
pub(super) fn push_nibbles(q: &[u8; 32], out: &mut Vec<u8>) {
    let (low, high) = q.split_at(16);
    out.extend(low.iter().zip(high).map(|(low, high)| (low & 15) | (high << 4)));
}

/// Packs 32 quants' fifth bits: the inverse of [`add_fifth_bits`].
pub(super) fn push_fifth_bits(q: &[u8; 32], out: &mut Vec<u8>) {
    let bits = q.iter().rev().fold(0, |bits, q| (bits << 1) | u32::from((q >> 4) & 1));
    out.extend_from_slice(&bits.to_le_bytes());
}

/// As [`push_nibbles`], to 16 bytes.
pub(super) fn put_nibbles(q: &[u8; 32], out: &mut [u8]) {
    let (low, high) = q.split_at(16);
    for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
        *out = (low & 15) | (high << 4);
    }
}

/// As [`push_fifth_bits`], to 4 bytes.
pub(super) fn put_fifth_bits(q: &[u8; 32], out: &mut [u8]) {
    let bits = q.iter().rev().fold(0, |bits, q| (bits << 1) | u32::from((q >> 4) & 1));
    out.copy_from_slice(&bits.to_le_bytes());
}
