"""Prefixes and prompts of the small random checkpoints, and the logits that transformers and PEFT compute.

    python scripts/oracles/virtual_tokens.py crates/offshoot-models/tests/data/virtual_tokens

writes for each variant of VARIANTS a folder `KIND_MODEL` as PEFT saves it, with random numbers, and
`KIND_MODEL.logits` in the form that `logits.py` tells. That script's models are built anew.

Needs what `logits.py` needs, and `peft` (0.21).
"""

import pathlib
import struct
import sys

import torch
from logits import MODELS, TOKENS, build
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

# Between them: groups of heads, norms of heads, a window, embeddings that are scaled.
VARIANTS = [
    ("prefix", "qwen2_untied"),
    ("prefix", "qwen3_tied"),
    ("prefix", "mistral_window"),
    ("prompt", "llama_factors"),
    ("prompt", "gemma3_linear"),
]  # fmt: skip
KINDS = {"prefix": PrefixTuningConfig, "prompt": PromptTuningConfig}
VIRTUAL = 3


def main(folder):
    seeds = {name: seed for seed, name in enumerate(MODELS, start=1)}
    folder.mkdir(parents=True, exist_ok=True)
    for kind, name in VARIANTS:
        seed = seeds[name]
        base = build(seed, MODELS[name])
        config = KINDS[kind](task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
        model = get_peft_model(base, config)
        generator = torch.Generator().manual_seed(2000 + seed)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if "prompt_encoder" in key:
                    weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
        model.eval()
        vocab = model.config.vocab_size
        generator = torch.Generator().manual_seed(100 + seed)
        tokens = torch.randint(vocab, (1, TOKENS), generator=generator)
        mask = torch.ones_like(tokens)
        with torch.no_grad():
            logits = model(tokens, attention_mask=mask).logits[0, -TOKENS:]
            with model.disable_adapter():
                moved = (logits - model(tokens, attention_mask=mask).logits[0]).abs().max()
        out = folder / f"{kind}_{name}"
        model.save_pretrained(out)
        (out / "README.md").unlink(missing_ok=True)
        record = struct.pack("<2I", TOKENS, vocab) + tokens.numpy().astype("<u4").tobytes()
        (folder / f"{kind}_{name}.logits").write_bytes(record + logits.numpy().astype("<f4").tobytes())
        print(f"{kind} {name}: logits of spread {logits.std():.2f}, moved by up to {moved:.2f}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
