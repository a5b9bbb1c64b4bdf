"""Makes the reference values for the block formats' dequantisation and quantisation.

Run with the `gguf` package (numpy comes with it):

    python scripts/oracles/blocks.py crates/offshoot-kernels/tests/data

Writes `blocks.bin`, read by `crates/offshoot-kernels/tests/blocks.rs`. For each format one record:

    u32 ggml id | u32 n blocks | the blocks' bytes | their weights' f32 bits     (little-endian)

The blocks are bytes of a fixed generator; only the f16 scales are then replaced, by halves that are
neither NaN nor infinite: zeros of both signs, subnormals, the largest and smallest, and random ones.

Then `quantize.bin`, for the formats offshoot can write, in the same shape with the two sides swapped:

    u32 ggml id | u32 n weights | the weights' f32 bits | the blocks' bytes
"""

import pathlib
import sys

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

# Where each format keeps its f16 scales in a block.
SCALES_AT = {
    T.F32: [],
    T.F16: [0],
    T.BF16: [],
    T.Q4_0: [0],
    T.Q4_1: [0, 2],
    T.Q5_0: [0],
    T.Q5_1: [0, 2],
    T.Q8_0: [0],
    T.Q2_K: [80, 82],
    T.Q3_K: [108],
    T.Q4_K: [0, 2],
    T.Q5_K: [0, 2],
    T.Q6_K: [208],
    T.IQ4_NL: [0],
    T.IQ4_XS: [0],
}
WRITTEN = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]
# +0, -0, smallest and largest subnormals, smallest normal, largest of both signs, 1 and -1.
SPECIAL = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x3C00, 0xBC00]


def random_bytes(seed, n):
    """xorshift64*, one byte a step: the same on every version of numpy."""
    state = seed * 0x9E3779B97F4A7C15 % 2**64
    out = bytearray()
    for _ in range(n):
        state ^= state >> 12
        state = (state ^ (state << 25)) % 2**64
        state ^= state >> 27
        out.append((state * 0x2545F4914F6CDD1D % 2**64) >> 56)
    return np.frombuffer(bytes(out), dtype=np.uint8).copy()


def finite_halves(seed, n):
    """`n` finite halves: the special ones first, each also meeting random ones in other fields."""
    bits = random_bytes(seed, 2 * n).view("<u2")
    bits = np.where(bits & 0x7C00 == 0x7C00, bits & 0x83FF, bits)
    bits[: len(SPECIAL)] = SPECIAL[:n]
    return np.roll(bits, seed % 5).astype("<u2")


def blocks_of(kind, n):
    _, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = random_bytes(1 + int(kind), n * block_bytes).reshape(n, block_bytes)
    for field, at in enumerate(SCALES_AT[kind]):
        halves = finite_halves(100 + 7 * int(kind) + field, n)
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(n, 2)
    if kind == T.F32:
        bits = blocks.view("<u4")
        blocks = np.where(bits & 0x7F800000 == 0x7F800000, bits & 0x807FFFFF, bits).view(np.uint8)
    if kind == T.BF16:
        bits = blocks.view("<u2")
        blocks = np.where(bits & 0x7F80 == 0x7F80, bits & 0x807F, bits).astype("<u2").view(np.uint8)
    return np.ascontiguousarray(blocks)


def weights_of(kind, n_blocks):
    """Weights on a grid of powers of two times odd integers, so that many land on rounding ties."""
    n = 32 * n_blocks
    raw = random_bytes(500 + int(kind), 2 * n).view("<i2").astype(np.float32)
    per_block = np.exp2(np.arange(n_blocks) % 11 - 16).astype(np.float32)
    weights = raw.reshape(n_blocks, 32) * per_block[:, None]
    weights[0] = 0.0  # no scale at all
    weights[1] = np.arange(-16, 16) / 8  # ties in every format
    weights[2] = np.abs(weights[2])  # a minimum above zero
    weights[3, :2] = [3e-6, -3e-6]  # a scale that is subnormal as f16
    weights[3, 2:] = 0.0
    weights[4] = 0.75  # no spread
    return weights


def main(folder):
    with open(folder / "blocks.bin", "wb") as file:
        for kind in SCALES_AT:
            block_len, _ = GGML_QUANT_SIZES[kind]
            blocks = blocks_of(kind, {1: 64, 32: 16, 256: 12}[block_len])
            weights = dequantize(blocks, kind)
            assert np.isfinite(weights).all(), kind
            file.write(np.array([kind, len(blocks)], dtype="<u4").tobytes())
            file.write(blocks.tobytes())
            file.write(weights.astype("<f4").tobytes())
    with open(folder / "quantize.bin", "wb") as file:
        for kind in WRITTEN:
            weights = weights_of(kind, 16)
            file.write(np.array([kind, weights.size], dtype="<u4").tobytes())
            file.write(weights.astype("<f4").tobytes())
            file.write(quantize(weights, kind).tobytes())


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
