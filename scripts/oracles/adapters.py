"""LoRA adapters of the small random checkpoints, and the logits that transformers and PEFT compute.

    python scripts/oracles/adapters.py crates/offshoot-models/tests/data/adapters [NAME ...]

writes for each model of ADAPTERS, or for those named, a folder `NAME` as PEFT saves it, with random A
and B, and `NAME.logits` in the form that `logits.py` tells, for the same tokens. That script's models
are built anew.

Needs what `logits.py` needs, and `peft` (0.21).
"""

import pathlib
import struct
import sys

import torch
from logits import MODELS, TOKENS, build
from peft import LoraConfig, get_peft_model

# Between them: every matrix of a layer, the output head, and matrices that Phi-3 keeps in one; rows
# that GGUF files keep in another order; ranks and alphas of single matrices; both rules of scaling.
ADAPTERS = {
    "llama_factors": dict(
        r=4, lora_alpha=8,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ),
    "qwen2_untied": dict(
        r=3, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "k_proj", "lm_head"],
        rank_pattern={"k_proj": 5, r"model.layers.[01].self_attn.q_proj": 2},
        alpha_pattern={"layers.1.self_attn.k_proj": 10},
    ),
    "phi3_short": dict(
        r=2, lora_alpha=3, target_modules=["qkv_proj", "gate_up_proj", "o_proj"],
    ),
    "gemma3_linear": dict(r=2, lora_alpha=4, target_modules=["v_proj", "down_proj"]),
    "llama_linear": dict(r=2, lora_alpha=2, target_modules=["q_proj", "k_proj", "lm_head"]),
    "mistral_window": dict(
        r=3, lora_alpha=6, target_modules=["q_proj", "k_proj", "v_proj", "up_proj"],
    ),
    "qwen3_yarn": dict(
        r=2, lora_alpha=5, use_rslora=True,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"],
    ),
    "qwen3_moe": dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "o_proj", "lm_head"]),
}  # fmt: skip


def main(folder, names):
    seeds = {name: seed for seed, name in enumerate(MODELS, start=1)}
    for name, spec in ADAPTERS.items():
        if names and name not in names:
            continue
        seed = seeds[name]
        model = get_peft_model(build(seed, MODELS[name]), LoraConfig(task_type="CAUSAL_LM", **spec))
        generator = torch.Generator().manual_seed(1000 + seed)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if "lora_" in key:
                    weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
        model.eval()
        vocab = model.config.vocab_size
        generator = torch.Generator().manual_seed(100 + seed)
        tokens = torch.randint(vocab, (1, TOKENS), generator=generator)
        with torch.no_grad():
            logits = model(tokens).logits[0]
            with model.disable_adapter():
                moved = (logits - model(tokens).logits[0]).abs().max()
        model.save_pretrained(folder / name)
        (folder / name / "README.md").unlink(missing_ok=True)
        record = struct.pack("<2I", TOKENS, vocab) + tokens.numpy().astype("<u4").tobytes()
        (folder / f"{name}.logits").write_bytes(record + logits.numpy().astype("<f4").tobytes())
        print(f"{name}: logits of spread {logits.std():.2f}, moved by up to {moved:.2f}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
