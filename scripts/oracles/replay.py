"""Works out the digests that offshoot-kernels' tests/replay.rs knows, from the page of the updates
(src/update.rs) and that of the noise.

Single precision is double precision rounded after each operation, which gives the same bits for sums,
products, quotients and roots. Needs nothing but Python; prints a line for each distribution.

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


def end(distribution: str) -> str:
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
        digest.update(b"".join(struct.pack("<f", w) for w in weights))
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    for distribution in ("rademacher", "gauss-q8", "gauss-bm"):
        print(distribution, end(distribution))
