"""Works out the weights that offshoot-methods' tune/tests/golden.rs knows, from the pages of the
methods and of the kernels' noise.

Single precision is double precision rounded after each operation, which gives the same bits for
sums, products, quotients and roots. Needs nothing but Python; prints the table's lines.

    python3 scripts/oracles/updates.py
"""

import hashlib
import struct
from statistics import NormalDist

from noise import philox, single

SEED = 0x5EED12345678
DIRECTION, MASK, LEFT, RIGHT = 0, 2, 3, 4
TENSORS = [
    ("model.embed_tokens.weight", 5, 3, None),
    ("model.layers.0.mlp.up_proj.weight", 4, 3, 0),
    ("model.layers.0.self_attn.q_proj.weight", 4, 3, 0),
    ("model.layers.1.mlp.up_proj.weight", 4, 3, 1),
    ("model.layers.1.self_attn.q_proj.weight", 4, 3, 1),
    ("model.norm.weight", 1, 4, None),
]
BLOCKS = [[1, 2], [3, 4], [0, 5]]


def steps_of_equal_chance() -> list[float]:
    raw = [NormalDist().inv_cdf((b + 0.5) / 256) for b in range(128, 256)]
    root = (sum(x * x for x in raw) / 128) ** 0.5
    upper = [single(x / root) for x in raw]
    return [-x for x in reversed(upper)] + upper


TABLE = steps_of_equal_chance()


def tensor_id(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def words(block: int, tensor: int, step: int, purpose: int, index: int) -> list[int]:
    key = [SEED & 0xFFFFFFFF, SEED >> 32]
    return philox(key, [block, tensor, step, purpose << 24 | index])


def draw(name: str, step: int, purpose: int, index: int, count: int, signs: bool) -> list[float]:
    tensor, out = tensor_id(name), []
    for element in range(count):
        block, place = divmod(element, 128 if signs else 16)
        w = words(block, tensor, step, purpose, index)
        if signs:
            out.append(1.0 - 2.0 * (w[place // 32] >> place % 32 & 1))
        else:
            out.append(TABLE[w[place // 4] >> 8 * (place % 4) & 0xFF])
    return out


def dot(pairs) -> float:
    total = 0.0
    for x, y in pairs:
        total += x * y
    return total


def times(a: list[float], b: list[float], r: int) -> list[float]:
    """A matrix of r columns by one of r by r."""
    rows = [a[i : i + r] for i in range(0, len(a), r)]
    return [single(dot(zip(row, b[j::r]))) for row in rows for j in range(r)]


def product(left: list[float], right: list[float], rows: int, cols: int, r: int) -> list[float]:
    out = []
    for i in range(rows):
        for j in range(cols):
            total = 0.0
            for k in range(r):
                total = single(total + single(left[i * r + k] * right[j * r + k]))
            out.append(total)
    return out


def orthonormal(a: list[float], r: int) -> list[float]:
    columns = [list(a[k::r]) for k in range(r)]
    for k, column in enumerate(columns):
        for _ in range(2):
            for other in columns[:k]:
                share = dot(zip(column, other))
                column[:] = [x - share * y for x, y in zip(column, other)]
        length = dot(zip(column, column)) ** 0.5
        column[:] = [x / length for x in column]
    return [single(columns[k][i]) for i in range(len(columns[0])) for k in range(r)]


def low_rank(t, step: int, index: int, start: int, end: int) -> list[float]:
    """`U T V^T / sqrt(2)`, carried from epoch `start` to epoch `end`."""
    name, rows, cols, _ = t
    left = draw(name, step, LEFT, index, rows * 2, False)
    for epoch in range(start, end):
        old = draw(name, epoch, RIGHT, 0, cols * 2, False)
        new = draw(name, epoch + 1, RIGHT, 0, cols * 2, False)
        bridge = [
            single(dot(zip(old[i::2], new[j::2])) / cols) for i in range(2) for j in range(2)
        ]
        left = times(left, bridge, 2)
    scale = single(1.0 / 2.0**0.5)
    left = [single(x * scale) for x in left]
    return product(left, draw(name, end, RIGHT, 0, cols * 2, False), rows, cols, 2)


def subspace(t, step: int, index: int) -> list[float]:
    name, rows, cols, _ = t
    r = min(24, rows, cols)
    p = orthonormal(draw(name, 0, LEFT, 0, rows * r, False), r)
    q = orthonormal(draw(name, 0, RIGHT, 0, cols * r, False), r)
    scale = single((rows * cols) ** 0.5 / r)
    left = times(p, draw(name, step, DIRECTION, index, r * r, False), r)
    return product([single(x * scale) for x in left], q, rows, cols, r)


def smallest(first: list[float]) -> set[int]:
    kept = int(len(first) * 0.25 + 0.5)
    return set(sorted(range(len(first)), key=lambda e: (abs(first[e]), e))[:kept])


def entries(method: str, place: int, first, step: int, index: int, now: int) -> list[float]:
    """A direction of step `step` in a tensor, as step `now` uses it."""
    t = TENSORS[place]
    name, rows, cols, layer = t
    if rows > 1 and method in ("lozo", "lozo-m"):
        return low_rank(t, step, index, step // 50, now // 50)
    if rows > 1 and method == "subzero":
        return subspace(t, step, index)
    z = draw(name, step, DIRECTION, index, rows * cols, method == "fzoo")
    if method == "sparse":
        kept = smallest(first[place])
        z = [x if e in kept else 0.0 for e, x in enumerate(z)]
    if method == "lezo" and layer is not None:
        order = [words(l, tensor_id("layers"), step, MASK, 0)[0] for l in range(2)]
        z = z if order[layer] == min(order) else [0.0] * len(z)
    return z


def power(base: float, exponent: int) -> float:
    value = 1.0
    for _ in range(exponent):
        value *= base
    return value


def total(terms, size: int) -> list[float]:
    u = [0.0] * size
    for scale, z in terms:
        u = [single(x + single(scale * y)) for x, y in zip(u, z)]
    return u


def adam_step(method, rate, gradients, size: int) -> list[float]:
    betas = (0.9, 0.999) if method == "adam" else (0.9, 0.9)
    left = [power(b, len(gradients)) if method == "adam" else 0.0 for b in betas]
    fix = [single(1.0 / (1.0 - x)) for x in left]
    b1, b2 = map(single, betas)
    m, v = [0.0] * size, [0.0] * size
    for g in gradients:
        m = [single(single(b1 * m) + single(single(1.0 - b1) * x)) for m, x in zip(m, g)]
        squares = [single(single(1.0 - b2) * single(x * x)) for x in g]
        v = [single(single(b2 * v) + x) for v, x in zip(v, squares)]
    above = [single(single(rate) * single(m * fix[0])) for m in m]
    below = [single(single(single(v * fix[1]) ** 0.5) + single(1e-8)) for v in v]
    return [single(a / b) for a, b in zip(above, below)]


def scales(method: str, rate: float, numbers: list[float], state: dict) -> list[float]:
    """What two directions of a step are multiplied with."""
    if method == "sign":
        numbers = [float((g > 0) - (g < 0)) for g in numbers]
    if method == "meazo":
        square = sum(g * g for g in numbers) / 2
        state["v"] = 0.99 * state.get("v", 0.0) + (1.0 - 0.99) * square
        state["left"] = state.get("left", 1.0) * 0.99
        rate = rate / ((state["v"] / (1.0 - state["left"])) ** 0.5 + 1e-8)
    return [single(rate * g / 2) for g in numbers]


def history_terms(method: str, rate: float, past, place: int, first, now: int):
    terms = []
    for age, (step, numbers) in reversed(list(enumerate(reversed(past)))):
        for index, g in enumerate(numbers):
            if method == "mmt":
                scale = single(rate * power(0.9, age) * g / 2)
            elif method == "lozo-m":
                scale = single(rate * (1.0 - 0.9) / 2 * power(0.9, age) * g)
            else:
                scale = single(g / 2)
            terms.append((scale, entries(method, place, first, step, index, now)))
    return terms


def step_in(method: str, place: int, first, step: int, rate: float, numbers, past, s):
    """What a step takes from a tensor."""
    size = len(first[place])
    if method == "fedkseed":
        pool = [(single(rate * a), draw(TENSORS[place][0], 0, DIRECTION, j, size, False))
                for j, a in enumerate(numbers)]
        return total(pool, size)
    if method in ("mmt", "lozo-m", "adam", "adamezo"):
        window = past[-16:] if method == "adamezo" else past[-64:]
        terms = history_terms(method, rate, window, place, first, step)
        if method.startswith("adam"):
            pairs = [terms[i : i + 2] for i in range(0, len(terms), 2)]
            return adam_step(method, rate, [total(pair, size) for pair in pairs], size)
        return total(terms, size)
    if method == "block":
        block = next(b for b, tensors in enumerate(BLOCKS) if place in tensors)
        s = [single(rate * g / 2) for g in numbers[2 * block : 2 * block + 2]]
    return total([(s[i], entries(method, place, first, step, i, step)) for i in range(2)], size)


def run(method: str) -> str:
    at, first = 0, []
    for _, rows, cols, _ in TENSORS:
        places = range(at + 1, at + 1 + rows * cols)
        first.append([single((p * 13 % 11 - 5.0) / single(50.0)) for p in places])
        at += rows * cols
    weights, past, state = [list(w) for w in first], [], {}
    for step in range(0, 120, 10):
        rate = 0.01 / (step + 1)
        count = {"block": 6, "fedkseed": 4096}.get(method, 2)
        numbers = [((step + 7 * i) * 13 % 31 - 15) / 8 for i in range(count)]
        past.append((step, numbers))
        s = scales(method, rate, numbers[:2], state)
        for place, (_, rows, _, _) in enumerate(TENSORS):
            u = step_in(method, place, first, step, rate, numbers, past, s)
            keep = single(1.0 - single(rate * 0.1)) if rows > 1 else 1.0
            weights[place] = [single(single(w * keep) - x) for w, x in zip(weights[place], u)]
    flat = [w for tensor in weights for w in tensor]
    return hashlib.sha256(struct.pack(f"<{len(flat)}f", *flat)).hexdigest()[:16]


def main() -> None:
    names = "mezo sign cons mmt adam adamezo fzoo meazo lozo lozo-m lezo block sparse subzero"
    for name in [*names.split(), "adazeta", "qzo", "fedkseed"]:
        print(f'    ("{name}", "{run(name)}"),')


if __name__ == "__main__":
    main()
