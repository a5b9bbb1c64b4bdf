"""Writes the table of Gaussian steps that offshoot-kernels' noise/table.rs holds, and the entries
that its tests know.

Byte b stands for Phi^-1((b + 0.5) / 256), divided by the root of the mean square of all 256, rounded
to single precision. The lower half is the upper one with its signs turned, so that the table is
antisymmetric to the bit. Single precision is double precision rounded after each operation, which
gives the same bits for sums, products, quotients and roots. Needs nothing but Python; prints the file's numbers and what they come to.

    python3 scripts/oracles/noise.py
"""

import struct
from statistics import NormalDist


def bits(x: float) -> int:
    return struct.unpack("<I", struct.pack("<f", x))[0]


def single(x: float) -> float:
    return struct.unpack("<f", struct.pack("<f", x))[0]


def philox(key: list[int], counter: list[int]) -> list[int]:
    """Ten rounds of Philox-4x32."""
    c, k = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [q >> 32 ^ c[1] ^ k[0], q & 0xFFFFFFFF, p >> 32 ^ c[3] ^ k[1], p & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def series(coefficients: list[float], x: float) -> float:
    total = single(coefficients[0])
    for c in coefficients[1:]:
        total = single(single(total * x) + single(c))
    return total


def normal(a: int, b: int) -> list[float]:
    """Box and Muller's pair of two words."""
    u = single(float(a >> 16 << 16) + ((a & 0xFFFF) + 0.5)) * 2.0**-32
    offset = bits(u) - 0x3F3504F3
    exponent = offset >> 23
    m = struct.unpack("<f", struct.pack("<I", (offset & 0x7FFFFF) + 0x3F3504F3))[0]
    s = single(single(m - 1.0) / single(m + 1.0))
    logarithm = single(
        single(s * series([2 / 9, 2 / 7, 2 / 5, 2 / 3, 2.0], single(s * s)))
        + single(exponent * single(0.6931471805599453))
    )
    radius = single((-2.0 * logarithm) ** 0.5)
    quarter = (b + (1 << 29)) % 2**32 >> 30
    rest = (b - (quarter << 30)) % 2**32
    rest = rest - 2**32 if rest >= 2**31 else rest
    x = single(single(single(rest) + 0.5) * (single(1.5707963267948966) * 2.0**-30))
    squared = single(x * x)
    cos = series([-1 / 3628800, 1 / 40320, -1 / 720, 1 / 24, -0.5, 1.0], squared)
    sin = single(x * series([1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1.0], squared))
    c, s = [(cos, sin), (-sin, cos), (-cos, -sin), (sin, -cos)][quarter]
    return [single(radius * c), single(radius * s)]


def entry(distribution: str, element: int, table: list[float]) -> float:
    """What `Noise::at` gives for the tests' direction."""
    elements = {"rademacher": 128, "gauss-q8": 16, "gauss-bm": 4}[distribution]
    block, place = divmod(element, elements)
    words = philox([0x89ABCDEF, 0x01234567], [block, 0xDEADBEEF, 7, 0])
    if distribution == "rademacher":
        return 1.0 - 2.0 * (words[place // 32] >> place % 32 & 1)
    if distribution == "gauss-q8":
        return table[words[place // 4] >> 8 * (place % 4) & 0xFF]
    return normal(words[place & 2], words[place & 2 | 1])[place % 2]


def main() -> None:
    raw = [NormalDist().inv_cdf((b + 0.5) / 256) for b in range(128, 256)]
    root = (sum(x * x for x in raw) / 128) ** 0.5
    upper = [single(x / root) for x in raw]
    table = [-x for x in reversed(upper)] + upper
    for at in range(0, 256, 8):
        print("    " + " ".join(f"0x{bits(x):08x}," for x in table[at : at + 8]))
    square = sum(x * x for x in table) / 256
    kurtosis = sum(x**4 for x in table) / 256 / square**2
    print(f"// root {root!r}, variance {square!r}, kurtosis {kurtosis!r}, greatest {table[-1]!r}")

    for distribution in ["rademacher", "gauss-q8", "gauss-bm"]:
        known = [f"0x{bits(entry(distribution, e, table)):08x}" for e in (0, 1, 2, 1000)]
        print(f"// {distribution}: {', '.join(known)}")


if __name__ == "__main__":
    main()
