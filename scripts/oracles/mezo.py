"""A run of MeZO on a small random Llama, as PyTorch makes it: what offshoot-engine's
tests/zeroth_order/pytorch.rs compares with.

    python scripts/oracles/mezo.py crates/offshoot-engine/tests/data/mezo

writes a folder that opens as a model (`config.json`, `model.safetensors`), `run.json` with the texts, the
losses and the slope of each step, and `end.f32`, the weights behind the last step: those of each tensor,
in ascending order of names, row by row, as little-endian numbers.

The run is the one of the method's own program (Malladi et al. 2023, algorithm 1): weights are moved in
place by eps z, by -2 eps z and by eps z back, in single precision, and then by -rate g z. Directions are
those that offshoot draws, from the definition in `noise.py`. Needs `safetensors`, `torch` (2.15) and
`transformers` (5.23).
"""

import hashlib
import json
import pathlib
import sys
from statistics import NormalDist

import torch
from noise import philox, single
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

SEED, STEPS, EPS, RATE = 7, 20, 1e-2, 2e-3
TEXTS, LENGTH, VOCABULARY = 4, 12, 64


def table() -> list[float]:
    raw = [NormalDist().inv_cdf((b + 0.5) / 256) for b in range(128, 256)]
    root = (sum(x * x for x in raw) / 128) ** 0.5
    upper = [single(x / root) for x in raw]
    return [-x for x in reversed(upper)] + upper


def direction(name: str, shape, step: int, steps_of_table: list[float]) -> torch.Tensor:
    tensor = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    count, out = shape.numel(), []
    for block in range((count + 15) // 16):
        for word in philox([SEED, 0], [block, tensor, step, 0]):
            out.extend(steps_of_table[word >> 8 * place & 0xFF] for place in range(4))
    return torch.tensor(out[:count], dtype=torch.float32).reshape(shape)


def main(folder: pathlib.Path):
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=64,
        tie_word_embeddings=False, initializer_range=0.2, rms_norm_eps=1e-5,
        bos_token_id=None, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float().eval()
    parameters = dict(sorted(model.named_parameters()))
    with torch.no_grad():
        for name, weight in parameters.items():
            if name.endswith("norm.weight"):
                weight.add_(0.1 * torch.randn(weight.shape))
    weights = {name: weight.detach().clone().contiguous() for name, weight in parameters.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(config.to_json_string())

    tokens = torch.randint(2, VOCABULARY, (TEXTS, LENGTH))
    numbers, steps = table(), []
    with torch.no_grad():
        for step in range(STEPS):
            z = {n: direction(n, w.shape, step, numbers) for n, w in parameters.items()}

            def move(scale: float):
                for name, weight in parameters.items():
                    weight.add_(z[name], alpha=scale)

            move(EPS)
            above = model(tokens, labels=tokens).loss.item()
            move(-2 * EPS)
            below = model(tokens, labels=tokens).loss.item()
            move(EPS)
            g = (above - below) / (2 * EPS)
            move(-RATE * g)
            steps.append({"above": above, "below": below, "g": g})
    run = {
        "seed": SEED, "eps": EPS, "rate": RATE, "texts": tokens.tolist(), "steps": steps,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run, indent=1) + "\n")
    end = torch.cat([weight.flatten() for weight in parameters.values()])
    (folder / "end.f32").write_bytes(end.detach().numpy().astype("<f4").tobytes())
    print(len(end), "weights;", steps[0], steps[-1])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
