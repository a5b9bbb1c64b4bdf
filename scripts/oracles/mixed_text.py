"""Text of many kinds, the same from this file and from
`crates/offshoot-models/tests/support/mixed_text.rs`, which says how it is made."""

import json
from pathlib import Path

MASK = (1 << 64) - 1
DATA = Path(__file__).parents[2] / "crates/offshoot-models/tests/data"


class SplitMix64:
    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n):
        return self.next() % n

    def choose(self, items):
        return items[self.below(len(items))]


SOURCE = json.loads((DATA / "mixed_text.json").read_text())


def mixed_text(size):
    numbers, parts, length = SplitMix64(2026), [], 0
    while length < size:
        snippets = numbers.choose(SOURCE["lists"])
        for _ in range(1 + numbers.below(12)):
            part = numbers.choose(snippets) + numbers.choose(SOURCE["gaps"])
            parts.append(part)
            length += len(part.encode())
    return "".join(parts)


def random_strings(count):
    numbers = SplitMix64(2026)

    def character():
        low, high = numbers.choose(SOURCE["ranges"])
        return chr(low + numbers.below(high - low + 1))

    return ["".join(character() for _ in range(numbers.below(25))) for _ in range(count)]


def random_ids(count, vocab_size):
    numbers = SplitMix64(2026)
    return [
        [numbers.below(vocab_size) for _ in range(1 + numbers.below(16))] for _ in range(count)
    ]
