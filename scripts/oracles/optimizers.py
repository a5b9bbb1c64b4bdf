"""Steps of PyTorch's optimisers.

    python scripts/oracles/optimizers.py crates/offshoot-methods/src/optim/tests/optimizers.json

writes runs of some steps on random gradients: the settings, the weights at the start, each gradient and
the weights after it. PyTorch's Muon iterates in bfloat16; here it is made to keep single precision.
Decay of SGD is coupled to the gradient in PyTorch and decoupled in ours, so it is compared without.

Needs `torch` (2.9 or later).
"""

import json
import pathlib
import sys

import torch

STEPS = 6
ADAMW = dict(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0)


def adamw(options):
    betas = (options["beta1"], options["beta2"])
    keep = dict(betas=betas, eps=options["epsilon"], weight_decay=options["weight_decay"])
    return lambda p, rate: torch.optim.AdamW([p], lr=rate, foreach=False, **keep)


def sgd(options):
    keep = dict(momentum=options["momentum"], nesterov=options["nesterov"])
    return lambda p, rate: torch.optim.SGD([p], lr=rate, foreach=False, **keep)


def muon(options):
    keep = dict(
        momentum=options["momentum"], nesterov=options["nesterov"],
        weight_decay=options["weight_decay"], ns_steps=options["iterations"],
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    return lambda p, rate: torch.optim.Muon([p], lr=rate, **keep)


RUNS = [
    ("adamw matrix", "adamw", dict(ADAMW, weight_decay=0.1), adamw, 1e-2, (3, 5)),
    ("adamw vector", "adamw", dict(ADAMW, beta2=0.95, epsilon=1e-6), adamw, 3e-3, (1, 7)),
    ("sgd", "sgd", dict(momentum=0.9, nesterov=False, weight_decay=0.0), sgd, 0.1, (2, 4)),
    ("sgd nesterov", "sgd", dict(momentum=0.8, nesterov=True, weight_decay=0.0), sgd, 0.1, (2, 4)),
    ("sgd plain", "sgd", dict(momentum=0.0, nesterov=False, weight_decay=0.0), sgd, 0.1, (1, 4)),
    ("muon wide", "muon",
     dict(momentum=0.95, nesterov=True, iterations=5, weight_decay=0.1, adamw=ADAMW),
     muon, 1e-2, (4, 9)),
    ("muon tall", "muon",
     dict(momentum=0.9, nesterov=False, iterations=5, weight_decay=0.0, adamw=ADAMW),
     muon, 2e-2, (9, 4)),
]  # fmt: skip


def main(path):
    torch.bfloat16 = torch.float32
    generator = torch.Generator().manual_seed(1)
    out = []
    for name, kind, options, make, rate, (rows, cols) in RUNS:
        shape = (cols,) if rows == 1 else (rows, cols)
        parameter = torch.nn.Parameter(torch.randn(shape, generator=generator))
        begin = parameter.detach().flatten().tolist()
        optimizer = make(options)(parameter, rate)
        gradients, weights = [], []
        for _ in range(STEPS):
            parameter.grad = torch.randn(shape, generator=generator)
            gradients.append(parameter.grad.flatten().tolist())
            optimizer.step()
            weights.append(parameter.detach().flatten().tolist())
        out.append(dict(
            name=name, options=dict(name=kind, **options), rate=rate, rows=rows, cols=cols,
            begin=begin, gradients=gradients, weights=weights,
        ))  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(run) for run in out) + "\n]\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
