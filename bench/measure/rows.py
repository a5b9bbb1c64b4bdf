"""The rows of the table: what is compared, and the target it must reach.

Targets are for two cores with AVX-512; where there is AVX2 alone, as llama.cpp is built there, only
speed beside llama.cpp is asked for. Where llama.cpp can do one thing in several ways, its best
way counts, chosen by the medians; of PyTorch's two precisions the faster one counts.
"""

import dataclasses

# Files that `bench/shapes` makes.
SHAPES = {("llama", 1024): "Mistral's", ("qwen3", 1024): "Qwen3's", ("gemma3", 1152): "Gemma 3's"}
ROLES = {("llama", 576): "135M", ("qwen2", 896): "0.5B", **SHAPES}
STEP_TARGETS = {"135M": {4: 1.25, 8: 1.8, 16: 3.3}, "0.5B": {4: 1.15, 8: 1.45, 16: 2.3},
                **{role: {8: 1.6} for role in SHAPES.values()}}
FIRST_TOKEN_S = {"empty": 0.35, "packed": 0.2}
BANDWIDTH_SHARE = 0.75
PEAK_OVER_FILE = 1.3
# The instruction sets without AVX-512, and what is asked beside llama.cpp there.
AVX2 = ("avx2", "avx2-vnni")
AVX2_TARGETS = {"decode": 1.0, "prompt": 1.3}


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison. `value` is held against `target`; without a value the row fails."""

    model: str
    what: str
    unit: str
    ours: float | None
    peer: float | None
    value: float | None
    bound: str
    target: float
    note: str = ""

    @property
    def passed(self):
        if self.value is None:
            return False
        return self.value >= self.target if self.bound == ">=" else self.value <= self.target


def quotient(a, b):
    return a / b if a is not None and b else None


def all_rows(samples, models, avx2=False):
    """All rows for the models that were measured; `avx2` on a machine without AVX-512's dot product."""
    rows = []
    for model in models:
        if avx2:
            rows += [dataclasses.replace(row, target=target)
                     for row in speed_rows(samples, model.role) if "llama.cpp" in row.note
                     for word, target in AVX2_TARGETS.items() if row.what.startswith(word)]
            continue
        rows += speed_rows(samples, model.role) + step_rows(samples, model.role)
        if model.role == "135M":
            rows += first_token_rows(samples, model.role)
        elif model.role == "0.5B":
            rows += [bandwidth_row(samples, model), memory_row(samples, model)]
    return rows


def at_least(samples, role, what, ours, peer, target):
    """A row of tokens a second: ours over the best that the samples named `peer` hold."""
    figure = samples.median(role, "offshoot", *ours)
    best, way = samples.best(role, *peer)
    name = " ".join(part for part in (*peer, way) if part)
    return Row(role, what, "tok/s", figure, best, quotient(figure, best), ">=", target, name)


def speed_rows(samples, role):
    def row(what, ours, peer, target):
        return at_least(samples, role, what, ours, peer, target)

    decode, wall, prompt = "decode_tokens_per_s", ("decode_wall",), "prompt_tokens_per_s"
    if role in SHAPES.values():
        return [
            row("decode", ("bench", decode), ("llama.cpp", "decode", "same file"), 1.1),
            row("prompt of 512", ("bench", prompt), ("llama.cpp", "prompt", "same file"), 2.0),
        ]
    if role == "0.5B":
        return [
            row("decode", ("bench", decode), ("llama.cpp", "decode", "same file"), 1.2),
            row("decode, by the wall", wall, ("llama.cpp", "wall", "same file"), 1.2),
            row("prompt of 512", ("bench", prompt), ("llama.cpp", "prompt", "same file"), 3.5),
        ]
    return [
        row("decode", ("bench", decode), ("llama.cpp", "decode", "same file"), 2.2),
        row("decode, by the wall", wall, ("llama.cpp", "wall", "same file"), 2.2),
        row("decode, peer requantised", ("bench", decode),
            ("llama.cpp", "decode", "requantised"), 1.9),
        row("prompt of 512, peer's best file", ("bench", prompt), ("llama.cpp", "prompt"), 2.5),
        row("prompt of 512", ("bench", prompt), ("pytorch", "prompt"), 2.0),
    ]


def step_rows(samples, role):
    """What k tokens cost over one, with llama.cpp's cost of the same beside it."""
    rows = []
    one = samples.median(role, "offshoot", "bench", "step_ms", 1)
    peer_one, _ = samples.best(role, "llama.cpp", "step_ms", 1, better=min)
    for k, target in STEP_TARGETS[role].items():
        ours = samples.median(role, "offshoot", "bench", "step_ms", k)
        peer, _ = samples.best(role, "llama.cpp", "step_ms", k, better=min)
        ratio, peer_ratio = quotient(ours, one), quotient(peer, peer_one)
        note = "" if peer_ratio is None else f"llama.cpp {peer_ratio:.2f} times its one"
        rows.append(Row(role, f"step of {k} over one", "ms", ours, peer, ratio, "<=", target, note))
    return rows


def first_token_rows(samples, role):
    peer, _ = samples.best(role, "llama.cpp", "first_token_s", better=min)
    rows = []
    for cache, target in FIRST_TOKEN_S.items():
        ours = samples.median(role, "offshoot", "first_token_s", cache)
        what = f"first token, {cache} cache"
        rows.append(Row(role, what, "s", ours, peer, ours, "<=", target, "start to first byte"))
    return rows


def bandwidth_row(samples, model):
    """Bytes that a step of one token must read, by the file, over what memory could deliver.

    The greater of two readings of the bandwidth counts, and the smaller of two counts of bytes: the
    packed form may be larger than the file, and reading more is no merit.
    """
    def median(*name):
        return samples.median(model.role, "offshoot", "bench", *name)

    step_ms, kv_bytes, packed_bytes = median("step_ms", 1), median("kv_bytes"), median("step_bytes")
    readings = [median("read_bandwidth_gb_s"), samples.median("machine", "read_bandwidth_gb_s")]
    ceiling = max((reading for reading in readings if reading), default=None)
    rate = None
    if None not in (step_ms, kv_bytes, packed_bytes):
        kv_bytes = min(kv_bytes, 513 * model.kv_bytes_per_token_bf16)
        rate = (min(model.step_bytes, packed_bytes) + kv_bytes) / step_ms * 1e-6
    share = quotient(rate, ceiling)
    return Row(model.role, "read rate of a step", "GB/s", rate, ceiling, share, ">=",
               BANDWIDTH_SHARE, "memory's read rate in this run")


def memory_row(samples, model):
    peak = samples.median(model.role, "offshoot", "peak_bytes")
    peer = samples.median(model.role, "llama.cpp", "peak_bytes")
    ratio = quotient(peak, model.file_bytes)
    megabytes = [None if n is None else n * 1e-6 for n in (peak, peer)]
    return Row(model.role, "peak memory over file", "MB", *megabytes, ratio, "<=", PEAK_OVER_FILE,
               f"file {model.file_bytes * 1e-6:.0f} MB, context 2048, llama.cpp beside")
