"""Works out the digests that offshoot-kernels' tests/replay.rs knows, from the pages of the updates
(src/update.rs), of the noise and of its rounding.

Single precision is double precision rounded after each operation, which gives the same bits for sums,
products, quotients and roots. Needs nothing but Python; prints a line for each distribution: of weights
in single precision, then in bfloat16.

    python3 scripts/oracles/replay.py
"""

import hashlib
import struct

from noise import normal, philox, single
from updates import TABLE, tensor_id

SEED, STEPS, DECAY = 0x0102030405060708, 50, single(0.001)
TENSORS = [("a", 21 * 20), ("b", 16 * 128), ("c", 300)]


def entries(name: str, step: int, index: int, count: int, distribution: str) -> list[float]:
    key, out, block = [SEED & 0xFFFFFFFF, SEED >> 32], [], 0
    while len(out) < count:
        words = philox(key, [block, tensor_id(name), step, index])
        if distribution == "rademacher":
            out.extend(1.0 - 2.0 * (word >> place & 1) for word in words for place in range(32))
        elif distribution == "gauss-q8":
            out.extend(TABLE[word >> 8 * place & 0xFF] for word in words for place in range(4))
        else:
            out.extend(normal(words[0], words[1]) + normal(words[2], words[3]))
        block += 1
    return out[:count]


def rounded(weights: list[float], name: str, step: int) -> list[float]:
    key, out = [SEED & 0xFFFFFFFF, SEED >> 32], []
    for element, w in enumerate(weights):
        words = philox(key, [element // 8, tensor_id(name), step, 1 << 24])
        chance = words[element % 8 // 2] >> 16 * (element % 2) & 0xFFFF
        bits = struct.unpack("<I", struct.pack("<f", w))[0] + chance & 0xFFFF0000
        out.append(struct.unpack("<f", struct.pack("<I", bits))[0])
    return out


def end(distribution: str, halved: bool) -> str:
    keep, digest = single(1.0 - DECAY), hashlib.sha256()
    for name, count in TENSORS:
        weights = [(i * 37 % 101 - 50.0) / 64.0 for i in range(count)]
        for step in range(STEPS):
            u = [0.0] * count
            for index in range(2):
                scale = single(((step * 13 + index * 7) % 31 - 15.0) / single(1000.0))
                z = entries(name, step, index, count, distribution)
                u = [single(x + single(scale * z)) for x, z in zip(u, z)]
            weights = [single(single(w * keep) - x) for w, x in zip(weights, u)]
            if halved:
                weights = rounded(weights, name, step)
        digest.update(b"".join(struct.pack("<f", w) for w in weights))
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    for distribution in ("rademacher", "gauss-q8", "gauss-bm"):
        print(distribution, end(distribution, False), end(distribution, True))
