"""Logits of PEFT with the adapters that offshoot wrote for the small random checkpoints.

    OFFSHOOT_WRITE_ADAPTERS=1 cargo test -p offshoot-models --test adapter_folders
    python scripts/oracles/written_adapters.py crates/offshoot-models/tests/data/written_adapters

writes `NAME.logits` beside each folder `NAME`, in the form that `logits.py` tells, for the tokens of its
model's reference text. That script's models are built anew. A warning of PEFT's, as of matrices that
are missing, is an error.

Needs what `logits.py` needs, and `peft` (0.21).
"""

import pathlib
import struct
import sys
import warnings

import torch
from logits import MODELS, TOKENS, build
from peft import PeftModel


def main(folder):
    warnings.simplefilter("error", UserWarning)
    seeds = {name: seed for seed, name in enumerate(MODELS, start=1)}
    for name in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        base = build(seeds[name], MODELS[name])
        generator = torch.Generator().manual_seed(100 + seeds[name])
        tokens = torch.randint(base.config.vocab_size, (1, TOKENS), generator=generator)
        with torch.no_grad():
            plain = base(tokens).logits[0].clone()
            model = PeftModel.from_pretrained(base, folder / name).eval()
            logits = model(tokens).logits[0]
        moved = (logits - plain).abs().max()
        record = struct.pack("<2I", *logits.shape) + tokens.numpy().astype("<u4").tobytes()
        (folder / f"{name}.logits").write_bytes(record + logits.numpy().astype("<f4").tobytes())
        print(f"{name}: logits of spread {logits.std():.2f}, moved by up to {moved:.2f}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
