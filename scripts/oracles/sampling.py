"""Reference distributions for the sampler, from the logits processors of transformers.

Run with torch and transformers installed; it rewrites crates/offshoot-methods/golden/sampling.json.
The processors run in double precision on single-precision logits.
"""

import json
import pathlib
import random
import struct

import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

N_VOCAB = 48
OUT = pathlib.Path(__file__).parents[2] / "crates/offshoot-methods/golden/sampling.json"


def single(x):
    """Rounds to single precision, so that both sides read the same number."""
    return struct.unpack("f", struct.pack("f", x))[0]


def processors(options):
    yield RepetitionPenaltyLogitsProcessor(options["repetition_penalty"])
    yield TemperatureLogitsWarper(options["temperature"])
    if options["top_k"]:
        yield TopKLogitsWarper(options["top_k"])
    if options["top_p"] < 1:
        yield TopPLogitsWarper(options["top_p"])
    if options["min_p"]:
        yield MinPLogitsWarper(options["min_p"])


def case(rng):
    options = {
        "temperature": rng.choice([0.5, 0.8, 1.0, 1.5]),
        "top_k": rng.choice([0, 5, 20]),
        "top_p": rng.choice([0.5, 0.9, 0.95, 1.0]),
        "min_p": rng.choice([0.0, 0.02, 0.1]),
        "repetition_penalty": rng.choice([1.0, 1.3]),
        "penalty_window": None,
        "seed": 0,
    }
    context = [rng.randrange(N_VOCAB) for _ in range(12)]
    logits = [single(round(rng.gauss(0, 2.5), 4)) for _ in range(N_VOCAB)]
    ids = torch.tensor([context])
    scores = torch.tensor([logits], dtype=torch.float64)
    for processor in processors(options):
        scores = processor(ids, scores)
    p = scores.softmax(-1)[0].tolist()
    kept = [[t, round(x, 9)] for t, x in enumerate(p) if x > 0]
    rounded = [round(x, 4) for x in logits]
    return {"options": options, "context": context, "logits": rounded, "distribution": kept}


rng = random.Random(1)
lines = ",\n".join(json.dumps(case(rng)) for _ in range(24))
OUT.write_text(f"[\n{lines}\n]\n")
